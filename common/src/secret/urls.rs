//! URLs as people may see them: without passwords and keys.

use super::MASK;
use std::borrow::Cow;
use url::form_urlencoded;

/// Where a URL ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// At the first blank or quote: it stands in a sentence.
    Word,
    /// With the text: it is a literal of its own, and may hold anything.
    Text,
}

/// A text whose URLs show no password, no user where that may be a token, and no parameter that is called like a key.
pub(super) fn redact_urls(text: &str, extent: Extent) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, from) = rest.split_at(start + 3);
        shown.push_str(before);
        let of_http = before.ends_with("http://") || before.ends_with("https://");
        let end = match extent {
            Extent::Word => from.find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"')),
            Extent::Text => None,
        };
        let (url, after) = from.split_at(end.unwrap_or(from.len()));
        shown.push_str(&redact_url(url, of_http));
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// What follows `scheme://`.
fn redact_url(url: &str, of_http: bool) -> String {
    let authority = url.find(['/', '?', '#', ')']).unwrap_or(url.len());
    // A password may itself hold the characters that end an authority: look for the last @ of all then.
    let user_info = url[..authority].rfind('@').or_else(|| url.rfind('@'));
    let (mut shown, rest) = match user_info {
        Some(at) => {
            let user = match url[..at].split_once(':') {
                Some((user, password)) if is_variable(password) => format!("{user}:{password}"),
                _ if of_http => MASK.to_owned(),
                Some((user, _)) => format!("{user}:{MASK}"),
                None => url[..at].to_owned(),
            };
            (user, &url[at..])
        }
        None => (String::new(), url),
    };
    let Some(query) = rest.find(['?', '#']) else {
        return shown + rest;
    };
    shown.push_str(&rest[..query]);
    for part in rest[query..].split_inclusive(['?', '#', '&', ';']) {
        let (part, separator) = match part.strip_suffix(['?', '#', '&', ';']) {
            Some(bare) => (bare, &part[bare.len()..]),
            None => (part, ""),
        };
        shown.push_str(&redact_parameter(part));
        shown.push_str(separator);
    }
    shown
}

/// Whether a value is one `${VAR}` that is not filled in: it names a secret and is none.
pub(super) fn is_variable(value: &str) -> bool {
    let name = value.strip_prefix("${").and_then(|v| v.strip_suffix('}'));
    name.is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// `name=value` of a URL's query, without the value if it is called like a key.
pub(crate) fn redact_parameter(parameter: &str) -> Cow<'_, str> {
    match parameter.split_once('=') {
        Some((name, value)) if !value.is_empty() && is_called_secret(name) => {
            Cow::Owned(format!("{name}={MASK}"))
        }
        _ => Cow::Borrowed(parameter),
    }
}

/// Whether a parameter's name, as it stands in a URL, is one of those that keys go by.
fn is_called_secret(name: &str) -> bool {
    let name: String = form_urlencoded::parse(name.as_bytes())
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    let inside = ["token", "secret", "passw", "credential"];
    let whole = [
        "appid",
        "app_id",
        "auth",
        "authorization",
        "pass",
        "pwd",
        "sig",
        "authmechanismproperties",
    ];
    name.ends_with("key")
        || name.ends_with("signature")
        || whole.contains(&name.as_str())
        || inside.iter().any(|i| name.contains(i))
}
