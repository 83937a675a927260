//! Times in Parquet files count microseconds: nanoseconds are a type that Spark and others refuse, and PostgreSQL has none
//! either.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Fields, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use std::sync::Arc;

/// The fields with microseconds where they have nanoseconds, at any depth.
pub(super) fn fields(fields: &Fields) -> Fields {
    fields.iter().map(field).collect()
}

fn field(field: &FieldRef) -> FieldRef {
    let written = data_type(field.data_type());
    match &written == field.data_type() {
        true => Arc::clone(field),
        false => Arc::new(field.as_ref().clone().with_data_type(written)),
    }
}

fn data_type(from: &DataType) -> DataType {
    match from {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Struct(inner) => DataType::Struct(fields(inner)),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        DataType::Dictionary(keys, values) => {
            DataType::Dictionary(keys.clone(), Box::new(data_type(values)))
        }
        other => other.clone(),
    }
}

/// The rows in the types of `schema`, which comes of [`fields`]: what is finer than a microsecond is cut off, as it is on
/// its way to PostgreSQL.
pub(super) fn batch(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let columns = rows.columns().iter().zip(schema.fields());
    let columns = columns.map(
        |(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast_with_options(column, field.data_type(), &options),
        },
    );
    let columns = columns.collect::<Result<Vec<ArrayRef>, _>>()?;
    let count = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray, ListArray, StructArray, TimestampNanosecondArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{Field, Schema, TimestampMicrosecondType};

    #[test]
    fn nanoseconds_become_microseconds_at_any_depth() {
        let times = TimestampNanosecondArray::from(vec![Some(1_700_000_000_123_456_789), None])
            .with_timezone("+00:00");
        let inner = Field::new("at", times.data_type().clone(), true);
        let structs = StructArray::from(vec![(Arc::new(inner), Arc::new(times) as ArrayRef)]);
        let item = Field::new_list_field(structs.data_type().clone(), true);
        let offsets = OffsetBuffer::from_lengths([2]);
        let list = ListArray::new(Arc::new(item), offsets, Arc::new(structs), None);
        let schema = Schema::new(vec![Field::new("l", list.data_type().clone(), true)]);
        let rows = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(list)]).unwrap();
        let written = Arc::new(Schema::new(fields(rows.schema().fields())));
        let rows = batch(&rows, &written).unwrap();
        let values = rows.column(0).as_list::<i32>().value(0);
        let times = values.as_struct().column(0);
        let zone = Some("+00:00".into());
        assert_eq!(
            times.data_type(),
            &DataType::Timestamp(TimeUnit::Microsecond, zone)
        );
        let times = times.as_primitive::<TimestampMicrosecondType>();
        assert_eq!(
            times.iter().collect::<Vec<_>>(),
            [Some(1_700_000_000_123_456), None]
        );
    }
}
