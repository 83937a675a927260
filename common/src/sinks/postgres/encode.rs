//! Arrow into binary COPY, in the types of the target's columns. The form is that of the source's decoder.

use crate::error::{Error, Result};
use crate::sources::postgres::decode::{EPOCH_DAYS, EPOCH_MICROS};
use crate::sources::postgres::numeric;
use crate::sources::postgres::types::Kind;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
    Decimal256Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    IntervalMonthDayNanoArray, ListArray, RecordBatch, StringViewArray, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Decimal256Type, Field, Float32Type, Float64Type,
    Int16Type, Int32Type, Int64Type, IntervalMonthDayNanoType, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::json::writer::{EncoderOptions, make_encoder};
use std::sync::Arc;

/// The 11-byte signature, no flags, no extension.
pub const HEAD: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The end mark.
pub const TAIL: [u8; 2] = (-1i16).to_be_bytes();

/// One column of a batch, in its target's type.
pub struct Column {
    nulls: Option<NullBuffer>,
    cells: Cells,
}

/// The values. An enum for the same reason as in the decoder.
enum Cells {
    Bool(BooleanArray),
    Int2(Int16Array),
    Int4(Int32Array),
    Int8(Int64Array),
    Oid(Int64Array),
    Float4(Float32Array),
    Float8(Float64Array),
    Decimal128(Decimal128Array, i8),
    Decimal256(Decimal256Array),
    /// A float on its way into a numeric, by its shortest decimal text.
    FloatDigits(Float64Array),
    Text(StringViewArray),
    Jsonb(StringViewArray),
    Bytea(BinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    Uuid(StringViewArray),
    Array {
        list: ListArray,
        items: Box<Column>,
        oid: u32,
    },
}

/// Appends the rows of a batch to `out`.
///
/// # Errors
/// A value that does not fit its column, named.
pub fn encode(batch: &RecordBatch, targets: &[(String, Kind)], out: &mut Vec<u8>) -> Result<()> {
    let columns = batch
        .columns()
        .iter()
        .zip(targets)
        .map(|(column, (name, kind))| {
            Column::new(column, kind).map_err(|e| e.context(format!("column {name}")))
        })
        .collect::<Result<Vec<_>>>()?;
    let count = i16::try_from(columns.len())
        .map_err(|_| Error::invalid("a PostgreSQL table has at most 1,600 columns"))?;
    for row in 0..batch.num_rows() {
        out.extend_from_slice(&count.to_be_bytes());
        for (column, (name, _)) in columns.iter().zip(targets) {
            column
                .write(row, out)
                .map_err(|e| e.context(format!("column {name}")))?;
        }
    }
    Ok(())
}

fn cast(column: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if column.data_type() == to {
        return Ok(Arc::clone(column));
    }
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(column, to, &options).map_err(|e| Error::data(e.to_string()))
}

impl Column {
    /// Casts the values.
    ///
    /// # Errors
    /// A value that does not fit.
    pub fn new(column: &ArrayRef, kind: &Kind) -> Result<Self> {
        let column = match column.data_type() {
            DataType::Dictionary(_, values) => cast(column, values)?,
            DataType::RunEndEncoded(_, values) => cast(column, values.data_type())?,
            _ => Arc::clone(column),
        };
        let (array, cells) = match kind {
            Kind::Bool => of(cast(&column, &DataType::Boolean)?, |a| {
                Cells::Bool(a.as_boolean().clone())
            }),
            Kind::Int2 => of(cast(&column, &DataType::Int16)?, |a| {
                Cells::Int2(a.as_primitive::<Int16Type>().clone())
            }),
            Kind::Int4 => of(cast(&column, &DataType::Int32)?, |a| {
                Cells::Int4(a.as_primitive::<Int32Type>().clone())
            }),
            Kind::Int8 => of(cast(&column, &DataType::Int64)?, |a| {
                Cells::Int8(a.as_primitive::<Int64Type>().clone())
            }),
            Kind::Oid => of(cast(&column, &DataType::Int64)?, |a| {
                Cells::Oid(a.as_primitive::<Int64Type>().clone())
            }),
            Kind::Float4 => of(float4(&column)?, |a| {
                Cells::Float4(a.as_primitive::<Float32Type>().clone())
            }),
            Kind::Float8 => of(cast(&column, &DataType::Float64)?, |a| {
                Cells::Float8(a.as_primitive::<Float64Type>().clone())
            }),
            Kind::Numeric { .. } => numeric_cells(&column)?,
            Kind::Json | Kind::Jsonb if column.data_type().is_nested() => {
                of(json(&column)?, |a| json_cells(a, kind))
            }
            Kind::Json | Kind::Jsonb => {
                of(cast(&column, &DataType::Utf8View)?, |a| json_cells(a, kind))
            }
            Kind::Text { .. } | Kind::Other { .. } => {
                of(cast(&column, &DataType::Utf8View)?, |a| {
                    Cells::Text(a.as_string_view().clone())
                })
            }
            Kind::Uuid => of(cast(&column, &DataType::Utf8View)?, |a| {
                Cells::Uuid(a.as_string_view().clone())
            }),
            Kind::Bytea => of(cast(&column, &DataType::Binary)?, |a| {
                Cells::Bytea(a.as_binary::<i32>().clone())
            }),
            Kind::Date => of(cast(&column, &DataType::Date32)?, |a| {
                Cells::Date(a.as_primitive::<Date32Type>().clone())
            }),
            Kind::Time => of(
                cast(&column, &DataType::Time64(TimeUnit::Microsecond))?,
                |a| Cells::Time(a.as_primitive::<Time64MicrosecondType>().clone()),
            ),
            Kind::Timestamp | Kind::Timestamptz => {
                // The instant in UTC, whatever zone it is shown in.
                let zone = match column.data_type() {
                    DataType::Timestamp(_, zone) => zone.clone(),
                    _ => None,
                };
                let micros = DataType::Timestamp(TimeUnit::Microsecond, zone);
                of(cast(&column, &micros)?, |a| {
                    Cells::Timestamp(a.as_primitive::<TimestampMicrosecondType>().clone())
                })
            }
            Kind::Interval => of(cast(&column, &kind.arrow())?, |a| {
                Cells::Interval(a.as_primitive::<IntervalMonthDayNanoType>().clone())
            }),
            Kind::Array { item, oid } => array_cells(&column, item, *oid)?,
        };
        Ok(Self {
            nulls: array.logical_nulls(),
            cells,
        })
    }

    /// Whether there are nulls among the values.
    pub fn has_nulls(&self) -> bool {
        self.nulls
            .as_ref()
            .is_some_and(|nulls| nulls.null_count() > 0)
    }

    /// Writes one field: its length and its bytes. An element of an array has the same form.
    ///
    /// # Errors
    /// A value that does not fit.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            out.extend_from_slice(&(-1i32).to_be_bytes());
            return Ok(());
        }
        match &self.cells {
            Cells::Bool(a) => fixed(out, [u8::from(a.value(row))]),
            Cells::Int2(a) => fixed(out, a.value(row).to_be_bytes()),
            Cells::Int4(a) => fixed(out, a.value(row).to_be_bytes()),
            Cells::Int8(a) => fixed(out, a.value(row).to_be_bytes()),
            Cells::Oid(a) => {
                let oid = u32::try_from(a.value(row))
                    .map_err(|_| Error::data(format!("{} is no oid", a.value(row))))?;
                fixed(out, oid.to_be_bytes());
            }
            Cells::Float4(a) => fixed(out, a.value(row).to_be_bytes()),
            Cells::Float8(a) => fixed(out, a.value(row).to_be_bytes()),
            Cells::Decimal128(a, scale) => {
                measured(out, |out| numeric::write_i128(a.value(row), *scale, out))?;
            }
            Cells::Decimal256(a) => {
                let text = a.value_as_string(row);
                measured(out, |out| numeric::write_text(&text, out))?;
            }
            Cells::FloatDigits(a) => {
                let text = a.value(row).to_string();
                measured(out, |out| numeric::write_text(&text, out))?;
            }
            Cells::Text(a) => bytes(out, a.value(row).as_bytes())?,
            Cells::Jsonb(a) => measured(out, |out| {
                out.push(1);
                out.extend_from_slice(a.value(row).as_bytes());
            })?,
            Cells::Bytea(a) => bytes(out, a.value(row))?,
            Cells::Date(a) => {
                let days = a.value(row).checked_sub(EPOCH_DAYS).ok_or_else(|| {
                    Error::data(format!("the date {} days from 1970", a.value(row)))
                })?;
                fixed(out, days.to_be_bytes());
            }
            Cells::Time(a) => fixed(out, a.value(row).to_be_bytes()),
            Cells::Timestamp(a) => {
                let micros = a.value(row).checked_sub(EPOCH_MICROS).ok_or_else(|| {
                    Error::data(format!("the timestamp {} µs from 1970", a.value(row)))
                })?;
                fixed(out, micros.to_be_bytes());
            }
            Cells::Interval(a) => {
                let value = a.value(row);
                let mut field = [0u8; 16];
                field[..8].copy_from_slice(&(value.nanoseconds / 1000).to_be_bytes());
                field[8..12].copy_from_slice(&value.days.to_be_bytes());
                field[12..].copy_from_slice(&value.months.to_be_bytes());
                fixed(out, field);
            }
            Cells::Uuid(a) => {
                let uuid = uuid::Uuid::parse_str(a.value(row))
                    .map_err(|_| Error::data(format!("'{}' is no uuid", a.value(row))))?;
                fixed(out, *uuid.as_bytes());
            }
            Cells::Array { list, items, oid } => {
                let offsets = list.value_offsets();
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                let length_at = out.len();
                out.extend_from_slice(&[0; 4]);
                let dimensions = i32::from(end > start);
                let nulls = items
                    .nulls
                    .as_ref()
                    .is_some_and(|nulls| (start..end).any(|item| nulls.is_null(item)));
                out.extend_from_slice(&dimensions.to_be_bytes());
                out.extend_from_slice(&i32::from(nulls).to_be_bytes());
                out.extend_from_slice(&oid.to_be_bytes());
                if dimensions > 0 {
                    out.extend_from_slice(&((end - start) as i32).to_be_bytes());
                    out.extend_from_slice(&1i32.to_be_bytes());
                }
                for item in start..end {
                    items.write(item, out)?;
                }
                patch_length(out, length_at)?;
            }
        }
        Ok(())
    }
}

fn of(array: ArrayRef, cells: impl FnOnce(&ArrayRef) -> Cells) -> (ArrayRef, Cells) {
    let cells = cells(&array);
    (array, cells)
}

fn json_cells(texts: &ArrayRef, kind: &Kind) -> Cells {
    let texts = texts.as_string_view().clone();
    if *kind == Kind::Jsonb {
        Cells::Jsonb(texts)
    } else {
        Cells::Text(texts)
    }
}

/// A float that is too large for `real` would silently become infinite.
fn float4(column: &ArrayRef) -> Result<ArrayRef> {
    let narrow = cast(column, &DataType::Float32)?;
    if *column.data_type() == DataType::Float64 {
        let wide = column.as_primitive::<Float64Type>();
        let values = narrow.as_primitive::<Float32Type>().values();
        for (wide, narrow) in wide.values().iter().zip(values) {
            if wide.is_finite() && !narrow.is_finite() {
                return Err(Error::data(format!("{wide} is out of range for real")));
            }
        }
    }
    Ok(narrow)
}

fn numeric_cells(column: &ArrayRef) -> Result<(ArrayRef, Cells)> {
    let decimal = match column.data_type() {
        DataType::Decimal256(..) => {
            return Ok(of(Arc::clone(column), |a| {
                Cells::Decimal256(a.as_primitive::<Decimal256Type>().clone())
            }));
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            return Ok(of(cast(column, &DataType::Float64)?, |a| {
                Cells::FloatDigits(a.as_primitive::<Float64Type>().clone())
            }));
        }
        DataType::Decimal128(precision, scale) if *scale < 0 => {
            DataType::Decimal128((precision.saturating_add(scale.unsigned_abs())).min(38), 0)
        }
        DataType::Decimal128(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal32(precision, scale) => DataType::Decimal128(*precision, *scale),
        // Any integer.
        _ => DataType::Decimal128(20, 0),
    };
    let scale = match decimal {
        DataType::Decimal128(_, scale) => scale,
        _ => 0,
    };
    Ok(of(cast(column, &decimal)?, |a| {
        Cells::Decimal128(a.as_primitive::<Decimal128Type>().clone(), scale)
    }))
}

fn array_cells(column: &ArrayRef, item: &Kind, oid: u32) -> Result<(ArrayRef, Cells)> {
    let item_type = match column.data_type() {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _) => field.data_type().clone(),
        // Only nulls.
        _ => item.arrow(),
    };
    let list = DataType::List(Arc::new(Field::new_list_field(item_type, true)));
    let list = cast(column, &list)?;
    let items = Column::new(list.as_list::<i32>().values(), item)?;
    Ok(of(list, |a| Cells::Array {
        list: a.as_list::<i32>().clone(),
        items: Box::new(items),
        oid,
    }))
}

/// Structs, maps and lists as JSON texts.
fn json(column: &ArrayRef) -> Result<ArrayRef> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let field = Arc::new(Field::new("value", column.data_type().clone(), true));
    let mut encoder =
        make_encoder(&field, column, &options).map_err(|e| Error::data(e.to_string()))?;
    let mut text = Vec::new();
    let mut texts = arrow::array::builder::StringViewBuilder::with_capacity(column.len());
    for row in 0..column.len() {
        if column.is_null(row) {
            texts.append_null();
            continue;
        }
        text.clear();
        encoder.encode(row, &mut text);
        let value = std::str::from_utf8(&text).map_err(|e| Error::data(e.to_string()))?;
        texts.append_value(value);
    }
    Ok(Arc::new(texts.finish()))
}

fn fixed<const N: usize>(out: &mut Vec<u8>, field: [u8; N]) {
    out.extend_from_slice(&(N as i32).to_be_bytes());
    out.extend_from_slice(&field);
}

fn bytes(out: &mut Vec<u8>, field: &[u8]) -> Result<()> {
    out.extend_from_slice(&length(field.len())?.to_be_bytes());
    out.extend_from_slice(field);
    Ok(())
}

fn measured(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    patch_length(out, at)
}

fn patch_length(out: &mut [u8], at: usize) -> Result<()> {
    let length = length(out.len() - at - 4)?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn length(bytes: usize) -> Result<i32> {
    i32::try_from(bytes).map_err(|_| Error::data("a value of more than 2 GiB"))
}
