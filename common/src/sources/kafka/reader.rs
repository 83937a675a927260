//! The worker's half: one split's records, polled and decoded on a thread of its own, batch by batch.

use super::client::{Connection, Context, IsolationLevel, reason};
use super::dead_letter::{BadRecord, DeadLetterTarget, DeadLetters};
use super::decode::JsonDecoder;
use super::offsets::OffsetRange;
use super::pool::ConsumerPool;
use super::records::{METADATA_COLUMNS, Records};
use super::timestamps::EpochUnit;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::scan::ScanMetrics;
use crate::scope::Warm;
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter;
use arrow::datatypes::{Fields, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Decoded batches that wait for the plan above: enough to overlap, few enough to hold.
const BATCHES_AHEAD: usize = 2;
/// A batch is cut at so many bytes of records, however few they are.
const BATCH_BYTES: usize = 4 << 20;
/// How long a reader without data sleeps before it looks whether anyone still listens.
const POLL: Duration = Duration::from_millis(50);

/// How a record's value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    Json,
    Raw,
}

/// What becomes of a bad record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnError {
    Fail,
    Skip,
    DeadLetter,
}

/// What a worker must know to read any split of a scan. Travels as JSON, secrets included.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReaderPlan {
    pub connection: Connection,
    pub isolation: IsolationLevel,
    pub format: Format,
    pub timestamp_unit: EpochUnit,
    pub on_error: OnError,
    /// Where bad records go; used only if `on_error` says so.
    pub dead_letters: Option<DeadLetterTarget>,
    /// Whether offsets that are gone end the job or are passed over.
    pub fail_on_data_loss: bool,
    /// Rows wanted of each split, at most.
    pub limit: Option<usize>,
}

/// Reads the splits of one scan.
#[derive(Debug)]
pub struct KafkaReader {
    pub schema: SchemaRef,
    pub plan: ReaderPlan,
}

/// A range of offsets as a split. The estimate of rows counts holes and markers too.
///
/// # Errors
/// None: the fields are plain.
pub fn split_of(range: &OffsetRange) -> Result<Split> {
    let payload = serde_json::to_vec(&(&range.topic, range.partition, range.start, range.end))
        .map_err(|e| Error::internal(e.to_string()))?;
    Ok(Split {
        label: range.to_string(),
        payload,
        partition: format!("{}[{}]", range.topic, range.partition),
        rows: Some(range.len()),
        bytes: None,
    })
}

impl SplitReader for KafkaReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        // Strings and numbers under string keys: it cannot fail, and an empty plan would be refused by the reader.
        serde_json::to_vec(&self.plan).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let names: Vec<&str> = self
            .schema
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        let plan = &self.plan;
        let limit = plan
            .limit
            .map_or_else(String::new, |n| format!(", limit={n}"));
        format!(
            "brokers={}, format={:?}, isolation={:?}, on_error={:?}, fields=[{}]{limit}",
            plan.connection.brokers,
            plan.format,
            plan.isolation,
            plan.on_error,
            names.join(", "),
        )
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let (topic, id, start, end) = serde_json::from_slice(&split.payload)
            .map_err(|e| Error::internal(format!("a split of another version: {e}")))?;
        let pool = ctx
            .session_config()
            .get_extension::<Warm>()
            .unwrap_or_default()
            .of::<ConsumerPool>();
        let scan = SplitScan {
            schema: Arc::clone(&self.schema),
            plan: self.plan.clone(),
            range: OffsetRange {
                topic,
                partition: id,
                start,
                end,
            },
            batch_size: ctx.session_config().batch_size(),
            metrics: ScanMetrics::new(metrics, partition),
        };
        // The thread starts with the first poll of the stream and ends when the stream is dropped.
        let batches = futures::stream::once(async move {
            let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
            let thread = tokio::task::spawn_blocking(move || scan.run(&pool, &sender));
            receive(receiver, thread)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::StreamExt::flatten(batches),
        )))
    }
}

/// What the thread sends, then how it ended.
fn receive(
    receiver: mpsc::Receiver<RecordBatch>,
    thread: tokio::task::JoinHandle<Result<()>>,
) -> impl futures::Stream<Item = Result<RecordBatch, DataFusionError>> + Send {
    let state = Some((receiver, thread));
    futures::stream::unfold(state, |state| async move {
        let (mut receiver, thread) = state?;
        if let Some(batch) = receiver.recv().await {
            return Some((Ok(batch), Some((receiver, thread))));
        }
        match thread.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((Err(error.into()), None)),
            Err(error) => Some((
                Err(Error::internal(format!("a Kafka reader broke down: {error}")).into()),
                None,
            )),
        }
    })
}

/// The reading of one split.
struct SplitScan {
    schema: SchemaRef,
    plan: ReaderPlan,
    range: OffsetRange,
    batch_size: usize,
    metrics: ScanMetrics,
}

/// Where the reading stands after a batch.
#[derive(PartialEq, Eq)]
enum Flow {
    GoOn,
    /// The limit is reached, or nobody listens any more.
    Stop,
}

impl SplitScan {
    fn run(&self, pool: &ConsumerPool, sender: &mpsc::Sender<RecordBatch>) -> Result<()> {
        let key = (self.plan.connection.clone(), self.plan.isolation);
        let consumer = pool.take(&key)?;
        // After an error the consumer is dropped: its state is unknown.
        self.scan(&consumer, sender)?;
        pool.put(key, consumer);
        Ok(())
    }

    fn scan(
        &self,
        consumer: &BaseConsumer<Context>,
        sender: &mpsc::Sender<RecordBatch>,
    ) -> Result<()> {
        let range = &self.range;
        let mut out = Output::new(self, sender)?;
        self.assign(consumer, range.start)?;
        // The first offset not yet seen.
        let mut next = range.start;
        let mut quiet_since = Instant::now();
        let mut heard = false;
        let mut last_error = None;
        while next < range.end && !sender.is_closed() {
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = true;
                    let offset = message.offset();
                    if message.partition() != range.partition || offset < next {
                        continue;
                    }
                    // Holes at the range's end: the record after them ends it.
                    if offset >= range.end {
                        break;
                    }
                    next = offset + 1;
                    if out.push(&message)? == Flow::Stop {
                        return Ok(());
                    }
                    continue;
                }
                // Markers or holes up to the partition's end: no further record will come.
                Some(Err(KafkaError::PartitionEOF(id))) if id == range.partition => {
                    self.check_end(consumer, next)?;
                    break;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => match self.judge(&error) {
                    Trouble::Passing => last_error = Some(reason(&error)),
                    Trouble::Lost => {
                        let first = self.lost(consumer, next)?;
                        next = first;
                        if next < range.end {
                            self.assign(consumer, next)?;
                        }
                    }
                    Trouble::Lasting(error) => return Err(error),
                },
                None => {}
            }
            // Reached without a record only. Errors may come more often than silence: they are no progress either.
            if std::mem::take(&mut heard) {
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= self.plan.connection.timeout() {
                return Err(self.silent(next, last_error));
            }
        }
        out.flush()?;
        Ok(())
    }

    fn assign(&self, consumer: &BaseConsumer<Context>, offset: i64) -> Result<()> {
        let failed = |e: &KafkaError| self.plan.connection.failed(self.at(offset), e);
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(
            &self.range.topic,
            self.range.partition,
            Offset::Offset(offset),
        )
        .map_err(|e| failed(&e))?;
        consumer.assign(&list).map_err(|e| failed(&e))
    }

    fn at(&self, offset: i64) -> String {
        format!(
            "{}[{}] offset {offset}",
            self.range.topic, self.range.partition
        )
    }

    /// After the partition's end was reported: it must not lie before the range's.
    fn check_end(&self, consumer: &BaseConsumer<Context>, next: i64) -> Result<()> {
        let range = &self.range;
        let (_, high) = consumer
            .fetch_watermarks(
                &range.topic,
                range.partition,
                self.plan.connection.timeout(),
            )
            .map_err(|e| self.plan.connection.failed(self.at(next), &e))?;
        if high < range.end && self.plan.fail_on_data_loss {
            return Err(Error::data(format!(
                "{}: the partition ends at {high} now, though it had records up to {}: it was truncated or made anew; \
                 run the job again, or set fail_on_data_loss 'false'",
                self.at(next),
                range.end
            )));
        }
        Ok(())
    }

    /// After the broker said that it has not got the wanted offset: where to go on, if that is allowed.
    fn lost(&self, consumer: &BaseConsumer<Context>, next: i64) -> Result<i64> {
        let range = &self.range;
        let (low, high) = consumer
            .fetch_watermarks(
                &range.topic,
                range.partition,
                self.plan.connection.timeout(),
            )
            .map_err(|e| self.plan.connection.failed(self.at(next), &e))?;
        if self.plan.fail_on_data_loss {
            return Err(Error::data(format!(
                "{}: the record is gone, the partition has {low} to {high} now (deleted by retention or by hand): \
                 raise the topic's retention, or set fail_on_data_loss 'false' to go on without",
                self.at(next)
            )));
        }
        // Beyond the partition's end there is nothing either.
        Ok(if low > next { low } else { range.end })
    }

    fn judge(&self, error: &KafkaError) -> Trouble {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                Trouble::Lost
            }
            Some(
                RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::BadMessage
                | RDKafkaErrorCode::BadCompression
                | RDKafkaErrorCode::NotImplemented,
            ) => Trouble::Lasting(
                self.plan
                    .connection
                    .failed(self.at(self.range.start), error),
            ),
            _ => Trouble::Passing,
        }
    }

    fn silent(&self, next: i64, last_error: Option<String>) -> Error {
        let hint = last_error.map_or_else(String::new, |e| format!("; librdkafka says: {e}"));
        Error::unavailable(format!(
            "{}: nothing came from the brokers {} for {} ms (option request_timeout){hint}",
            self.at(next),
            self.plan.connection.brokers,
            self.plan.connection.timeout_ms
        ))
    }
}

/// What an error of the consumer means.
enum Trouble {
    /// librdkafka tries again by itself.
    Passing,
    /// The wanted offset does not exist.
    Lost,
    Lasting(Error),
}

/// From records to batches on the channel.
struct Output<'a> {
    scan: &'a SplitScan,
    sender: &'a mpsc::Sender<RecordBatch>,
    records: Records,
    decoder: Option<JsonDecoder>,
    dead_letters: Option<DeadLetters<'a>>,
    batch_size: usize,
    sent: usize,
}

impl<'a> Output<'a> {
    fn new(scan: &'a SplitScan, sender: &'a mpsc::Sender<RecordBatch>) -> Result<Self> {
        let plan = &scan.plan;
        let wants = |names: &[&str]| {
            scan.schema
                .fields()
                .iter()
                .any(|field| names.contains(&field.name().as_str()))
        };
        let batch_size = scan.batch_size.min(plan.limit.unwrap_or(usize::MAX)).max(1);
        let decoder = match plan.format {
            Format::Raw => None,
            Format::Json => {
                let fields: Fields = scan
                    .schema
                    .fields()
                    .iter()
                    .filter(|field| !METADATA_COLUMNS.contains(&field.name().as_str()))
                    .cloned()
                    .collect();
                let schema = Arc::new(Schema::new(fields));
                Some(JsonDecoder::new(schema, plan.timestamp_unit, batch_size)?)
            }
        };
        let dead_letters = match (plan.on_error, &plan.dead_letters) {
            (OnError::DeadLetter, Some(target)) => Some(DeadLetters::new(target, &plan.connection)),
            _ => None,
        };
        let whole = dead_letters.is_some();
        Ok(Self {
            scan,
            sender,
            records: Records::new(
                whole || wants(&["_key", "key"]),
                whole || wants(&["_headers"]),
            ),
            decoder,
            dead_letters,
            batch_size,
            sent: 0,
        })
    }

    fn push(&mut self, message: &rdkafka::message::BorrowedMessage<'_>) -> Result<Flow> {
        self.records.push(message);
        if self.records.len() >= self.batch_size || self.records.bytes() >= BATCH_BYTES {
            return self.flush();
        }
        Ok(Flow::GoOn)
    }

    fn flush(&mut self) -> Result<Flow> {
        if self.records.len() == 0 {
            return Ok(Flow::GoOn);
        }
        self.scan.metrics.rows_in.add(self.records.len());
        self.scan.metrics.bytes_in.add(self.records.bytes());
        let mut batch = self.batch()?;
        self.records.clear();
        if let Some(limit) = self.scan.plan.limit {
            batch = batch.slice(0, batch.num_rows().min(limit - self.sent));
        }
        self.sent += batch.num_rows();
        if batch.num_rows() > 0 && self.sender.blocking_send(batch).is_err() {
            return Ok(Flow::Stop);
        }
        Ok(match self.scan.plan.limit {
            Some(limit) if self.sent >= limit => Flow::Stop,
            _ => Flow::GoOn,
        })
    }

    /// The records in hand as rows, without the bad ones.
    fn batch(&mut self) -> Result<RecordBatch> {
        let range = &self.scan.range;
        let internal = |e: arrow::error::ArrowError| Error::internal(e.to_string());
        let decoded = match &mut self.decoder {
            Some(decoder) => Some(decoder.decode(&self.records.payloads)?),
            None => None,
        };
        let bad = decoded.as_ref().map_or(&[][..], |d| d.bad.as_slice());
        if !bad.is_empty() {
            self.treat(bad)?;
        }
        let good = (!bad.is_empty()).then(|| {
            let mut good = vec![true; self.records.len()];
            for (index, _) in bad {
                good[*index] = false;
            }
            BooleanArray::from(good)
        });
        let mut declared = decoded.as_ref().map(|d| d.rows.columns().iter());
        let columns = self
            .scan
            .schema
            .fields()
            .iter()
            .map(|field| -> Result<ArrayRef> {
                let name = field.name().as_str();
                if self.decoder.is_some() && !METADATA_COLUMNS.contains(&name) {
                    // The decoder's columns are the projected ones in the same order.
                    return declared
                        .as_mut()
                        .and_then(Iterator::next)
                        .map(Arc::clone)
                        .ok_or_else(|| Error::internal(format!("column {name} was not decoded")));
                }
                let column = self
                    .records
                    .column(name, &range.topic, range.partition)
                    .map_err(internal)?
                    .ok_or_else(|| Error::internal(format!("no record has a {name}")))?;
                match &good {
                    Some(good) => filter(&column, good).map_err(internal),
                    None => Ok(column),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let rows = decoded
            .as_ref()
            .map_or(self.records.len(), |d| d.rows.num_rows());
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.scan.schema), columns, &options)
            .map_err(internal)
    }

    fn treat(&mut self, bad: &[(usize, String)]) -> Result<()> {
        let scan = self.scan;
        match (&mut self.dead_letters, scan.plan.on_error) {
            (None, OnError::Skip) => scan.metrics.records_skipped.add(bad.len()),
            (Some(letters), _) => {
                let records = &self.records;
                let bad_records = bad.iter().map(|(index, reason)| BadRecord {
                    topic: &scan.range.topic,
                    partition: scan.range.partition,
                    offset: records.offset(*index),
                    key: records.key(*index),
                    value: records.payloads.get(*index),
                    headers: records.headers(*index),
                    reason,
                });
                letters.put(&bad_records.collect::<Vec<_>>())?;
                scan.metrics.records_dead_lettered.add(bad.len());
            }
            (None, _) => {
                if let Some((index, reason)) = bad.first() {
                    return Err(Error::data(format!(
                        "{}: the record does not decode: {reason}; correct the columns, or set on_error 'skip' or 'dead_letter'",
                        scan.at(self.records.offset(*index)),
                    )));
                }
            }
        }
        Ok(())
    }
}
