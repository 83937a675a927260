//! Whether a JSON value is as a schema of an OpenAPI document says. It knows the words that Essaim's document uses, and
//! refuses a document with others: nothing goes unchecked.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

/// Checks `value`, which is found at `at`, against a `schema` of `document`.
///
/// # Errors
/// What does not fit, and where; a word of the schema that is not known.
pub fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<()> {
    let Some(words) = schema.as_object() else {
        bail!("{at}: {schema} is no schema");
    };
    for (word, wanted) in words {
        match word.as_str() {
            "description" | "required" => {}
            "$ref" => {
                let path = wanted.as_str().and_then(|path| path.strip_prefix('#'));
                let Some(found) = path.and_then(|path| document.pointer(path)) else {
                    bail!("{at}: there is no schema {wanted}");
                };
                check(document, found, value, at)?;
            }
            "anyOf" => {
                let choices = wanted.as_array().into_iter().flatten();
                let outcomes: Vec<_> = choices.map(|one| check(document, one, value, at)).collect();
                if outcomes.iter().all(Result::is_err) {
                    bail!("{at}: none of {outcomes:#?}");
                }
            }
            "type" => {
                let fits = match wanted.as_str().unwrap_or_default() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => bail!("{at}: unknown type {other}"),
                };
                ensure!(fits, "{at}: {value} is no {wanted}");
            }
            "enum" => {
                let known = wanted.as_array().is_some_and(|known| known.contains(value));
                ensure!(known, "{at}: {value} is none of {wanted}");
            }
            "format" => {
                ensure!(wanted == "date-time", "{at}: unknown format {wanted}");
                let text = value.as_str().unwrap_or_default();
                let time = chrono::DateTime::parse_from_rfc3339(text);
                ensure!(
                    time.is_ok() && text.ends_with('Z'),
                    "{at}: {value} is no time"
                );
            }
            "minimum" => {
                let fits = value.as_f64() >= wanted.as_f64();
                ensure!(fits, "{at}: {value} is less than {wanted}");
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, wanted, item, &format!("{at}[{index}]"))?;
                }
            }
            "properties" => object(document, schema, value, at)?,
            "additionalProperties" => {
                for (name, field) in value.as_object().into_iter().flatten() {
                    check(document, wanted, field, &format!("{at}.{name}"))?;
                }
            }
            other => bail!("{at}: unknown word {other} in {schema}"),
        }
    }
    Ok(())
}

/// All fields that are required are there, and none that is not named.
fn object(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<()> {
    let required = schema["required"].as_array().into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        ensure!(value.get(name).is_some(), "{at}: there is no {name}");
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let Some(wanted) = schema["properties"].get(name) else {
            bail!("{at}: {name} is not in the document");
        };
        check(document, wanted, field, &format!("{at}.{name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_fit_is_found() {
        let document =
            json!({"components": {"schemas": {"Word": {"type": "string", "enum": ["a"]}}}});
        let word = json!({"$ref": "#/components/schemas/Word"});
        let schema = json!({
            "type": "object",
            "properties": {
                "words": {"type": "array", "items": word},
                "count": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
                "at": {"type": "string", "format": "date-time"},
            },
            "required": ["words"],
        });
        let fits = |value: Value| check(&document, &schema, &value, "it").is_ok();
        let time = "2026-01-01T00:00:00.000Z";
        assert!(fits(json!({"words": ["a", "a"], "count": 3, "at": time})));
        assert!(fits(json!({"words": [], "count": null})));
        for wrong in [
            json!([]),
            json!({}),
            json!({"words": ["b"]}),
            json!({"words": [], "count": -1}),
            json!({"words": [], "count": "1"}),
            json!({"words": [], "at": "yesterday"}),
            json!({"words": [], "more": 1}),
        ] {
            assert!(!fits(wrong.clone()), "{wrong}");
        }
        assert!(check(&document, &json!({"oneOf": []}), &json!(1), "it").is_err());
    }
}
