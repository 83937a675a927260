//! The body of an HTTP answer: records by path or as they stand, and the cursor of the next page.
#![no_main]

use essaim_common::sources::http::body::{Document, path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(document) = Document::new(data, false) {
        let _ = document.records(None);
    }
    let (Ok(list), Ok(cursor)) = (path("$..list[*]"), path("$.next")) else {
        return;
    };
    if let Ok(document) = Document::new(data, true) {
        let _ = document.records(Some(&list));
        let _ = document.text(&cursor);
    }
});
