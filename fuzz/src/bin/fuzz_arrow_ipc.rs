//! Rows and schemas from another process, in chunks that end anywhere.
#![no_main]

use bytes::Bytes;
use essaim_common::ipc::{Decoder, decode_schema};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (usize, Vec<u8>)| {
    let (cut, data) = data;
    let _ = decode_schema(&data);
    let bytes = Bytes::from(data);
    let cut = cut % (bytes.len() + 1);
    let mut decoder = Decoder::default();
    if decoder.decode(bytes.slice(..cut)).is_ok() {
        let _ = decoder.decode(bytes.slice(cut..));
    }
});
