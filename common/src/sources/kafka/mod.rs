//! `STORED AS KAFKA`: topics as tables, read by ranges of offsets.
//!
//! The row's way: [`offsets`] says which ranges, [`source`] makes splits of them, [`reader`] polls one of them on a
//! warm consumer of [`pool`], gathers [`records`], and [`decode`] makes a batch of them.

pub mod client;
mod dead_letter;
pub mod decode;
pub mod offsets;
mod pool;
mod reader;
mod records;
pub mod source;
mod stream;
pub mod timestamps;

use crate::connector::{Connector, ConnectorTable, SinkWriter, SplitReader, TableSpec};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::sinks::kafka::{KafkaSink, SinkOptions};
use crate::stream::StreamOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use client::{Connection, IsolationLevel, duration_ms, not_a_duration};
use dead_letter::DeadLetterTarget;
use decode::JsonDecoder;
use offsets::{OffsetPlanner, OffsetSpec};
use reader::{Format, KafkaReader, OnError, ReaderPlan};
pub use records::METADATA_COLUMNS;
use records::metadata_fields;
use source::KafkaSource;
use std::sync::Arc;
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
        let timestamp_unit = options.one_of(
            "timestamp_unit",
            &[
                ("ms", EpochUnit::Milliseconds),
                ("s", EpochUnit::Seconds),
                ("us", EpochUnit::Microseconds),
                ("ns", EpochUnit::Nanoseconds),
            ],
        )?;
        let (on_error, dead_letters) = on_error(options, &topics)?;
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
        let streaming = streaming(options, schema.as_ref())?;
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
                    on_error,
                    dead_letters,
                    fail_on_data_loss,
                    limit: None,
                };
                let stream = Arc::new(KafkaStream::new(
                    Arc::clone(schema),
                    starting.clone(),
                    Arc::clone(&planner),
                    reader.clone(),
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
                "format 'raw' has the columns key and value, both BINARY: leave the columns out",
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

fn on_error(
    options: &mut Options,
    topics: &[String],
) -> Result<(OnError, Option<DeadLetterTarget>)> {
    let on_error = options.one_of(
        "on_error",
        &[
            ("fail", OnError::Fail),
            ("skip", OnError::Skip),
            ("dead_letter", OnError::DeadLetter),
        ],
    )?;
    let topic = options.text("dead_letter_topic");
    let location = options.secret("dead_letter_location");
    let table = options.text("dead_letter_table");
    if on_error != OnError::DeadLetter {
        return match topic.is_some() || location.is_some() || table.is_some() {
            true => Err(options.error(
                "dead_letter_topic, dead_letter_location and dead_letter_table need on_error 'dead_letter'",
            )),
            false => Ok((on_error, None)),
        };
    }
    if let Some(own) = topic.as_ref().filter(|topic| topics.contains(topic)) {
        return Err(options.error(format!(
            "dead_letter_topic {own} is a topic that the table reads: name another"
        )));
    }
    let target = match (topic, location, table) {
        (topic, None, None) => DeadLetterTarget::Topic(topic),
        (None, Some(location), Some(table)) if location.expose().starts_with("postgres") => {
            DeadLetterTarget::Table { location, table }
        }
        _ => {
            return Err(options.error(
                "bad records go to one place: write dead_letter_topic '…', or dead_letter_location 'postgres://…' with dead_letter_table '…'",
            ));
        }
    };
    Ok((on_error, Some(target)))
}

fn streaming(options: &mut Options, schema: Option<&SchemaRef>) -> Result<StreamOptions> {
    let mut duration = |name: &'static str| -> Result<Option<i64>> {
        match options.text(name) {
            Some(text) => duration_ms(&text)
                .and_then(|ms| i64::try_from(ms).ok())
                .map(Some)
                .ok_or_else(|| not_a_duration(options, name, &text)),
            None => Ok(None),
        }
    };
    let watermark_delay = duration("watermark_delay")?;
    let idle_timeout_ms = duration("idle_timeout")?;
    let max_offsets_per_trigger = options.parsed("max_offsets_per_trigger")?;
    if max_offsets_per_trigger == Some(0) {
        return Err(options.error(
            "option max_offsets_per_trigger '0': nothing would ever be read; write at least 1",
        ));
    }
    let event_time = match options.text("event_time") {
        None => None,
        Some(name) => {
            let (index, field) = schema
                .and_then(|schema| schema.column_with_name(&name))
                .ok_or_else(|| {
                    options.error(format!(
                        "option event_time '{name}': there is no such column"
                    ))
                })?;
            if !matches!(field.data_type(), DataType::Timestamp(..)) {
                return Err(options.error(format!(
                    "option event_time '{name}': the column has the type {}, declare it TIMESTAMP",
                    field.data_type()
                )));
            }
            Some(index)
        }
    };
    if watermark_delay.is_some() && event_time.is_none() {
        return Err(options.error("watermark_delay needs event_time: name the column"));
    }
    Ok(StreamOptions {
        event_time,
        watermark_delay_ms: watermark_delay.unwrap_or(0),
        idle_timeout_ms,
        max_offsets_per_trigger,
    })
}
