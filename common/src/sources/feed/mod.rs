//! What HTTP and SSE have in common: records that a server sends once, and how they become rows that count once.
//!
//! The row's way: [`client`] asks the server, without [`shown`]ing a secret to anybody; what came becomes an [`entry`] of
//! the job's journal; [`stream`] offers the entries to epochs and hands them to workers, where [`rows`] makes batches of
//! them as the table's [`plan`] says.

pub mod client;
pub mod entry;
pub mod plan;
pub mod rows;
pub mod shown;
pub mod stream;
