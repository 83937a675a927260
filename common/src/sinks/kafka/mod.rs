//! The sink half of `STORED AS KAFKA`: rows as JSON objects. A batch job's tasks have a transaction each, a streaming
//! job's epochs too.

mod epochs;
mod json;
mod stream;
mod writer;

use crate::connector::{Begin, Part, PlannedSink, Sink, SinkCommitter, SinkRun, SinkWriter};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::sources::kafka::client::{Connection, IsolationLevel};
use crate::stream::{OutputMode, StreamSink, no_stream_sink};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use epochs::Epochs;
use json::RowEncoder;
use std::sync::Arc;
use stream::KafkaStreamSink;
use writer::KafkaWriter;

/// The options that only the sink reads.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// The columns of the messages' key; none for messages without one.
    pub key: Vec<String>,
}

impl SinkOptions {
    /// The option `key`.
    ///
    /// # Errors
    /// A column that is not declared.
    pub fn new(options: &mut Options, declared: Option<&SchemaRef>) -> Result<Self> {
        let key = options.names("key");
        if let Some(declared) = declared
            && let Some(unknown) = key.iter().find(|name| declared.index_of(name).is_err())
        {
            return Err(options.error(format!("option key '{unknown}': there is no such column")));
        }
        Ok(Self { key })
    }
}

/// The topic that an INSERT writes.
#[derive(Debug)]
pub struct KafkaSink {
    pub connection: Connection,
    pub topics: Vec<String>,
    pub options: SinkOptions,
}

#[async_trait]
impl Sink for KafkaSink {
    async fn plan(&self, input: &SchemaRef, overwrite: bool, run: &SinkRun) -> Result<PlannedSink> {
        let topic = self.topic()?;
        if overwrite {
            return Err(Error::invalid(format!(
                "topic {topic} cannot be overwritten: write INSERT INTO"
            )));
        }
        self.check(topic, input).await?;
        Ok(PlannedSink {
            writer: Arc::new(KafkaWriter {
                connection: self.connection.clone(),
                topic: topic.to_owned(),
                key: self.options.key.clone(),
                // Without the generation: whatever start of the job comes later shuts out this one's producers.
                transaction: format!("essaim-{}", run.name()),
            }),
            committer: Arc::new(KafkaCommitter),
        })
    }

    async fn stream(
        &self,
        input: &SchemaRef,
        mode: OutputMode,
        run: &SinkRun,
    ) -> Result<Arc<dyn StreamSink>> {
        let topic = self.topic()?;
        if mode == OutputMode::Complete {
            return Err(no_stream_sink(
                mode,
                "what is in a topic stays. Use 'update' with the option key, of which readers take the last value, or \
                 'append' for windows that are closed",
            ));
        }
        self.check(topic, input).await?;
        Ok(Arc::new(KafkaStreamSink::new(Epochs {
            connection: self.connection.clone(),
            topic: topic.to_owned(),
            key: self.options.key.clone(),
            name: format!("essaim-{}", run.name()),
            generation: run.generation,
        })))
    }
}

impl KafkaSink {
    fn topic(&self) -> Result<&str> {
        let [topic] = self.topics.as_slice() else {
            return Err(Error::invalid(format!(
                "LOCATION names {} topics, an INSERT takes one: declare a table for each",
                self.topics.len()
            )));
        };
        Ok(topic)
    }

    /// Checks that rows of `input` can be written to the topic.
    async fn check(&self, topic: &str, input: &SchemaRef) -> Result<()> {
        RowEncoder::new(input, &self.options.key)?;
        let (connection, name) = (self.connection.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || check_topic(&connection, &name))
            .await
            .map_err(|e| Error::internal(format!("the look-up of a topic broke down: {e}")))?
    }
}

fn check_topic(connection: &Connection, topic: &str) -> Result<()> {
    let client = connection.metadata_client(IsolationLevel::ReadCommitted)?;
    let metadata = connection.topic(&client, topic)?;
    let known = metadata
        .topics()
        .iter()
        .any(|found| found.name() == topic && found.error().is_none());
    if !known {
        return Err(Error::invalid(format!(
            "the brokers {} have no topic {topic}: create it, Essaim does not choose its partitions",
            connection.brokers
        )));
    }
    Ok(())
}

/// Reads back what [`KafkaWriter::encode`] wrote.
///
/// # Errors
/// Bytes of another version.
pub fn decode_writer(encoded: &[u8]) -> Result<Arc<dyn SinkWriter>> {
    let writer: KafkaWriter = serde_json::from_slice(encoded)
        .map_err(|e| Error::internal(format!("a Kafka sink of another version: {e}")))?;
    Ok(Arc::new(writer))
}

/// Has nothing left to do: Kafka cannot hand a transaction from a worker to the master, so each writer commits its own.
#[derive(Debug)]
struct KafkaCommitter;

#[async_trait]
impl SinkCommitter for KafkaCommitter {
    async fn begin(&self) -> Result<Begin> {
        Ok(Begin::Fresh)
    }

    fn restartable(&self) -> bool {
        false
    }

    async fn commit(&self, _parts: Vec<Part>) -> Result<()> {
        Ok(())
    }

    async fn abort(&self) {}
}
