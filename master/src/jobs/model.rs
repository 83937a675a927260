//! What the master remembers of a job, and what clients see of it.

use essaim_common::secret::redact;
use essaim_common::stream::Offsets;
use essaim_proto::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Attempts that one stage remembers; later ones are only counted.
pub(crate) const MAX_ATTEMPTS_KEPT: usize = 10_000;

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis() as i64)
}

/// The life of a job. It only moves downwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        self >= Self::Succeeded
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
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StageRecord {
    pub id: u32,
    pub tasks: u32,
    pub tasks_done: u32,
    pub tasks_running: u32,
    pub rows_in: u64,
    pub bytes_in: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    pub attempts: Vec<AttemptRecord>,
}

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

/// One epoch of a streaming job, with the meaning of Spark's `StreamingQueryProgress`. Times are ms since 1970-01-01
/// UTC, durations ms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochProgress {
    pub epoch: u64,
    pub started_ms: i64,
    pub duration_ms: f64,
    /// Rows read, of all sources.
    pub input_rows: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    pub sources: Vec<SourceProgress>,
    pub queries: Vec<QueryProgress>,
    /// What each step took, ms: `latest_offsets`, `write_offsets`, `tasks`, `process` (merge, emit and sink commit),
    /// `checkpoint` (the time that the epoch waited for the checkpoint of the one before).
    pub durations_ms: BTreeMap<String, f64>,
    /// How often the epoch was started again after an error.
    pub retries: u32,
}

/// What an epoch read of one UNBOUNDED table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceProgress {
    pub table: String,
    pub start: Offsets,
    pub end: Offsets,
    pub latest: Offsets,
    /// Offsets between `end` and `latest`, of all partitions.
    pub lag: u64,
    pub input_rows: u64,
    /// Rows that arrived, by the time since the epoch before began.
    pub input_rows_per_second: f64,
    /// Rows read, by the time that the epoch took.
    pub processed_rows_per_second: f64,
    /// The source's watermark; `None` before the first row with an event time.
    pub watermark_ms: Option<i64>,
    /// Offsets passed over because the source had deleted them.
    pub lost: u64,
}

/// What an epoch did for one INSERT.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueryProgress {
    /// Position in the job, from 0.
    pub index: u32,
    pub sink: String,
    /// 'append', 'update' or 'complete'.
    pub output_mode: String,
    pub output_rows: u64,
    pub late_rows: u64,
    pub watermark_ms: Option<i64>,
    /// Groups, keys and buffered rows kept, and their bytes.
    pub state_rows: u64,
    pub state_bytes: u64,
}

impl JobRecord {
    /// A job that has just arrived.
    pub fn new(id: String, name: String, sql: String) -> Self {
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
        }
    }

    /// The job as clients see it; without its queries for a list.
    pub fn to_proto(&self, with_queries: bool) -> v1::Job {
        v1::Job {
            id: self.id.clone(),
            name: self.name.clone(),
            sql: redact(&self.sql),
            state: match self.state {
                JobState::Queued => v1::JobState::Queued,
                JobState::Running => v1::JobState::Running,
                JobState::Succeeded => v1::JobState::Succeeded,
                JobState::Failed => v1::JobState::Failed,
                JobState::Cancelled => v1::JobState::Cancelled,
            } as i32,
            message: self.message.clone(),
            submitted_ms: self.submitted_ms,
            started_ms: self.started_ms,
            ended_ms: self.ended_ms,
            generation: self.generation,
            queries: if with_queries {
                self.queries.iter().map(QueryRecord::to_proto).collect()
            } else {
                Vec::new()
            },
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
