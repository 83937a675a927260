//! From the body of an answer to records: a JSON document, or what a path finds in it.

use crate::error::{Error, Result};
use crate::sources::feed::client::shortened;
use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use serde_json_path::JsonPath;

/// Records of one answer.
pub const MAX_RECORDS: usize = 100_000;

/// A document, read as far as it must be.
#[derive(Debug)]
pub struct Document<'a> {
    body: &'a [u8],
    /// There if a path is to be followed: it costs several times what the text alone does.
    value: Option<Value>,
}

impl<'a> Document<'a> {
    /// Reads a body. An empty one is an empty list.
    ///
    /// # Errors
    /// It is no JSON; the message shows how it begins.
    pub fn new(body: &'a [u8], paths: bool) -> Result<Self> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let body = if body.trim_ascii().is_empty() {
            b"[]"
        } else {
            body
        };
        let value = match paths {
            true => Some(serde_json::from_slice(body).map_err(|e| no_json(body, &e))?),
            false => None,
        };
        Ok(Self { body, value })
    }

    /// The records: elements of an array, one each, or the thing itself, of the document or of what `path` finds.
    ///
    /// # Errors
    /// No JSON; too many records.
    pub fn records(&self, path: Option<&JsonPath>) -> Result<Vec<Bytes>> {
        let (body, records) = (
            self.body,
            match (path, &self.value) {
                (Some(path), Some(value)) => {
                    let found = path.query(value).all();
                    let elements: Vec<&Value> = match found.as_slice() {
                        [Value::Array(elements)] => elements.iter().collect(),
                        _ => found,
                    };
                    few(elements.len())?;
                    let text = |value: &&Value| serde_json::to_vec(value).map(Bytes::from);
                    elements.iter().map(text).collect()
                }
                _ if self.body.trim_ascii_start().starts_with(b"[") => {
                    let elements: Vec<&RawValue> =
                        serde_json::from_slice(self.body).map_err(|e| no_json(self.body, &e))?;
                    few(elements.len())?;
                    let text = |value: &&RawValue| Bytes::copy_from_slice(value.get().as_bytes());
                    Ok(elements.iter().map(text).collect())
                }
                _ => serde_json::from_slice::<&RawValue>(self.body)
                    .map(|value| vec![Bytes::copy_from_slice(value.get().as_bytes())]),
            },
        );
        records.map_err(|e| no_json(body, &e))
    }

    /// The text or the number that `path` finds first; `None` if it finds nothing, null or an empty text.
    pub fn text(&self, path: &JsonPath) -> Option<String> {
        let found = path.query(self.value.as_ref()?).first()?.clone();
        match found {
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

fn few(records: usize) -> Result<()> {
    if records > MAX_RECORDS {
        return Err(Error::exhausted(format!(
            "{records} records in one answer are too many (at most {MAX_RECORDS}): ask for pages, by a parameter in LOCATION and the option paging"
        )));
    }
    Ok(())
}

fn no_json(body: &[u8], error: &serde_json::Error) -> Error {
    Error::data(format!(
        "the answer is no JSON: {error}; it begins with {:?}",
        shortened(body)
    ))
}

/// Parses a path by RFC 9535, such as `$.list[*]`.
///
/// # Errors
/// Why it is none.
pub fn path(text: &str) -> Result<JsonPath> {
    JsonPath::parse(text).map_err(|e| {
        Error::invalid(format!(
            "'{text}' is no JSON path ({e}): write for example '$.list', '$.data[*].item' or '$..story'"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(body: &str, at: Option<&str>) -> Vec<String> {
        let at = at.map(|text| path(text).unwrap());
        let document = Document::new(body.as_bytes(), at.is_some()).unwrap();
        let records = document.records(at.as_ref()).unwrap();
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        records.into_iter().map(text).collect()
    }

    #[test]
    fn an_array_gives_an_element_a_record_and_keeps_its_digits() {
        let body = r#" [ {"p": 1.10000000000000000001}, 2 ] "#;
        assert_eq!(
            records(body, None),
            [r#"{"p": 1.10000000000000000001}"#, "2"]
        );
        assert_eq!(records(r#"{"a":[1]}"#, None), [r#"{"a":[1]}"#]);
        assert_eq!(records("\u{feff}[1]", None), ["1"]);
        assert!(records("", None).is_empty());
        assert!(records("[]", None).is_empty());
    }

    #[test]
    fn a_path_finds_records_or_an_array_of_them() {
        let body = r#"{"list":[{"a":1},{"a":2}],"next":7,"none":null}"#;
        assert_eq!(records(body, Some("$.list")), [r#"{"a":1}"#, r#"{"a":2}"#]);
        assert_eq!(
            records(body, Some("$.list[*]")),
            [r#"{"a":1}"#, r#"{"a":2}"#]
        );
        assert_eq!(records(body, Some("$..a")), ["1", "2"]);
        assert!(records(body, Some("$.other")).is_empty());
        let document = Document::new(body.as_bytes(), true).unwrap();
        let text = |at| document.text(&path(at).unwrap());
        assert_eq!(text("$.next").as_deref(), Some("7"));
        assert_eq!(text("$.none"), None);
        assert_eq!(text("$.other"), None);
    }

    #[test]
    fn what_is_no_json_is_shown() {
        let document = Document::new(b"<html>\n busy", false).unwrap();
        let error = document.records(None).unwrap_err().to_string();
        assert!(error.contains(r#"begins with "<html> busy""#), "{error}");
        assert!(path("list").unwrap_err().to_string().contains("'$.list'"));
    }
}
