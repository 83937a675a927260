//! What a connector is: a folder that gives a source, a sink or both, and how their worker halves travel.

use crate::check::{Endpoint, Finding, Incoming};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::scope::JobScope;
use crate::secret::Secret;
use crate::stream::{OutputMode, StreamSink, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// What a `CREATE EXTERNAL TABLE` says.
#[derive(Debug)]
pub struct TableSpec {
    /// The table's name in SQL.
    pub name: String,
    /// The declared columns; `None` if there are none, so that the connector asks the server.
    pub schema: Option<SchemaRef>,
    /// The text after LOCATION, variables filled in.
    pub location: Secret,
    /// The options not yet taken.
    pub options: Options,
    /// The columns of a declared PRIMARY KEY.
    pub primary_key: Vec<String>,
    /// Whether it was declared UNBOUNDED.
    pub unbounded: bool,
}

/// The metadata key of a column that a source adds to those that are declared: an INSERT that names no columns does
/// not mean it.
pub const METADATA_KEY: &str = "essaim.metadata";

/// The two halves of a table, as far as its connector has them.
#[derive(Debug)]
pub struct ConnectorTable {
    /// The columns; `None` for a sink that takes whatever its first INSERT brings.
    pub schema: Option<SchemaRef>,
    pub source: Option<Arc<dyn Source>>,
    pub sink: Option<Arc<dyn Sink>>,
}

/// A connector: how tables STORED AS its name come to be, and how its worker halves are read back.
#[async_trait]
pub trait Connector: Debug + Send + Sync {
    /// The word after STORED AS, upper case.
    fn name(&self) -> &'static str;

    /// Checks a declaration and makes a table of it. May ask the server for columns.
    ///
    /// # Errors
    /// A wrong option or column, named; a server out of reach.
    async fn table(&self, spec: TableSpec) -> Result<ConnectorTable>;

    /// Reads back what [`SplitReader::encode`] wrote. `schema` is what the reader yields.
    ///
    /// # Errors
    /// Bytes of another version.
    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        let _ = (encoded, schema);
        Err(Error::internal(format!("{} is no source", self.name())))
    }

    /// Reads back what [`SinkWriter::encode`] wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    fn writer(&self, encoded: &[u8]) -> Result<Arc<dyn SinkWriter>> {
        let _ = encoded;
        Err(Error::internal(format!("{} is no sink", self.name())))
    }

    /// What a table of this declaration needs to reach, for `essaim doctor`. Asks nobody.
    ///
    /// # Errors
    /// A location or an option that is wrong.
    fn endpoints(&self, spec: TableSpec) -> Result<Vec<Endpoint>> {
        let _ = spec;
        Ok(Vec::new())
    }

    /// Tries to reach what [`Self::endpoints`] named, from this process. Returns what was found there, in a few words.
    /// Dropped when `deadline` is over.
    ///
    /// # Errors
    /// What is broken, and what to do. No secrets.
    async fn reach(&self, payload: &[u8], deadline: Duration) -> Result<String> {
        let _ = (payload, deadline);
        Err(Error::internal(format!("{} reaches nothing", self.name())))
    }
}

/// The master's half of a source: knows the server, pushes down, cuts into splits.
#[async_trait]
pub trait Source: Debug + Send + Sync {
    /// How far each filter can be evaluated by the source; `Exact` filters are not evaluated again.
    fn pushdown(&self, filters: &[&Expr]) -> Vec<TableProviderFilterPushDown> {
        vec![TableProviderFilterPushDown::Unsupported; filters.len()]
    }

    /// Cuts a scan into splits. Called once per query; the splits together are the whole input.
    ///
    /// # Errors
    /// An unknown topic or table, a server out of reach.
    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan>;

    /// The same source read continuously, if it can be: what an UNBOUNDED table is.
    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        None
    }

    /// What only the connector knows to be wrong or worth knowing before a job reads the table, such as missing
    /// permissions. `unbounded`: whether it is read continuously. Changes nothing.
    ///
    /// # Errors
    /// The server is out of reach, or refuses to answer.
    async fn findings(&self, unbounded: bool) -> Result<Vec<Finding>> {
        let _ = unbounded;
        Ok(Vec::new())
    }
}

/// What a query wants of a source.
#[derive(Debug)]
pub struct ScanRequest<'a> {
    /// Indices of the wanted columns, in the order in which the scan yields them. May be empty (`count(*)`).
    pub projection: &'a [usize],
    /// Filters that [`Source::pushdown`] took, to be joined by AND.
    pub filters: &'a [Expr],
    /// At most so many rows are wanted, of any split; only given when no filter is evaluated above the scan.
    pub limit: Option<usize>,
    /// About how many splits would keep the cluster busy.
    pub target_splits: usize,
    /// The job on whose behalf it is: holds what must live as long, e.g. an exported snapshot.
    pub scope: &'a Arc<JobScope>,
}

/// A scan that is ready to be handed out.
#[derive(Debug)]
pub struct PlannedScan {
    /// Reads any of the splits; yields the projected columns.
    pub reader: Arc<dyn SplitReader>,
    /// Independent pieces; read in any order, each any number of times, with equal rows.
    pub splits: Vec<Split>,
}

/// A bounded piece of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// For people, e.g. `toots[3] 0..1500`.
    pub label: String,
    /// The connector's own encoding (JSON).
    pub payload: Vec<u8>,
    /// The partition of the source that it lies in, as in [`crate::stream::Offsets`]; empty if it is not a stream's.
    pub partition: String,
    /// About how many rows, if known.
    pub rows: Option<u64>,
    /// About how many bytes, if known.
    pub bytes: Option<u64>,
}

/// The worker's half of a source. Travels in the plan, so it must encode itself.
pub trait SplitReader: Debug + Send + Sync {
    /// What it yields.
    fn schema(&self) -> SchemaRef;

    /// For [`Connector::reader`] on the worker. The schema travels beside it.
    fn encode(&self) -> Vec<u8>;

    /// For EXPLAIN: what was pushed down. No secrets.
    fn describe(&self) -> String;

    /// Reads one split, whole and in batches of `ctx.session_config().batch_size()` rows at most.
    /// Dropping the stream ends the reading. Counts into `metrics` with [`crate::scan::ScanMetrics`].
    ///
    /// # Errors
    /// A payload of another version; everything else comes from the stream.
    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream>;
}

/// Which run of which query a sink works for. Together they name a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkRun {
    /// The job's id.
    pub job: String,
    /// The INSERT's position in the job, from 0.
    pub query: u32,
    /// Grows with every start of the job; a sink refuses a lower one than it has seen.
    pub generation: u64,
    /// 0 for a batch job.
    pub epoch: u64,
}

impl SinkRun {
    /// A short name of `[0-9a-f_]` only: the job's id without dashes, the query, the epoch. It is the same for every
    /// start of the job: a staging place has the generation in its name too, so that a master that comes back late
    /// never clears what its successor stages.
    pub fn name(&self) -> String {
        let job: String = self.job.chars().filter(char::is_ascii_hexdigit).collect();
        format!("{job}_{}_{}", self.query, self.epoch)
    }
}

/// The master's half of a sink's table.
#[async_trait]
pub trait Sink: Debug + Send + Sync {
    /// Checks that rows of `input` fit, without changing anything. `overwrite` for INSERT OVERWRITE.
    ///
    /// # Errors
    /// Columns that do not fit, a missing key: named, with what to write instead.
    async fn plan(&self, input: &SchemaRef, overwrite: bool, run: &SinkRun) -> Result<PlannedSink>;

    /// Checks that the rows of a streaming INSERT fit, without changing anything. `run` is that of epoch 0.
    ///
    /// # Errors
    /// As `plan`, and an output mode that the sink cannot take: with those that it can.
    async fn stream(
        &self,
        input: &SchemaRef,
        mode: OutputMode,
        run: &SinkRun,
    ) -> Result<Arc<dyn StreamSink>> {
        let _ = (input, run);
        Err(crate::stream::no_stream_sink(
            mode,
            "it takes batch jobs only",
        ))
    }

    /// What is not there, of a table that takes its columns from its first INSERT: where it was looked for, and what may
    /// have been meant. For somebody who wants to read it.
    ///
    /// # Errors
    /// The server is out of reach, or refuses to answer.
    async fn absent(&self) -> Result<String> {
        Ok("it has no columns".to_owned())
    }

    /// Whether a streaming INSERT of groups should write them as they change rather than when they are final: true of
    /// a sink that replaces rows by key.
    fn prefers_update(&self) -> bool {
        false
    }

    /// Whether all rows must come from one writer, e.g. because they go to one file.
    fn takes_one_writer(&self) -> bool {
        false
    }

    /// What only the connector knows to be wrong or worth knowing before a job writes the table, such as missing
    /// permissions or a key that is not unique. Called for rows that [`Self::plan`] or [`Self::stream`] took. Changes
    /// nothing.
    ///
    /// # Errors
    /// The server is out of reach, or refuses to answer.
    async fn findings(&self, incoming: &Incoming<'_>) -> Result<Vec<Finding>> {
        let _ = incoming;
        Ok(Vec::new())
    }
}

/// A sink that is ready for one run.
#[derive(Debug)]
pub struct PlannedSink {
    pub writer: Arc<dyn SinkWriter>,
    pub committer: Arc<dyn SinkCommitter>,
}

/// What a writer left behind for its committer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub rows: u64,
    /// The connector's own encoding, e.g. the name of a staging table.
    pub payload: String,
}

/// The sink writer: the worker's half of a sink. Travels in the plan, so it must encode itself.
#[async_trait]
pub trait SinkWriter: Debug + Send + Sync {
    /// For [`Connector::writer`] on the worker.
    fn encode(&self) -> Vec<u8>;

    /// For EXPLAIN. No secrets.
    fn describe(&self) -> String;

    /// Writes all rows where nobody sees them yet, under a name that no other attempt uses.
    /// If it fails or is dropped it leaves nothing that could ever be seen.
    ///
    /// # Errors
    /// Of the rows' stream or of the server.
    async fn write(
        &self,
        partition: usize,
        rows: SendableRecordBatchStream,
        ctx: &Arc<TaskContext>,
    ) -> Result<Part>;
}

/// What a committer found when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Nothing was committed for this run yet: write.
    Fresh,
    /// An earlier generation committed this run already: write nothing.
    AlreadyCommitted,
}

/// The sink committer: the master's half of one run.
#[async_trait]
pub trait SinkCommitter: Debug + Send + Sync {
    /// Before the first writer starts: notes this generation where the sink can, which shuts out lower ones, finishes a
    /// commit that an earlier generation had decided, and removes what lower generations of this run staged. The
    /// target is left as it is: one that is absent is created by `commit`.
    ///
    /// # Errors
    /// A higher generation has been seen; the server is out of reach.
    async fn begin(&self) -> Result<Begin>;

    /// Whether a run whose master died may be started anew, and a task run twice at once. `false` where a writer's rows
    /// may be visible before `commit`: such a job is marked failed instead, and its tasks are not speculated.
    fn restartable(&self) -> bool {
        true
    }

    /// Makes the parts visible, all or none, once.
    ///
    /// # Errors
    /// As `begin`, rows that the target refuses, and parts that are not there whole any more. Nothing is visible then,
    /// unless the error says that the outcome is not known.
    async fn commit(&self, parts: Vec<Part>) -> Result<()>;

    /// Removes what this and lower generations staged, after an error or a cancel. Does its best, reports nothing.
    async fn abort(&self);
}
