//! The cluster, its workers and its events.

use crate::Shared;
use crate::api::http::shapes::{
    ClusterStatus, EventEntry, EventsPage, JobCounts, Worker, WorkersPage, instant,
};
use crate::api::http::{Named, NoParams, Params, answer, limit, not_found, problems};
use crate::jobs::model::{JobState, now_ms};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use essaim_common::secret::redact;
use serde::Deserialize;
use std::sync::Arc;

/// Events of a page.
const MAX_EVENTS: usize = 1_000;

/// The cluster: version, slots, memory, jobs by state, workers, and what is wrong.
pub(super) async fn cluster(
    State(shared): State<Arc<Shared>>,
    Params(NoParams {}): Params<NoParams>,
) -> Json<ClusterStatus> {
    Json(status(&shared))
}

/// What `/api/v1/cluster` answers.
pub(super) fn status(shared: &Shared) -> ClusterStatus {
    let now = now_ms();
    let lost = shared.registry.lost_workers();
    let problems = problems::problems(shared, &lost, now);
    let mut workers = shared.registry.workers();
    let counts = shared.jobs.counts();
    let count = |state| counts.get(&state).copied().unwrap_or_default();
    let slots = workers.iter().map(|worker| worker.slots).sum();
    let slots_used = workers.iter().map(|worker| worker.slots_used).sum();
    workers.extend(lost.into_iter().map(|lost| lost.info));
    ClusterStatus {
        version: essaim_proto::VERSION.to_owned(),
        started_at: instant(shared.started_ms),
        uptime_ms: u64::try_from(now - shared.started_ms).unwrap_or_default(),
        state_dir: redact(shared.jobs.state_dir().url()),
        slots,
        slots_used,
        tasks_waiting: shared.registry.waiting(),
        memory_bytes: shared.memory_bytes,
        memory_reserved_bytes: shared.runtime.memory_pool.reserved() as u64,
        jobs: JobCounts {
            queued: count(JobState::Queued),
            running: count(JobState::Running),
            succeeded: count(JobState::Succeeded),
            failed: count(JobState::Failed),
            cancelled: count(JobState::Cancelled),
            stopped: count(JobState::Stopped),
        },
        workers: workers
            .into_iter()
            .map(|worker| Worker::new(worker, now))
            .collect(),
        problems,
    }
}

fn all_workers(shared: &Shared) -> Vec<Worker> {
    let now = now_ms();
    let lost = shared.registry.lost_workers();
    let workers = shared.registry.workers().into_iter();
    workers
        .chain(lost.into_iter().map(|lost| lost.info))
        .map(|worker| Worker::new(worker, now))
        .collect()
}

/// The workers with the tasks that they run.
pub(super) async fn workers(
    State(shared): State<Arc<Shared>>,
    Params(NoParams {}): Params<NoParams>,
) -> Json<WorkersPage> {
    let workers = all_workers(&shared);
    Json(WorkersPage { workers })
}

/// One worker.
pub(super) async fn worker(
    State(shared): State<Arc<Shared>>,
    Named(id): Named,
    Params(NoParams {}): Params<NoParams>,
) -> Response {
    let mut workers = all_workers(&shared).into_iter();
    match workers.find(|worker| worker.id == id) {
        Some(worker) => Json(worker).into_response(),
        None => {
            let message =
                format!("there is no worker {id}, nor was one lost in the last ten minutes");
            answer(StatusCode::NOT_FOUND, message)
        }
    }
}

/// Which events are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    /// At most so many, the newest of them; 100, at most 1,000.
    limit: Option<usize>,
    /// Only events with a higher id.
    after: Option<u64>,
    /// Only events of this job: its id, the beginning of it, or its name.
    job: Option<String>,
    /// Only events of this worker, by its id.
    worker: Option<String>,
}

/// What happened lately: the last 1,000 events of this master.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Params(params): Params<EventParams>,
) -> Response {
    let job = match params.job.map(|job| shared.jobs.find(&job)) {
        Some(Ok(job)) => Some(job.id()),
        Some(Err(error)) => return not_found(&error),
        None => None,
    };
    let limit = limit(params.limit, MAX_EVENTS);
    let after = params.after.unwrap_or_default();
    let found = shared.events.after(after, limit, |event| {
        (job.is_none() || event.job == job)
            && (params.worker.is_none() || event.worker == params.worker)
    });
    let events = found.into_iter().map(EventEntry::from).collect();
    Json(EventsPage { events }).into_response()
}
