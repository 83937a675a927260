//! A binary COPY as a database sends it, in chunks that end anywhere.
#![no_main]

use essaim_common::sources::postgres::decode::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (first, rest) = essaim_fuzz::cut(data);
    let mut decoder = Decoder::new(&essaim_fuzz::copied_columns(), 16);
    if decoder.decode(first).is_ok() && decoder.decode(rest).is_ok() {
        let rows = decoder.rows();
        if let Ok(columns) = decoder.take() {
            assert!(columns.iter().all(|column| column.len() == rows));
        }
    }
});
