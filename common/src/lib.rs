//! What Essaim's master and worker must agree on, and nothing else.
//!
//! The row's way begins here: [`connector`] says what a source and a sink are, [`sources`] and [`sinks`] hold one
//! folder for each, [`scan`] and [`sink`] are the nodes that run them inside a DataFusion plan, [`codec`] and [`ipc`]
//! carry plans and rows between processes, [`session`] sets up the engine the same on both sides.

pub mod access;
pub mod bad_records;
pub mod broadcast;
pub mod check;
pub mod codec;
mod confined;
pub mod connector;
pub mod error;
pub mod functions;
pub mod ipc;
pub mod journal;
pub mod late;
pub mod metrics;
pub mod net;
pub mod object_stores;
pub mod options;
pub mod outputs;
pub mod probe;
pub mod scan;
pub mod scope;
pub mod secret;
pub mod session;
pub mod sink;
pub mod sinks;
pub mod sources;
pub mod sql_types;
pub mod stream;
pub mod table;
pub mod threads;
pub mod trace;
pub mod windows;

pub use error::{Error, ErrorKind, Result};
