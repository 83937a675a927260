//! Kafka records as JSON, a line each: a bad one must cost nobody but itself.
#![no_main]

use essaim_common::sources::kafka::decode::{JsonDecoder, Slices};
use essaim_common::sources::kafka::timestamps::EpochUnit;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|data: &[u8]| {
    let columns = Arc::new(essaim_fuzz::columns());
    let Ok(mut decoder) = JsonDecoder::new(columns, EpochUnit::Milliseconds, 8192) else {
        return;
    };
    let mut slices = Slices::default();
    let mut records = 0;
    for record in data.split(|byte| *byte == b'\n') {
        // An empty line stands for a record without a value.
        slices.push(Some(record).filter(|record| !record.is_empty()));
        records += 1;
    }
    if let Ok(decoded) = decoder.decode(&slices) {
        assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), records);
    }
});
