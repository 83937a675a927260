//! MongoDB's documents: what does not fit its column is named, and costs nobody but itself.
#![no_main]

use essaim_common::sources::mongodb::decode::Decoder;
use essaim_common::sources::mongodb::infer;
use libfuzzer_sys::fuzz_target;
use mongodb::bson::RawDocumentBuf;
use std::sync::Arc;

fuzz_target!(|data: &[u8]| {
    let Ok(document) = RawDocumentBuf::from_bytes(data.to_vec()) else {
        return;
    };
    let _ = infer::schema(std::slice::from_ref(&document));
    let mut decoder = Decoder::new(Arc::new(essaim_fuzz::columns()));
    let taken = usize::from(decoder.push(&document).is_ok());
    assert_eq!(decoder.rows(), taken);
    if let Ok(rows) = decoder.finish() {
        assert_eq!(rows.num_rows(), taken);
    }
});
