//! An embedded Kafka broker and the topic `toots` in it.

use super::latency::Produced;
use super::postgres::Ledger;
use super::toots::Author;
use anyhow::{Context, Result, ensure};
use chrono::Utc;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ProducerContext, ThreadedProducer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// The topic.
pub const TOPIC: &str = "toots";
/// Its partitions.
pub const PARTITIONS: i32 = 12;
/// How long the broker may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked how many toots are due.
const TURN: Duration = Duration::from_millis(5);
/// Toots that go to one partition before the next has its turn, so that they travel together.
const LOT: u64 = 100;
const POLL: Duration = Duration::from_millis(10);

/// librdkafka's mock broker, in this process. It drops a partition's oldest messages beyond 5 MiB or 100,000 batches,
/// which [`produce`] checks has not happened.
pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    /// A broker with the topic, empty, at a free port of 127.0.0.1.
    ///
    /// # Errors
    /// There is no port.
    pub fn start() -> Result<Self> {
        let cluster = MockCluster::new(1).context("the embedded Kafka broker does not start")?;
        cluster.create_topic(TOPIC, PARTITIONS, 1)?;
        Ok(Self { cluster })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}

/// Sends toots to the broker for so long, a lot to each partition in turn, and notes them in the ledger. Returns how many
/// the topic holds at the end. `produced` always knows how many were sent.
///
/// # Errors
/// A message that the broker did not take, or did not keep.
pub async fn produce(
    address: String,
    mut author: Author,
    per_second: u64,
    length: Duration,
    mut ledger: Ledger,
    produced: Arc<Produced>,
) -> Result<u64> {
    let deliveries = Deliveries::default();
    let producer: ThreadedProducer<Deliveries> = ClientConfig::new()
        .set("bootstrap.servers", &address)
        // The broker's limit is in bytes as they are sent.
        .set("compression.type", "zstd")
        .set("linger.ms", "5")
        .create_with_context(deliveries.clone())?;
    let mut sent: u64 = 0;
    let mut turns = tokio::time::interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut partitions = (0..PARTITIONS).cycle();
    let started = Instant::now();
    loop {
        turns.tick().await;
        let elapsed = started.elapsed().min(length);
        // Microseconds by toots a second: far below 2^64.
        let due = (elapsed.as_micros() as u64) * per_second / 1_000_000;
        while sent < due {
            // Before they are sent: what is measured against it is never too short.
            let now = Instant::now();
            let created_ms = Utc::now().timestamp_millis();
            let partition = partitions.next().unwrap_or_default();
            for _ in 0..LOT.min(due - sent) {
                let toot = author.write(created_ms);
                let value = toot.json()?;
                let key = toot.account_id.to_string();
                producer
                    .send(
                        BaseRecord::to(TOPIC)
                            .partition(partition)
                            .key(&key)
                            .payload(&value)
                            .timestamp(toot.created_ms),
                    )
                    .map_err(|(error, _)| error)?;
                ledger.note(&toot).await?;
                sent += 1;
            }
            produced.note(now, sent);
            // Nothing above waits often: what runs beside must have its turn.
            tokio::task::yield_now().await;
        }
        if elapsed == length {
            break;
        }
    }
    let noted = ledger.finish().await?;
    ensure!(
        noted == sent,
        "{sent} toots were sent but {noted} were noted"
    );
    let deadline = Instant::now() + PATIENCE;
    while deliveries.done() < sent {
        ensure!(
            Instant::now() < deadline,
            "the broker has taken {} of {sent} toots within {} s",
            deliveries.done(),
            PATIENCE.as_secs()
        );
        tokio::time::sleep(POLL).await;
    }
    deliveries.all_taken()?;
    // Nothing is in flight: there is nothing to wait for when it is dropped.
    drop(producer);
    let kept = tokio::task::spawn_blocking(move || kept(&address)).await??;
    ensure!(
        kept == sent,
        "{sent} toots were sent but the topic holds {kept}"
    );
    Ok(kept)
}

/// How many messages the topic holds, all from offset 0 on.
fn kept(address: &str) -> Result<u64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .create()?;
    let mut kept = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(TOPIC, partition, PATIENCE)?;
        ensure!(
            low == 0,
            "the embedded broker has dropped the first {low} messages of {TOPIC}[{partition}]: it keeps 5 MiB a partition"
        );
        kept += u64::try_from(high)?;
    }
    Ok(kept)
}

/// Counts what the broker acknowledged.
#[derive(Debug, Clone, Default)]
pub struct Deliveries(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    /// The first failure.
    failed: OnceLock<KafkaError>,
}

impl Deliveries {
    /// How many messages have been answered for, one way or the other.
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Acquire)
    }

    /// Succeeds if none of them was refused.
    ///
    /// # Errors
    /// The first that was.
    pub fn all_taken(&self) -> Result<()> {
        match self.0.failed.get() {
            Some(error) => Err(error.clone()).context("the broker did not take a toot"),
            None => Ok(()),
        }
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            // A later failure says no more.
            let _ = self.0.failed.set(error.clone());
        }
        self.0.done.fetch_add(1, Ordering::Release);
    }
}
