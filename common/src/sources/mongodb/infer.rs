//! Columns for a collection whose columns are not declared: what a sample of its documents has in common.

use crate::connector::METADATA_KEY;
use crate::error::{Error, Result};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use mongodb::bson::error::Error as BsonError;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{RawBsonRef, RawDocument, RawDocumentBuf};
use std::collections::HashMap;
use std::sync::Arc;

/// Fields of all levels together; more are a map written as documents, which no set of columns describes.
const MAX_FIELDS: usize = 1_000;
/// The digits of an inferred DECIMAL, and the most of them behind the point.
const PRECISION: u8 = 38;
const MAX_SCALE: i8 = 20;

/// What the values of a field have been so far.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// Nothing but null.
    Null,
    Bool,
    Int,
    Long,
    Double,
    /// With so many digits behind the point.
    Decimal(i8),
    Date,
    Bytes,
    /// Strings and ObjectIds; and whatever has no type in common.
    Text,
    List(Box<Kind>),
    Struct(Fields),
}

/// The fields of documents, in the order in which they were first seen.
#[derive(Debug, Clone, Default, PartialEq)]
struct Fields(Vec<(String, Kind)>);

impl Kind {
    fn of(value: RawBsonRef<'_>) -> Result<Self> {
        Ok(match value {
            RawBsonRef::Null => Self::Null,
            RawBsonRef::Boolean(_) => Self::Bool,
            RawBsonRef::Int32(_) => Self::Int,
            RawBsonRef::Int64(_) => Self::Long,
            RawBsonRef::Double(_) => Self::Double,
            RawBsonRef::Decimal128(value) => {
                scale(&value.to_string()).map_or(Self::Text, Self::Decimal)
            }
            RawBsonRef::DateTime(_) => Self::Date,
            RawBsonRef::Binary(binary) if binary.subtype != BinarySubtype::Uuid => Self::Bytes,
            RawBsonRef::Array(values) => {
                let mut item = Self::Null;
                for value in values {
                    item = item.merge(Self::of(value.map_err(broken)?)?);
                }
                Self::List(Box::new(item))
            }
            RawBsonRef::Document(document) => {
                let mut fields = Fields::default();
                fields.see(document)?;
                Self::Struct(fields)
            }
            _ => Self::Text,
        })
    }

    /// What holds the values of both.
    fn merge(self, other: Self) -> Self {
        use Kind::{Decimal, Double, Int, List, Long, Null, Struct, Text};
        match (self, other) {
            (Null, kind) | (kind, Null) => kind,
            (a, b) if a == b => a,
            (Int, Long) | (Long, Int) => Long,
            (Int | Long, Double) | (Double, Int | Long) => Double,
            (Int | Long, Decimal(scale)) | (Decimal(scale), Int | Long) => Decimal(scale),
            (Decimal(a), Decimal(b)) => Decimal(a.max(b)),
            (List(a), List(b)) => List(Box::new(a.merge(*b))),
            (Struct(mut a), Struct(b)) => {
                for (name, kind) in b.0 {
                    a.add(name, kind);
                }
                Struct(a)
            }
            _ => Text,
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::List(item) => item.count(),
            Self::Struct(fields) => fields.count(),
            _ => 0,
        }
    }

    fn arrow(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int32,
            Self::Long => DataType::Int64,
            Self::Double => DataType::Float64,
            Self::Decimal(scale) => DataType::Decimal128(PRECISION, *scale),
            Self::Date => DataType::Timestamp(TimeUnit::Millisecond, None),
            Self::Bytes => DataType::Binary,
            Self::List(item) => DataType::List(Arc::new(Field::new_list_field(item.arrow(), true))),
            Self::Struct(fields) if !fields.0.is_empty() => DataType::Struct(fields.arrow().into()),
            // Arrow has no struct without fields.
            Self::Struct(_) | Self::Null | Self::Text => DataType::Utf8View,
        }
    }
}

impl Fields {
    fn see(&mut self, document: &RawDocument) -> Result<()> {
        for element in document.iter() {
            let (name, value) = element.map_err(broken)?;
            self.add(name.as_str().to_owned(), Kind::of(value)?);
        }
        Ok(())
    }

    fn add(&mut self, name: String, kind: Kind) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = std::mem::replace(known, Kind::Null).merge(kind),
            None => self.0.push((name, kind)),
        }
    }

    fn count(&self) -> usize {
        self.0.iter().map(|(_, kind)| 1 + kind.count()).sum()
    }

    fn arrow(&self) -> Vec<Field> {
        let fields = self.0.iter();
        fields
            .map(|(name, kind)| Field::new(name, kind.arrow(), true))
            .collect()
    }
}

fn broken(error: BsonError) -> Error {
    Error::data(format!("a document of the sample is broken: {error}"))
}

/// Digits behind the point; `None` for NaN, infinity, and what has too many.
fn scale(text: &str) -> Option<i8> {
    let (mantissa, exponent) = match text.split_once(['E', 'e']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    if !mantissa.ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    let fraction = mantissa.split_once('.').map_or(0, |(_, after)| after.len());
    let scale = (i32::try_from(fraction).ok()? - exponent).max(0);
    i8::try_from(scale).ok().filter(|scale| *scale <= MAX_SCALE)
}

/// The columns of a sample, `_id` first; `None` of an empty one.
///
/// # Errors
/// Too many fields; a broken document.
pub fn schema(sample: &[RawDocumentBuf]) -> Result<Option<SchemaRef>> {
    let mut fields = Fields::default();
    for document in sample {
        fields.see(document)?;
        if fields.count() > MAX_FIELDS {
            return Err(Error::invalid(format!(
                "the sampled documents have more than {MAX_FIELDS} different fields: declare those that the job needs, with \
                 VARCHAR for a document whose field names are data (it comes as JSON)"
            )));
        }
    }
    if fields.0.is_empty() {
        return Ok(None);
    }
    let mut columns = fields.arrow();
    for column in &mut columns {
        if column.name() == "_id" {
            // An INSERT that names no columns does not mean it: the sink makes it.
            let mark = HashMap::from([(METADATA_KEY.to_owned(), "true".to_owned())]);
            *column = column.clone().with_metadata(mark);
        }
    }
    columns.sort_by_key(|column| column.name() != "_id");
    Ok(Some(Arc::new(Schema::new(columns))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;
    use mongodb::bson::{DateTime, Document, doc, oid::ObjectId};

    fn types(documents: Vec<Document>) -> Vec<(String, DataType)> {
        let raw: Vec<RawDocumentBuf> = documents
            .iter()
            .map(|document| RawDocumentBuf::from_bytes(document.to_vec().unwrap()).unwrap())
            .collect();
        let schema = schema(&raw).unwrap().unwrap();
        let fields = schema.fields().iter();
        fields
            .map(|field| (field.name().clone(), field.data_type().clone()))
            .collect()
    }

    #[test]
    fn numbers_widen_and_what_has_nothing_in_common_is_text() {
        let found = types(vec![
            doc! { "n": 1, "l": 1i64, "mixed": 1, "null": null, "_id": ObjectId::new(), "at": DateTime::now() },
            doc! { "n": 1.5, "l": 2, "mixed": "x", "null": null, "_id": 7, "late": true },
        ]);
        assert_eq!(
            found,
            [
                ("_id", DataType::Utf8View),
                ("n", DataType::Float64),
                ("l", DataType::Int64),
                ("mixed", DataType::Utf8View),
                ("null", DataType::Utf8View),
                ("at", DataType::Timestamp(TimeUnit::Millisecond, None)),
                ("late", DataType::Boolean),
            ]
            .map(|(name, kind)| (name.to_owned(), kind))
        );
    }

    #[test]
    fn documents_of_an_array_are_one_struct() {
        let found = types(vec![
            doc! { "a": [{ "x": 1 }, { "x": 2i64, "y": "z" }, {}] },
        ]);
        let item = DataType::Struct(
            vec![
                Field::new("x", DataType::Int64, true),
                Field::new("y", DataType::Utf8View, true),
            ]
            .into(),
        );
        let list = DataType::List(Arc::new(Field::new_list_field(item, true)));
        assert_eq!(found, [("a".to_owned(), list)]);
        let found = types(vec![doc! { "a": {} }, doc! { "a": { "b": 1 } }]);
        assert!(matches!(&found[0].1, DataType::Struct(fields) if fields.len() == 1));
    }

    #[test]
    fn field_names_that_are_data_are_refused() {
        let mut document = Document::new();
        for number in 0..=MAX_FIELDS {
            document.insert(format!("f{number}"), 1);
        }
        let raw = RawDocumentBuf::from_bytes(document.to_vec().unwrap()).unwrap();
        let message = schema(&[raw]).unwrap_err().to_string();
        assert!(message.contains("declare those"), "{message}");
    }
}
