//! The worker's half: one producer, one transaction, committed when the last row is delivered.

use super::json::{Messages, RowEncoder};
use super::stream::{ToProducer, feed};
use crate::connector::{Part, SinkWriter};
use crate::error::{Error, Result};
use crate::sources::kafka::client::{Connection, Deliveries, reason, wrong_setting};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Batches that wait for the producer.
const BATCHES_AHEAD: usize = 2;

/// Writes one partition of the input to a topic. Travels as JSON, secrets included.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KafkaWriter {
    pub connection: Connection,
    pub topic: String,
    pub key: Vec<String>,
    /// The transactional id without the partition: a later attempt at the same partition fences an earlier one.
    pub transaction: String,
}

#[async_trait]
impl SinkWriter for KafkaWriter {
    fn encode(&self) -> Vec<u8> {
        // Strings and numbers under string keys: it cannot fail, and an empty writer would be refused.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn describe(&self) -> String {
        format!(
            "brokers={}, topic={}, key=[{}]",
            self.connection.brokers,
            self.topic,
            self.key.join(", ")
        )
    }

    async fn write(
        &self,
        partition: usize,
        mut rows: SendableRecordBatchStream,
        _ctx: &Arc<TaskContext>,
    ) -> Result<Part> {
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let (writer, schema) = (self.clone(), rows.schema());
        // If this future is dropped the channel closes without a commit, and the thread aborts and ends.
        let thread =
            tokio::task::spawn_blocking(move || writer.produce(partition, &schema, receiver));
        let fed = feed(&mut rows, sender).await;
        let produced = thread
            .await
            .map_err(|e| Error::internal(format!("a Kafka producer broke down: {e}")))?;
        // The rows' own error explains more than the abort that follows from it.
        fed?;
        Ok(Part {
            rows: produced?,
            payload: String::new(),
        })
    }
}

impl KafkaWriter {
    fn produce(
        &self,
        partition: usize,
        schema: &SchemaRef,
        mut batches: mpsc::Receiver<ToProducer>,
    ) -> Result<u64> {
        let encoder = RowEncoder::new(schema, &self.key)?;
        let producer = self.producer(partition)?;
        producer
            .init_transactions(self.connection.timeout())
            .and_then(|()| producer.begin_transaction())
            .map_err(|e| self.failed(&e))?;
        let mut written = 0;
        let outcome = loop {
            match batches.blocking_recv() {
                Some(ToProducer::Rows(batch)) => {
                    let sent = encoder
                        .encode(&batch)
                        .and_then(|messages| self.send(&producer, &messages));
                    match sent {
                        Ok(rows) => written += rows,
                        Err(error) => break Err(error),
                    }
                }
                Some(ToProducer::Commit) => break self.commit(&producer),
                None => break Err(Error::cancelled("the rows ended early")),
            }
        };
        if outcome.is_err() {
            // An abort waits for reports of what is still on its way, which only a flush fetches.
            producer.purge(PurgeConfig::default().queue().inflight());
            // Best effort: a transaction left open is aborted by the broker, or by the next attempt.
            let _ = producer.flush(self.connection.timeout());
            let _ = producer.abort_transaction(self.connection.timeout());
        }
        outcome.map(|()| written)
    }

    fn producer(&self, partition: usize) -> Result<BaseProducer<Deliveries>> {
        let timeout = self.connection.timeout_ms.to_string();
        let defaults = [
            // The longest that brokers allow by default: a task's rows are one transaction.
            ("transaction.timeout.ms", "900000"),
            ("message.timeout.ms", timeout.as_str()),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "32768"),
            ("linger.ms", "5"),
        ];
        self.connection
            .config_over(&defaults)?
            .set(
                "transactional.id",
                format!("{}-{partition}", self.transaction),
            )
            .create_with_context(Deliveries::default())
            .map_err(|e| wrong_setting(&e))
    }

    fn send(&self, producer: &BaseProducer<Deliveries>, messages: &Messages) -> Result<u64> {
        send(producer, &self.topic, messages, self.connection.timeout())
            .map_err(|e| self.failed(&e))?;
        self.delivered(producer)?;
        Ok(messages.rows as u64)
    }

    /// The first message that was not delivered, if there is one.
    fn delivered(&self, producer: &BaseProducer<Deliveries>) -> Result<()> {
        match producer.context().take_failure() {
            Some(error) => Err(self.failed(&error)),
            None => Ok(()),
        }
    }

    fn commit(&self, producer: &BaseProducer<Deliveries>) -> Result<()> {
        let deadline = Instant::now() + self.connection.timeout();
        let left = || deadline.saturating_duration_since(Instant::now());
        // librdkafka reports deliveries only to who polls, which a commit does not.
        let flushed = producer.flush(left());
        self.delivered(producer)?;
        flushed.map_err(|e| self.failed(&e))?;
        loop {
            match producer.commit_transaction(left()) {
                Ok(()) => return Ok(()),
                // After a time-out the commit goes on at the broker: asking again tells how it ended.
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && !left().is_zero() => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    fn failed(&self, error: &KafkaError) -> Error {
        let topic = &self.topic;
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Error::data(format!(
                "topic {topic}: a row makes a message that is too large: raise 'kafka.message.max.bytes' and the topic's max.message.bytes, or make rows smaller"
            )),
            Some(
                RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::InvalidProducerEpoch
                | RDKafkaErrorCode::ProducerFenced,
            ) => Error::unavailable(format!(
                "topic {topic}: another attempt at the same task has taken over the transaction: {}",
                reason(error)
            )),
            _ => self.connection.failed(format!("topic {topic}"), error),
        }
    }
}

/// Gives messages to the producer, which sends them by and by. While its queue is full it waits.
///
/// # Errors
/// A message that is too large; a queue that stays full for as long as the time-out.
pub fn send(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    messages: &Messages,
    timeout: Duration,
) -> Result<(), KafkaError> {
    for (key, value) in messages.iter() {
        let deadline = Instant::now() + timeout;
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).payload(value);
        record.key = key;
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    producer.poll(Duration::from_millis(50));
                    record = back;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
    producer.poll(Duration::ZERO);
    Ok(())
}
