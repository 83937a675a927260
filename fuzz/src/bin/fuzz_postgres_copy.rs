//! A binary COPY as a database sends it, in chunks that end anywhere.
#![no_main]

use arrow::datatypes::{DataType, Field, TimeUnit};
use essaim_common::sources::postgres::decode::Decoder;
use essaim_common::sources::postgres::types::Kind;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|data: (usize, Vec<u8>)| {
    let (cut, data) = data;
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)));
    let columns: Vec<(String, Kind)> = [
        DataType::Boolean,
        DataType::Int64,
        DataType::Float64,
        DataType::Decimal128(38, 10),
        DataType::Utf8View,
        DataType::Binary,
        DataType::Date32,
        DataType::Timestamp(TimeUnit::Microsecond, None),
        list,
    ]
    .iter()
    .map(|kind| ("c".to_owned(), Kind::for_arrow(kind)))
    .collect();
    let mut decoder = Decoder::new(&columns, 16);
    let cut = cut % (data.len() + 1);
    if decoder.decode(&data[..cut]).is_ok() && decoder.decode(&data[cut..]).is_ok() {
        let rows = decoder.rows();
        if let Ok(columns) = decoder.take() {
            assert!(columns.iter().all(|column| column.len() == rows));
        }
    }
});
