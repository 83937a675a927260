//! The real Kafka: a topic of its own for each test, filled fast, plainly or in transactions.

use crate::unique;
use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The brokers, `HOST:PORT` joined by commas.
pub fn brokers() -> String {
    std::env::var("ESSAIM_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:29092".to_owned())
}

const TIMEOUT: Duration = Duration::from_secs(30);

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config
}

/// One message: partition, key and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub partition: i32,
    pub key: Option<String>,
    pub payload: String,
}

/// A topic of one test, deleted at its end.
#[derive(Debug)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
}

impl Topic {
    /// Creates an empty topic.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn create(partitions: i32) -> Result<Self> {
        let name = unique("essaim-test");
        let admin: AdminClient<DefaultClientContext> = config().create()?;
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let results = admin
            .create_topics([&topic], &options)
            .await
            .with_context(|| format!("no Kafka at {}: start it with `make services`", brokers()))?;
        for result in results {
            result.map_err(|(name, code)| anyhow!("creating topic {name}: {code}"))?;
        }
        Ok(Self { name, partitions })
    }

    /// What stands after LOCATION.
    pub fn location(&self) -> String {
        format!("kafka://{}/{}", brokers(), self.name)
    }

    /// A statement that declares the topic to Essaim under `name`: JSON from its beginning. `columns` as in SQL.
    pub fn declare(&self, name: &str, columns: &str) -> String {
        format!(
            "CREATE EXTERNAL TABLE {name} ({columns}) STORED AS KAFKA LOCATION '{}' \
             OPTIONS (format 'json', starting_offsets 'earliest');\n",
            self.location()
        )
    }

    /// Sends payloads without keys, in turn to each partition, and waits until all are stored.
    ///
    /// # Errors
    /// A message is not delivered.
    pub async fn produce(
        &self,
        payloads: impl Iterator<Item = String> + Send + 'static,
    ) -> Result<u64> {
        let partitions = self.partitions;
        let messages = (0..partitions)
            .cycle()
            .zip(payloads)
            .map(|(partition, payload)| Message {
                partition,
                key: None,
                payload,
            });
        self.send(messages).await
    }

    /// Sends messages and waits until all are stored.
    ///
    /// # Errors
    /// A message is not delivered.
    pub async fn send(
        &self,
        messages: impl Iterator<Item = Message> + Send + 'static,
    ) -> Result<u64> {
        let name = self.name.clone();
        tokio::task::spawn_blocking(move || {
            let producer = producer(&mut config())?;
            let sent = send_all(&producer, &name, messages)?;
            producer.flush(TIMEOUT)?;
            delivered(&producer, sent)
        })
        .await?
    }

    /// Sends messages in one transaction, which is committed or aborted.
    ///
    /// # Errors
    /// The broker refuses the transaction.
    pub async fn transaction(
        &self,
        messages: impl Iterator<Item = Message> + Send + 'static,
        commit: bool,
    ) -> Result<()> {
        let name = self.name.clone();
        tokio::task::spawn_blocking(move || {
            let mut config = config();
            config.set("transactional.id", unique("essaim-test"));
            let producer = producer(&mut config)?;
            producer.init_transactions(TIMEOUT)?;
            producer.begin_transaction()?;
            send_all(&producer, &name, messages)?;
            // Flushed before the abort too, so that the messages and the marker are really in the log.
            producer.flush(TIMEOUT)?;
            match commit {
                true => producer.commit_transaction(TIMEOUT)?,
                false => producer.abort_transaction(TIMEOUT)?,
            }
            Ok(())
        })
        .await?
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let deleted = config()
            .create::<AdminClient<DefaultClientContext>>()
            .and_then(|admin| {
                let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
                futures::executor::block_on(admin.delete_topics(&[&self.name], &options))
            });
        if !matches!(deleted.as_deref(), Ok([Ok(_)])) {
            eprintln!("topic {} stays: {deleted:?}", self.name);
        }
    }
}

/// Counts what was not delivered.
#[derive(Debug, Default)]
struct Deliveries {
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn producer(config: &mut ClientConfig) -> Result<BaseProducer<Deliveries>> {
    config
        .set("linger.ms", "5")
        .set("batch.num.messages", "100000")
        .set("queue.buffering.max.messages", "1000000")
        .set("acks", "all");
    Ok(config.create_with_context(Deliveries::default())?)
}

fn send_all(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    messages: impl Iterator<Item = Message>,
) -> Result<u64> {
    let mut sent = 0;
    for message in messages {
        let mut record = BaseRecord::to(topic)
            .partition(message.partition)
            .payload(&message.payload);
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    producer.poll(Duration::from_millis(10));
                    record = refused;
                }
                Err((error, _)) => return Err(error).context("sending to Kafka"),
            }
        }
        sent += 1;
        if sent % 10_000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    Ok(sent)
}

fn delivered(producer: &BaseProducer<Deliveries>, sent: u64) -> Result<u64> {
    let failed = producer.context().failed.load(Ordering::Relaxed);
    ensure!(
        failed == 0,
        "{failed} of {sent} messages were not delivered"
    );
    Ok(sent)
}
