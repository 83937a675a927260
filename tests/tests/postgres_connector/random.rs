//! Random schemas and rows through the real server: the sink's encoder and the source's decoder undo each other.

use crate::harness::{Place, insert, job, read_split, run, scope};
use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array,
    Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray,
    RecordBatch, StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::array::{ListArray, new_null_array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, Schema, i256};
use essaim_common::connector::ScanRequest;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;

/// How many types [`values`] knows.
const TYPES: usize = 16;

/// Random values of the type of that number, a fifth of them null, the extremes often.
fn values(kind: usize, rows: usize, random: &mut StdRng) -> ArrayRef {
    fn some<T>(
        rows: usize,
        random: &mut StdRng,
        mut make: impl FnMut(&mut StdRng) -> T,
    ) -> Vec<Option<T>> {
        (0..rows)
            .map(|_| (!random.random_ratio(1, 5)).then(|| make(random)))
            .collect()
    }
    fn one_of<T: Copy>(random: &mut StdRng, values: &[T]) -> T {
        values[random.random_range(0..values.len())]
    }
    let r = random;
    match kind {
        0 => Arc::new(BooleanArray::from(some(rows, r, |r| r.random::<bool>()))),
        1 => Arc::new(Int16Array::from(some(rows, r, |r| r.random::<i16>()))),
        2 => Arc::new(Int32Array::from(some(rows, r, |r| {
            one_of(r, &[i32::MIN, -1, 0, 1, i32::MAX])
        }))),
        3 => Arc::new(Int64Array::from(some(rows, r, |r| r.random::<i64>()))),
        4 => Arc::new(Float32Array::from(some(rows, r, |r| {
            one_of(
                r,
                &[
                    f32::NAN,
                    f32::INFINITY,
                    f32::NEG_INFINITY,
                    -0.0,
                    f32::MIN_POSITIVE,
                    1.1,
                ],
            )
        }))),
        5 => Arc::new(Float64Array::from(some(rows, r, |r| {
            let any = r.random::<f64>() * 1e300;
            one_of(
                r,
                &[
                    f64::NAN,
                    f64::INFINITY,
                    f64::NEG_INFINITY,
                    -0.0,
                    f64::MAX,
                    0.1,
                    any,
                ],
            )
        }))),
        6 => {
            let precision = r.random_range(1..=38u8);
            let scale = r.random_range(0..=precision) as i8;
            let limit = 10i128.pow(u32::from(precision)) - 1;
            let values = some(rows, r, |r| {
                let small = r.random_range(-limit..=limit) / 10i128.pow(r.random_range(0..38u32));
                one_of(r, &[-limit, limit, 0, 1, small])
            });
            let array = Decimal128Array::from(values);
            Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
        }
        7 => {
            let precision = r.random_range(39..=76u8);
            let scale = r.random_range(0..=precision) as i8;
            let values = some(rows, r, |r| {
                let digits = r.random_range(1..=precision);
                let text: String = (0..digits)
                    .map(|_| char::from(b'0' + r.random_range(0..10u8)))
                    .collect();
                let sign = if r.random() { "-" } else { "" };
                i256::from_string(&format!("{sign}{text}")).unwrap()
            });
            let array = Decimal256Array::from(values);
            Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
        }
        8 => Arc::new(StringViewArray::from(some(rows, r, |r| {
            let length = r.random_range(0..40);
            (0..length)
                .map(|_| one_of(r, &['a', 'Z', '\'', '"', '\\', '\n', 'é', '漢', '🐝', ' ']))
                .collect::<String>()
        }))),
        9 => {
            let values = some(rows, r, |r| {
                let length = r.random_range(0..40);
                (0..length).map(|_| r.random::<u8>()).collect::<Vec<u8>>()
            });
            Arc::new(BinaryArray::from_iter(values))
        }
        10 => Arc::new(Date32Array::from(some(rows, r, |r| {
            // 4713 BC to 5874897.
            r.random_range(-2_440_000..=2_145_000_000)
        }))),
        11 => Arc::new(Time64MicrosecondArray::from(some(rows, r, |r| {
            r.random_range(0..86_400_000_000)
        }))),
        12 | 13 => {
            let values = some(rows, r, |r| {
                r.random_range(-200_000_000_000_000_000..=9_000_000_000_000_000_000)
            });
            let zone = (kind == 13).then_some("+00:00");
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone_opt(zone))
        }
        14 => Arc::new(IntervalMonthDayNanoArray::from(some(rows, r, |r| {
            let nanos = r.random_range(-9_000_000_000_000_000i64..=9_000_000_000_000_000) * 1000;
            IntervalMonthDayNano::new(r.random_range(-1000..1000), r.random::<i32>(), nanos)
        }))),
        _ => {
            let lengths: Vec<usize> = (0..rows).map(|_| r.random_range(0..4)).collect();
            let nulls: Vec<bool> = (0..rows).map(|_| !r.random_ratio(1, 5)).collect();
            let lengths: Vec<usize> = lengths
                .iter()
                .zip(&nulls)
                .map(|(n, valid)| if *valid { *n } else { 0 })
                .collect();
            let item = r.random_range(0..TYPES - 1);
            let items = values(item, lengths.iter().sum(), r);
            let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths(lengths);
            Arc::new(ListArray::new(
                field,
                offsets,
                items,
                Some(NullBuffer::from(nulls)),
            ))
        }
    }
}

fn batch(kinds: &[usize], rows: usize, seed: u64) -> RecordBatch {
    let mut random = StdRng::seed_from_u64(seed);
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Int32Array::from_iter_values(0..rows as i32))];
    columns.extend(kinds.iter().map(|kind| values(*kind, rows, &mut random)));
    // Nothing but nulls now and then.
    if seed.is_multiple_of(7)
        && kinds.len() > 1
        && let Some(last) = columns.last_mut()
    {
        *last = new_null_array(last.data_type(), rows);
    }
    let fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| Field::new(format!("c \"{at}"), column.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

async fn there_and_back(kinds: &[usize], rows: usize, seed: u64) {
    let place = Place::new().await;
    let table = place.table("random", &[]).await.unwrap();
    assert!(table.schema.is_none());
    let sent = batch(kinds, rows, seed);
    let half = rows / 2;
    let parts = vec![sent.slice(half, rows - half), sent.slice(0, half)];
    insert(&table, &run(&job(), 1), false, parts).await.unwrap();

    let table = place.table("random", &[]).await.unwrap();
    let schema = table.schema.clone().unwrap();
    assert_eq!(schema, sent.schema());
    let projection: Vec<usize> = (0..schema.fields().len()).collect();
    let request = ScanRequest {
        projection: &projection,
        filters: &[],
        limit: None,
        target_splits: 4,
        scope: &scope(),
    };
    let scan = table.source.unwrap().plan(request).await.unwrap();
    let mut batches = Vec::new();
    for split in 0..scan.splits.len() {
        batches.extend(read_split(&scan, split).await.unwrap());
    }
    let found = concat_batches(&schema, &batches).unwrap();
    let id = SortColumn {
        values: Arc::clone(found.column(0)),
        options: None,
    };
    let order = lexsort_to_indices(&[id], None).unwrap();
    let found = take_record_batch(&found, &order).unwrap();
    for (field, (found, sent)) in schema
        .fields()
        .iter()
        .zip(found.columns().iter().zip(sent.columns()))
    {
        assert_ne!(field.data_type(), &DataType::Null);
        assert_eq!(found, sent, "{field}");
    }
    place.drop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_read(kinds in prop::collection::vec(0..TYPES, 0..8), rows in 1usize..60, seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(there_and_back(&kinds, rows, seed));
    }
}
