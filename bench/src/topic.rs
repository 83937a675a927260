//! A topic that is filled once and kept for the next run, and bare librdkafka draining it.

use crate::messages::MESSAGE_BYTES;
use anyhow::{Context, Result, anyhow, bail, ensure};
use essaim_tests::kafka::brokers;
use essaim_tests::{SOON, wait_for};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::Duration;

/// Partitions of a kept topic.
pub const PARTITIONS: i32 = 8;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client's configuration, with the brokers in it.
pub fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config
}

/// A topic of so many messages, in turn to each of its partitions.
#[derive(Debug, Clone, Copy)]
pub struct KeptTopic {
    /// Its name. Another content needs another name.
    pub name: &'static str,
    /// All messages, a multiple of [`PARTITIONS`].
    pub messages: u64,
    /// Writes a message of [`MESSAGE_BYTES`] by its number.
    pub write: fn(u64, &mut String),
}

impl KeptTopic {
    /// What stands after LOCATION.
    pub fn location(&self) -> String {
        format!("kafka://{}/{}", brokers(), self.name)
    }

    /// Makes the topic and sends what is missing in each of its partitions.
    ///
    /// # Errors
    /// The broker is not there; the topic holds more than it should.
    pub async fn prepare(self) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = config().create()?;
        let topic = NewTopic::new(self.name, PARTITIONS, TopicReplication::Fixed(1))
            .set("retention.ms", "-1");
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        for result in admin.create_topics([&topic], &options).await? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => bail!("creating topic {name}: {code}"),
            }
        }
        // A new topic's partitions have no leader for a moment.
        let ends = wait_for("the leaders of the topic's partitions", SOON, async || {
            Ok(Some(
                tokio::task::spawn_blocking(move || self.ends()).await??,
            ))
        })
        .await?;
        tokio::task::spawn_blocking(move || self.fill(&ends)).await?
    }

    fn each(&self) -> u64 {
        self.messages / PARTITIONS as u64
    }

    /// How many messages each partition holds.
    fn ends(&self) -> Result<Vec<u64>> {
        let (name, each) = (self.name, self.each());
        let consumer: BaseConsumer = config().create()?;
        (0..PARTITIONS)
            .map(|partition| {
                let (low, high) = consumer.fetch_watermarks(name, partition, TIMEOUT)?;
                ensure!(
                    low == 0 && high as u64 <= each,
                    "{name}[{partition}] holds {low}..{high}, not 0..{each}: delete the topic"
                );
                Ok(high as u64)
            })
            .collect()
    }

    fn fill(&self, ends: &[u64]) -> Result<()> {
        let (name, each) = (self.name, self.each());
        let missing: Vec<_> = ends.iter().map(|end| *end..each).collect();
        if missing.iter().all(|range| range.is_empty()) {
            return Ok(());
        }
        eprintln!("filling topic {name}: a minute or two, the first time only");
        // Idempotent: each message once and in order, so that a run that was broken off can be taken up.
        let producer: ThreadedProducer<DefaultProducerContext> = config()
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("batch.num.messages", "100000")
            .create()?;
        let mut payload = String::new();
        for index in 0..each {
            for partition in 0..PARTITIONS {
                if !missing[partition as usize].contains(&index) {
                    continue;
                }
                (self.write)(index * PARTITIONS as u64 + partition as u64, &mut payload);
                send(&producer, name, partition, &payload)?;
            }
        }
        producer.flush(TIMEOUT * 10)?;
        let ends = self.ends()?;
        ensure!(
            ends.iter().all(|end| *end == each),
            "{name} ends at {ends:?}, not at {each} in each partition"
        );
        Ok(())
    }

    /// Two consumers, half of the partitions each, read everything and drop it.
    ///
    /// # Errors
    /// They did not read exactly what was sent.
    pub async fn drain(self) -> Result<()> {
        let group = |first: i32| tokio::task::spawn_blocking(move || self.drain_group(first));
        let (even, odd) = futures::try_join!(group(0), group(1))?;
        let (messages, bytes) = (even?, odd?);
        let (messages, bytes) = (messages.0 + bytes.0, messages.1 + bytes.1);
        ensure!(
            messages == self.messages && bytes == self.messages * MESSAGE_BYTES as u64,
            "librdkafka read {messages} messages of {bytes} bytes"
        );
        Ok(())
    }

    /// Reads every other partition from `first` on, with settings with which librdkafka is at its fastest here.
    fn drain_group(self, first: i32) -> Result<(u64, u64)> {
        let consumer: BaseConsumer = config()
            .set("group.id", "essaim-bench")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.message.max.bytes", "2097152")
            .set("queued.max.messages.kbytes", "65536")
            .set("queued.min.messages", "100000")
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let mut list = TopicPartitionList::new();
        let mut open = 0;
        for partition in (first..PARTITIONS).step_by(2) {
            list.add_partition_offset(self.name, partition, Offset::Beginning)?;
            open += 1;
        }
        consumer.assign(&list)?;
        let (mut messages, mut bytes) = (0, 0);
        while open > 0 {
            match consumer.poll(TIMEOUT) {
                Some(Ok(message)) => {
                    messages += 1;
                    bytes += message.payload_len() as u64;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(anyhow!("the broker sent nothing for {TIMEOUT:?}")),
            }
        }
        Ok((messages, bytes))
    }
}

/// Hands a message to the producer, once its queue has room.
///
/// # Errors
/// The producer refuses it for another reason.
pub fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: i32,
    payload: &str,
) -> Result<()> {
    let mut record = BaseRecord::<(), _>::to(topic)
        .partition(partition)
        .payload(payload);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                std::thread::sleep(Duration::from_millis(5));
                record = refused;
            }
            Err((error, _)) => return Err(error).context("sending to Kafka"),
        }
    }
}
