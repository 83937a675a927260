//! Where bad records go under `on_error = 'dead_letter'`: whole, with their place and the reason, to a topic.

use super::client::{Connection, Deliveries, wrong_setting};
use crate::error::Result;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Where bad records go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeadLetterTarget {
    /// A topic of the same brokers; `None` stands for `<topic>_dead_letter` of each record's own topic.
    Topic(Option<String>),
}

/// A record that did not decode.
#[derive(Debug)]
pub struct BadRecord<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Option<&'a OwnedHeaders>,
    pub reason: &'a str,
}

/// The way out for bad records of one split. Connects with the first of them.
pub struct DeadLetters<'a> {
    target: &'a DeadLetterTarget,
    connection: &'a Connection,
    producer: Option<BaseProducer<Deliveries>>,
}

impl<'a> DeadLetters<'a> {
    /// Bad records are going to `target`.
    pub fn new(target: &'a DeadLetterTarget, connection: &'a Connection) -> Self {
        Self {
            target,
            connection,
            producer: None,
        }
    }

    /// Puts records aside, and returns when they are safe. Blocks: not for an async thread.
    ///
    /// # Errors
    /// The topic cannot be written: a job that may not lose bad records fails.
    pub fn put<'r>(&mut self, records: impl Iterator<Item = BadRecord<'r>>) -> Result<()> {
        let DeadLetterTarget::Topic(topic) = self.target;
        let producer = match &mut self.producer {
            Some(producer) => producer,
            empty => empty.insert(producer(self.connection)?),
        };
        let deadline = Instant::now() + self.connection.timeout();
        let mut last = String::new();
        for record in records {
            last = topic
                .clone()
                .unwrap_or_else(|| format!("{}_dead_letter", record.topic));
            send(producer, &last, &record, deadline)
                .map_err(|e| self.connection.failed(refused(&last), &e))?;
        }
        let flushed = producer.flush(deadline.saturating_duration_since(Instant::now()));
        let first_failure = producer.context().take_failure();
        match (first_failure, flushed) {
            (Some(error), _) | (None, Err(error)) => {
                Err(self.connection.failed(refused(&last), &error))
            }
            (None, Ok(())) => Ok(()),
        }
    }
}

fn refused(topic: &str) -> String {
    format!(
        "bad records cannot be put into the dead-letter topic {topic} (create it, or name another with the option dead_letter_topic)"
    )
}

fn producer(connection: &Connection) -> Result<BaseProducer<Deliveries>> {
    let timeout = connection.timeout_ms.to_string();
    // A topic that the broker makes by itself is unknown for a moment.
    let unknown = connection.timeout_ms.min(10_000).to_string();
    connection
        .config_over(&[
            ("message.timeout.ms", timeout.as_str()),
            ("topic.metadata.propagation.max.ms", unknown.as_str()),
            ("linger.ms", "0"),
        ])
        .set("acks", "all")
        .create_with_context(Deliveries::default())
        .map_err(|e| wrong_setting(&e))
}

fn send(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    record: &BadRecord<'_>,
    deadline: Instant,
) -> std::result::Result<(), KafkaError> {
    let mut headers = record.headers.cloned().unwrap_or_default();
    let (partition, offset) = (record.partition.to_string(), record.offset.to_string());
    for (key, value) in [
        ("essaim.topic", record.topic),
        ("essaim.partition", &partition),
        ("essaim.offset", &offset),
        ("essaim.reason", record.reason),
    ] {
        headers = headers.insert(Header {
            key,
            value: Some(value),
        });
    }
    let mut message = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
    message.key = record.key;
    message.payload = record.value;
    loop {
        match producer.send(message) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < deadline =>
            {
                producer.poll(Duration::from_millis(50));
                message = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}
