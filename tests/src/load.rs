//! A streaming job under a steady load, and what its sinks must hold of it.

use crate::client::Client;
use crate::kafka::Topic;
use crate::postgres::Database;
use crate::{SOON, unique, wait_for};
use anyhow::{Context, Result};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Events that are sent at a time, and the pause after them: about two thousand a second.
const BURST: i64 = 40;
const PAUSE: Duration = Duration::from_millis(20);

/// A topic of events, and a job that counts them by minute and copies them into a database.
#[derive(Debug)]
pub struct StreamJob {
    /// The database of the tables `counts` and `copies`.
    pub database: Database,
    /// The job's name.
    pub name: String,
    /// The job file.
    pub sql: String,
    topic: Arc<Topic>,
    /// Events that have been sent, numbered from 0.
    sent: Arc<AtomicI64>,
}

impl StreamJob {
    /// A job that has not been submitted, over an empty topic.
    ///
    /// # Errors
    /// Broker or database are not there.
    pub async fn new() -> Result<Self> {
        let topic = Topic::create(2).await?;
        let database = Database::create().await?;
        let sql = [
            format!(
                "SET essaim.trigger = '50 milliseconds';
                 CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP) STORED AS KAFKA LOCATION '{}'
                 OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds');\n",
                topic.location()
            ),
            database.declare("counts", "counts", ", mode 'upsert', key 'window_start'"),
            database.declare("copies", "copies", ""),
            "INSERT INTO counts SELECT window_start, count(*) AS events, sum(id) AS total
               FROM events GROUP BY window(at, INTERVAL '1 minute');
             INSERT INTO copies SELECT id FROM events;"
                .to_owned(),
        ]
        .concat();
        Ok(Self {
            database,
            name: unique("stream"),
            sql,
            topic: Arc::new(topic),
            sent: Arc::default(),
        })
    }

    /// Submits it; returns the job's id.
    ///
    /// # Errors
    /// It is refused.
    pub async fn submit(&self, client: &Client) -> Result<String> {
        client.submit(&self.sql, &self.name).await
    }

    /// Sends events until the load is stopped.
    pub fn load(&self) -> Load {
        let (topic, sent) = (Arc::clone(&self.topic), Arc::clone(&self.sent));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                let from = sent.load(Ordering::Relaxed);
                // One a second from 2026-01-01 on.
                let events = (from..from + BURST).map(|n| {
                    let at = 1_767_225_600_000_i64 + n * 1000;
                    json!({"id": n, "at": at}).to_string()
                });
                topic.produce(events).await?;
                sent.store(from + BURST, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        });
        Load {
            stop,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Waits until some of what is sent from now on has been copied.
    ///
    /// # Errors
    /// The job has stopped.
    pub async fn moves(&self) -> Result<()> {
        let from = self.sent.load(Ordering::Relaxed);
        let sql = format!("SELECT count(*) FROM copies WHERE id >= {from}");
        wait_for(&sql, SOON, async || {
            Ok((self.database.value(&sql).await? != "0").then_some(()))
        })
        .await
    }

    /// Waits until both sinks hold every event that was sent, each once.
    ///
    /// # Errors
    /// They do not; says what they hold.
    pub async fn holds_all(&self) -> Result<()> {
        let rows = self.sent.load(Ordering::Relaxed);
        let sql = "SELECT (SELECT sum(events) FROM counts) || ' ' || (SELECT sum(total) FROM counts) || ' ' ||
                     (SELECT count(*) FROM copies) || ' ' || (SELECT count(DISTINCT id) FROM copies)";
        let wanted = format!("{rows} {} {rows} {rows}", rows * (rows - 1) / 2);
        let mut last = String::new();
        let outcome = wait_for(&format!("the sinks to hold {wanted}"), SOON, async || {
            let found = self.database.value(sql).await;
            last = found.unwrap_or_else(|e| e.to_string());
            Ok((last == wanted).then_some(()))
        })
        .await;
        outcome.with_context(|| format!("they hold {last}"))
    }
}

/// Somebody who sends events.
#[derive(Debug)]
pub struct Load {
    stop: CancellationToken,
    task: AbortOnDropHandle<Result<()>>,
}

impl Load {
    /// Sends no more.
    ///
    /// # Errors
    /// An event could not be sent.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?
    }
}
