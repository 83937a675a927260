//! Values on their way into columns, and the arrays that they make.

use crate::error::{Error, Result};
use arrow::array::{
    ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, Decimal128Array, LargeBinaryArray,
    LargeListArray, LargeStringArray, ListArray, NullArray, PrimitiveArray, StringArray,
    StringViewArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use std::sync::Arc;

/// A value on its way into a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Bool(bool),
    /// Whole numbers, times in their column's unit, days.
    Int(i64),
    Float(f64),
    /// Times ten to the column's scale.
    Decimal(i128),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Cell>),
    Struct(Vec<Cell>),
}

fn primitive<T: ArrowPrimitiveType>(
    cells: Vec<Cell>,
    data_type: &DataType,
    native: impl Fn(i64) -> T::Native,
) -> ArrayRef {
    let values = cells.into_iter().map(|cell| match cell {
        Cell::Int(value) => Some(native(value)),
        _ => None,
    });
    let array: PrimitiveArray<T> = values.collect();
    Arc::new(array.with_data_type(data_type.clone()))
}

fn float(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Float(value) => Some(*value),
        _ => None,
    }
}

fn texts(cells: Vec<Cell>) -> impl Iterator<Item = Option<String>> {
    cells.into_iter().map(|cell| match cell {
        Cell::Text(text) => Some(text),
        _ => None,
    })
}

fn bytes(cells: Vec<Cell>) -> impl Iterator<Item = Option<Vec<u8>>> {
    cells.into_iter().map(|cell| match cell {
        Cell::Bytes(bytes) => Some(bytes),
        _ => None,
    })
}

/// Cells of one column as an array of its type, which they must fit.
///
/// # Errors
/// A type that is not supported.
pub fn array(data_type: &DataType, cells: Vec<Cell>) -> Result<ArrayRef> {
    let internal = |e: arrow::error::ArrowError| Error::internal(e.to_string());
    Ok(match data_type {
        DataType::Null => Arc::new(NullArray::new(cells.len())),
        DataType::Boolean => Arc::new(BooleanArray::from_iter(cells.iter().map(
            |cell| match cell {
                Cell::Bool(value) => Some(*value),
                _ => None,
            },
        ))),
        DataType::Int8 => primitive::<Int8Type>(cells, data_type, |v| v as i8),
        DataType::Int16 => primitive::<Int16Type>(cells, data_type, |v| v as i16),
        DataType::Int32 => primitive::<Int32Type>(cells, data_type, |v| v as i32),
        DataType::Int64 => primitive::<Int64Type>(cells, data_type, |v| v),
        DataType::UInt8 => primitive::<UInt8Type>(cells, data_type, |v| v as u8),
        DataType::UInt16 => primitive::<UInt16Type>(cells, data_type, |v| v as u16),
        DataType::UInt32 => primitive::<UInt32Type>(cells, data_type, |v| v as u32),
        DataType::UInt64 => primitive::<UInt64Type>(cells, data_type, |v| v as u64),
        DataType::Date32 => primitive::<Date32Type>(cells, data_type, |v| v as i32),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => primitive::<TimestampSecondType>(cells, data_type, |v| v),
            TimeUnit::Millisecond => primitive::<TimestampMillisecondType>(cells, data_type, |v| v),
            TimeUnit::Microsecond => primitive::<TimestampMicrosecondType>(cells, data_type, |v| v),
            TimeUnit::Nanosecond => primitive::<TimestampNanosecondType>(cells, data_type, |v| v),
        },
        DataType::Float64 => {
            let array: PrimitiveArray<Float64Type> = cells.iter().map(float).collect();
            Arc::new(array)
        }
        DataType::Float32 => {
            let values = cells
                .iter()
                .map(|cell| float(cell).map(|value| value as f32));
            let array: PrimitiveArray<Float32Type> = values.collect();
            Arc::new(array)
        }
        DataType::Decimal128(precision, scale) => {
            let values = cells.iter().map(|cell| match cell {
                Cell::Decimal(value) => Some(*value),
                _ => None,
            });
            let array: Decimal128Array = values.collect();
            Arc::new(
                array
                    .with_precision_and_scale(*precision, *scale)
                    .map_err(internal)?,
            )
        }
        DataType::Utf8 => Arc::new(StringArray::from_iter(texts(cells))),
        DataType::LargeUtf8 => Arc::new(LargeStringArray::from_iter(texts(cells))),
        DataType::Utf8View => Arc::new(StringViewArray::from_iter(texts(cells))),
        DataType::Binary => Arc::new(BinaryArray::from_iter(bytes(cells))),
        DataType::LargeBinary => Arc::new(LargeBinaryArray::from_iter(bytes(cells))),
        DataType::BinaryView => Arc::new(BinaryViewArray::from_iter(bytes(cells))),
        DataType::List(item) => {
            let (lengths, nulls, items) = flatten(cells);
            let items = array(item.data_type(), items)?;
            let offsets = OffsetBuffer::from_lengths(lengths);
            let list = ListArray::try_new(Arc::clone(item), offsets, items, Some(nulls));
            Arc::new(list.map_err(internal)?)
        }
        DataType::LargeList(item) => {
            let (lengths, nulls, items) = flatten(cells);
            let items = array(item.data_type(), items)?;
            let offsets = OffsetBuffer::from_lengths(lengths);
            let list = LargeListArray::try_new(Arc::clone(item), offsets, items, Some(nulls));
            Arc::new(list.map_err(internal)?)
        }
        DataType::Struct(fields) => {
            let mut columns = vec![Vec::with_capacity(cells.len()); fields.len()];
            let mut valid = Vec::with_capacity(cells.len());
            for cell in cells {
                let values = match cell {
                    Cell::Struct(values) => Some(values),
                    _ => None,
                };
                valid.push(values.is_some());
                let values = values.unwrap_or_else(|| vec![Cell::Null; fields.len()]);
                for (column, value) in columns.iter_mut().zip(values) {
                    column.push(value);
                }
            }
            let columns = columns
                .into_iter()
                .zip(fields)
                .map(|(cells, field)| array(field.data_type(), cells))
                .collect::<Result<Vec<_>>>()?;
            let array =
                StructArray::try_new(fields.clone(), columns, Some(NullBuffer::from(valid)));
            Arc::new(array.map_err(internal)?)
        }
        other => return Err(Error::internal(format!("a column of {other}"))),
    })
}

/// The lengths of lists, which of them are there, and all of their items.
fn flatten(cells: Vec<Cell>) -> (Vec<usize>, NullBuffer, Vec<Cell>) {
    let mut lengths = Vec::with_capacity(cells.len());
    let mut valid = Vec::with_capacity(cells.len());
    let mut items = Vec::new();
    for cell in cells {
        match cell {
            Cell::List(values) => {
                lengths.push(values.len());
                valid.push(true);
                items.extend(values);
            }
            _ => {
                lengths.push(0);
                valid.push(false);
            }
        }
    }
    (lengths, NullBuffer::from(valid), items)
}
