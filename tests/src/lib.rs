//! What Essaim's tests share: a cluster of real processes, a real PostgreSQL, a real Kafka, a FerretDB for MongoDB, and
//! TPC-H.
//!
//! The servers must run already (`make services`); where, say the variables `ESSAIM_TEST_POSTGRES`, `ESSAIM_TEST_KAFKA` and
//! `ESSAIM_TEST_MONGODB`. A server of S3's protocol the tests start themselves: `ESSAIM_TEST_MOTO` is its program. The binary under test is the one beside the tests in the target folder.

pub mod broker;
pub mod certificates;
pub mod client;
pub mod cluster;
pub mod command;
pub mod feeds;
pub mod folder;
pub mod http;
pub mod kafka;
pub mod load;
pub mod mongodb;
pub mod postgres;
pub mod proxy;
pub mod s3;
pub mod schema;
pub mod sql;
pub mod tpch;

use anyhow::{Context, Result, anyhow};
use std::time::{Duration, Instant};

/// How long a test waits for what should take a moment.
pub const SOON: Duration = Duration::from_secs(30);

/// How long a test waits for a job or a query.
pub const LONG: Duration = Duration::from_secs(120);

/// Asks `probe` about fifty times a second until it has an answer. An error counts as "not yet".
///
/// # Errors
/// No answer within `deadline`; says what was waited for and what the last probe said.
pub async fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let last = match tokio::time::timeout_at(end.into(), probe()).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => anyhow!("not yet"),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("the last probe did not answer"),
        };
        if Instant::now() >= end {
            return Err(last).with_context(|| format!("waited {deadline:?} for {what}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A name that no other test uses: `prefix_` and twelve hexadecimal digits.
pub fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}_{}", &id[..12])
}
