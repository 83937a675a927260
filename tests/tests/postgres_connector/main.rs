//! The Postgres connector against a real server: what is read is what is there, what is written is there once.
#![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.

mod commit;
mod faults;
mod harness;
mod random;
mod reading;
mod streaming;
mod streaming_faults;
mod types;
mod writing;
