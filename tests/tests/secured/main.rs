//! What jobs may reach, and how connectors show who they are: files and variables, Kafka and Postgres over TLS.

mod files;
mod kafka;
mod postgres;
mod s3;

use anyhow::Result;
use essaim_tests::client::Client;
use std::time::{Duration, Instant};
use tonic::Status;

/// What is wrong with credentials or certificates is known at once, and not when a time-out has passed.
const QUICK: Duration = Duration::from_secs(12);

/// How a query fails, quickly and without the secret.
async fn refused(client: &Client, sql: &str, secret: &str, parts: &[&str]) -> Result<Status> {
    let start = Instant::now();
    let status = client.query_error(sql).await?;
    assert!(start.elapsed() < QUICK, "{:?}: {status:?}", start.elapsed());
    for part in parts {
        assert!(
            status.message().contains(part),
            "no {part:?} in {status:?} of {sql}"
        );
    }
    assert!(!status.message().contains(secret), "{status:?}");
    Ok(status)
}
