//! Arrow to BSON: rows as documents, structs as documents, lists as arrays, NULL as null.

use crate::error::{Error, Result};
use crate::sources::mongodb::is_field_name;
use crate::sql_types::sql_type;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document};
use std::str::FromStr;

const MS_PER_DAY: i64 = 86_400_000;
/// Digits that BSON's decimals hold.
const DECIMAL_DIGITS: u8 = 34;

/// Checks that rows of a schema have a form as documents.
///
/// # Errors
/// A type that BSON has no values for, a name that a field cannot have: named, with what to write instead.
pub fn check(schema: &Schema) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for field in schema.fields() {
        if !seen.insert(field.name()) {
            return Err(Error::invalid(format!(
                "two columns are named {}: give one of them another name with AS",
                field.name()
            )));
        }
        check_field(field)?;
    }
    Ok(())
}

fn check_field(field: &Field) -> Result<()> {
    let name = field.name();
    if !is_field_name(name) {
        return Err(Error::invalid(format!(
            "column {name}: the name of a field cannot be empty, contain a dot or begin with $: give it another with AS"
        )));
    }
    check_type(name, field.data_type())
}

fn check_type(name: &str, data_type: &DataType) -> Result<()> {
    match data_type {
        DataType::Struct(fields) => fields.iter().try_for_each(|field| check_field(field)),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::FixedSizeList(item, _) => check_type(name, item.data_type()),
        DataType::Dictionary(_, values) => check_type(name, values),
        DataType::Null
        | DataType::Boolean
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)
        | DataType::Timestamp(..)
        | DataType::Date32
        | DataType::Date64 => Ok(()),
        DataType::Decimal128(precision, _) if *precision <= DECIMAL_DIGITS => Ok(()),
        DataType::Decimal128(..) | DataType::Decimal256(..) => Err(Error::invalid(format!(
            "column {name} is {}, and MongoDB's decimals have {DECIMAL_DIGITS} digits: CAST it to \
             DECIMAL({DECIMAL_DIGITS}, s), DOUBLE or VARCHAR",
            sql_type(data_type)
        ))),
        other if other.is_integer() => Ok(()),
        other => Err(Error::invalid(format!(
            "column {name} is {}, which BSON has no values for: CAST it to VARCHAR",
            sql_type(other)
        ))),
    }
}

/// Whether a schema has decimals somewhere, which FerretDB 1 does not take.
pub fn has_decimals(schema: &Schema) -> bool {
    fn has(data_type: &DataType) -> bool {
        match data_type {
            DataType::Decimal128(..) => true,
            DataType::Struct(fields) => fields.iter().any(|field| has(field.data_type())),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::FixedSizeList(item, _) => has(item.data_type()),
            DataType::Dictionary(_, values) => has(values),
            _ => false,
        }
    }
    schema.fields().iter().any(|field| has(field.data_type()))
}

/// The rows of a batch, in order.
///
/// # Errors
/// A value that BSON cannot hold; the message names the column.
pub fn documents(batch: &RecordBatch) -> Result<Vec<Document>> {
    let mut documents = vec![Document::new(); batch.num_rows()];
    let schema = batch.schema();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let values = values(column).map_err(|e| e.context(format!("column {}", field.name())))?;
        for (document, value) in documents.iter_mut().zip(values) {
            document.insert(field.name().clone(), value);
        }
    }
    Ok(documents)
}

fn primitive<T: ArrowPrimitiveType>(
    array: &ArrayRef,
    value: impl Fn(T::Native) -> Bson,
) -> Vec<Bson> {
    let values = array.as_primitive::<T>().iter();
    values
        .map(|native| native.map_or(Bson::Null, &value))
        .collect()
}

fn time<T: ArrowPrimitiveType<Native = i64>>(
    array: &ArrayRef,
    ms: impl Fn(i64) -> i64,
) -> Vec<Bson> {
    primitive::<T>(array, |time| {
        Bson::DateTime(DateTime::from_millis(ms(time)))
    })
}

fn values(array: &ArrayRef) -> Result<Vec<Bson>> {
    let as_type =
        |data_type: &DataType| cast(array, data_type).map_err(|e| Error::data(e.to_string()));
    Ok(match array.data_type() {
        DataType::Null => vec![Bson::Null; array.len()],
        DataType::Boolean => {
            let values = array.as_boolean().iter();
            values
                .map(|value| value.map_or(Bson::Null, Bson::Boolean))
                .collect()
        }
        DataType::Int8 => primitive::<Int8Type>(array, |n| Bson::Int32(n.into())),
        DataType::Int16 => primitive::<Int16Type>(array, |n| Bson::Int32(n.into())),
        DataType::Int32 => primitive::<Int32Type>(array, Bson::Int32),
        DataType::Int64 => primitive::<Int64Type>(array, Bson::Int64),
        DataType::UInt8 => primitive::<UInt8Type>(array, |n| Bson::Int32(n.into())),
        DataType::UInt16 => primitive::<UInt16Type>(array, |n| Bson::Int32(n.into())),
        DataType::UInt32 => primitive::<UInt32Type>(array, |n| Bson::Int64(n.into())),
        DataType::UInt64 => {
            let numbers = array.as_primitive::<UInt64Type>().iter();
            let numbers = numbers.map(|number| match number.map(i64::try_from) {
                None => Ok(Bson::Null),
                Some(Ok(number)) => Ok(Bson::Int64(number)),
                Some(Err(_)) => Err(Error::data(format!(
                    "{} is more than BSON's largest whole number: CAST it to DECIMAL or VARCHAR",
                    number.unwrap_or_default()
                ))),
            });
            numbers.collect::<Result<_>>()?
        }
        DataType::Float16 => return values(&as_type(&DataType::Float64)?),
        DataType::Float32 => primitive::<Float32Type>(array, |n| Bson::Double(n.into())),
        DataType::Float64 => primitive::<Float64Type>(array, Bson::Double),
        DataType::Decimal128(..) => {
            let decimals = array.as_primitive::<Decimal128Type>();
            let texts = (0..array.len()).map(|row| match decimals.is_null(row) {
                true => Ok(Bson::Null),
                false => Decimal128::from_str(&decimals.value_as_string(row))
                    .map(Bson::Decimal128)
                    .map_err(|e| Error::data(e.to_string())),
            });
            texts.collect::<Result<_>>()?
        }
        DataType::Utf8 => texts(array.as_string::<i32>().iter()),
        DataType::LargeUtf8 => texts(array.as_string::<i64>().iter()),
        DataType::Utf8View => texts(array.as_string_view().iter()),
        DataType::Binary => bytes(array.as_binary::<i32>().iter()),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().iter()),
        DataType::BinaryView => bytes(array.as_binary_view().iter()),
        DataType::FixedSizeBinary(_) => bytes(array.as_fixed_size_binary().iter()),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => time::<TimestampSecondType>(array, |t| t.saturating_mul(1000)),
            TimeUnit::Millisecond => time::<TimestampMillisecondType>(array, |t| t),
            TimeUnit::Microsecond => {
                time::<TimestampMicrosecondType>(array, |t| t.div_euclid(1000))
            }
            TimeUnit::Nanosecond => {
                time::<TimestampNanosecondType>(array, |t| t.div_euclid(1_000_000))
            }
        },
        DataType::Date32 => primitive::<Date32Type>(array, |days| {
            Bson::DateTime(DateTime::from_millis(i64::from(days) * MS_PER_DAY))
        }),
        DataType::Date64 => {
            return values(&as_type(&DataType::Timestamp(TimeUnit::Millisecond, None))?);
        }
        DataType::Struct(fields) => {
            let array = array.as_struct();
            let columns = array
                .columns()
                .iter()
                .map(values)
                .collect::<Result<Vec<_>>>()?;
            let mut documents = vec![Document::new(); array.len()];
            for (field, column) in fields.iter().zip(columns) {
                for (document, value) in documents.iter_mut().zip(column) {
                    document.insert(field.name().clone(), value);
                }
            }
            let rows = documents.into_iter().enumerate();
            rows.map(|(row, document)| match array.is_null(row) {
                true => Bson::Null,
                false => Bson::Document(document),
            })
            .collect()
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let lists = list.iter();
            lists
                .map(|items| self::list(items.as_ref()))
                .collect::<Result<_>>()?
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let lists = list.iter();
            lists
                .map(|items| self::list(items.as_ref()))
                .collect::<Result<_>>()?
        }
        DataType::ListView(item) | DataType::FixedSizeList(item, _) => {
            return values(&as_type(&DataType::List(item.clone()))?);
        }
        DataType::Dictionary(_, of) => return values(&as_type(of)?),
        other => return Err(Error::internal(format!("{other} has no form in BSON"))),
    })
}

fn list(items: Option<&ArrayRef>) -> Result<Bson> {
    items.map_or(Ok(Bson::Null), |items| Ok(Bson::Array(values(items)?)))
}

fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> Vec<Bson> {
    texts
        .map(|text| text.map_or(Bson::Null, |text| Bson::String(text.to_owned())))
        .collect()
}

fn bytes<'a>(bytes: impl Iterator<Item = Option<&'a [u8]>>) -> Vec<Bson> {
    bytes
        .map(|bytes| {
            bytes.map_or(Bson::Null, |bytes| {
                Bson::Binary(Binary {
                    subtype: BinarySubtype::Generic,
                    bytes: bytes.to_vec(),
                })
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;
    use arrow::array::{
        Decimal128Array, Int64Array, ListArray, StringViewArray, StructArray,
        TimestampNanosecondArray, UInt64Array,
    };
    use arrow::datatypes::Int32Type;
    use mongodb::bson::doc;
    use std::sync::Arc;

    #[test]
    fn rows_become_documents() {
        let inner: ArrayRef = Arc::new(StringViewArray::from(vec![Some("x"), None]));
        let of = Arc::new(Field::new("s", DataType::Utf8View, true));
        let nested = StructArray::from(vec![(of, inner)]);
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            None,
        ]);
        let decimals = Decimal128Array::from(vec![Some(-150), None]);
        let batch = RecordBatch::try_from_iter(vec![
            ("n", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
            (
                "d",
                Arc::new(decimals.with_precision_and_scale(10, 2).unwrap()),
            ),
            (
                "at",
                Arc::new(TimestampNanosecondArray::from(vec![1_500_000, -1])),
            ),
            ("nested", Arc::new(nested)),
            ("list", Arc::new(list)),
        ])
        .unwrap();
        check(&batch.schema()).unwrap();
        assert_eq!(
            documents(&batch).unwrap(),
            [
                doc! {
                    "n": 1i64, "d": Decimal128::from_str("-1.50").unwrap(), "at": DateTime::from_millis(1),
                    "nested": { "s": "x" }, "list": [1, Bson::Null],
                },
                doc! {
                    "n": 2i64, "d": Bson::Null, "at": DateTime::from_millis(-1),
                    "nested": { "s": Bson::Null }, "list": Bson::Null,
                },
            ]
        );
    }

    #[test]
    fn what_has_no_form_is_named() {
        let refused = |name: &str, data_type| {
            let schema = Schema::new(vec![Field::new(name, data_type, true)]);
            check(&schema).unwrap_err().to_string()
        };
        assert!(refused("a.b", DataType::Int64).contains("AS"));
        assert!(refused("x", DataType::Decimal128(38, 10)).contains("34"));
        assert!(refused("x", DataType::Duration(TimeUnit::Second)).contains("VARCHAR"));
        let batch = RecordBatch::try_from_iter(vec![(
            "big",
            Arc::new(UInt64Array::from(vec![u64::MAX])) as ArrayRef,
        )])
        .unwrap();
        let message = documents(&batch).unwrap_err().to_string();
        assert!(
            message.contains("column big: 18446744073709551615"),
            "{message}"
        );
    }
}
