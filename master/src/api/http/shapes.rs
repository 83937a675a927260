//! What the status API says of the cluster, its workers and events. The OpenAPI document is made of these types.

use crate::events::{Event, EventKind, Severity};
use crate::registry::{RunningTask, WorkerInfo, WorkerState};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// A time that may not have been reached: RFC 3339 in UTC, or null for 0.
pub(super) fn reached(ms: i64) -> Option<String> {
    (ms > 0).then(|| instant(ms))
}

/// A time of so many ms since 1970-01-01 UTC.
pub(super) fn instant(ms: i64) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis(ms).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Every error of the API.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorAnswer {
    /// What is wrong, and what to do.
    pub error: String,
}

/// The cluster now.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClusterStatus {
    /// The master's version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// When this master began.
    #[schema(format = DateTime)]
    pub started_at: String,
    pub uptime_ms: u64,
    /// Where the master keeps jobs and checkpoints, without passwords.
    pub state_dir: String,
    /// Of all workers that are not lost.
    pub slots: usize,
    pub slots_used: usize,
    /// Tasks that wait for a slot.
    pub tasks_waiting: usize,
    /// What the master's own operators may take, and what they have reserved.
    pub memory_bytes: u64,
    pub memory_reserved_bytes: u64,
    pub jobs: JobCounts,
    /// By id; lost ones come last and stay for ten minutes.
    pub workers: Vec<Worker>,
    /// What is wrong, in words; the worst first.
    pub problems: Vec<Problem>,
}

/// How many jobs the master remembers in each state.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct JobCounts {
    pub queued: usize,
    pub running: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub stopped: usize,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    pub severity: Severity,
    /// Since when it is known.
    #[schema(format = DateTime)]
    pub since_at: String,
    /// The id of the job that it is about.
    #[schema(required)]
    pub job: Option<String>,
    /// The id of the worker that it is about.
    #[schema(required)]
    pub worker: Option<String>,
    #[schema(
        example = "worker w2 was lost 12 s ago (no heartbeat for 5 s); its 3 tasks start again on other workers"
    )]
    pub message: String,
}

/// The workers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WorkersPage {
    /// By id; lost ones come last and stay for ten minutes.
    pub workers: Vec<Worker>,
}

/// One worker.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Worker {
    pub id: String,
    /// Where the master reaches it.
    #[schema(example = "http://10.0.0.7:7078")]
    pub address: String,
    pub version: String,
    pub state: WorkerState,
    pub slots: usize,
    pub slots_used: usize,
    /// What its tasks may take together, and what they have reserved.
    pub memory_bytes: u64,
    pub memory_reserved_bytes: u64,
    #[schema(format = DateTime)]
    pub registered_at: String,
    #[schema(format = DateTime)]
    pub last_heartbeat_at: String,
    /// What it runs, the longest first. Not those of an exchange, which is one plan over all workers.
    pub tasks: Vec<Task>,
}

/// A task that runs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Task {
    /// The job's id.
    pub job: String,
    pub job_name: String,
    /// Position in the job, from 0.
    pub query: u32,
    pub stage: u32,
    pub task: u32,
    /// From 1.
    pub attempt: u32,
    /// What it reads.
    #[schema(example = "toots toots[3] 0..1500")]
    pub split: String,
    #[schema(format = DateTime)]
    pub started_at: String,
    pub running_ms: u64,
}

/// What happened lately.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventsPage {
    /// The newest last.
    pub events: Vec<EventEntry>,
}

/// One event.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventEntry {
    /// Counts from 1 since the master's start.
    pub id: u64,
    #[schema(format = DateTime)]
    pub at: String,
    pub kind: EventKind,
    pub severity: Severity,
    /// The id of the job that it is about.
    #[schema(required)]
    pub job: Option<String>,
    /// The id of the worker that it is about.
    #[schema(required)]
    pub worker: Option<String>,
    pub message: String,
}

impl Worker {
    pub(super) fn new(info: WorkerInfo, now_ms: i64) -> Self {
        let mut tasks = info.tasks;
        tasks.sort_by_key(|task| task.started_ms);
        Self {
            id: info.id,
            address: info.address,
            version: info.version,
            state: info.state,
            slots: info.slots,
            slots_used: info.slots_used,
            memory_bytes: info.memory_bytes,
            memory_reserved_bytes: info.memory_reserved_bytes,
            registered_at: instant(info.registered_ms),
            last_heartbeat_at: instant(info.last_heartbeat_ms),
            tasks: tasks
                .into_iter()
                .map(|task| Task::new(task, now_ms))
                .collect(),
        }
    }
}

impl Task {
    fn new(task: RunningTask, now_ms: i64) -> Self {
        Self {
            job: task.job,
            job_name: task.job_name,
            query: task.query,
            stage: task.stage,
            task: task.task,
            attempt: task.attempt,
            split: task.split,
            started_at: instant(task.started_ms),
            running_ms: u64::try_from(now_ms - task.started_ms).unwrap_or_default(),
        }
    }
}

impl From<Event> for EventEntry {
    fn from(event: Event) -> Self {
        Self {
            id: event.id,
            at: instant(event.at_ms),
            kind: event.kind,
            severity: event.severity,
            job: event.job,
            worker: event.worker,
            message: event.message,
        }
    }
}
