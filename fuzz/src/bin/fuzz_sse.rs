//! Server-sent events: however the bytes are cut, they are the same events.
#![no_main]

use essaim_common::sources::sse::frames::Frames;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (first, rest) = essaim_fuzz::cut(data);
    let mut whole = Frames::after("7");
    let at_once = whole.push(&[first, rest].concat());
    let mut pieces = Frames::after("7");
    let mut one_by_one = pieces.push(first);
    one_by_one.extend(pieces.push(rest));
    assert_eq!(at_once, one_by_one);
    assert_eq!(whole.retry(), pieces.retry());
});
