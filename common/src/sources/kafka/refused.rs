//! Why a record of JSON is no row, in terms of its columns: the decoder speaks of Arrow's types and of its own state.

use super::timestamps::{decoded_field, text};
use crate::sql_types::{self, sql_type};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::json::ReaderBuilder;

/// The longest part of a record that a reason repeats, in bytes.
const MAX_SHOWN: usize = 100;

/// What the decoder says of one record, or of several.
pub fn explained(schema: &Schema, said: &str) -> String {
    let mut path: Vec<&str> = Vec::new();
    let mut rest = said;
    while let Some((name, inner)) = rest
        .strip_prefix("whilst decoding field '")
        .and_then(|after| after.split_once("': "))
    {
        path.push(name);
        rest = inner;
    }
    let found = value(rest);
    match (found, field(schema, &path)) {
        (Some(found), None) if path.is_empty() => {
            format!("the message is {}, and no JSON object", shortened(found))
        }
        (Some(found), Some(field)) => format!(
            "column {} is {}, and the message has {}",
            path.join("."),
            sql_type(field.data_type()),
            shortened(found)
        ),
        _ if path.is_empty() => shortened(rest),
        _ => format!("column {}: {}", path.join("."), shortened(rest)),
    }
}

/// Whether a reason of [`explained`] says already what is wrong with which part of the message.
pub fn is_explained(reason: &str) -> bool {
    reason.starts_with("column ") || reason.starts_with("the message ")
}

/// What one record is refused for that has no place in what the decoder says, as of a DECIMAL: the columns are tried one
/// by one. `None` if each of them decodes, or the record does not even without columns.
pub fn column_of(
    schema: &Schema,
    record: &[u8],
    coerce: impl Fn(ReaderBuilder) -> ReaderBuilder,
) -> Option<String> {
    let refused = |fields: Vec<Field>| {
        let alone = Schema::new(fields);
        let mut decoder = coerce(ReaderBuilder::new(alone.into()))
            .build_decoder()
            .ok()?;
        decoder.decode(record).ok()?;
        decoder.flush().err()
    };
    if refused(Vec::new()).is_some() {
        return None;
    }
    schema.fields().iter().find_map(|field| {
        let nullable = decoded_field(field).as_ref().clone().with_nullable(true);
        let said = text(&refused(vec![nullable])?);
        Some(format!(
            "column {} is {}: {}",
            field.name(),
            sql_type(field.data_type()),
            shortened(&said)
        ))
    })
}

/// A column that must have a value and has none. The same name in other letters is the usual cause.
pub fn missing(field: &Field, record: Option<&[u8]>) -> String {
    let name = field.name();
    let alike = record
        .and_then(|record| {
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(record).ok()
        })
        .and_then(|values| {
            let mut names = values.into_iter().map(|(name, _)| name);
            names.find(|known| known != name && known.eq_ignore_ascii_case(name))
        });
    match alike {
        Some(alike) => format!(
            "column {name} is missing, and NOT NULL; the message has {alike}: declare the column as {}",
            sql_types::name(&alike)
        ),
        None => format!("column {name} is missing or null, and NOT NULL"),
    }
}

/// What stands in the message, of a complaint that it is of the wrong kind.
fn value(said: &str) -> Option<&str> {
    if let Some(parsed) = said.strip_prefix("failed to parse ") {
        return parsed.rsplit_once(" as ").map(|(value, _)| value);
    }
    let (_, found) = said.strip_prefix("expected ")?.split_once(" got ")?;
    Some(found)
}

/// The declared field at the end of a path of names; lists on the way have none of their own.
fn field<'a>(schema: &'a Schema, path: &[&str]) -> Option<&'a FieldRef> {
    let (last, before) = path.split_last()?;
    let mut fields = schema.fields();
    for name in before {
        let (_, field) = fields.find(name)?;
        let mut data_type = field.data_type();
        while let DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) = data_type
        {
            data_type = item.data_type();
        }
        let DataType::Struct(inner) = data_type else {
            return None;
        };
        fields = inner;
    }
    fields.find(last).map(|(_, field)| field)
}

fn shortened(text: &str) -> String {
    if text.len() <= MAX_SHOWN {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_SHOWN)])
}

#[cfg(test)]
mod tests {
    use super::super::decode::{JsonDecoder, Slices};
    use super::super::timestamps::EpochUnit;
    use super::*;
    use arrow::datatypes::{Fields, TimeUnit};
    use std::sync::Arc;

    fn reason(record: &str) -> String {
        let inner = Fields::from(vec![Field::new("b", DataType::Int64, true)]);
        let list = Field::new_list_field(DataType::Struct(inner), true);
        let schema = Schema::new(vec![
            Field::new("orderid", DataType::Int64, false),
            Field::new("n", DataType::Int32, true),
            Field::new("name", DataType::Utf8View, true),
            Field::new("price", DataType::Decimal128(6, 2), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
            Field::new("a", DataType::List(Arc::new(list)), true),
        ]);
        let mut slices = Slices::default();
        slices.push(Some(b"{\"orderid\":1}"));
        slices.push(Some(record.as_bytes()));
        slices.push(Some(b"{\"orderid\":2}"));
        let mut decoder = JsonDecoder::new(Arc::new(schema), EpochUnit::Milliseconds, 100).unwrap();
        let mut decoded = decoder.decode(&slices).unwrap();
        assert_eq!(decoded.rows.num_rows(), 2, "{record}");
        let (index, reason) = decoded.bad.remove(0);
        assert_eq!(index, 1, "{record}");
        reason
    }

    #[test]
    fn a_reason_names_the_column_its_type_and_the_value() {
        for (record, expected) in [
            ("{}", "column orderid is missing or null, and NOT NULL"),
            (
                "{\"orderid\":null}",
                "column orderid is missing or null, and NOT NULL",
            ),
            (
                "{\"orderId\":7}",
                "column orderid is missing, and NOT NULL; the message has orderId: declare the column as \"orderId\"",
            ),
            ("\"bob\"", "the message is \"bob\", and no JSON object"),
            (
                "[{\"orderid\":1}]",
                "the message is [{\"orderid\": 1}], and no JSON object",
            ),
            (
                "{\"orderid\":1,\"n\":\"many\"}",
                "column n is INT, and the message has \"many\"",
            ),
            (
                "{\"orderid\":1,\"n\":3000000000}",
                "column n is INT, and the message has 3000000000",
            ),
            (
                "{\"orderid\":1,\"name\":{\"x\":1}}",
                "column name is VARCHAR, and the message has {\"x\": 1}",
            ),
            (
                "{\"orderid\":1,\"at\":[1]}",
                "column at is TIMESTAMP, and the message has [1]",
            ),
            (
                "{\"orderid\":1,\"at\":\"9999-12-31\"}",
                "column at: the time 9999-12-31 does not fit: TIMESTAMP counts nanoseconds and goes from 1677 to 2262: declare or CAST it as TIMESTAMP(6)",
            ),
            (
                "{\"orderid\":1,\"a\":7}",
                "column a is STRUCT<b BIGINT>[], and the message has 7",
            ),
            (
                "{\"orderid\":1,\"a\":[{\"b\":true}]}",
                "column a.b is BIGINT, and the message has true",
            ),
        ] {
            assert_eq!(reason(record), expected, "{record}");
        }
        let decimal = reason("{\"orderid\":1,\"price\":\"cheap\"}");
        assert!(
            decimal.starts_with("column price is DECIMAL(6, 2): "),
            "{decimal}"
        );
        let long = reason(&format!(
            "{{\"orderid\":1,\"n\":\"{}\"}}",
            "x".repeat(5_000)
        ));
        assert!(long.len() < 200 && long.ends_with("x…"), "{long}");
    }
}
