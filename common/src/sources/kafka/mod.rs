//! `STORED AS KAFKA`: topics as tables, read by ranges of offsets.
//!
//! The row's way: [`offsets`] says which ranges, [`source`] makes splits of them, or [`stream`] for every epoch; [`reader`]
//! polls one of them on a warm consumer of [`pool`], [`output`] gathers [`records`], and [`decode`] makes a batch of them.

pub(crate) mod check;
pub mod client;
mod dead_letter;
pub mod decode;
pub mod offsets;
mod output;
mod pool;
mod reader;
mod records;
mod refusal;
mod refused;
mod settings;
pub mod source;
mod stream;
pub mod timestamps;

use crate::check::Endpoint;
use crate::connector::{Connector, ConnectorTable, SinkWriter, SplitReader, TableSpec};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::secret::Secret;
use crate::sinks::kafka::{KafkaSink, SinkOptions};
use crate::sources::postgres;
use crate::sources::postgres::tls::connect_options;
use crate::stream::StreamOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use client::{Connection, IsolationLevel};
use dead_letter::DeadLetterTarget;
use decode::JsonDecoder;
use offsets::{OffsetPlanner, OffsetSpec};
use reader::{Format, KafkaReader, LateRows, OnError, ReaderPlan, StreamPlan};
pub use records::METADATA_COLUMNS;
use records::metadata_fields;
use source::KafkaSource;
use std::sync::Arc;
use std::time::Duration;
use stream::KafkaStream;
use timestamps::EpochUnit;

/// The connector.
#[derive(Debug)]
pub struct Kafka;

#[async_trait]
impl Connector for Kafka {
    fn name(&self) -> &'static str {
        "KAFKA"
    }

    async fn table(&self, mut spec: TableSpec) -> Result<ConnectorTable> {
        let options = &mut spec.options;
        let (connection, topics) = Connection::new(&spec.location, options)?;
        let format = options.one_of("format", &[("json", Format::Json), ("raw", Format::Raw)])?;
        let isolation = options.one_of(
            "isolation_level",
            &[
                ("read_committed", IsolationLevel::ReadCommitted),
                ("read_uncommitted", IsolationLevel::ReadUncommitted),
            ],
        )?;
        let timestamp_unit = EpochUnit::take(options)?;
        let set_aside = SetAside::new(options, &topics)?;
        let fail_on_data_loss =
            options.one_of("fail_on_data_loss", &[("true", true), ("false", false)])?;
        let starting = OffsetSpec::starting(options)?;
        let ending = OffsetSpec::ending(options)?;
        if spec.unbounded && ending != OffsetSpec::Latest {
            return Err(options.error(
                "an UNBOUNDED table has no end: leave ending_offsets and ending_timestamp out, or UNBOUNDED",
            ));
        }
        let schema = schema(&spec.schema, format, options)?;
        let streaming = StreamOptions::take(options, schema.as_ref())?;
        if set_aside.late_rows == LateRows::DeadLetter && streaming.event_time.is_none() {
            return Err(options.error("late_rows 'dead_letter' needs event_time: name the column"));
        }
        let sink_options = SinkOptions::new(options, spec.schema.as_ref())?;
        std::mem::take(options).finish()?;

        let sink = match format {
            Format::Json => Some(Arc::new(KafkaSink {
                connection: connection.clone(),
                topics: topics.clone(),
                options: sink_options,
            }) as _),
            Format::Raw => None,
        };
        let source = match &schema {
            Some(schema) => {
                let mut asked = connection.clone();
                if spec.unbounded {
                    asked.timeout_ms = asked.timeout_ms.min(stream::ASK_TIMEOUT_MS);
                }
                let planner = Arc::new(OffsetPlanner::new(asked, topics, isolation)?);
                let reader = ReaderPlan {
                    connection,
                    isolation,
                    format,
                    timestamp_unit,
                    on_error: set_aside.on_error,
                    dead_letters: set_aside.target,
                    fail_on_data_loss,
                    limit: None,
                    stream: None,
                };
                let event_time = streaming.event_time.map(|index| schema.field(index));
                let stream_plan = StreamPlan {
                    table: spec.name,
                    event_time: event_time.map(|field| field.name().clone()),
                    late_rows: set_aside.late_rows,
                };
                let stream = Arc::new(KafkaStream::new(
                    Arc::clone(schema),
                    starting.clone(),
                    Arc::clone(&planner),
                    ReaderPlan {
                        stream: Some(stream_plan),
                        ..reader.clone()
                    },
                    streaming,
                ));
                Some(Arc::new(KafkaSource {
                    schema: Arc::clone(schema),
                    starting,
                    ending,
                    planner,
                    reader,
                    stream,
                }) as _)
            }
            None => None,
        };
        Ok(ConnectorTable {
            schema,
            source,
            sink,
        })
    }

    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        let plan = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a Kafka scan of another version: {e}")))?;
        Ok(Arc::new(KafkaReader { schema, plan }))
    }

    fn writer(&self, encoded: &[u8]) -> Result<Arc<dyn SinkWriter>> {
        crate::sinks::kafka::decode_writer(encoded)
    }

    fn endpoints(&self, mut spec: TableSpec) -> Result<Vec<Endpoint>> {
        let options = &mut spec.options;
        let (connection, topics) = Connection::new(&spec.location, options)?;
        let mut endpoints = vec![Endpoint {
            connector: self.name().to_owned(),
            name: format!(
                "Kafka at {}, topic {}",
                connection.brokers,
                topics.join(", ")
            ),
            payload: serde_json::to_vec(&(&connection, &topics))
                .map_err(|e| Error::internal(e.to_string()))?,
        }];
        if let Some(location) = options.secret("dead_letter_location") {
            endpoints.push(postgres::endpoint(location)?);
        }
        Ok(endpoints)
    }

    async fn reach(&self, payload: &[u8], deadline: Duration) -> Result<String> {
        let (connection, topics) = serde_json::from_slice(payload)
            .map_err(|e| Error::internal(format!("a topic of another version: {e}")))?;
        check::reach(connection, topics, deadline).await
    }
}

/// The declared columns and the metadata columns; `None` for a JSON table without columns, which can only be written.
fn schema(
    declared: &Option<SchemaRef>,
    format: Format,
    options: &Options,
) -> Result<Option<SchemaRef>> {
    let mut fields: Vec<Arc<Field>> = match (format, declared) {
        (Format::Raw, Some(_)) => {
            return Err(options.error(
                "format 'raw' has the columns key and value, both BYTEA: leave the columns out",
            ));
        }
        (Format::Raw, None) => vec![
            Arc::new(Field::new("key", DataType::Binary, true)),
            Arc::new(Field::new("value", DataType::Binary, true)),
        ],
        (Format::Json, None) => return Ok(None),
        (Format::Json, Some(declared)) => {
            if let Some(taken) = declared
                .fields()
                .iter()
                .find(|field| METADATA_COLUMNS.contains(&field.name().as_str()))
            {
                return Err(options.error(format!(
                    "column {} is filled in by Kafka tables themselves: leave it out",
                    taken.name()
                )));
            }
            // Finds a type that JSON cannot hold now rather than on a worker.
            JsonDecoder::new(Arc::clone(declared), EpochUnit::Milliseconds, 1)
                .map_err(|e| options.error(e))?;
            declared.fields().iter().cloned().collect()
        }
    };
    fields.extend(metadata_fields().into_iter().map(Arc::new));
    Ok(Some(Arc::new(Schema::new(fields))))
}

/// What becomes of records that are not rows.
struct SetAside {
    on_error: OnError,
    late_rows: LateRows,
    /// There if either of them says 'dead_letter'.
    target: Option<DeadLetterTarget>,
}

impl SetAside {
    fn new(options: &mut Options, topics: &[String]) -> Result<Self> {
        let on_error = options.one_of(
            "on_error",
            &[
                ("fail", OnError::Fail),
                ("skip", OnError::Skip),
                ("dead_letter", OnError::DeadLetter),
            ],
        )?;
        let late_rows = options.one_of(
            "late_rows",
            &[
                ("drop", LateRows::Drop),
                ("dead_letter", LateRows::DeadLetter),
            ],
        )?;
        let topic = options.text("dead_letter_topic");
        let location = options.secret("dead_letter_location");
        let table = options.text("dead_letter_table");
        let target = if on_error == OnError::DeadLetter || late_rows == LateRows::DeadLetter {
            Some(target(options, topics, topic, location, table)?)
        } else if topic.is_some() || location.is_some() || table.is_some() {
            return Err(options.error(
                "dead_letter_topic, dead_letter_location and dead_letter_table need on_error 'dead_letter' or late_rows 'dead_letter'",
            ));
        } else {
            None
        };
        Ok(Self {
            on_error,
            late_rows,
            target,
        })
    }
}

fn target(
    options: &Options,
    topics: &[String],
    topic: Option<String>,
    location: Option<Secret>,
    table: Option<String>,
) -> Result<DeadLetterTarget> {
    if let Some(own) = topic.as_ref().filter(|topic| topics.contains(topic)) {
        return Err(options.error(format!(
            "dead_letter_topic {own} is a topic that the table reads: name another"
        )));
    }
    match (topic, location, table) {
        (topic, None, None) => Ok(DeadLetterTarget::Topic(topic)),
        (None, Some(location), Some(table)) if location.expose().starts_with("postgres") => {
            connect_options(&location)
                .map_err(|e| options.error(format!("option dead_letter_location: {e}")))?;
            Ok(DeadLetterTarget::Table { location, table })
        }
        _ => Err(options.error(
            "bad records and late rows go to one place: write dead_letter_topic '…', or dead_letter_location 'postgres://…' with dead_letter_table '…'",
        )),
    }
}
