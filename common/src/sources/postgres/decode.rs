//! Binary COPY into Arrow: a stream of bytes that ends anywhere becomes columns, without an allocation per row.
//!
//! The form (PostgreSQL's manual, COPY, "Binary Format"): an 11-byte signature, `i32` flags, `i32` length of an
//! extension; then for each row `i16` number of fields and for each field `i32` length (-1: null) and its bytes;
//! at the end an `i16` of -1. All numbers are big-endian.

use super::numeric::{NoDecimal, Numeric};
use super::types::Kind;
use crate::error::{Error, Result};
use arrow::array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Decimal256Builder,
    Float32Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder,
    IntervalMonthDayNanoBuilder, NullBufferBuilder, StringViewBuilder, Time64MicrosecondBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::array::{ArrayRef, ListArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, IntervalMonthDayNano};
use std::sync::Arc;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEAD: usize = SIGNATURE.len() + 8;
/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL's dates begin.
pub const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;
/// A text above this is shown shortened in an error.
const SHOWN: usize = 60;

/// What is wrong with a value; the column's name is added further up.
enum Bad {
    /// The bytes are no value of the column's type.
    Broken,
    /// A value that Arrow has nothing for; what it is and what to do.
    NoValue(String),
}

/// Turns the bytes of one COPY into columns.
pub struct Decoder {
    names: Vec<String>,
    columns: Vec<Column>,
    /// The beginning of a row whose end has not come yet; empty as long as chunks end with a row.
    pending: Vec<u8>,
    /// Where the fields of the current row lie: start and length, -1 for null.
    fields: Vec<(usize, i32)>,
    rows: usize,
    head_seen: bool,
    end_seen: bool,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({:?}, {} rows)", self.names, self.rows)
    }
}

impl Decoder {
    /// For the columns of a COPY, in its order; `capacity` rows are expected between two calls of [`Self::take`].
    pub fn new(columns: &[(String, Kind)], capacity: usize) -> Self {
        Self {
            names: columns.iter().map(|(name, _)| name.clone()).collect(),
            columns: columns
                .iter()
                .map(|(_, kind)| Column::new(kind, capacity))
                .collect(),
            pending: Vec::new(),
            fields: vec![(0, 0); columns.len()],
            rows: 0,
            head_seen: false,
            end_seen: false,
        }
    }

    /// Rows decoded since the last [`Self::take`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the end mark has come: a COPY without it was cut off.
    pub fn is_complete(&self) -> bool {
        self.end_seen && self.pending.is_empty()
    }

    /// Takes the columns out, in order.
    ///
    /// # Errors
    /// None that valid rows can cause.
    pub fn take(&mut self) -> Result<Vec<ArrayRef>> {
        self.rows = 0;
        self.columns.iter_mut().map(Column::finish).collect()
    }

    /// Decodes all rows that are complete with `chunk`, of which there may be many.
    ///
    /// # Errors
    /// Bytes that are no binary COPY; a value that Arrow does not have, with its column.
    pub fn decode(&mut self, chunk: &[u8]) -> Result<()> {
        if self.pending.is_empty() {
            let used = self.decode_whole_rows(chunk)?;
            self.pending.extend_from_slice(&chunk[used..]);
            return Ok(());
        }
        self.pending.extend_from_slice(chunk);
        let pending = std::mem::take(&mut self.pending);
        let used = self.decode_whole_rows(&pending)?;
        self.pending = pending;
        self.pending.drain(..used);
        Ok(())
    }

    /// Decodes rows from the start of `bytes`; returns how many bytes they took.
    fn decode_whole_rows(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut at = 0;
        if !self.head_seen {
            let Some(head) = bytes.first_chunk::<HEAD>() else {
                return Ok(0);
            };
            let extension = read_i32(head, HEAD - 4).unwrap_or(0);
            let end = HEAD + usize::try_from(extension).unwrap_or(0);
            if !head.starts_with(SIGNATURE) {
                return Err(Error::internal("the server's COPY is not in binary format"));
            }
            if bytes.len() < end {
                return Ok(0);
            }
            self.head_seen = true;
            at = end;
        }
        while let Some(next) = self.locate(bytes, at)? {
            if self.end_seen {
                return Ok(next);
            }
            for (index, column) in self.columns.iter_mut().enumerate() {
                let (start, length) = self.fields[index];
                let field = match usize::try_from(length) {
                    Ok(length) => Some(&bytes[start..start + length]),
                    Err(_) => None,
                };
                if let Err(bad) = column.append(field) {
                    return Err(explain(&bad, &self.names[index], column));
                }
            }
            self.rows += 1;
            at = next;
        }
        Ok(at)
    }

    /// Finds the fields of the row at `at`; returns where the next row begins, `None` if this one has no end yet.
    #[inline]
    fn locate(&mut self, bytes: &[u8], at: usize) -> Result<Option<usize>> {
        let Some(count) = bytes.get(at..at + 2) else {
            return Ok(None);
        };
        let count = i16::from_be_bytes([count[0], count[1]]);
        let mut at = at + 2;
        if count == -1 {
            self.end_seen = true;
            return Ok(Some(at));
        }
        if usize::try_from(count) != Ok(self.fields.len()) {
            return Err(Error::internal(format!(
                "the server sent a row of {count} columns where {} were asked for",
                self.fields.len()
            )));
        }
        for field in &mut self.fields {
            let Some(length) = read_i32(bytes, at) else {
                return Ok(None);
            };
            at += 4;
            *field = (at, length);
            at += usize::try_from(length).unwrap_or(0);
        }
        Ok((at <= bytes.len()).then_some(at))
    }
}

fn explain(bad: &Bad, name: &str, column: &Column) -> Error {
    match bad {
        Bad::Broken => Error::data(format!(
            "column {name}: the server sent bytes that are no {}: was the column's type changed?",
            column.type_name()
        )),
        Bad::NoValue(what) => Error::data(format!("column {name}: {what}")),
    }
}

#[inline]
fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

#[inline]
fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Bad> {
    bytes.try_into().map_err(|_| Bad::Broken)
}

/// One column's builder. An enum, so that a row costs one branch a field and no call through a table.
enum Column {
    Bool(BooleanBuilder),
    Int2(Int16Builder),
    Int4(Int32Builder),
    Int8(Int64Builder),
    Oid(Int64Builder),
    Float4(Float32Builder),
    Float8(Float64Builder),
    Decimal128(Decimal128Builder, u8, i8),
    Decimal256(Decimal256Builder, u8, i8),
    Text(StringViewBuilder),
    /// A version byte (1) and the text.
    Jsonb(StringViewBuilder),
    Bytea(BinaryBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder, Option<Arc<str>>),
    Interval(IntervalMonthDayNanoBuilder),
    Uuid(StringViewBuilder),
    Array(Box<List>),
}

/// A one-dimensional array's elements, one column for all rows.
struct List {
    field: FieldRef,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
    items: Column,
}

impl Column {
    fn new(kind: &Kind, capacity: usize) -> Self {
        match kind {
            Kind::Bool => Self::Bool(BooleanBuilder::with_capacity(capacity)),
            Kind::Int2 => Self::Int2(Int16Builder::with_capacity(capacity)),
            Kind::Int4 => Self::Int4(Int32Builder::with_capacity(capacity)),
            Kind::Int8 => Self::Int8(Int64Builder::with_capacity(capacity)),
            Kind::Oid => Self::Oid(Int64Builder::with_capacity(capacity)),
            Kind::Float4 => Self::Float4(Float32Builder::with_capacity(capacity)),
            Kind::Float8 => Self::Float8(Float64Builder::with_capacity(capacity)),
            Kind::Numeric {
                precision, scale, ..
            } if *precision <= 38 => Self::Decimal128(
                Decimal128Builder::with_capacity(capacity).with_data_type(kind.arrow()),
                *precision,
                *scale,
            ),
            Kind::Numeric {
                precision, scale, ..
            } => Self::Decimal256(
                Decimal256Builder::with_capacity(capacity).with_data_type(kind.arrow()),
                *precision,
                *scale,
            ),
            Kind::Text { .. } | Kind::Json | Kind::Other { .. } => {
                Self::Text(StringViewBuilder::with_capacity(capacity))
            }
            Kind::Jsonb => Self::Jsonb(StringViewBuilder::with_capacity(capacity)),
            Kind::Bytea => Self::Bytea(BinaryBuilder::with_capacity(capacity, capacity * 16)),
            Kind::Date => Self::Date(Date32Builder::with_capacity(capacity)),
            Kind::Time => Self::Time(Time64MicrosecondBuilder::with_capacity(capacity)),
            Kind::Timestamp => {
                Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(capacity), None)
            }
            Kind::Timestamptz => Self::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(capacity),
                Some("+00:00".into()),
            ),
            Kind::Interval => Self::Interval(IntervalMonthDayNanoBuilder::with_capacity(capacity)),
            Kind::Uuid => Self::Uuid(StringViewBuilder::with_capacity(capacity)),
            Kind::Array { item, .. } => {
                let field = match kind.arrow() {
                    DataType::List(field) => field,
                    other => Arc::new(arrow::datatypes::Field::new_list_field(other, true)),
                };
                Self::Array(Box::new(List {
                    field,
                    offsets: vec![0],
                    nulls: NullBufferBuilder::new(capacity),
                    items: Self::new(item, capacity),
                }))
            }
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "boolean",
            Self::Int2(_) => "smallint",
            Self::Int4(_) => "integer",
            Self::Int8(_) => "bigint",
            Self::Oid(_) => "oid",
            Self::Float4(_) => "real",
            Self::Float8(_) => "double precision",
            Self::Decimal128(..) | Self::Decimal256(..) => "numeric",
            Self::Text(_) => "UTF-8 text",
            Self::Jsonb(_) => "jsonb",
            Self::Bytea(_) => "bytea",
            Self::Date(_) => "date",
            Self::Time(_) => "time",
            Self::Timestamp(..) => "timestamp",
            Self::Interval(_) => "interval",
            Self::Uuid(_) => "uuid",
            Self::Array(_) => "array",
        }
    }

    #[inline]
    fn append(&mut self, field: Option<&[u8]>) -> Result<(), Bad> {
        let Some(bytes) = field else {
            self.append_null();
            return Ok(());
        };
        match self {
            Self::Bool(to) => to.append_value(fixed::<1>(bytes)?[0] != 0),
            Self::Int2(to) => to.append_value(i16::from_be_bytes(fixed(bytes)?)),
            Self::Int4(to) => to.append_value(i32::from_be_bytes(fixed(bytes)?)),
            Self::Int8(to) => to.append_value(i64::from_be_bytes(fixed(bytes)?)),
            Self::Oid(to) => to.append_value(i64::from(u32::from_be_bytes(fixed(bytes)?))),
            Self::Float4(to) => to.append_value(f32::from_be_bytes(fixed(bytes)?)),
            Self::Float8(to) => to.append_value(f64::from_be_bytes(fixed(bytes)?)),
            Self::Decimal128(to, precision, scale) => to.append_value(
                Numeric::parse(bytes)
                    .and_then(|value| value.to_i128(*precision, *scale))
                    .map_err(|e| no_decimal(e, *precision, *scale))?,
            ),
            Self::Decimal256(to, precision, scale) => to.append_value(
                Numeric::parse(bytes)
                    .and_then(|value| value.to_i256(*precision, *scale))
                    .map_err(|e| no_decimal(e, *precision, *scale))?,
            ),
            Self::Text(to) => to.append_value(text(bytes)?),
            Self::Jsonb(to) => match bytes.split_first() {
                Some((1, json)) => to.append_value(text(json)?),
                _ => return Err(Bad::Broken),
            },
            Self::Bytea(to) => to.append_value(bytes),
            Self::Date(to) => {
                let days = i32::from_be_bytes(fixed(bytes)?);
                if matches!(days, i32::MIN | i32::MAX) {
                    return Err(infinite("date", days > 0));
                }
                to.append_value(days.checked_add(EPOCH_DAYS).ok_or(Bad::Broken)?);
            }
            Self::Time(to) => {
                let micros = i64::from_be_bytes(fixed(bytes)?);
                if micros >= 86_400_000_000 {
                    return Err(Bad::NoValue(
                        "the time 24:00:00 has no place within a day: declare the column VARCHAR"
                            .to_owned(),
                    ));
                }
                to.append_value(micros);
            }
            Self::Timestamp(to, _) => {
                let micros = i64::from_be_bytes(fixed(bytes)?);
                if matches!(micros, i64::MIN | i64::MAX) {
                    return Err(infinite("timestamp", micros > 0));
                }
                to.append_value(micros.checked_add(EPOCH_MICROS).ok_or_else(|| {
                    Bad::NoValue(
                        "a timestamp after the year 294246: declare the column VARCHAR".to_owned(),
                    )
                })?);
            }
            Self::Interval(to) => {
                let bytes: [u8; 16] = fixed(bytes)?;
                let (micros, rest) = bytes.split_first_chunk::<8>().ok_or(Bad::Broken)?;
                let days = read_i32(rest, 0).ok_or(Bad::Broken)?;
                let months = read_i32(rest, 4).ok_or(Bad::Broken)?;
                let nanos = i64::from_be_bytes(*micros)
                    .checked_mul(1000)
                    .ok_or_else(|| {
                        Bad::NoValue(
                        "an interval of more than 292 years in hours: declare the column VARCHAR"
                            .to_owned(),
                    )
                    })?;
                to.append_value(IntervalMonthDayNano::new(months, days, nanos));
            }
            Self::Uuid(to) => {
                let mut hyphenated = [0u8; uuid::fmt::Hyphenated::LENGTH];
                let uuid = uuid::Uuid::from_bytes(fixed(bytes)?);
                to.append_value(uuid.hyphenated().encode_lower(&mut hyphenated));
            }
            Self::Array(list) => list.append(bytes)?,
        }
        Ok(())
    }

    fn append_null(&mut self) {
        match self {
            Self::Bool(to) => to.append_null(),
            Self::Int2(to) => to.append_null(),
            Self::Int4(to) => to.append_null(),
            Self::Int8(to) | Self::Oid(to) => to.append_null(),
            Self::Float4(to) => to.append_null(),
            Self::Float8(to) => to.append_null(),
            Self::Decimal128(to, ..) => to.append_null(),
            Self::Decimal256(to, ..) => to.append_null(),
            Self::Text(to) | Self::Jsonb(to) | Self::Uuid(to) => to.append_null(),
            Self::Bytea(to) => to.append_null(),
            Self::Date(to) => to.append_null(),
            Self::Time(to) => to.append_null(),
            Self::Timestamp(to, _) => to.append_null(),
            Self::Interval(to) => to.append_null(),
            Self::Array(list) => {
                let end = list.offsets.last().copied().unwrap_or(0);
                list.offsets.push(end);
                list.nulls.append_null();
            }
        }
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(match self {
            Self::Bool(from) => Arc::new(from.finish()),
            Self::Int2(from) => Arc::new(from.finish()),
            Self::Int4(from) => Arc::new(from.finish()),
            Self::Int8(from) | Self::Oid(from) => Arc::new(from.finish()),
            Self::Float4(from) => Arc::new(from.finish()),
            Self::Float8(from) => Arc::new(from.finish()),
            Self::Decimal128(from, ..) => Arc::new(from.finish()),
            Self::Decimal256(from, ..) => Arc::new(from.finish()),
            Self::Text(from) | Self::Jsonb(from) | Self::Uuid(from) => Arc::new(from.finish()),
            Self::Bytea(from) => Arc::new(from.finish()),
            Self::Date(from) => Arc::new(from.finish()),
            Self::Time(from) => Arc::new(from.finish()),
            Self::Timestamp(from, zone) => Arc::new(from.finish().with_timezone_opt(zone.clone())),
            Self::Interval(from) => Arc::new(from.finish()),
            Self::Array(list) => list.finish()?,
        })
    }
}

impl List {
    /// The form: `i32` dimensions, `i32` whether there are nulls, `i32` element type; `i32` length and `i32` lower
    /// bound for each dimension; the elements as the fields of a row.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let dimensions = read_i32(bytes, 0).ok_or(Bad::Broken)?;
        let length = match dimensions {
            0 => 0,
            1 => read_i32(bytes, 12).ok_or(Bad::Broken)?,
            more => {
                return Err(Bad::NoValue(format!(
                    "an array of {more} dimensions: declare the column VARCHAR"
                )));
            }
        };
        let mut at = 20;
        for _ in 0..length {
            let size = read_i32(bytes, at).ok_or(Bad::Broken)?;
            at += 4;
            match usize::try_from(size) {
                Ok(size) => {
                    let item = bytes.get(at..at + size).ok_or(Bad::Broken)?;
                    self.items.append(Some(item))?;
                    at += size;
                }
                Err(_) => self.items.append_null(),
            }
        }
        let end = self.offsets.last().copied().unwrap_or(0);
        self.offsets
            .push(end.checked_add(length).ok_or(Bad::Broken)?);
        self.nulls.append_non_null();
        Ok(())
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let list = ListArray::try_new(
            Arc::clone(&self.field),
            OffsetBuffer::new(ScalarBuffer::from(offsets)),
            self.items.finish()?,
            self.nulls.finish(),
        );
        Ok(Arc::new(list.map_err(|e| Error::internal(e.to_string()))?))
    }
}

#[inline]
fn text(bytes: &[u8]) -> Result<&str, Bad> {
    std::str::from_utf8(bytes).map_err(|_| Bad::Broken)
}

#[cold]
fn infinite(what: &str, positive: bool) -> Bad {
    let sign = if positive { "" } else { "-" };
    Bad::NoValue(format!(
        "the {what} '{sign}infinity' has no place in Arrow: declare the column VARCHAR, or read a view without it"
    ))
}

#[cold]
fn no_decimal(error: NoDecimal, precision: u8, scale: i8) -> Bad {
    match error {
        NoDecimal::Broken => Bad::Broken,
        NoDecimal::Special(value) => Bad::NoValue(format!(
            "the numeric {value} is no decimal: declare the column DOUBLE or VARCHAR"
        )),
        NoDecimal::TooLarge(value) => {
            let shown = value
                .get(..SHOWN)
                .map_or(value.clone(), |s| format!("{s}…"));
            Bad::NoValue(format!(
                "the numeric {shown} does not fit DECIMAL({precision},{scale}): \
                 declare the column with more digits, DOUBLE or VARCHAR"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::Int32Type;

    /// Three rows of a text and an integer, one of them null.
    fn copy() -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0; 4]);
        // An extension of two bytes, which the manual allows and says to skip.
        bytes.extend_from_slice(&2i32.to_be_bytes());
        bytes.extend_from_slice(&[9, 9]);
        for (text, number) in [
            ("é", Some(7i32)),
            ("", None),
            ("a longer text than fits a view", Some(-1)),
        ] {
            bytes.extend_from_slice(&2i16.to_be_bytes());
            bytes.extend_from_slice(&(text.len() as i32).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
            match number {
                Some(number) => {
                    bytes.extend_from_slice(&4i32.to_be_bytes());
                    bytes.extend_from_slice(&number.to_be_bytes());
                }
                None => bytes.extend_from_slice(&(-1i32).to_be_bytes()),
            }
        }
        bytes.extend_from_slice(&(-1i16).to_be_bytes());
        bytes
    }

    fn columns() -> Vec<(String, Kind)> {
        vec![("t".to_owned(), Kind::text()), ("i".to_owned(), Kind::Int4)]
    }

    #[test]
    fn chunks_may_end_anywhere() {
        let bytes = copy();
        for size in 1..=bytes.len() {
            let mut decoder = Decoder::new(&columns(), 8);
            for chunk in bytes.chunks(size) {
                assert!(!decoder.is_complete());
                decoder.decode(chunk).unwrap();
            }
            assert!(decoder.is_complete());
            assert_eq!(decoder.rows(), 3);
            let columns = decoder.take().unwrap();
            let texts: Vec<_> = columns[0].as_string_view().iter().flatten().collect();
            assert_eq!(texts, ["é", "", "a longer text than fits a view"]);
            let numbers: Vec<_> = columns[1].as_primitive::<Int32Type>().iter().collect();
            assert_eq!(numbers, [Some(7), None, Some(-1)]);
        }
    }

    #[test]
    fn bytes_of_another_type_name_the_column() {
        let wrong = vec![("t".to_owned(), Kind::text()), ("i".to_owned(), Kind::Int8)];
        let error = Decoder::new(&wrong, 8).decode(&copy()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "column i: the server sent bytes that are no bigint: was the column's type changed?"
        );
        let narrow = vec![("t".to_owned(), Kind::text())];
        let error = Decoder::new(&narrow, 8).decode(&copy()).unwrap_err();
        assert!(error.to_string().contains("a row of 2 columns"), "{error}");
    }
}
