//! Values that may hold a password: `${VAR}` is filled in from the master's environment, and nothing is shown.

use crate::access::access;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A text that is used but never shown: `Debug` and `Display` print it redacted.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text as it stands.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Fills in every `${VAR}` from the environment.
    ///
    /// # Errors
    /// A variable that is not set or not for jobs, or a `${` without its `}`.
    pub fn expand(text: &str) -> Result<Self> {
        let filled = fill(text, |name| access().variable(name))?;
        Ok(Self(filled))
    }

    /// The text itself, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", redact(&self.0))
    }
}

/// A text with every `${VAR}` replaced by what `value` says of it.
///
/// # Errors
/// Those of `value`, or a `${` without its `}`.
pub fn fill(text: &str, mut value: impl FnMut(&str) -> Result<String>) -> Result<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        let Some(end) = from.find('}') else {
            return Err(Error::invalid("a ${ has no closing brace"));
        };
        filled.push_str(before);
        filled.push_str(&value(&from[2..end])?);
        rest = &from[end + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// A text with the passwords of its URLs (`scheme://user:password@`) and of its options
/// (`password 'x'`, `password=x` and the like) replaced by `***`. A `${VAR}` that is not filled in is no secret, and
/// stays.
pub fn redact(text: &str) -> String {
    redact_options(&redact_urls(text))
}

fn redact_urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, from) = rest.split_at(start + 3);
        shown.push_str(before);
        let end = from
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '\'' | '"' | '?' | ')'))
            .unwrap_or(from.len());
        // A password may itself hold the characters that end an authority: look for the last @ before a blank or quote.
        let wide = from
            .find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"'))
            .unwrap_or(from.len());
        let user_info = from[..end].rfind('@').or_else(|| from[..wide].rfind('@'));
        match user_info {
            Some(at) => {
                match from[..at].find(':') {
                    Some(colon) if !is_variable(&from[colon + 1..at]) => {
                        shown.push_str(&from[..colon]);
                        shown.push_str(":***");
                    }
                    _ => shown.push_str(&from[..at]),
                }
                rest = &from[at..];
            }
            None => rest = from,
        }
    }
    shown.push_str(rest);
    shown
}

/// Whether a value is one `${VAR}` and nothing else.
fn is_variable(value: &str) -> bool {
    let name = value.strip_prefix("${").and_then(|v| v.strip_suffix('}'));
    name.is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

const SECRET_WORDS: [&str; 5] = ["password", "passwd", "secret", "token", "access_key"];

fn redact_options(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut shown = String::with_capacity(text.len());
    let mut done = 0;
    let mut from = 0;
    while let Some((start, word)) = SECRET_WORDS
        .iter()
        .filter_map(|word| lower[from..].find(word).map(|at| (from + at, word)))
        .min()
    {
        from = start + word.len();
        let tail = &text[from..];
        let name_rest = tail.len()
            - tail
                .trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
                .len();
        let tail = &tail[name_rest..];
        let gap = tail.len()
            - tail
                .trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '=' | '\'' | '"'))
                .len();
        if gap == 0 {
            continue;
        }
        let value = &tail[gap..];
        let quoted = tail[..gap].ends_with(['\'', '"']);
        let end = value
            .find(|c: char| {
                matches!(c, '\'' | '"')
                    || (!quoted && (c.is_whitespace() || matches!(c, ',' | ')' | '&' | ';')))
            })
            .unwrap_or(value.len());
        // Only an assignment is redacted, not prose such as "the password is wrong".
        if !tail[..gap].contains(['=', '\'', '"']) || end == 0 {
            continue;
        }
        if is_variable(&value[..end]) {
            from += name_rest + gap + end;
            continue;
        }
        let value_start = from + name_rest + gap;
        shown.push_str(&text[done..value_start]);
        shown.push_str("***");
        done = value_start + end;
        from = done;
    }
    shown.push_str(&text[done..]);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_not_shown() {
        assert_eq!(
            redact("LOCATION 'postgres://app:s3cr/et@localhost/db' OPTIONS (table 't')"),
            "LOCATION 'postgres://app:***@localhost/db' OPTIONS (table 't')"
        );
        assert_eq!(redact("kafka://h:9092/toots"), "kafka://h:9092/toots");
        assert_eq!(format!("{:?}", Secret::new("a://u:p@h")), "\"a://u:***@h\"");
    }

    #[test]
    fn values_of_secret_options_are_not_shown() {
        assert_eq!(
            redact("OPTIONS ('sasl.password' 'hunter 2', format 'json')"),
            "OPTIONS ('sasl.password' '***', format 'json')"
        );
        assert_eq!(
            redact("host=h password=x user=y"),
            "host=h password=*** user=y"
        );
        assert_eq!(
            redact("the password is wrong for user 'a'"),
            "the password is wrong for user 'a'"
        );
    }

    #[test]
    fn a_variable_in_the_place_of_a_secret_is_shown_so_that_the_text_can_be_used_again() {
        for text in [
            "LOCATION 'postgres://app:${PGPASSWORD}@localhost/db'",
            "OPTIONS ('sasl.password' '${KAFKA_PASSWORD}', format 'json')",
            "host=h password=${PGPASSWORD} user=y",
        ] {
            assert_eq!(redact(text), text);
        }
        assert_eq!(redact("a://u:x${VAR}@h"), "a://u:***@h");
        assert_eq!(redact("password='${VAR}x'"), "password='***'");
        assert_eq!(
            redact("token '${TOKEN}', secret 's'"),
            "token '${TOKEN}', secret '***'"
        );
    }

    #[test]
    fn a_variable_that_is_not_set_or_not_for_jobs_is_named() {
        let error = Secret::expand("postgres://${ESSAIM_VAR_NO_SUCH}@h").unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("${ESSAIM_VAR_NO_SUCH} is not set"),
            "{message}"
        );
        let error = Secret::expand("postgres://${ESSAIM_TOKEN}@h").unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("${ESSAIM_TOKEN}") && message.contains("--env-prefixes"),
            "{message}"
        );
    }
}
