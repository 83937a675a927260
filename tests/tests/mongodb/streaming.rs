//! Kafka to MongoDB while workers, masters and the server die: each document is there once.

use anyhow::{Context, Result};
use essaim_proto::v1::JobState;
use essaim_tests::client::Client;
use essaim_tests::cluster::{Cluster, MEMORY};
use essaim_tests::kafka::Topic;
use essaim_tests::mongodb::{Database, PrivateServer};
use essaim_tests::{SOON, unique, wait_for};
use serde_json::json;
use std::collections::BTreeSet;

/// A topic of events, and a job that counts them by minute and copies them.
struct Job {
    topic: Topic,
    database: Database,
    sql: String,
    name: String,
}

impl Job {
    async fn new(database: Database) -> Result<Self> {
        let topic = Topic::create(3).await?;
        let sql = [
            format!(
                "SET essaim.trigger = '100 milliseconds';
                 CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP, place STRUCT<city VARCHAR>) STORED AS KAFKA
                 LOCATION '{}'
                 OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds', max_offsets_per_trigger '200');\n",
                topic.location()
            ),
            database.declare("counts", "", "counts", ", mode 'upsert', key 'window_start'"),
            database.declare("copies", "", "copies", ""),
            "INSERT INTO counts SELECT window_start, count(*) AS events, sum(id) AS total
               FROM events GROUP BY window(at, INTERVAL '1 minute');
             INSERT INTO copies SELECT id, place FROM events;"
                .to_owned(),
        ]
        .concat();
        Ok(Self {
            topic,
            database,
            sql,
            name: unique("mongodb"),
        })
    }

    async fn submit(&self, client: &Client) -> Result<String> {
        client.submit(&self.sql, &self.name).await
    }

    /// Events with these numbers, one a second from 2026-01-01 on.
    async fn produce(&self, from: i64, to: i64) -> Result<()> {
        let events = (from..to).map(|n| {
            let at = 1_767_225_600_000_i64 + n * 1000;
            json!({"id": n, "at": at, "place": {"city": "Lyon"}}).to_string()
        });
        self.topic.produce(events).await?;
        Ok(())
    }

    /// Events counted and their sum; copies, and how many different ones.
    async fn state(&self) -> Result<(i64, i64, usize, usize)> {
        let (mut events, mut total) = (0, 0);
        for count in self.database.all("counts").await? {
            events += count.get_i64("events")?;
            total += count.get_i64("total")?;
        }
        let copies = self.database.all("copies").await?;
        let mut ids = BTreeSet::new();
        for copy in &copies {
            assert_eq!(copy.get_document("place")?.get_str("city")?, "Lyon");
            ids.insert(copy.get_i64("id")?);
        }
        Ok((events, total, copies.len(), ids.len()))
    }

    /// Waits until both collections hold the first `rows` events, each once.
    async fn holds(&self, rows: i64) -> Result<()> {
        let all = usize::try_from(rows)?;
        let wanted = (rows, rows * (rows - 1) / 2, all, all);
        let mut last = None;
        let what = format!("the collections to hold {wanted:?}");
        let outcome = wait_for(&what, SOON * 2, async || {
            let state = self.state().await?;
            last = Some(state);
            Ok((state == wanted).then_some(()))
        })
        .await;
        outcome.with_context(|| format!("they hold {last:?}"))
    }

    /// Waits until at least so many events are copied.
    async fn copies(&self, rows: usize) -> Result<()> {
        wait_for("copies", SOON * 2, async || {
            Ok((self.state().await?.2 >= rows).then_some(()))
        })
        .await
    }
}

#[tokio::test]
async fn each_event_is_there_once_though_worker_and_master_die() -> Result<()> {
    let job = Job::new(Database::create().await?).await?;
    let mut cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    job.produce(0, 1500).await?;
    let id = job.submit(&client).await?;
    job.copies(200).await?;
    // In the middle of its epochs.
    cluster.kill_worker(0);
    job.copies(600).await?;
    cluster.kill_master();
    cluster.restart_master().await?;
    cluster.add_worker(2, MEMORY).await?;
    job.produce(1500, 2000).await?;
    job.holds(2000).await?;
    let client = cluster.client().await?;
    let found = client.get(&id).await?;
    assert_eq!(found.state(), JobState::Running, "{}", found.message);
    client.cancel(&id).await?;
    client.wait_job(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn epochs_wait_for_a_server_that_dies_and_comes_back() -> Result<()> {
    let mut server = PrivateServer::start().await?;
    let job = Job::new(Database::create_at(&server.url).await?).await?;
    let cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    job.produce(0, 1000).await?;
    let id = job.submit(&client).await?;
    job.copies(200).await?;
    server.kill();
    job.produce(1000, 1200).await?;
    server.restart().await?;
    job.holds(1200).await?;
    let found = client.get(&id).await?;
    assert_eq!(found.state(), JobState::Running, "{}", found.message);
    client.cancel(&id).await?;
    client.wait_job(&id).await?;
    cluster.stop().await
}
