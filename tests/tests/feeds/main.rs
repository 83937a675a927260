//! HTTP servers and streams of events as tables: every record once, whatever breaks on either side.

mod http;
mod refused;
mod sse;

use anyhow::{Context, Result};
use essaim_tests::client::Client;
use essaim_tests::kafka::Topic;
use essaim_tests::sql::text;
use essaim_tests::{SOON, wait_for};

/// Waits until a query yields this text, values with tabs between them, rows one a line.
pub async fn until(client: &Client, sql: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    let outcome = wait_for(&format!("{sql} = {wanted}"), SOON * 2, async || {
        last = text(&client.query(sql).await?)?;
        Ok((last == wanted).then_some(()))
    })
    .await;
    outcome.with_context(|| format!("it is {last}"))
}

/// A topic that is written by one job and read by queries.
pub fn output(topic: &Topic, columns: &str) -> String {
    topic.declare("out", columns)
}
