//! The URLs of a table: LOCATION with its `{placeholders}` filled in from lists, `'url.city' 'Paris,London'`.

use crate::error::Result;
use crate::options::Options;
use crate::sources::feed::client;
use crate::sources::feed::shown::percent_encoded;
use std::collections::BTreeMap;
use url::Url;

/// URLs of one table.
const MAX_URLS: usize = 10_000;

/// Takes `url.…` and fills the placeholders of `location`: the first value of each list makes the first URL, and so on.
///
/// # Errors
/// Lists of different lengths, a placeholder without a list or the other way round, no URL.
pub fn urls(location: &str, options: &mut Options) -> Result<Vec<Url>> {
    let mut lists: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, text) in options.with_prefix("url.") {
        let values = values(text.expose()).ok_or_else(|| {
            options.error(format!(
                "option url.{name}: write values with commas between them, or as JSON '[\"Paris, TX\", \"London\"]'"
            ))
        })?;
        lists.insert(name, values);
    }
    let pieces = pieces(location).ok_or_else(|| {
        options.error("LOCATION has a { without its }: write a placeholder as {name}, and %7B for the brace itself")
    })?;
    for name in lists.keys() {
        if !pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Value(n) if n == name))
        {
            return Err(options.error(format!("option url.{name}: LOCATION has no {{{name}}}")));
        }
    }
    let mut count = 1;
    for piece in &pieces {
        let Piece::Value(name) = piece else { continue };
        let list = lists.get(name).ok_or_else(|| {
            options.error(format!(
                "LOCATION has the placeholder {{{name}}}: give its values with 'url.{name}' 'a,b,c', or write %7B for a brace that is none"
            ))
        })?;
        if count > 1 && list.len() != count {
            return Err(options.error(format!(
                "option url.{name} has {} values, and another url. option has {count}: each needs one for every URL",
                list.len()
            )));
        }
        count = list.len();
    }
    if count > MAX_URLS {
        return Err(options.error(format!(
            "{count} URLs are too many for one table (at most {MAX_URLS}): share them among several"
        )));
    }
    (0..count)
        .map(|index| {
            let mut text = String::with_capacity(location.len());
            for piece in &pieces {
                match piece {
                    Piece::Text(piece) => text.push_str(piece),
                    Piece::Value(name) => {
                        let value = lists.get(name).and_then(|list| list.get(index));
                        text.push_str(&percent_encoded(value.map_or("", String::as_str)));
                    }
                }
            }
            client::location(options, &text)
        })
        .collect()
}

enum Piece<'a> {
    Text(&'a str),
    /// The name of a placeholder, in lower case as those of options are.
    Value(String),
}

/// `None` if a brace is not closed.
fn pieces(location: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = location;
    while let Some((before, from)) = rest.split_once('{') {
        let (name, after) = from.split_once('}')?;
        pieces.extend([Piece::Text(before), Piece::Value(name.to_ascii_lowercase())]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Some(pieces)
}

/// The values of a list; `None` if there is none.
fn values(text: &str) -> Option<Vec<String>> {
    let values: Vec<String> = if text.trim_start().starts_with('[') {
        let values: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => Some(text),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        values.into_iter().map(text).collect::<Option<_>>()?
    } else {
        text.split(',')
            .map(|value| value.trim().to_owned())
            .collect()
    };
    (!values.is_empty() && values.iter().all(|value| !value.is_empty())).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(location: &str, given: &[(&str, &str)]) -> Result<Vec<String>> {
        let given: Vec<(String, String)> = given
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut options = Options::new("t", given.iter().map(|(k, v)| (k, v)))?;
        let urls = urls(location, &mut options)?;
        Ok(urls.into_iter().map(String::from).collect())
    }

    #[test]
    fn each_value_makes_a_url_and_is_encoded() {
        let urls = made(
            "https://h/w?q={City}&u=m",
            &[("url.city", "São Paulo, A&B")],
        )
        .unwrap();
        assert_eq!(
            urls,
            [
                "https://h/w?q=S%C3%A3o%20Paulo&u=m",
                "https://h/w?q=A%26B&u=m"
            ]
        );
        let urls = made("https://h/{id}", &[("url.id", r#"["a,b", 7]"#)]).unwrap();
        assert_eq!(urls, ["https://h/a%2Cb", "https://h/7"]);
        assert_eq!(made("http://h/x", &[]).unwrap(), ["http://h/x"]);
    }

    #[test]
    fn lists_go_together_by_position() {
        let lists = [("url.lat", "1.5,2.5"), ("url.lon", "-1,-2")];
        let urls = made("https://h/?a={lat}&o={lon}", &lists).unwrap();
        assert_eq!(urls, ["https://h/?a=1.5&o=-1", "https://h/?a=2.5&o=-2"]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |location, given| made(location, given).unwrap_err().to_string();
        assert!(error("https://h/{city}", &[]).contains("'url.city' 'a,b,c'"));
        assert!(error("https://h/", &[("url.city", "a")]).contains("LOCATION has no {city}"));
        assert!(error("https://h/{a", &[]).contains("without its }"));
        assert!(error("https://h/{a}", &[("url.a", "x,,y")]).contains("commas"));
        let different = [("url.a", "1,2"), ("url.b", "1,2,3")];
        assert!(error("https://h/{a}{b}", &different).contains("has 3 values"));
        assert!(error("ftp://h/x", &[]).contains("write 'https://host/path'"));
    }
}
