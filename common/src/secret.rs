//! Values that may hold a password: `${VAR}` is filled in from the master's environment, and nothing is shown.

mod sql;
mod urls;

use crate::access::access;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
pub use sql::{redact_sql, shown_tokens};
use std::fmt;
pub(crate) use urls::redact_parameter;
use urls::{Extent, redact_urls};

/// What stands in a secret's place.
pub(crate) const MASK: &str = "***";

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

/// A sentence, such as an error, with the passwords and keys of its URLs and the values of its options that are called
/// like secrets (`password 'x'`, `password=x` and the like) replaced by `***`. SQL is for [`redact_sql`].
pub fn redact(text: &str) -> String {
    redact_options(&redact_urls(text, Extent::Word))
}

/// What names hold that are those of secrets.
const SECRET_WORDS: [&str; 12] = [
    "password",
    "passwd",
    "pwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "api_key",
    "api-key",
    "apikey",
    "access_key",
    "private_key",
];

/// Whether a text speaks of secrets, in the name that it is or the words that it holds.
fn names_a_secret(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let words = SECRET_WORDS
        .iter()
        .chain(&["bearer ", "basic ", "-----begin"]);
    words.into_iter().any(|word| text.contains(word))
}

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
        let end = match tail[..gap].chars().next_back() {
            Some(quote @ ('\'' | '"')) => closing(value, quote),
            _ => value.find(|c: char| {
                c.is_whitespace() || matches!(c, '\'' | '"' | ',' | ')' | '&' | ';')
            }),
        };
        let end = end.unwrap_or(value.len());
        // Only an assignment is redacted, not prose such as "the password is wrong".
        if !tail[..gap].contains(['=', '\'', '"']) || end == 0 {
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

/// Where the quote is that ends a text; two of them stand for one.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut quotes = text.match_indices(quote).map(|(at, _)| at).peekable();
    while let Some(at) = quotes.next() {
        if quotes.next_if_eq(&(at + 1)).is_none() {
            return Some(at);
        }
    }
    None
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
            redact("'sasl.password' 'ab''cd\"ef' is refused, token \"x"),
            "'sasl.password' '***' is refused, token \"***"
        );
        assert_eq!(
            redact("GET https://me@h/x?a=1&api_key=k 'now'"),
            "GET https://***@h/x?a=1&api_key=*** 'now'"
        );
        assert_eq!(
            redact("the password is wrong for user 'a'"),
            "the password is wrong for user 'a'"
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
