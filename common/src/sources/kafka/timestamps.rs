//! Timestamps in JSON: a text in ISO 8601 or a number since 1970, to whatever unit the column has.

use crate::error::Error;
use crate::options::Options;
use crate::sql_types::{beyond, sql_type};
use arrow::array::timezone::Tz;
use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, LargeListArray, ListArray, MapArray,
    PrimitiveArray, StringArray, StructArray, new_null_array,
};
use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::{
    ArrowTimestampType, DataType, Field, FieldRef, Fields, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a number in a timestamp's place counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EpochUnit {
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl EpochUnit {
    /// Takes the option `timestamp_unit`.
    ///
    /// # Errors
    /// Another word than `ms`, `s`, `us` and `ns`.
    pub fn take(options: &mut Options) -> Result<Self, Error> {
        options.one_of(
            "timestamp_unit",
            &[
                ("ms", Self::Milliseconds),
                ("s", Self::Seconds),
                ("us", Self::Microseconds),
                ("ns", Self::Nanoseconds),
            ],
        )
    }

    fn nanos(self) -> i128 {
        match self {
            Self::Seconds => 1_000_000_000,
            Self::Milliseconds => 1_000_000,
            Self::Microseconds => 1_000,
            Self::Nanoseconds => 1,
        }
    }
}

/// The type that arrow-json is asked for: timestamps as the text that stands there, because it would read a number
/// in the unit of the column, which no sender knows.
pub fn decoded_type(data_type: &DataType) -> DataType {
    let field = |field: &FieldRef| decoded_field(field);
    match data_type {
        DataType::Timestamp(..) => DataType::Utf8,
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect::<Fields>()),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

/// A field with its [`decoded_type`].
pub fn decoded_field(field: &FieldRef) -> FieldRef {
    let decoded = decoded_type(field.data_type());
    if &decoded == field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::clone(field).with_data_type(decoded))
}

/// From the [`decoded_type`] to the type itself.
///
/// # Errors
/// A text that is no time, or a time that the column's unit cannot hold.
pub fn convert(array: &ArrayRef, to: &DataType, unit: EpochUnit) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let inner = |array: &ArrayRef, field: &FieldRef| convert(array, field.data_type(), unit);
    Ok(match to {
        DataType::Timestamp(to_unit, zone) => {
            let texts = array.as_string::<i32>();
            let zone = zone.as_deref();
            match to_unit {
                TimeUnit::Second => parse::<TimestampSecondType>(texts, unit, zone)?,
                TimeUnit::Millisecond => parse::<TimestampMillisecondType>(texts, unit, zone)?,
                TimeUnit::Microsecond => parse::<TimestampMicrosecondType>(texts, unit, zone)?,
                TimeUnit::Nanosecond => parse::<TimestampNanosecondType>(texts, unit, zone)?,
            }
        }
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let values = inner(list.values(), item)?;
            Arc::new(ListArray::try_new(
                Arc::clone(item),
                list.offsets().clone(),
                values,
                list.nulls().cloned(),
            )?)
        }
        DataType::LargeList(item) => {
            let list = array.as_list::<i64>();
            let values = inner(list.values(), item)?;
            Arc::new(LargeListArray::try_new(
                Arc::clone(item),
                list.offsets().clone(),
                values,
                list.nulls().cloned(),
            )?)
        }
        DataType::FixedSizeList(item, size) => {
            let list = array.as_fixed_size_list();
            let values = inner(list.values(), item)?;
            Arc::new(FixedSizeListArray::try_new(
                Arc::clone(item),
                *size,
                values,
                list.nulls().cloned(),
            )?)
        }
        DataType::Struct(fields) => Arc::new(convert_struct(array.as_struct(), fields, unit)?),
        DataType::Map(entries, sorted) => {
            let map = array.as_map();
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(ArrowError::SchemaError("a map without entries".to_owned()));
            };
            Arc::new(MapArray::try_new(
                Arc::clone(entries),
                map.offsets().clone(),
                convert_struct(map.entries(), fields, unit)?,
                map.nulls().cloned(),
                *sorted,
            )?)
        }
        other => {
            return Err(ArrowError::SchemaError(format!(
                "{} cannot become {}",
                sql_type(array.data_type()),
                sql_type(other)
            )));
        }
    })
}

fn convert_struct(
    array: &StructArray,
    fields: &Fields,
    unit: EpochUnit,
) -> Result<StructArray, ArrowError> {
    let columns = array
        .columns()
        .iter()
        .zip(fields)
        .map(|(column, field)| {
            convert(column, field.data_type(), unit).map_err(|e| {
                ArrowError::JsonError(format!("field '{}': {}", field.name(), text(&e)))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    StructArray::try_new_with_length(fields.clone(), columns, array.nulls().cloned(), array.len())
}

/// The message of an Arrow error without the name of its kind.
pub fn text(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(text) | ArrowError::ParseError(text) => text.clone(),
        other => other.to_string(),
    }
}

fn parse<T: ArrowTimestampType>(
    texts: &StringArray,
    unit: EpochUnit,
    zone: Option<&str>,
) -> Result<ArrayRef, ArrowError> {
    let data_type = DataType::Timestamp(T::UNIT, zone.map(Arc::from));
    if texts.null_count() == texts.len() {
        return Ok(new_null_array(&data_type, texts.len()));
    }
    let tz: Tz = zone.unwrap_or("+00:00").parse()?;
    let per_unit: i128 = match T::UNIT {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    let values = texts
        .iter()
        .map(|text| {
            let Some(text) = text else {
                return Ok(None);
            };
            let nanos = match epoch_nanos(text, unit) {
                Some(nanos) => nanos,
                None => {
                    let time = string_to_datetime(&tz, text).map_err(|_| {
                        ArrowError::JsonError(format!("\"{text}\" is no ISO 8601 time"))
                    })?;
                    i128::from(time.timestamp()) * 1_000_000_000
                        + i128::from(time.timestamp_subsec_nanos())
                }
            };
            i64::try_from(nanos.div_euclid(per_unit))
                .map(Some)
                .map_err(|_| {
                    let advice = beyond(T::UNIT).unwrap_or("no TIMESTAMP reaches so far");
                    ArrowError::JsonError(format!("the time {text} does not fit: {advice}"))
                })
        })
        .collect::<Result<Vec<Option<i64>>, ArrowError>>()?;
    Ok(Arc::new(
        PrimitiveArray::<T>::from_iter(values).with_timezone_opt(zone.map(Arc::<str>::from)),
    ))
}

/// Nanoseconds of a JSON number, fraction included; `None` for any other text.
fn epoch_nanos(text: &str, unit: EpochUnit) -> Option<i128> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(i128::from(whole) * unit.nanos());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.len();
    if let Ok(number) = whole.parse::<i64>()
        && (1..=18).contains(&digits)
        && fraction.bytes().all(|b| b.is_ascii_digit())
    {
        let part = fraction.parse::<i128>().ok()? * unit.nanos() / 10_i128.pow(digits as u32);
        let part = if whole.starts_with('-') { -part } else { part };
        return Some(i128::from(number) * unit.nanos() + part);
    }
    // With an exponent. A date never parses as a number.
    let number: f64 = text.parse().ok()?;
    number
        .is_finite()
        .then(|| (number * unit.nanos() as f64) as i128)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str, unit: EpochUnit) -> Result<i64, ArrowError> {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![text]));
        let to = DataType::Timestamp(TimeUnit::Millisecond, None);
        let times = convert(&texts, &to, unit)?;
        Ok(times.as_primitive::<TimestampMillisecondType>().value(0))
    }

    #[test]
    fn texts_and_numbers_become_times() {
        let ms = |text| millis(text, EpochUnit::Milliseconds).unwrap();
        assert_eq!(ms("2026-01-31T12:00:00Z"), 1_769_860_800_000);
        assert_eq!(ms("2026-01-31 12:00:00.5"), 1_769_860_800_500);
        assert_eq!(ms("2026-01-31T14:00:00+02:00"), 1_769_860_800_000);
        assert_eq!(ms("2026-01-31"), 1_769_817_600_000);
        assert_eq!(ms("1769860800000"), 1_769_860_800_000);
        assert_eq!(ms("1.7698608e12"), 1_769_860_800_000);
        let s = |text| millis(text, EpochUnit::Seconds).unwrap();
        assert_eq!(s("1769860800.123456"), 1_769_860_800_123);
        assert_eq!(s("-0.5"), -500);
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in ["yesterday", "true", "", "NaN", "inf", "2026-13-01"] {
            assert!(millis(wrong, EpochUnit::Milliseconds).is_err(), "{wrong}");
        }
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["3000-01-01"]));
        let to = DataType::Timestamp(TimeUnit::Nanosecond, None);
        let error = convert(&texts, &to, EpochUnit::Seconds).unwrap_err();
        assert!(text(&error).contains("does not fit"), "{error}");
    }
}
