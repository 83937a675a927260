//! URLs and texts of servers as people may see them: without passwords, keys and what was filled in for variables.

use crate::options::Options;
use crate::secret::{MASK, Secret, redact_parameter};
use serde::{Deserialize, Serialize};
use std::fmt;
use url::Url;

/// A text as short as that is no secret, and stands in any message by chance.
const LEAST: usize = 4;

/// Something that travels to workers and is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Veiled<T>(pub T);

impl<T> fmt::Debug for Veiled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// The texts that must not be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden(Veiled<Vec<String>>);

impl Hidden {
    /// What was filled in for the variables of a declaration.
    pub fn new(options: &Options) -> Self {
        Self::of(options.filled_in())
    }

    fn of<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for secret in secrets.map(Secret::expose) {
            if secret.len() >= LEAST {
                let in_forms = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
                texts.extend([secret.to_owned(), percent_encoded(secret), in_forms]);
            }
        }
        // The longest first: one may begin as another does.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        Self(Veiled(texts))
    }

    /// A text without the secrets.
    pub fn hide(&self, text: &str) -> String {
        let mut shown = text.to_owned();
        for secret in &self.0.0 {
            if shown.contains(secret.as_str()) {
                shown = shown.replace(secret.as_str(), MASK);
            }
        }
        shown
    }

    /// A URL without the secrets, without user and password, and without the values of parameters that are called like a
    /// key.
    pub fn url(&self, url: &Url) -> String {
        let mut shown = url.clone();
        // These fail for URLs that cannot have them, which is as good.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        if let Some(query) = url.query() {
            let parts = query.split('&').map(redact_parameter);
            shown.set_query(Some(&parts.collect::<Vec<_>>().join("&")));
        }
        self.hide(shown.as_str())
    }
}

/// A text as it may stand anywhere in a URL: all but letters, digits and `-._~` as `%XX` (RFC 3986, section 2.3).
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(secrets: &[&str]) -> Hidden {
        let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::new(*text)).collect();
        Hidden::of(secrets.iter())
    }

    #[test]
    fn a_url_is_shown_without_its_keys() {
        let url =
            Url::parse("https://me:pw@api.test/v1/s3cr%20et?q=Paris&appid=k&apikey=x&keyword=car")
                .unwrap();
        let shown = hidden(&["s3cr et"]).url(&url);
        assert_eq!(
            shown,
            "https://api.test/v1/***?q=Paris&appid=***&apikey=***&keyword=car"
        );
    }

    #[test]
    fn what_a_variable_held_is_hidden_in_any_text() {
        let hidden = hidden(&["hunter2", "hunter22", "abc"]);
        assert_eq!(
            hidden.hide("no key hunter22 or hunter2: abc"),
            "no key *** or ***: abc"
        );
        assert!(!format!("{hidden:?}").contains("hunter"));
    }

    #[test]
    fn values_are_encoded_for_path_and_query_alike() {
        assert_eq!(
            percent_encoded("São Paulo/1+1&x"),
            "S%C3%A3o%20Paulo%2F1%2B1%26x"
        );
    }
}
