//! Reads what is in a topic, from where it was read last to the end that there is now.

use anyhow::{Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// A topic as committed readers see it, and how far it has been read.
#[derive(Debug)]
pub struct Reading {
    brokers: String,
    topic: String,
    positions: BTreeMap<i32, i64>,
}

impl Reading {
    /// From the beginning of all partitions.
    pub fn new(brokers: &str, topic: &str, partitions: i32) -> Self {
        Self {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            positions: (0..partitions).map(|partition| (partition, 0)).collect(),
        }
    }

    /// Begins anew.
    pub fn rewind(&mut self) {
        self.positions
            .values_mut()
            .for_each(|position| *position = 0);
    }

    /// Hands partition, offset and payload of each new message to `take`. Blocks.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn read(&mut self, mut take: impl FnMut(i32, i64, &[u8]) -> Result<()>) -> Result<()> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "chaos")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50")
            .create()?;
        let mut places = TopicPartitionList::new();
        for (partition, position) in &self.positions {
            places.add_partition_offset(&self.topic, *partition, Offset::Offset(*position))?;
        }
        consumer.assign(&places)?;
        let mut open: BTreeSet<i32> = self.positions.keys().copied().collect();
        let deadline = Instant::now() + DEADLINE;
        while !open.is_empty() {
            ensure!(
                Instant::now() < deadline,
                "topic {} cannot be read to its end within {DEADLINE:?}",
                self.topic
            );
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    let payload = message.payload().unwrap_or_default();
                    take(message.partition(), message.offset(), payload)?;
                    self.positions
                        .insert(message.partition(), message.offset() + 1);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // A broker that is on its way up.
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }
}
