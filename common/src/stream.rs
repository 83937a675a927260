//! What a connector adds for streaming jobs: a source that is read epoch by epoch, a sink that commits epoch by epoch.

use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::journal::Journals;
use crate::options::Options;
use crate::sql_types::{self, sql_type};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

/// Positions in a source, by partition (for Kafka `topic[3]`): the first offset that has not been read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets(pub BTreeMap<String, i64>);

/// What a stream has to offer now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Available {
    /// Where to read on: the positions asked about, with those of new partitions, and moved behind what was lost.
    pub start: Offsets,
    /// The end of each partition of `start`.
    pub latest: Offsets,
    /// Offsets passed over because the source has deleted them.
    pub lost: u64,
}

/// The master's half of a source that is read continuously.
#[async_trait]
pub trait StreamSource: Debug + Send + Sync {
    /// All columns of the table.
    fn schema(&self) -> SchemaRef;

    /// How it is to be read.
    fn options(&self) -> StreamOptions;

    /// Called once for each start of a job, before anything else of it that has to do with positions; not by what only
    /// plans or checks. A source that cannot be read twice opens its journal here, and may begin to fetch.
    ///
    /// # Errors
    /// Those of `journals`.
    async fn open(&self, journals: &dyn Journals) -> Result<()> {
        let _ = journals;
        Ok(())
    }

    /// Where a new job begins.
    ///
    /// # Errors
    /// The server is out of reach; the options name what is not there.
    async fn start(&self) -> Result<Offsets>;

    /// What there is behind `from`. Called for every epoch, also of an idle job: it must be cheap.
    ///
    /// # Errors
    /// The server is out of reach; what `from` points to has been deleted and the table does not allow for it.
    async fn available(&self, from: &Offsets) -> Result<Available>;

    /// Why nothing comes for now, where that is no error of an epoch: what there is can be read.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Cuts what lies between two positions into about `target` splits. Each lies in one partition and names it.
    ///
    /// # Errors
    /// Positions of another source.
    fn splits(&self, from: &Offsets, to: &Offsets, target: usize) -> Result<Vec<Split>>;

    /// What reads the splits on the workers. `projection` as in [`crate::connector::ScanRequest`].
    ///
    /// # Errors
    /// A projection of columns that are not there.
    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>>;

    /// All sinks have what lies before `offsets`, and no epoch reads it again: the source may forget it, or clean up.
    /// Called only for sources that have opened a journal, beside the epochs, and not for each of them.
    ///
    /// # Errors
    /// What could not be cleaned up. It is logged, and the job goes on.
    async fn committed(&self, offsets: &Offsets) -> Result<()> {
        let _ = offsets;
        Ok(())
    }
}

/// How a stream is to be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The column with the time of the event, by its index in the table.
    pub event_time: Option<usize>,
    /// How late rows may come, ms.
    pub watermark_delay_ms: i64,
    /// After so many ms without rows a partition no longer holds the watermark back.
    pub idle_timeout_ms: Option<i64>,
    /// Offsets that one epoch takes from all partitions together, at most.
    pub max_offsets_per_trigger: Option<u64>,
}

impl StreamOptions {
    /// Takes the options of a table with these columns: `event_time`, `watermark_delay`, `idle_timeout` and
    /// `max_offsets_per_trigger`.
    ///
    /// # Errors
    /// A value that is wrong; a column that is not there or is no TIMESTAMP.
    pub fn take(options: &mut Options, schema: Option<&SchemaRef>) -> Result<Self> {
        Self::take_with(options, schema, None)
    }

    /// As [`Self::take`], of a table whose event time is column `known` unless its options name another.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_with(
        options: &mut Options,
        schema: Option<&SchemaRef>,
        known: Option<usize>,
    ) -> Result<Self> {
        let watermark_delay = options.duration_ms("watermark_delay")?;
        let idle_timeout_ms = options.duration_ms("idle_timeout")?;
        let max_offsets_per_trigger = options.parsed("max_offsets_per_trigger")?;
        if max_offsets_per_trigger == Some(0) {
            return Err(options.error(
                "option max_offsets_per_trigger '0': nothing would ever be read; write at least 1",
            ));
        }
        let event_time = match options.text("event_time") {
            None => known,
            Some(name) => {
                let (index, field) = schema
                    .and_then(|schema| schema.column_with_name(&name))
                    .ok_or_else(|| options.error(no_event_time(&name, schema)))?;
                if !matches!(field.data_type(), DataType::Timestamp(..)) {
                    return Err(options.error(format!(
                        "option event_time '{name}': the column has the type {}, declare it TIMESTAMP",
                        sql_type(field.data_type())
                    )));
                }
                Some(index)
            }
        };
        if watermark_delay.is_some() && event_time.is_none() {
            return Err(options.error("watermark_delay needs event_time: name the column"));
        }
        Ok(Self {
            event_time,
            watermark_delay_ms: watermark_delay.unwrap_or(0),
            idle_timeout_ms,
            max_offsets_per_trigger,
        })
    }
}

/// Names the columns that there are, and the one that only upper and lower case keep from being the one asked for.
fn no_event_time(name: &str, schema: Option<&SchemaRef>) -> String {
    let fields = schema.map(|schema| schema.fields().iter());
    let names: Vec<&str> = fields
        .into_iter()
        .flatten()
        .map(|field| field.name().as_str())
        .collect();
    let alike = names.iter().find(|known| known.eq_ignore_ascii_case(name));
    let advice = match alike {
        Some(alike) => format!(
            ": write event_time '{alike}', or declare the column as {}, as names without quotes are folded to lower case",
            sql_types::name(name)
        ),
        None => String::new(),
    };
    format!(
        "option event_time '{name}': there is no such column; there are {}{advice}",
        names.join(", ")
    )
}

/// Which rows of a result an epoch hands to its sink: Spark's output modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Rows that will never change: every row once.
    Append,
    /// The groups that changed in this epoch, each as it is now.
    Update,
    /// All groups; the sink forgets what it had before.
    Complete,
}

impl OutputMode {
    /// As in `SET essaim.output_mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Update => "update",
            Self::Complete => "complete",
        }
    }
}

/// The sink of one INSERT of a streaming job. It lives on the master, for one generation of the job.
///
/// Exactly once comes about like this: the master numbers epochs, writes down what an epoch reads before it runs, and
/// reads the same again after a failure. The sink keeps the number of the last epoch beside the rows, changed in the
/// same step as they, and writes no epoch twice.
#[async_trait]
pub trait StreamSink: Debug + Send + Sync {
    /// Before the first epoch: shuts out lower generations for good, removes what they left uncommitted, and tells the
    /// last epoch that was committed. Creates the target if need be. Called again after an error.
    ///
    /// # Errors
    /// A higher generation has been seen (kind `Invalid`); the server is out of reach.
    async fn begin(&self) -> Result<Option<u64>>;

    /// Makes the rows visible together with the epoch's number, all or none. Returns how many there were. An epoch
    /// that has been committed already is not written again, and is no error: a call may be repeated when its outcome
    /// is not known. Numbers grow, and may leave gaps: an epoch without rows is not committed.
    ///
    /// # Errors
    /// Those of `rows`; a higher generation has been seen (kind `Invalid`); rows that the target refuses (`Data`); the
    /// server is out of reach (`Unavailable`).
    async fn commit(&self, epoch: u64, rows: SendableRecordBatchStream) -> Result<u64>;

    /// What it promises and where it writes, for EXPLAIN and status. No secrets.
    fn describe(&self) -> String;
}

/// What the tasks of one epoch must know beside their plan: an extension of their context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochParams {
    pub epoch: u64,
    /// By the INSERT's position: the watermark that the epoch before left, ms. Rows that come too late for it are
    /// dropped and counted.
    pub watermarks: BTreeMap<u32, i64>,
    /// By table: rows with an event time (ms) before it are too late for every INSERT that reads the table.
    pub late_before: BTreeMap<String, i64>,
}

/// The error of a sink that a stream cannot be written to.
pub(crate) fn no_stream_sink(mode: OutputMode, modes: &str) -> Error {
    Error::invalid(format!(
        "it cannot be written by a streaming job in output mode '{}': {modes}",
        mode.as_str()
    ))
}
