//! BSON to Arrow: each document is taken whole or refused with the path of the value that does not fit.

use super::cells::{Cell, array};
use crate::error::{Error, Result};
use crate::sql_types::sql_type;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Decimal128Type, DecimalType, SchemaRef, TimeUnit};
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Bson, RawBsonRef, RawDocument};
use std::collections::HashMap;
use std::sync::Arc;

const MS_PER_DAY: i64 = 86_400_000;

/// A value that does not fit its column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// From the column down, e.g. `data.readings[2].at`.
    pub path: String,
    pub reason: String,
}

impl Conflict {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            reason: reason.into(),
        }
    }

    fn within(self, parent: &str) -> Self {
        let path = match self.path.as_str() {
            "" => parent.to_owned(),
            path if path.starts_with('[') => format!("{parent}{path}"),
            path => format!("{parent}.{path}"),
        };
        Self { path, ..self }
    }
}

/// Whether a column can have a type.
pub fn is_supported(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) => is_supported(item.data_type()),
        DataType::Struct(fields) => {
            !fields.is_empty() && fields.iter().all(|field| is_supported(field.data_type()))
        }
        DataType::Null
        | DataType::Boolean
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::Timestamp(..)
        | DataType::Date32 => true,
        other => other.is_integer(),
    }
}

/// Collects documents until they make a batch.
#[derive(Debug)]
pub struct Decoder {
    schema: SchemaRef,
    /// Position of each column by its name.
    columns: HashMap<String, usize>,
    cells: Vec<Vec<Cell>>,
    rows: usize,
}

impl Decoder {
    /// Into `schema`, whose types must be supported.
    pub fn new(schema: SchemaRef) -> Self {
        let names = schema.fields().iter().enumerate();
        Self {
            columns: names
                .map(|(at, field)| (field.name().clone(), at))
                .collect(),
            cells: vec![Vec::new(); schema.fields().len()],
            rows: 0,
            schema,
        }
    }

    /// Documents taken since the last batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes a document; fields that are no columns are passed over. One that is refused leaves nothing.
    ///
    /// # Errors
    /// A value that does not fit, or a document that is broken.
    pub fn push(&mut self, document: &RawDocument) -> Result<(), Conflict> {
        let mut row = vec![Cell::Null; self.cells.len()];
        for element in document.iter() {
            let (name, value) = element.map_err(|e| Conflict::new(e.to_string()))?;
            if let Some(at) = self.columns.get(name.as_str()) {
                let data_type = self.schema.field(*at).data_type();
                row[*at] = cell(value, data_type).map_err(|e| e.within(name.as_str()))?;
            }
        }
        for (field, cell) in self.schema.fields().iter().zip(&row) {
            require(field, cell)?;
        }
        for (column, cell) in self.cells.iter_mut().zip(row) {
            column.push(cell);
        }
        self.rows += 1;
        Ok(())
    }

    /// The documents taken so far as a batch.
    ///
    /// # Errors
    /// A type that is not supported.
    pub fn finish(&mut self) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        let columns = self
            .cells
            .iter_mut()
            .zip(self.schema.fields())
            .map(|(cells, field)| array(field.data_type(), std::mem::take(cells)))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Error::internal(e.to_string()))
    }
}

fn require(field: &arrow::datatypes::Field, cell: &Cell) -> Result<(), Conflict> {
    match cell {
        Cell::Null if !field.is_nullable() => {
            Err(Conflict::new("it is missing or null, and declared NOT NULL").within(field.name()))
        }
        _ => Ok(()),
    }
}

/// What `value` is in a column of this type.
fn cell(value: RawBsonRef<'_>, data_type: &DataType) -> Result<Cell, Conflict> {
    if matches!(value, RawBsonRef::Null) {
        return Ok(Cell::Null);
    }
    let misfit = || {
        Conflict::new(format!(
            "{} is no {}",
            described(value),
            sql_type(data_type)
        ))
    };
    match data_type {
        DataType::Boolean => value.as_bool().map(Cell::Bool).ok_or_else(misfit),
        data_type if data_type.is_integer() => whole(value, data_type).ok_or_else(misfit),
        DataType::Float64 | DataType::Float32 => match value {
            // One NaN: the order of others depends on their sign.
            RawBsonRef::Double(value) if value.is_nan() => Ok(Cell::Float(f64::NAN)),
            RawBsonRef::Double(value) => Ok(Cell::Float(value)),
            RawBsonRef::Int32(value) => Ok(Cell::Float(f64::from(value))),
            RawBsonRef::Int64(value) => Ok(Cell::Float(value as f64)),
            _ => Err(misfit()),
        },
        DataType::Decimal128(precision, scale) => {
            let text = match value {
                RawBsonRef::Decimal128(value) => value.to_string(),
                RawBsonRef::Int32(value) => value.to_string(),
                RawBsonRef::Int64(value) => value.to_string(),
                RawBsonRef::Double(value) => value.to_string(),
                _ => return Err(misfit()),
            };
            decimal(&text, *precision, *scale)
                .map(Cell::Decimal)
                .ok_or_else(misfit)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Ok(Cell::Text(text(value).map_err(Conflict::new)?))
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => match value {
            RawBsonRef::Binary(binary) => Ok(Cell::Bytes(binary.bytes.to_vec())),
            _ => Err(misfit()),
        },
        DataType::Timestamp(unit, _) => {
            let ms = value.as_datetime().ok_or_else(misfit)?.timestamp_millis();
            let time = match unit {
                TimeUnit::Second => Some(ms.div_euclid(1000)),
                TimeUnit::Millisecond => Some(ms),
                TimeUnit::Microsecond => ms.checked_mul(1000),
                TimeUnit::Nanosecond => ms.checked_mul(1_000_000),
            };
            time.map(Cell::Int).ok_or_else(misfit)
        }
        DataType::Date32 => {
            let ms = value.as_datetime().ok_or_else(misfit)?.timestamp_millis();
            let days = ms.div_euclid(MS_PER_DAY);
            i32::try_from(days).map_err(|_| misfit())?;
            Ok(Cell::Int(days))
        }
        DataType::List(item) | DataType::LargeList(item) => {
            let RawBsonRef::Array(values) = value else {
                return Err(misfit());
            };
            let mut cells = Vec::new();
            for (at, value) in values.into_iter().enumerate() {
                let parent = || format!("[{at}]");
                let value = value.map_err(|e| Conflict::new(e.to_string()).within(&parent()))?;
                cells.push(cell(value, item.data_type()).map_err(|e| e.within(&parent()))?);
            }
            Ok(Cell::List(cells))
        }
        DataType::Struct(fields) => {
            let RawBsonRef::Document(document) = value else {
                return Err(misfit());
            };
            let mut cells = vec![Cell::Null; fields.len()];
            for element in document.iter() {
                let (name, value) = element.map_err(|e| Conflict::new(e.to_string()))?;
                if let Some((at, field)) = fields.find(name.as_str()) {
                    cells[at] =
                        cell(value, field.data_type()).map_err(|e| e.within(field.name()))?;
                }
            }
            for (field, cell) in fields.iter().zip(&cells) {
                require(field, cell)?;
            }
            Ok(Cell::Struct(cells))
        }
        _ => Err(misfit()),
    }
}

/// A value and its type, for people; a long one is cut.
fn described(value: RawBsonRef<'_>) -> String {
    const LONGEST: usize = 60;
    let mut shown = text(value).unwrap_or_default();
    if shown.len() > LONGEST {
        shown.truncate(shown.floor_char_boundary(LONGEST));
        shown.push('…');
    }
    let name = match value {
        RawBsonRef::Double(_) => "double",
        RawBsonRef::String(_) => "string",
        RawBsonRef::Array(_) => "array",
        RawBsonRef::Document(_) => "document",
        RawBsonRef::Boolean(_) => "bool",
        RawBsonRef::Int32(_) => "int",
        RawBsonRef::Int64(_) => "long",
        RawBsonRef::Binary(_) => "binary",
        RawBsonRef::ObjectId(_) => "ObjectId",
        RawBsonRef::DateTime(_) => "date",
        RawBsonRef::Decimal128(_) => "Decimal128",
        _ => "value",
    };
    format!("the {name} {shown}")
}

/// A whole number that the type can hold, a double without a fraction among them.
fn whole(value: RawBsonRef<'_>, data_type: &DataType) -> Option<Cell> {
    // Doubles from here on are whole by nature, and no longer exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let value = match value {
        RawBsonRef::Int32(value) => i64::from(value),
        RawBsonRef::Int64(value) => value,
        RawBsonRef::Double(value) if value.fract() == 0.0 && value.abs() < EXACT => value as i64,
        _ => return None,
    };
    let fits = match data_type {
        DataType::Int8 => i8::try_from(value).is_ok(),
        DataType::Int16 => i16::try_from(value).is_ok(),
        DataType::Int32 => i32::try_from(value).is_ok(),
        DataType::UInt8 => u8::try_from(value).is_ok(),
        DataType::UInt16 => u16::try_from(value).is_ok(),
        DataType::UInt32 => u32::try_from(value).is_ok(),
        DataType::UInt64 => value >= 0,
        _ => true,
    };
    fits.then_some(Cell::Int(value))
}

/// A number in decimal or scientific notation times ten to `scale`, rounded half away from zero; `None` if it has too
/// many digits, or is none.
fn decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['E', 'e']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{before}{after}");
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let places = exponent - i32::try_from(after.len()).ok()? + i32::from(scale);
    let unscaled = if places >= 0 {
        let value: i128 = digits.parse().ok()?;
        value.checked_mul(10i128.checked_pow(u32::try_from(places).ok()?)?)?
    } else {
        let dropped = usize::try_from(places.unsigned_abs()).ok()?;
        let kept = digits.len().saturating_sub(dropped);
        let value: i128 = match kept {
            0 => 0,
            _ => digits[..kept].parse().ok()?,
        };
        let rounds_up = dropped <= digits.len() && digits.as_bytes()[kept] >= b'5';
        value + i128::from(rounds_up)
    };
    let unscaled = if negative { -unscaled } else { unscaled };
    Decimal128Type::is_valid_decimal_precision(unscaled, precision).then_some(unscaled)
}

/// The text of any value: strings as they are, ObjectIds in hex, documents and arrays as relaxed extended JSON.
///
/// # Errors
/// A value that has none.
fn text(value: RawBsonRef<'_>) -> Result<String, String> {
    Ok(match value {
        RawBsonRef::String(text) | RawBsonRef::Symbol(text) => text.to_owned(),
        RawBsonRef::ObjectId(id) => id.to_hex(),
        RawBsonRef::Boolean(value) => value.to_string(),
        RawBsonRef::Int32(value) => value.to_string(),
        RawBsonRef::Int64(value) => value.to_string(),
        RawBsonRef::Decimal128(value) => value.to_string(),
        RawBsonRef::Double(value) if !value.is_finite() => value.to_string(),
        RawBsonRef::DateTime(time) => time
            .try_to_rfc3339_string()
            .unwrap_or_else(|_| time.timestamp_millis().to_string()),
        RawBsonRef::Binary(binary)
            if binary.subtype == BinarySubtype::Uuid && binary.bytes.len() == 16 =>
        {
            uuid::Uuid::from_slice(binary.bytes)
                .map_err(|e| e.to_string())?
                .to_string()
        }
        other => {
            let value = Bson::try_from(other).map_err(|e| e.to_string())?;
            value.into_relaxed_extjson().to_string()
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;
    use arrow::datatypes::{Field, Schema};
    use arrow::util::pretty::pretty_format_batches;
    use mongodb::bson::{DateTime, Document, RawDocumentBuf, doc, oid::ObjectId};

    fn raw(document: Document) -> RawDocumentBuf {
        RawDocumentBuf::from_bytes(document.to_vec().unwrap()).unwrap()
    }

    fn decoder(columns: Vec<Field>) -> Decoder {
        Decoder::new(Arc::new(Schema::new(columns)))
    }

    #[test]
    fn nested_values_become_structs_and_lists() {
        let reading = DataType::Struct(
            vec![
                Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
                Field::new("t", DataType::Float64, true),
            ]
            .into(),
        );
        let list = DataType::List(Arc::new(Field::new_list_field(reading, true)));
        let mut decoder = decoder(vec![
            Field::new("_id", DataType::Utf8View, true),
            Field::new("readings", list, true),
        ]);
        let id = ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap();
        let at = DateTime::from_millis(1_700_000_000_123);
        decoder
            .push(&raw(
                doc! { "_id": id, "readings": [{ "t": 1, "at": at }, null, {}], "other": 1 },
            ))
            .unwrap();
        decoder
            .push(&raw(doc! { "_id": "x", "readings": [] }))
            .unwrap();
        decoder.push(&raw(doc! { "_id": { "a": 1 } })).unwrap();
        let batch = decoder.finish().unwrap();
        let text = pretty_format_batches(&[batch]).unwrap().to_string();
        for part in [
            "507f1f77bcf86cd799439011",
            "[{at: 2023-11-14T22:13:20.123, t: 1.0}, , {at: , t: }]",
            "[]",
            r#"{"a":1}"#,
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(decoder.rows(), 0);
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_by_its_path_and_leaves_nothing() {
        let inner = DataType::Struct(vec![Field::new("n", DataType::Int32, true)].into());
        let list = DataType::List(Arc::new(Field::new_list_field(inner, true)));
        let mut decoder = decoder(vec![
            Field::new("a", DataType::Int64, false),
            Field::new("b", list, true),
        ]);
        let bad = decoder.push(&raw(doc! { "a": 1, "b": [{ "n": 1 }, { "n": "two" }] }));
        let bad = bad.unwrap_err();
        assert_eq!(bad.path, "b[1].n");
        assert_eq!(bad.reason, "the string two is no INT");
        for document in [
            doc! { "a": 1.5 },
            doc! { "a": null },
            doc! {},
            doc! { "a": 1, "b": 1 },
        ] {
            assert!(decoder.push(&raw(document)).is_err());
        }
        decoder.push(&raw(doc! { "a": 3.0 })).unwrap();
        assert_eq!(decoder.finish().unwrap().num_rows(), 1);
    }

    #[test]
    fn decimals_are_rounded_to_their_scale() {
        for (text, expected) in [
            ("1.5", Some(150)),
            ("-1.005", Some(-101)),
            ("1.004", Some(100)),
            ("1E+3", Some(100_000)),
            ("5E-3", Some(1)),
            ("4E-3", Some(0)),
            ("9E-4", Some(0)),
            ("0", Some(0)),
            ("123456789", None),
            ("NaN", None),
            ("Infinity", None),
        ] {
            assert_eq!(decimal(text, 10, 2), expected, "{text}");
        }
    }
}
