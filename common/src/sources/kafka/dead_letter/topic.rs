//! Bad records as messages of another topic of the same brokers.

use super::BadRecord;
use crate::error::Result;
use crate::sources::kafka::client::{Connection, Deliveries, wrong_setting};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Header;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::time::{Duration, Instant};

/// A topic; without a name it is `<topic>_dead_letter` of each record's own topic.
pub struct DeadLetterTopic<'a> {
    topic: Option<&'a str>,
    connection: &'a Connection,
    producer: Option<BaseProducer<Deliveries>>,
}

impl<'a> DeadLetterTopic<'a> {
    pub fn new(topic: Option<&'a str>, connection: &'a Connection) -> Self {
        Self {
            topic,
            connection,
            producer: None,
        }
    }

    pub fn put(&mut self, records: &[BadRecord<'_>]) -> Result<()> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            empty => empty.insert(producer(self.connection)?),
        };
        let deadline = Instant::now() + self.connection.timeout();
        let mut last = String::new();
        for record in records {
            last = match self.topic {
                Some(topic) => topic.to_owned(),
                None => format!("{}_dead_letter", record.topic),
            };
            send(producer, &last, record, deadline)
                .map_err(|e| self.connection.failed(refused(&last), &e))?;
        }
        let flushed = producer.flush(deadline.saturating_duration_since(Instant::now()));
        match (producer.context().take_failure(), flushed) {
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
        ])?
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
