//! The worker's half: one split's records, polled and decoded on a thread of its own, batch by batch.

use super::client::{Connection, Context, IsolationLevel, reason};
use super::dead_letter::DeadLetterTarget;
use super::offsets::OffsetRange;
use super::output::{Flow, Output};
use super::pool::{ConsumerPool, Key, Reading};
use super::timestamps::EpochUnit;
use crate::bad_records::BadRecords;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::scan::ScanMetrics;
use crate::scope::Warm;
use crate::stream::EpochParams;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
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
/// How long a reader without data sleeps before it looks whether anyone still listens.
const POLL: Duration = Duration::from_millis(50);
/// The same in a streaming job, where the record that ends a range is often a transaction's marker, which wakes nobody.
const POLL_CONTINUOUS: Duration = Duration::from_millis(2);
/// After so long without a record, a consumer that goes on from the epoch before is assigned anew.
const MISTRUST: Duration = Duration::from_millis(500);

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
    /// Where bad records and late rows go, if they go anywhere.
    pub dead_letters: Option<DeadLetterTarget>,
    /// Whether offsets that are gone end the job or are passed over.
    pub fail_on_data_loss: bool,
    /// Rows wanted of each split, at most.
    pub limit: Option<usize>,
    /// What the splits of a streaming job need besides.
    pub stream: Option<StreamPlan>,
}

/// What a worker must know to read a split of a streaming job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StreamPlan {
    /// The table's name in the query, for [`EpochParams::late_before`].
    pub table: String,
    /// The name of the column with the event time.
    pub event_time: Option<String>,
    /// Whether late rows go to the dead letters; else they are left to the operators above.
    pub late_rows: LateRows,
}

/// What becomes of a row that comes too late for every INSERT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LateRows {
    Drop,
    DeadLetter,
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
        let params = ctx.session_config().get_extension::<EpochParams>();
        let late_before = match (&self.plan.stream, params) {
            (Some(stream), Some(params)) if stream.late_rows == LateRows::DeadLetter => {
                params.late_before.get(&stream.table).copied()
            }
            _ => None,
        };
        let scan = SplitScan {
            late_before,
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
            bad_records: ctx.session_config().get_extension(),
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
pub(super) struct SplitScan {
    pub schema: SchemaRef,
    pub plan: ReaderPlan,
    pub range: OffsetRange,
    pub batch_size: usize,
    pub metrics: ScanMetrics,
    /// Rows with an event time before it, ms, are too late.
    pub late_before: Option<i64>,
    /// Where records that do not decode are told of.
    pub bad_records: Option<Arc<BadRecords>>,
}

impl SplitScan {
    fn run(&self, pool: &ConsumerPool, sender: &mpsc::Sender<RecordBatch>) -> Result<()> {
        let key = Key {
            connection: self.plan.connection.clone(),
            isolation: self.plan.isolation,
            continuous: self.plan.stream.is_some(),
        };
        let mut reading = pool.take(&key, &self.range)?;
        // After an error the consumer is dropped: its state is unknown.
        let next = self.scan(&mut reading, sender)?;
        reading.at = next.map(|next| (self.range.topic.clone(), self.range.partition, next));
        pool.put(key, reading);
        Ok(())
    }

    /// Returns the first offset that was not read, if the consumer is known to stand there.
    fn scan(
        &self,
        reading: &mut Reading,
        sender: &mpsc::Sender<RecordBatch>,
    ) -> Result<Option<i64>> {
        let range = &self.range;
        let mut out = Output::new(self, sender)?;
        // What a consumer says that goes on from the epoch before may be about the time in between: before it is
        // believed, the consumer is assigned anew.
        let mut fresh = !reading.leads_to(range);
        if fresh {
            reading.ahead = None;
            self.assign(&reading.consumer, range.start)?;
        }
        // Until an assignment has brought something forth, the consumer's position is that of the one before.
        let mut settled = !fresh;
        // The first offset not yet seen.
        let mut next = range.start;
        if let Some(message) = reading
            .ahead
            .take_if(|message| message.offset() < range.end)
            && message.offset() >= next
        {
            next = message.offset() + 1;
            out.push(&message)?;
        }
        if reading.ahead.is_some() {
            // Holes from the start to the record at hand.
            out.flush()?;
            return Ok(Some(range.end));
        }
        let consumer = &reading.consumer;
        let poll = match self.plan.stream {
            Some(_) => POLL_CONTINUOUS,
            None => POLL,
        };
        let mut quiet_since = Instant::now();
        let mut heard = false;
        let mut last_error = None;
        while next < range.end && !sender.is_closed() {
            match consumer.poll(poll) {
                Some(Ok(message)) => {
                    (heard, settled) = (true, true);
                    let offset = message.offset();
                    if message.partition() != range.partition || offset < next {
                        continue;
                    }
                    // Holes at the range's end: the record after them ends it.
                    if offset >= range.end {
                        reading.ahead = self.plan.stream.is_some().then(|| message.detach());
                        next = range.end;
                        break;
                    }
                    next = offset + 1;
                    if out.push(&message)? == Flow::Stop {
                        return Ok(Some(next));
                    }
                    continue;
                }
                // Markers or holes up to the partition's end: no further record will come.
                Some(Err(KafkaError::PartitionEOF(id))) if id == range.partition => {
                    settled = true;
                    if fresh {
                        self.check_end(consumer, next)?;
                        next = range.end;
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => match self.judge(&error) {
                    Trouble::Passing => {
                        if let Some(refused) = self.refused(consumer, next) {
                            return Err(refused);
                        }
                        last_error = Some(reason(&error));
                    }
                    _ if !fresh => {
                        (fresh, settled) = (true, false);
                        self.assign(consumer, next)?;
                    }
                    Trouble::Lost => {
                        last_error = Some(reason(&error));
                        next = self.lost(consumer, next)?;
                        settled = false;
                        if next < range.end {
                            self.assign(consumer, next)?;
                        }
                    }
                    Trouble::Lasting(error) => return Err(error),
                },
                None if settled => next = next.max(self.position(consumer)),
                None => {}
            }
            // Reached without a record only. Errors may come more often than silence: they are no progress either.
            if std::mem::take(&mut heard) {
                quiet_since = Instant::now();
            }
            if !fresh && next < range.end && quiet_since.elapsed() >= MISTRUST {
                (fresh, settled) = (true, false);
                self.assign(consumer, next)?;
            }
            if quiet_since.elapsed() >= self.plan.connection.timeout() {
                return Err(self.silent(next, last_error));
            }
        }
        out.flush()?;
        Ok(settled.then_some(next))
    }

    /// How far the consumer has come. Markers of transactions move it on without a record; 0 if it does not know.
    fn position(&self, consumer: &BaseConsumer<Context>) -> i64 {
        let positions = consumer.position().ok();
        let own = positions.and_then(|list| {
            list.find_partition(&self.range.topic, self.range.partition)
                .map(|p| p.offset())
        });
        match own {
            Some(Offset::Offset(at)) => at,
            _ => 0,
        }
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
        consumer.unassign().map_err(|e| failed(&e))?;
        // An error of the assignment before may still be there: librdkafka drops its records, but not its errors.
        while consumer.poll(Duration::ZERO).is_some() {}
        consumer.assign(&list).map_err(|e| failed(&e))
    }

    pub(super) fn at(&self, offset: i64) -> String {
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
        if (low..high).contains(&next) {
            // What was said is no longer so, or of a topic that has been made anew since.
            return Ok(next);
        }
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

    /// Why the brokers and this worker do not talk, if they never will by these certificates. Another worker may have
    /// others, so it is worth another attempt.
    fn refused(&self, consumer: &BaseConsumer<Context>, next: i64) -> Option<Error> {
        let refusal = consumer.context().take_refusal()?;
        let brokers = &self.plan.connection.brokers;
        refusal
            .is_final()
            .then(|| Error::unavailable(refusal.error(self.at(next), brokers).to_string()))
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
