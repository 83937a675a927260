//! The master's half of an UNBOUNDED table: what came is written to the job's journal, then offered to epochs.

use super::entry::{Entry, Mark, pack, unpack};
use super::plan::RowPlan;
use super::rows::Rows;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::journal::{Journal, Journaled, Journals};
use crate::scan::{ScanMetrics, project_schema};
use crate::stream::{Available, Offsets, StreamOptions, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// The one partition.
const PARTITION: &str = "journal";
/// Bytes that wait for the sinks before the server is asked for no more.
const MAX_WAITING: u64 = 64 << 20;
/// Bytes that one epoch reads at most: they travel inside its plan, of which a worker takes 64 MiB.
const MAX_EPOCH: u64 = 16 << 20;
/// Bytes below which an epoch is not cut.
const LEAST_SPLIT: u64 = 256 << 10;
/// The pauses after a state dir was out of reach.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where the fetching stands: the last mark of each name.
pub type Marks = BTreeMap<String, String>;

/// What asks the server.
#[async_trait]
pub trait Feed: Debug + Send + Sync {
    /// Goes on from `marks`, puts what comes into `inbox`, and waits and tries again when the server is out of reach.
    /// Returns only what cannot be helped.
    async fn run(&self, marks: Marks, inbox: &Inbox) -> Error;
}

/// A feed as a table that is read continuously.
#[derive(Debug)]
pub struct FeedStream {
    feed: Arc<dyn Feed>,
    schema: SchemaRef,
    plan: RowPlan,
    options: StreamOptions,
    /// There while a job runs.
    opened: Mutex<Option<Opened>>,
}

#[derive(Debug)]
struct Opened {
    inbox: Arc<Inbox>,
    /// Ends with the source.
    _fetching: AbortOnDropHandle<()>,
}

/// Where records go that have come.
#[derive(Debug)]
pub struct Inbox {
    journal: Arc<dyn Journal>,
    waiting: Mutex<Waiting>,
    /// Rung when something has been forgotten.
    room: Notify,
    /// Held by the one who writes: entries keep their order.
    turn: tokio::sync::Mutex<()>,
}

/// The entries that the sinks may not have yet.
#[derive(Debug)]
struct Waiting {
    /// The number of the first entry.
    first: i64,
    /// Each with the bytes up to its end, counted from the first one ever here.
    entries: VecDeque<(Bytes, u64)>,
    /// Bytes before the first entry.
    before: u64,
    /// What the entries before the first one said.
    marks: Marks,
    /// The server has answered well, now or in an earlier start of the job.
    known: bool,
    /// Why nothing comes, for now.
    trouble: Option<Error>,
    /// Why nothing will ever come.
    failed: Option<Error>,
}

impl Waiting {
    fn new(journaled: Journaled) -> Result<Self> {
        let known = journaled.summary.is_some() || !journaled.entries.is_empty();
        let marks = match &journaled.summary {
            Some(summary) => serde_json::from_slice(summary).map_err(|e| {
                Error::internal(format!("the journal's summary is of another version: {e}"))
            })?,
            None => Marks::new(),
        };
        let mut waiting = Self {
            first: journaled.first,
            entries: VecDeque::new(),
            before: 0,
            marks,
            known,
            trouble: None,
            failed: None,
        };
        waiting.push(journaled.entries);
        Ok(waiting)
    }

    fn push(&mut self, entries: Vec<Bytes>) {
        let mut end = self.bytes_until(self.end());
        for entry in entries {
            end += entry.len() as u64;
            self.entries.push_back((entry, end));
        }
    }

    /// The number of the next entry.
    fn end(&self) -> i64 {
        self.first + self.entries.len() as i64
    }

    /// Bytes of all entries before this one.
    fn bytes_until(&self, number: i64) -> u64 {
        match usize::try_from(number - self.first) {
            Ok(0) | Err(_) => self.before,
            Ok(n) => self.entries.get(n - 1).map_or(self.before, |(_, end)| *end),
        }
    }

    /// The end of what an epoch from `from` on may read: the end of all, unless that is too much.
    fn end_of_epoch(&self, from: i64) -> i64 {
        let most = self.bytes_until(from) + MAX_EPOCH;
        let fitting = self.entries.partition_point(|(_, end)| *end <= most) as i64;
        (self.first + fitting).max(from + 1).min(self.end())
    }

    fn range(&self, from: i64, to: i64) -> Result<impl Iterator<Item = &Bytes>> {
        if from < self.first || to > self.end() {
            return Err(Error::internal(format!(
                "entries {from} to {to} are wanted, and there are {} to {}",
                self.first,
                self.end()
            )));
        }
        let (skip, take) = ((from - self.first) as usize, (to - from) as usize);
        Ok(self
            .entries
            .iter()
            .skip(skip)
            .take(take)
            .map(|(entry, _)| entry))
    }

    /// Forgets the entries before `below`. Returns the summary if there were any.
    fn forget(&mut self, below: i64) -> Result<Option<(i64, Bytes)>> {
        let before = self.first;
        while self.first < below
            && let Some((entry, end)) = self.entries.pop_front()
        {
            self.first += 1;
            self.before = end;
            if let Some((name, value)) = Entry::decode(&entry)?.mark {
                self.marks.insert(name, value);
            }
        }
        if self.first == before {
            return Ok(None);
        }
        let summary =
            serde_json::to_vec(&self.marks).map_err(|e| Error::internal(e.to_string()))?;
        Ok(Some((self.first, Bytes::from(summary))))
    }

    /// The marks behind the last entry.
    fn last_marks(&self) -> Result<Marks> {
        let mut marks = self.marks.clone();
        for (entry, _) in &self.entries {
            if let Some((name, value)) = Entry::decode(entry)?.mark {
                marks.insert(name, value);
            }
        }
        Ok(marks)
    }
}

impl Inbox {
    fn new(journal: Arc<dyn Journal>, journaled: Journaled) -> Result<Self> {
        Ok(Self {
            journal,
            waiting: Mutex::new(Waiting::new(journaled)?),
            room: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Keeps records, all or none: when this returns they are in the journal. Waits while too many wait for the sinks,
    /// and while the state dir is out of reach.
    ///
    /// # Errors
    /// A newer generation of the job has begun; a record that is too large.
    pub async fn put(&self, records: &[Entry]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let entries = records
            .iter()
            .map(Entry::encode)
            .collect::<Result<Vec<_>>>()?;
        let _turn = self.turn.lock().await;
        while !self.has_room() {
            self.room.notified().await;
        }
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.journal.append(&entries).await {
            if !error.is_transient() {
                return Err(error);
            }
            tracing::warn!(%error, ?pause, "what came cannot be kept yet: nothing more is asked for");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.waiting.lock().push(entries);
        Ok(())
    }

    fn has_room(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.bytes_until(waiting.end()) - waiting.before < MAX_WAITING
    }

    /// The server has answered well.
    pub fn answered(&self) {
        let mut waiting = self.waiting.lock();
        waiting.known = true;
        waiting.trouble = None;
    }

    /// The server does not answer, and is asked again. A server that never has is an error of the job: its address may
    /// be wrong. One that has is only waited for.
    pub fn in_trouble(&self, error: &Error) {
        tracing::warn!(%error, "a server does not answer, and is asked again");
        self.waiting.lock().trouble = Some(error.clone());
    }
}

impl FeedStream {
    /// What `feed` brings, as a table with these columns.
    pub fn new(
        feed: Arc<dyn Feed>,
        schema: SchemaRef,
        plan: RowPlan,
        options: StreamOptions,
    ) -> Self {
        Self {
            feed,
            schema,
            plan,
            options,
            opened: Mutex::default(),
        }
    }

    fn inbox(&self) -> Option<Arc<Inbox>> {
        let opened = self.opened.lock();
        opened.as_ref().map(|opened| Arc::clone(&opened.inbox))
    }
}

fn at(number: i64) -> Offsets {
    Offsets(BTreeMap::from([(PARTITION.to_owned(), number)]))
}

fn number(offsets: &Offsets) -> Result<Option<i64>> {
    match offsets.0.iter().find(|(name, _)| *name != PARTITION) {
        Some((name, _)) => Err(Error::invalid(format!(
            "the position {name} is of another source: a job whose table is stored elsewhere needs a new name"
        ))),
        None => Ok(offsets.0.get(PARTITION).copied()),
    }
}

#[async_trait]
impl StreamSource for FeedStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn options(&self) -> StreamOptions {
        self.options.clone()
    }

    async fn open(&self, journals: &dyn Journals) -> Result<()> {
        let (journal, journaled) = journals.open().await?;
        let inbox = Arc::new(Inbox::new(journal, journaled)?);
        let marks = inbox.waiting.lock().last_marks()?;
        let (feed, kept) = (Arc::clone(&self.feed), Arc::clone(&inbox));
        let fetching = async move {
            let error = feed.run(marks, &kept).await;
            tracing::warn!(%error, "nothing more is asked for");
            kept.waiting.lock().failed = Some(error);
        };
        *self.opened.lock() = Some(Opened {
            inbox,
            _fetching: AbortOnDropHandle::new(tokio::spawn(fetching.in_current_span())),
        });
        Ok(())
    }

    async fn start(&self) -> Result<Offsets> {
        Ok(at(self
            .inbox()
            .map_or(0, |inbox| inbox.waiting.lock().first)))
    }

    async fn available(&self, from: &Offsets) -> Result<Available> {
        let from = number(from)?;
        let Some(inbox) = self.inbox() else {
            // Nothing runs: a check, or EXPLAIN.
            let start = at(from.unwrap_or(0));
            return Ok(Available {
                latest: start.clone(),
                start,
                lost: 0,
            });
        };
        let waiting = inbox.waiting.lock();
        let from = from.unwrap_or(waiting.first);
        if from < waiting.first || from > waiting.end() {
            return Err(Error::data(format!(
                "the job is at entry {from} of its journal, which has {} to {}: the state dir holds parts of different times; put back one that is whole, or start again with --from-scratch",
                waiting.first,
                waiting.end()
            )));
        }
        let unheard = waiting.trouble.as_ref().filter(|_| !waiting.known);
        if from == waiting.end()
            && let Some(error) = waiting.failed.as_ref().or(unheard)
        {
            return Err(error.clone());
        }
        Ok(Available {
            start: at(from),
            latest: at(waiting.end_of_epoch(from)),
            lost: 0,
        })
    }

    fn trouble(&self) -> Option<String> {
        let inbox = self.inbox()?;
        let waiting = inbox.waiting.lock();
        waiting.trouble.as_ref().map(ToString::to_string)
    }

    fn splits(&self, from: &Offsets, to: &Offsets, target: usize) -> Result<Vec<Split>> {
        let (from, to) = (number(from)?.unwrap_or(0), number(to)?.unwrap_or(0));
        let Some(inbox) = self.inbox().filter(|_| to > from) else {
            return Ok(Vec::new());
        };
        let waiting = inbox.waiting.lock();
        let entries: Vec<&Bytes> = waiting.range(from, to)?.collect();
        let bytes = waiting.bytes_until(to) - waiting.bytes_until(from);
        let most = (bytes / target.max(1) as u64).max(LEAST_SPLIT);
        let mut splits = Vec::new();
        let (mut start, mut size) = (0, 0);
        for (index, entry) in entries.iter().enumerate() {
            size += entry.len() as u64;
            if size < most && index + 1 < entries.len() {
                continue;
            }
            let first = from + start as i64;
            let end = from + index as i64 + 1;
            let packed = pack(entries[start..=index].iter().copied());
            splits.push(Split {
                label: format!("{PARTITION} {first}..{end}"),
                payload: [&first.to_be_bytes()[..], &packed].concat(),
                partition: PARTITION.to_owned(),
                rows: Some((end - first) as u64),
                bytes: Some(size),
            });
            (start, size) = (index + 1, 0);
        }
        Ok(splits)
    }

    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        Ok(Arc::new(EntryReader {
            schema: project_schema(&self.schema, projection)?,
            plan: self.plan.clone(),
        }))
    }

    async fn committed(&self, offsets: &Offsets) -> Result<()> {
        let (Some(inbox), Some(below)) = (self.inbox(), number(offsets)?) else {
            return Ok(());
        };
        let forgotten = inbox.waiting.lock().forget(below)?;
        inbox.room.notify_one();
        match forgotten {
            Some((below, summary)) => inbox.journal.compact(below, summary).await,
            None => Ok(()),
        }
    }
}

/// The worker's half: the entries are in the split.
#[derive(Debug)]
pub struct EntryReader {
    pub schema: SchemaRef,
    pub plan: RowPlan,
}

impl SplitReader for EntryReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        // Strings and plain enums: it cannot fail, and an empty plan would be refused by the reader.
        serde_json::to_vec(&self.plan).unwrap_or_default()
    }

    fn describe(&self) -> String {
        self.plan.describe(&self.schema)
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let (first, packed) = split
            .payload
            .split_first_chunk::<8>()
            .ok_or_else(|| Error::internal("a split is of another version"))?;
        let first = i64::from_be_bytes(*first);
        let records = unpack(Bytes::copy_from_slice(packed))?;
        let metrics = ScanMetrics::new(metrics, partition);
        let mut rows = Rows::new(self.plan.clone(), self.schema(), ctx, metrics)?;
        // Decoded when the rows are wanted.
        let batches = futures::stream::once(async move {
            let batches = rows
                .batches(&records, first)
                .map_err(DataFusionError::from)?;
            Ok::<_, DataFusionError>(futures::stream::iter(batches.into_iter().map(Ok)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            batches.try_flatten(),
        )))
    }
}

/// A mark as one writes it.
pub fn mark(name: &str, value: &str) -> Mark {
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests;
