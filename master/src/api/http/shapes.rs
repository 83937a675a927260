//! What the status API says of the cluster, its workers and events. The OpenAPI document is made of these types.

use crate::api::http::shape::{Time, shapes, words};
use crate::events::{Event, EventKind, Severity};
use crate::registry::{RunningTask, WorkerInfo, WorkerState};
use chrono::{DateTime, SecondsFormat, Utc};

/// A time that may not have been reached: RFC 3339 in UTC, or null for 0.
pub(super) fn reached(ms: i64) -> Option<Time> {
    (ms > 0).then(|| instant(ms))
}

/// A time of so many ms since 1970-01-01 UTC.
pub(super) fn instant(ms: i64) -> Time {
    let time = DateTime::<Utc>::from_timestamp_millis(ms).unwrap_or_default();
    Time(time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

shapes! {
    /// Every error of the API.
    ErrorAnswer {
        /// What is wrong, and what to do.
        error: String,
    }

    /// The cluster now.
    ClusterStatus {
        /// The master's version.
        version: String,
        /// When this master began.
        started_at: Time,
        uptime_ms: u64,
        /// Where the master keeps jobs and checkpoints, without passwords.
        state_dir: String,
        /// Of all workers that are not lost.
        slots: usize,
        slots_used: usize,
        /// Tasks that wait for a slot.
        tasks_waiting: usize,
        /// What the master's own operators may take, and what they have reserved.
        memory_bytes: u64,
        memory_reserved_bytes: u64,
        jobs: JobCounts,
        /// By id; lost ones come last and stay for ten minutes.
        workers: Vec<Worker>,
        /// What is wrong, in words; the worst first.
        problems: Vec<Problem>,
    }

    /// How many jobs the master remembers in each state.
    JobCounts {
        queued: usize,
        running: usize,
        succeeded: usize,
        failed: usize,
        cancelled: usize,
        stopped: usize,
    }

    /// Something that is wrong.
    Problem {
        severity: Severity,
        /// Since when it is known.
        since_at: Time,
        /// The id of the job that it is about.
        job: Option<String>,
        /// The id of the worker that it is about.
        worker: Option<String>,
        message: String,
    }

    /// The workers.
    WorkersPage {
        /// By id; lost ones come last and stay for ten minutes.
        workers: Vec<Worker>,
    }

    /// One worker.
    Worker {
        id: String,
        /// Where the master reaches it.
        address: String,
        version: String,
        state: WorkerState,
        slots: usize,
        slots_used: usize,
        /// What its tasks may take together, and what they have reserved.
        memory_bytes: u64,
        memory_reserved_bytes: u64,
        registered_at: Time,
        last_heartbeat_at: Time,
        /// What it runs, the longest first. Not those of an exchange, which is one plan over all workers.
        tasks: Vec<Task>,
    }

    /// A task that runs.
    Task {
        /// The job's id.
        job: String,
        job_name: String,
        /// Position in the job, from 0.
        query: u32,
        stage: u32,
        task: u32,
        /// From 1.
        attempt: u32,
        /// What it reads.
        split: String,
        started_at: Time,
        running_ms: u64,
    }

    /// What happened lately.
    EventsPage {
        /// The newest last.
        events: Vec<EventEntry>,
    }

    /// One event.
    EventEntry {
        /// Counts from 1 since the master's start.
        id: u64,
        at: Time,
        kind: EventKind,
        severity: Severity,
        /// The id of the job that it is about.
        job: Option<String>,
        /// The id of the worker that it is about.
        worker: Option<String>,
        message: String,
    }
}

words! {
    Severity: Info, Warning, Error;
    WorkerState: Active, Draining, Lost;
    EventKind: MasterStarted, StateDirLost, WorkerRegistered, WorkerDraining, WorkerLeft, WorkerLost, JobSubmitted,
        JobStarted, JobStopping, JobCancelling, JobEnded, TaskFailed, ExchangeRetried, EpochFailed, EpochWaits, SourceSilent;
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
