//! What the master remembers of a job, and what clients see of it.

pub use crate::jobs::epochs::{EpochProgress, EpochTotals, QueryProgress, SourceProgress};
pub use crate::jobs::errors::JobError;
pub use crate::jobs::plan::{Place, PlanRecord};
use essaim_common::secret::redact_sql;
use essaim_proto::v1;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Attempts that one stage remembers; later ones are only counted.
pub(crate) const MAX_ATTEMPTS_KEPT: usize = 10_000;
/// Epochs that a streaming job remembers; earlier ones are only part of its totals.
pub(crate) const MAX_EPOCHS_KEPT: usize = 1_000;

/// Errors that a job remembers.
pub(crate) const MAX_ERRORS_KEPT: usize = 100;

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis() as i64)
}

/// The life of a job. It only moves downwards, until a streaming job is submitted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    /// Ended after an epoch, as it was asked to.
    Stopped,
}

impl JobState {
    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        self >= Self::Succeeded
    }

    /// The word for it, e.g. `succeeded`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
        }
    }

    pub(crate) fn to_proto(self) -> v1::JobState {
        match self {
            Self::Queued => v1::JobState::Queued,
            Self::Running => v1::JobState::Running,
            Self::Succeeded => v1::JobState::Succeeded,
            Self::Failed => v1::JobState::Failed,
            Self::Cancelled => v1::JobState::Cancelled,
            Self::Stopped => v1::JobState::Stopped,
        }
    }
}

/// How a job runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// To the end of its input.
    #[default]
    Batch,
    /// Epoch by epoch: it reads an UNBOUNDED table.
    Streaming,
}

impl JobKind {
    /// `batch` or `streaming`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Streaming => "streaming",
        }
    }
}

/// A job. Times are ms since 1970-01-01 UTC, 0 while not reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: String,
    pub name: String,
    /// As submitted. Only ever shown redacted.
    pub sql: String,
    pub state: JobState,
    pub message: String,
    pub submitted_ms: i64,
    pub started_ms: i64,
    pub ended_ms: i64,
    pub generation: u64,
    #[serde(default)]
    pub queries: Vec<QueryRecord>,
    #[serde(default)]
    pub kind: JobKind,
    /// The SQL that a resubmitted streaming job ran with before, until the engine has accepted the new one: it comes
    /// back if the job ends before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_sql: Option<String>,
    /// Somebody asked a streaming job to end after its epoch. Stored, so that a restarted master ends it too.
    #[serde(default)]
    pub stop_requested: bool,
    /// Of all epochs of a streaming job, also those before a restart.
    #[serde(default)]
    pub totals: EpochTotals,
    /// Of a queued job that waits for others to end: 1 for the one that is next; 0 otherwise.
    #[serde(skip)]
    pub queue_position: u32,
    /// The last [`MAX_EPOCHS_KEPT`] epochs, by number. Shared, because records are copied.
    #[serde(skip)]
    pub epochs: VecDeque<Arc<EpochProgress>>,
    /// The last [`MAX_ERRORS_KEPT`] errors, the newest last.
    #[serde(default)]
    pub errors: VecDeque<JobError>,
    /// What a list does not show is only in the state dir.
    #[serde(skip)]
    pub(crate) is_short: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct QueryRecord {
    pub index: u32,
    pub sink: String,
    pub execution: String,
    pub stages: Vec<StageRecord>,
    pub rows_out: u64,
    pub done: bool,
    pub retries: u32,
    /// Empty until the query is planned.
    #[serde(default)]
    pub plan: PlanRecord,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StageRecord {
    pub id: u32,
    /// Which run of the stage the record is of: a streaming job runs it for each epoch, and may run two epochs at once.
    #[serde(skip)]
    pub(crate) run: u64,
    pub tasks: u32,
    pub tasks_done: u32,
    pub tasks_running: u32,
    /// Attempts that failed or whose worker was lost.
    #[serde(default)]
    pub tasks_failed: u32,
    pub rows_in: u64,
    pub bytes_in: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    pub attempts: Vec<AttemptRecord>,
}

/// How an attempt of a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Running,
    Succeeded,
    Failed,
    Lost,
    Superseded,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Superseded => "superseded",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttemptRecord {
    pub task: u32,
    pub attempt: u32,
    pub worker: String,
    pub outcome: Outcome,
    pub reason: String,
    pub started_ms: i64,
    pub ended_ms: i64,
    pub rows_in: u64,
    pub split: String,
}

impl JobRecord {
    /// A job that has just arrived. Without a name its id is its name.
    pub fn new(id: String, name: String, sql: String, kind: JobKind) -> Self {
        Self {
            name: if name.is_empty() { id.clone() } else { name },
            id,
            sql,
            state: JobState::Queued,
            message: String::new(),
            submitted_ms: now_ms(),
            started_ms: 0,
            ended_ms: 0,
            generation: 0,
            queries: Vec::new(),
            kind,
            previous_sql: None,
            stop_requested: false,
            totals: EpochTotals::default(),
            queue_position: 0,
            epochs: VecDeque::new(),
            errors: VecDeque::new(),
            is_short: false,
        }
    }

    /// The record of a streaming job that has ended and is submitted again: the same job, with other SQL.
    pub(crate) fn resumed(&self, sql: String) -> Self {
        Self {
            previous_sql: Some(self.sql.clone()),
            sql,
            state: JobState::Queued,
            message: String::new(),
            submitted_ms: now_ms(),
            started_ms: 0,
            ended_ms: 0,
            stop_requested: false,
            ..self.clone()
        }
    }

    /// Takes in an epoch that was committed. One that is known by its number is replaced, with all behind it.
    pub(crate) fn record_epoch(&mut self, epoch: EpochProgress) {
        self.totals.add(&epoch);
        for done in &epoch.queries {
            if let Some(query) = self.queries.get_mut(done.index as usize) {
                query.rows_out += done.output_rows;
            }
        }
        while self
            .epochs
            .back()
            .is_some_and(|last| last.epoch >= epoch.epoch)
        {
            self.epochs.pop_back();
        }
        if self.epochs.len() >= MAX_EPOCHS_KEPT {
            self.epochs.pop_front();
        }
        self.epochs.push_back(Arc::new(epoch));
    }

    /// Lets go of what a list does not show: SQL, plans, attempts and errors.
    pub(crate) fn shorten(&mut self) {
        self.is_short = true;
        self.sql = String::new();
        self.errors = VecDeque::new();
        for query in &mut self.queries {
            query.plan = PlanRecord::default();
            for stage in &mut query.stages {
                stage.attempts = Vec::new();
            }
        }
    }

    /// Takes in an error.
    pub(crate) fn record_error(&mut self, error: JobError) {
        if self.errors.len() >= MAX_ERRORS_KEPT {
            self.errors.pop_front();
        }
        self.errors.push_back(error);
    }

    /// All stages of all queries.
    pub fn stages(&self) -> impl Iterator<Item = &StageRecord> {
        self.queries.iter().flat_map(|query| &query.stages)
    }

    /// Rows read: of a streaming job by all its epochs.
    pub fn rows_in(&self) -> u64 {
        match self.kind {
            JobKind::Batch => self.stages().map(|stage| stage.rows_in).sum(),
            JobKind::Streaming => self.totals.input_rows,
        }
    }

    /// Rows committed to sinks or sent to a client: of a streaming job by all its epochs.
    pub fn rows_out(&self) -> u64 {
        match self.kind {
            JobKind::Batch => self.queries.iter().map(|query| query.rows_out).sum(),
            JobKind::Streaming => self.totals.output_rows,
        }
    }

    /// The totals with one more epoch.
    pub(crate) fn totals_with(&self, epoch: &EpochProgress) -> EpochTotals {
        let mut totals = self.totals;
        totals.add(epoch);
        totals
    }

    /// What the checkpoint says of the epochs before a restart: it knows the last ones better than this record.
    pub(crate) fn restore_epochs(&mut self, last: EpochProgress, totals: EpochTotals) {
        if totals.epochs >= self.totals.epochs {
            self.record_epoch(last);
            self.totals = totals;
        }
    }

    /// The job as clients see it; for a list not `whole`, without its SQL and its queries.
    pub fn to_proto(&self, whole: bool) -> v1::Job {
        let is_streaming = self.kind == JobKind::Streaming;
        let last_epoch = self.epochs.back();
        v1::Job {
            id: self.id.clone(),
            name: self.name.clone(),
            sql: match whole {
                true => redact_sql(&self.sql),
                false => String::new(),
            },
            state: self.state.to_proto() as i32,
            message: self.message.clone(),
            submitted_ms: self.submitted_ms,
            started_ms: self.started_ms,
            ended_ms: self.ended_ms,
            generation: self.generation,
            queries: if whole {
                self.queries.iter().map(QueryRecord::to_proto).collect()
            } else {
                Vec::new()
            },
            kind: match self.kind {
                JobKind::Batch => v1::JobKind::Batch,
                JobKind::Streaming => v1::JobKind::Streaming,
            } as i32,
            last_epoch: last_epoch.map(|epoch| epoch.to_proto(whole)),
            totals: is_streaming.then(|| self.totals.to_proto()),
            errors: if whole {
                self.errors.iter().map(JobError::to_proto).collect()
            } else {
                Vec::new()
            },
            queue_position: self.queue_position,
        }
    }
}

impl QueryRecord {
    fn to_proto(&self) -> v1::QueryStatus {
        v1::QueryStatus {
            index: self.index,
            sink: self.sink.clone(),
            execution: self.execution.clone(),
            stages: self.stages.iter().map(StageRecord::to_proto).collect(),
            rows_out: self.rows_out,
            done: self.done,
            retries: self.retries,
            plan: (!self.plan.nodes.is_empty()).then(|| self.plan.to_proto()),
        }
    }
}

impl StageRecord {
    fn to_proto(&self) -> v1::StageStatus {
        v1::StageStatus {
            id: self.id,
            tasks: self.tasks,
            tasks_done: self.tasks_done,
            tasks_running: self.tasks_running,
            tasks_failed: self.tasks_failed,
            rows_in: self.rows_in,
            bytes_in: self.bytes_in,
            records_skipped: self.records_skipped,
            records_dead_lettered: self.records_dead_lettered,
            attempts: self.attempts.iter().map(AttemptRecord::to_proto).collect(),
        }
    }
}

impl AttemptRecord {
    fn to_proto(&self) -> v1::TaskAttempt {
        v1::TaskAttempt {
            task: self.task,
            attempt: self.attempt,
            worker: self.worker.clone(),
            outcome: self.outcome.as_str().to_owned(),
            reason: self.reason.clone(),
            started_ms: self.started_ms,
            ended_ms: self.ended_ms,
            rows_in: self.rows_in,
            split: self.split.clone(),
        }
    }
}
