//! Bearer tokens: lines of a role, a name and a token; compared in constant time, read again when the file changes.

use crate::error::{Error, Result};
use crate::net::watched::Watched;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A shorter token could be guessed.
const SHORTEST: usize = 16;
/// A longer one does not fit in a header.
const LONGEST: usize = 512;
/// The largest tokens file, in bytes: every request is compared with every token.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// A word that proves who somebody is. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as it stands.
    ///
    /// # Errors
    /// It is shorter than 16 or longer than 512 characters, or has others than visible ASCII.
    pub fn new(text: &str) -> Result<Self> {
        if !(SHORTEST..=LONGEST).contains(&text.len()) {
            return Err(Error::invalid(format!(
                "a token has {SHORTEST} to {LONGEST} characters and this one has {}: make one with `openssl rand -hex 32`",
                text.len()
            )));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid(
                "a token is written in letters, digits and punctuation of ASCII, without blanks: make one with `openssl rand -hex 32`",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself, for the one who shows it to a peer.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What is compared instead of a token, so that neither its length nor a common beginning can be measured.
pub(crate) fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// What the bearer of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Register as a worker and be handed tasks.
    Worker,
    /// Run queries, submit and end jobs; look at everything.
    Submit,
    /// Look at everything.
    Read,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Worker, Self::Submit, Self::Read];

    /// Its name in a tokens file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Submit => "submit",
            Self::Read => "read",
        }
    }

    /// Whether this role is enough where `wanted` is asked for.
    pub fn includes(self, wanted: Self) -> bool {
        self == wanted || (self == Self::Submit && wanted == Self::Read)
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or(())
    }
}

/// Where the tokens are.
#[derive(Clone)]
pub enum TokenSource {
    /// A file, watched.
    File(PathBuf),
    /// The text of one, from the environment.
    Text(String),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Text(_) => f.write_str("Text(***)"),
        }
    }
}

/// One line.
struct Entry {
    role: Role,
    name: Arc<str>,
    digest: [u8; 32],
    expires: Option<DateTime<Utc>>,
}

impl Entry {
    fn parse(line: &str) -> Result<Self> {
        const SHAPE: &str =
            "write ROLE NAME TOKEN [EXPIRES], e.g. submit etl 0f3c… 2027-01-31T00:00:00Z";
        let mut words = line.split_whitespace();
        let (Some(role), Some(name), Some(token)) = (words.next(), words.next(), words.next())
        else {
            return Err(Error::invalid(format!("a line has too few words: {SHAPE}")));
        };
        // What stands in the wrong place may be the token: no word is repeated in a message before it is known to be none.
        let role = role.parse().map_err(|()| {
            Error::invalid("the first word is no role: write worker, submit or read")
        })?;
        let expires = words
            .next()
            .map(|time| {
                DateTime::parse_from_rfc3339(time).map_err(|_| {
                    Error::invalid(format!(
                        "the expiry of {name} is no time of RFC 3339: {SHAPE}"
                    ))
                })
            })
            .transpose()?;
        if words.next().is_some() {
            return Err(Error::invalid(format!(
                "a line has too many words: {SHAPE}"
            )));
        }
        let token = Token::new(token)?;
        Ok(Self {
            role,
            name: Arc::from(name),
            digest: digest(token.expose()),
            expires: expires.map(|time| time.with_timezone(&Utc)),
        })
    }
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let entries: Vec<Entry> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|(number, line)| {
            Entry::parse(line).map_err(|error| error.context(format!("line {}", number + 1)))
        })
        .collect::<Result<_>>()?;
    if entries.is_empty() {
        return Err(Error::invalid(
            "there is no token, so nobody could do anything: write lines ROLE NAME TOKEN",
        ));
    }
    Ok(entries)
}

/// What a token turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bearer {
    /// Nobody's.
    Unknown,
    /// Of this name, whose time is over.
    Expired(Arc<str>),
    /// Of this name, which has these roles.
    Known(Arc<str>, Vec<Role>),
}

/// The tokens that count now.
#[derive(Debug)]
pub struct Tokens(Watched<Vec<Entry>>);

impl Tokens {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// A file that is not there or too large, a line that is none; no token at all, which would lock everyone out.
    pub fn open(source: TokenSource) -> Result<Self> {
        let files = match &source {
            TokenSource::File(path) => vec![path.clone()],
            TokenSource::Text(_) => Vec::new(),
        };
        let read = move || match &source {
            TokenSource::File(path) => read(path),
            TokenSource::Text(text) => parse(text).map_err(|error| error.context("ESSAIM_TOKENS")),
        };
        Watched::open("tokens", files, read).map(Self)
    }

    /// Reads the file again if it has changed. What does not parse changes nothing and is logged once.
    pub fn refresh(&self) {
        self.0.refresh();
    }

    /// Whose a token is. Takes as long for one that is not known as for one that is.
    pub fn bearer(&self, presented: &str) -> Bearer {
        let presented = digest(presented);
        let now = Utc::now();
        let mut name = None;
        let mut roles = Vec::new();
        for entry in self.0.get().iter() {
            let same: bool = entry.digest.ct_eq(&presented).into();
            if same {
                name = Some(Arc::clone(&entry.name));
                if entry.expires.is_none_or(|expires| now < expires) {
                    roles.push(entry.role);
                }
            }
        }
        match name {
            None => Bearer::Unknown,
            Some(name) if roles.is_empty() => Bearer::Expired(name),
            Some(name) => Bearer::Known(name, roles),
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!(
        "the tokens file {} cannot be read: {error}",
        path.display()
    ))
}

fn read(path: &Path) -> Result<Vec<Entry>> {
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if metadata.len() > MAX_FILE_BYTES {
        return Err(Error::invalid(format!(
            "the tokens file {} has {} bytes, at most {MAX_FILE_BYTES} are read",
            path.display(),
            metadata.len()
        )));
    }
    warn_if_shared(path, &metadata);
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(path, &e))?;
    parse(&text).map_err(|error| error.context(path.display()))
}

/// Says so if others than its owner may read a secret.
pub(crate) fn warn_if_shared(path: &Path, metadata: &std::fs::Metadata) {
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            "{} can be read by others than its owner (mode {mode:o}): chmod 600 it",
            path.display()
        );
    }
}

/// The token in the first line of a file.
///
/// # Errors
/// No file, or no token in it.
pub fn from_file(path: &Path) -> Result<Token> {
    let failed = |e: std::io::Error| {
        Error::invalid(format!(
            "the token file {} cannot be read: {e}",
            path.display()
        ))
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    warn_if_shared(path, &metadata);
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let line = text.lines().next().unwrap_or_default();
    Token::new(line.trim()).map_err(|error| error.context(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: &str = "0123456789abcdef-reader";
    const WORKER: &str = "0123456789abcdef-worker";

    fn tokens(text: &str) -> Tokens {
        Tokens::open(TokenSource::Text(text.to_owned())).unwrap()
    }

    #[test]
    fn a_token_has_a_name_and_the_roles_of_its_lines() {
        let tokens = tokens(&format!(
            "# who looks\nread eve {READER}\n\nworker w {WORKER} 2999-01-01T00:00:00+02:00\n submit eve {READER}\n"
        ));
        let eve = Bearer::Known(Arc::from("eve"), vec![Role::Read, Role::Submit]);
        assert_eq!(tokens.bearer(READER), eve);
        let worker = Bearer::Known(Arc::from("w"), vec![Role::Worker]);
        assert_eq!(tokens.bearer(WORKER), worker);
        for wrong in ["", "0123456789abcdef-reade", "0123456789abcdef-reader2"] {
            assert_eq!(tokens.bearer(wrong), Bearer::Unknown, "{wrong}");
        }
    }

    #[test]
    fn a_token_expires() {
        let tokens = tokens(&format!("read eve {READER} 2020-01-01T00:00:00Z"));
        assert_eq!(tokens.bearer(READER), Bearer::Expired(Arc::from("eve")));
    }

    #[test]
    fn a_wrong_line_is_named_and_its_token_is_not() {
        for (text, word) in [
            (format!("read {READER}"), "too few"),
            (format!("{READER} read eve"), "no role"),
            (format!("read eve {READER} tomorrow"), "RFC 3339"),
            (
                format!("read eve {READER} 2999-01-01T00:00:00Z x"),
                "too many",
            ),
            ("read eve sesame".to_owned(), "openssl rand"),
            ("# nobody".to_owned(), "no token"),
        ] {
            let error = Tokens::open(TokenSource::Text(text))
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
            assert!(
                !error.contains(READER) && !error.contains("sesame"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_kept_when_it_is_wrong() {
        let dir = std::env::temp_dir().join(format!("essaim-tokens-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("tokens");
        std::fs::write(&path, format!("read eve {READER}\n")).unwrap();
        let tokens = Tokens::open(TokenSource::File(path.clone())).unwrap();
        std::fs::write(&path, format!("submit eve {READER}\n")).unwrap();
        tokens.refresh();
        let submits = Bearer::Known(Arc::from("eve"), vec![Role::Submit]);
        assert_eq!(tokens.bearer(READER), submits);
        std::fs::write(&path, "nonsense\n").unwrap();
        tokens.refresh();
        assert_eq!(tokens.bearer(READER), submits);
        std::fs::write(&path, format!("read eve {WORKER}\n")).unwrap();
        tokens.refresh();
        assert_eq!(tokens.bearer(READER), Bearer::Unknown);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_of_a_token_is_shown() {
        let token = Token::new(READER).unwrap();
        let source = TokenSource::Text(READER.to_owned());
        assert!(!format!("{token:?} {source:?}").contains("0123"));
    }
}
