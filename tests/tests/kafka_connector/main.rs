//! The Kafka connector against a real broker at `$ESSAIM_TEST_KAFKA` (127.0.0.1:29092 if that is not set).
#![allow(clippy::unwrap_used)]

mod bad_input;
mod offsets;
mod round_trip;
mod sink;
mod stream_sink;
mod streaming;
mod support;
mod transactions;
