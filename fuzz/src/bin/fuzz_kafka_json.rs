//! Kafka records as JSON: a bad one must cost nobody but itself.
#![no_main]

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use essaim_common::sources::kafka::decode::{JsonDecoder, Slices};
use essaim_common::sources::kafka::timestamps::EpochUnit;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|records: Vec<Option<Vec<u8>>>| {
    let field = |name: &str, kind| Field::new(name, kind, true);
    let inner = Fields::from(vec![
        field("n", DataType::Int64),
        field("s", DataType::Utf8View),
    ]);
    let schema = Schema::new(vec![
        field("id", DataType::Int64),
        field("text", DataType::Utf8View),
        field("price", DataType::Float64),
        field("amount", DataType::Decimal128(20, 4)),
        field("ok", DataType::Boolean),
        field("at", DataType::Timestamp(TimeUnit::Nanosecond, None)),
        field("day", DataType::Date32),
        field("who", DataType::Struct(inner)),
        Field::new_list("tags", field("item", DataType::Utf8View), true),
    ]);
    let Ok(mut decoder) = JsonDecoder::new(Arc::new(schema), EpochUnit::Milliseconds, 8192) else {
        return;
    };
    let mut slices = Slices::default();
    for record in &records {
        slices.push(record.as_deref());
    }
    if let Ok(decoded) = decoder.decode(&slices) {
        assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), records.len());
    }
});
