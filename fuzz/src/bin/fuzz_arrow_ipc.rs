//! Rows and schemas from another process, in chunks that end anywhere.
#![no_main]

use bytes::Bytes;
use essaim_common::ipc::{Decoder, decode_schema};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (first, rest) = essaim_fuzz::cut(data);
    let _ = decode_schema(rest);
    let mut decoder = Decoder::default();
    if decoder.decode(Bytes::copy_from_slice(first)).is_ok() {
        let _ = decoder.decode(Bytes::copy_from_slice(rest));
    }
});
