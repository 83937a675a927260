//! Server-sent events: what the other endpoints answer, again whenever it has changed.

use crate::Shared;
use crate::api::http::jobs::{epochs_of, overview, show};
use crate::api::http::shapes::EventEntry;
use crate::api::http::{Params, answer, cluster, not_found};
use crate::jobs::model::MAX_EPOCHS_KEPT;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// How often each thing is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// After so long without an event a comment is sent, so that nobody in between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Events of the log that are sent at a time.
const MAX_EVENTS: usize = 100;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Updates {
    connections: Arc<Semaphore>,
    cluster: Written,
    jobs: Written,
}

impl Default for Updates {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            cluster: Written::default(),
            jobs: Written::default(),
        }
    }
}

/// An answer that is written once for all connections that want it in the same moment.
#[derive(Debug, Default)]
struct Written(Mutex<Option<(Instant, Answer)>>);

/// An answer, and what tells whether it is another one than before.
#[derive(Debug, Clone)]
struct Answer {
    json: Arc<str>,
    mark: u64,
}

impl Answer {
    fn of(json: String, marked: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        marked.hash(&mut hasher);
        Self {
            json: json.into(),
            mark: hasher.finish(),
        }
    }
}

impl Written {
    fn get(&self, write: impl FnOnce() -> Answer) -> Answer {
        let mut written = self.0.lock();
        if let Some((at, answer)) = &*written
            && at.elapsed() < PERIOD / 2
        {
            return answer.clone();
        }
        let answer = write();
        *written = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// What is wanted besides the cluster and the jobs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateParams {
    /// Also this job and its epochs: its id, the beginning of it, or its name.
    job: Option<String>,
}

/// A stream of changes (`text/event-stream`): `cluster` and `jobs` (the first 100) as their endpoints answer, `event`
/// for each new event, and with `job` that job as `job` and its new epochs as `epochs`. All of it at first, then each
/// at most once a second and only when it has changed. A comment every 15 s without changes.
pub(super) async fn updates(
    State(shared): State<Arc<Shared>>,
    Params(params): Params<UpdateParams>,
) -> Response {
    let job = match params.job.map(|job| shared.jobs.find(&job)) {
        Some(Ok(job)) => Some(job.id()),
        Some(Err(error)) => return not_found(&error),
        None => None,
    };
    let Ok(permit) = Arc::clone(&shared.updates.connections).try_acquire_owned() else {
        let message = format!(
            "{MAX_CONNECTIONS} connections for updates are open, no more are taken: close some, or ask now and then"
        );
        return answer(StatusCode::SERVICE_UNAVAILABLE, message);
    };
    let follower = Follower {
        last_event: shared.events.last(),
        shared,
        job,
        ready: VecDeque::new(),
        cluster: None,
        jobs: None,
        job_version: None,
        last_epoch: None,
        is_new: true,
        _permit: permit,
    };
    let keep_alive = KeepAlive::new().interval(HEARTBEAT);
    let changes = Sse::new(follower.follow()).keep_alive(keep_alive);
    // A proxy must not hold changes back until it has a buffer full of them.
    ([("x-accel-buffering", "no")], changes).into_response()
}

/// One connection.
struct Follower {
    shared: Arc<Shared>,
    /// The id of the job that it follows.
    job: Option<String>,
    /// What is to be sent next.
    ready: VecDeque<Event>,
    cluster: Option<u64>,
    jobs: Option<u64>,
    /// The generation, the submission and the version of the job that was sent last.
    job_version: Option<(u64, i64, u64)>,
    last_epoch: Option<u64>,
    last_event: u64,
    is_new: bool,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// Changes until the master stops.
    fn follow(self) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
        futures::stream::unfold(self, |mut follower| async move {
            while follower.ready.is_empty() {
                if !std::mem::take(&mut follower.is_new) {
                    tokio::select! {
                        () = tokio::time::sleep(PERIOD) => {}
                        () = follower.shared.stop.cancelled() => return None,
                    }
                }
                follower.look().await;
            }
            let event = follower.ready.pop_front()?;
            Some((Ok(event), follower))
        })
    }

    /// Makes ready what has changed.
    async fn look(&mut self) {
        let shared = Arc::clone(&self.shared);
        let cluster = shared.updates.cluster.get(|| {
            let mut status = cluster::status(&shared);
            let json = write(&status);
            // The time that has passed is no change.
            status.uptime_ms = 0;
            let now = status.workers.iter_mut().flat_map(|w| &mut w.tasks);
            now.for_each(|task| task.running_ms = 0);
            Answer::of(json, &write(&status))
        });
        if self.cluster.replace(cluster.mark) != Some(cluster.mark) {
            self.push("cluster", &cluster.json);
        }
        let jobs = shared.updates.jobs.get(|| {
            let json = write(&overview(&shared));
            let marked = json.clone();
            Answer::of(json, &marked)
        });
        if self.jobs.replace(jobs.mark) != Some(jobs.mark) {
            self.push("jobs", &jobs.json);
        }
        if let Some(Ok(job)) = self.job.as_ref().map(|id| shared.jobs.find(id)) {
            let (generation, submitted) = job.read(|r| (r.generation, r.submitted_ms));
            let version = (generation, submitted, job.version());
            // One whose details are out of reach is tried again.
            if self.job_version != Some(version)
                && let Ok(shown) = show(&shared, &job).await
            {
                self.job_version = Some(version);
                self.push("job", &write(&shown));
            }
            let epochs = epochs_of(&job, self.last_epoch, MAX_EPOCHS_KEPT);
            if let Some(last) = epochs.epochs.last() {
                self.last_epoch = Some(last.epoch);
                self.push("epochs", &write(&epochs));
            }
        }
        let mut events = shared.events.after(self.last_event, MAX_EVENTS, |_| true);
        for event in events.drain(..) {
            self.last_event = event.id;
            self.push("event", &write(&EventEntry::from(event)));
        }
    }

    fn push(&mut self, name: &str, json: &str) {
        self.ready
            .push_back(Event::default().event(name).data(json));
    }
}

/// The JSON of an answer.
fn write(answer: &impl Serialize) -> String {
    // Strings, finite numbers and lists of them under string keys: it cannot fail.
    serde_json::to_string(answer).unwrap_or_default()
}
