//! Who is in the cluster: workers with their leases and slots, and who waits for a slot.

use crate::events::{EventKind, Events, Severity};
use crate::jobs::model::now_ms;
use essaim_common::{Error, Result};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::tasks_client::TasksClient;
use essaim_proto::v1::{HeartbeatRequest, RegisterRequest};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use serde::Serialize;

/// How often a worker shall be heard.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Without a heartbeat for this long a worker is given up.
pub const LEASE: Duration = Duration::from_secs(5);

/// How long a worker may take to accept a connection when its death is suspected.
const PROBE: Duration = Duration::from_secs(1);

/// The client of a worker's tasks; cheap to clone, one connection a worker.
pub type TaskClient = TasksClient<Channel>;

/// How long a worker that was given up is remembered.
const LOST_KEPT: Duration = Duration::from_secs(600);
/// How many of them are.
const MAX_LOST_KEPT: usize = 100;

/// Whether a worker takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Active,
    /// It ends its tasks and takes no more.
    Draining,
    /// It was given up.
    Lost,
}

/// A task that runs on a worker.
#[derive(Debug, Clone)]
pub struct RunningTask {
    /// The job's id and name.
    pub job: String,
    pub job_name: String,
    /// Position in the job.
    pub query: u32,
    pub stage: u32,
    pub task: u32,
    /// From 1.
    pub attempt: u32,
    /// What it reads, e.g. "toots[3] 0..1500".
    pub split: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub started_ms: i64,
}

/// A worker that was given up.
#[derive(Debug, Clone)]
pub struct LostWorker {
    /// As it was.
    pub info: WorkerInfo,
    /// Milliseconds since 1970-01-01 UTC.
    pub lost_ms: i64,
    /// Why it was given up.
    pub why: String,
    /// Tasks that it had.
    pub tasks: usize,
}

/// A worker as others may see it.
#[derive(Debug, Clone)]
pub struct WorkerInfo {
    pub id: String,
    pub address: String,
    pub version: String,
    pub slots: usize,
    pub slots_used: usize,
    pub memory_bytes: u64,
    pub memory_reserved_bytes: u64,
    pub state: WorkerState,
    /// Milliseconds since 1970-01-01 UTC.
    pub registered_ms: i64,
    pub last_heartbeat_ms: i64,
    pub tasks: Vec<RunningTask>,
}

#[derive(Debug)]
struct Member {
    address: String,
    version: String,
    slots: usize,
    used: usize,
    memory_bytes: u64,
    memory_reserved_bytes: u64,
    draining: bool,
    registered_ms: i64,
    last_heartbeat: Instant,
    last_heartbeat_ms: i64,
    /// By the number of their slot.
    tasks: BTreeMap<u64, RunningTask>,
    client: TaskClient,
    /// Cancelled when the worker is given up: whoever waits for its answer need not wait longer.
    lost: CancellationToken,
}

/// Somebody who waits for a slot.
#[derive(Debug)]
struct Waiter {
    /// Workers that should not get this task, unless there is no other.
    avoid: Vec<String>,
    grant: oneshot::Sender<Slot>,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<String, Member>,
    /// Waiters of each job, first come first served.
    waiting: BTreeMap<String, VecDeque<Waiter>>,
    /// Slots that each job holds.
    held: HashMap<String, usize>,
    /// Workers that were given up of late, the last one last.
    lost: VecDeque<LostWorker>,
    /// How many slots have been granted: the number of the last one.
    granted: u64,
}

impl Member {
    fn info(&self, id: &str) -> WorkerInfo {
        WorkerInfo {
            id: id.to_owned(),
            address: self.address.clone(),
            version: self.version.clone(),
            slots: self.slots,
            slots_used: self.used,
            memory_bytes: self.memory_bytes,
            memory_reserved_bytes: self.memory_reserved_bytes,
            state: if self.draining {
                WorkerState::Draining
            } else {
                WorkerState::Active
            },
            registered_ms: self.registered_ms,
            last_heartbeat_ms: self.last_heartbeat_ms,
            tasks: self.tasks.values().cloned().collect(),
        }
    }
}

/// The cluster's members.
#[derive(Debug, Default)]
pub struct Registry {
    state: Mutex<State>,
    /// A worker came, left or drains. Not told of slots that come and go.
    members_changed: Notify,
    events: Arc<Events>,
}

impl Registry {
    /// Nobody yet; who comes and goes is written to `events`.
    pub fn new(events: Arc<Events>) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }

    /// Takes a worker in, or renews one that lost its master for a moment.
    ///
    /// # Errors
    /// Another version of Essaim, or an address that is none.
    pub fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<()> {
        if request.version != essaim_proto::VERSION {
            return Err(Error::invalid(format!(
                "this master is Essaim {} and worker {} is Essaim {}: run the same version on both",
                essaim_proto::VERSION,
                request.worker_id,
                request.version
            )));
        }
        if request.slots == 0 {
            return Err(Error::invalid(format!(
                "worker {} offers no slots: start it with --slots 1 or more",
                request.worker_id
            )));
        }
        let endpoint = Endpoint::from_shared(request.address.clone())
            .map_err(|e| {
                Error::invalid(format!(
                    "worker {} gives {} as its address: {e}; start it with --advertise http://HOST:PORT",
                    request.worker_id, request.address
                ))
            })?
            .connect_timeout(Duration::from_secs(3))
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .tcp_nodelay(true);
        let mut state = self.state.lock();
        if let Some(known) = state.members.get_mut(&request.worker_id) {
            known.last_heartbeat = Instant::now();
            known.last_heartbeat_ms = now_ms();
            return Ok(());
        }
        let message = format!(
            "worker {} registered from {} with {} slots",
            request.worker_id, request.address, request.slots
        );
        self.event(
            EventKind::WorkerRegistered,
            Severity::Info,
            &request.worker_id,
            message,
        );
        // One that was given up while it was out of reach is back.
        state.lost.retain(|lost| lost.info.id != request.worker_id);
        tracing::info!(worker = %request.worker_id, address = %request.address, slots = request.slots, "joined");
        let client = TasksClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        state.members.insert(
            request.worker_id,
            Member {
                address: request.address,
                version: request.version,
                slots: request.slots as usize,
                used: 0,
                memory_bytes: request.memory_bytes,
                memory_reserved_bytes: 0,
                draining: false,
                registered_ms: now_ms(),
                last_heartbeat: Instant::now(),
                last_heartbeat_ms: now_ms(),
                tasks: BTreeMap::new(),
                client,
                lost: CancellationToken::new(),
            },
        );
        let unwanted = self.dispatch(&mut state);
        drop(state);
        drop(unwanted);
        self.members_changed.notify_waiters();
        Ok(())
    }

    /// Renews a lease; false if there is none.
    pub fn heartbeat(&self, request: &HeartbeatRequest) -> bool {
        let mut state = self.state.lock();
        let Some(member) = state.members.get_mut(&request.worker_id) else {
            return false;
        };
        member.last_heartbeat = Instant::now();
        member.last_heartbeat_ms = now_ms();
        member.memory_reserved_bytes = request.memory_reserved_bytes;
        if request.draining && !member.draining {
            tracing::info!(worker = %request.worker_id, "draining");
            member.draining = true;
            let message = format!("worker {} takes no more tasks", request.worker_id);
            self.event(
                EventKind::WorkerDraining,
                Severity::Info,
                &request.worker_id,
                message,
            );
            self.members_changed.notify_waiters();
        }
        true
    }

    /// A worker has ended by itself; tasks that it leaves go to others.
    pub fn leave(&self, worker: &str) {
        let mut state = self.state.lock();
        if let Some(member) = state.members.remove(worker) {
            tracing::info!(%worker, "left");
            let message = format!("worker {worker} left by itself");
            self.event(EventKind::WorkerLeft, Severity::Info, worker, message);
            member.lost.cancel();
            self.members_changed.notify_waiters();
        }
    }

    /// Gives a worker up; its tasks fail over at once.
    pub fn lose(&self, worker: &str, why: &str) {
        let mut state = self.state.lock();
        if let Some(member) = state.members.remove(worker) {
            tracing::warn!(%worker, %why, "lost");
            let tasks = member.used;
            let message = format!("worker {worker} was lost with {tasks} tasks: {why}");
            self.event(EventKind::WorkerLost, Severity::Warning, worker, message);
            if state.lost.len() >= MAX_LOST_KEPT {
                state.lost.pop_front();
            }
            state.lost.push_back(LostWorker {
                info: WorkerInfo {
                    state: WorkerState::Lost,
                    slots_used: 0,
                    memory_reserved_bytes: 0,
                    tasks: Vec::new(),
                    ..member.info(worker)
                },
                lost_ms: now_ms(),
                why: why.to_owned(),
                tasks,
            });
            member.lost.cancel();
            self.members_changed.notify_waiters();
        }
    }

    /// Workers that were given up in the last ten minutes, the last one last.
    pub fn lost_workers(&self) -> Vec<LostWorker> {
        let mut state = self.state.lock();
        let since = now_ms() - LOST_KEPT.as_millis() as i64;
        state.lost.retain(|lost| lost.lost_ms >= since);
        state.lost.iter().cloned().collect()
    }

    /// Tasks that wait for a slot.
    pub fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.waiting.values().map(VecDeque::len).sum()
    }

    fn event(&self, kind: EventKind, severity: Severity, worker: &str, message: String) {
        self.events
            .write(kind, severity, None, Some(worker), message);
    }

    /// Gives up workers whose lease is over. Runs until dropped.
    pub async fn watch_leases(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(HEARTBEAT / 4);
        loop {
            ticks.tick().await;
            let dead: Vec<String> = {
                let state = self.state.lock();
                state
                    .members
                    .iter()
                    .filter(|(_, member)| member.last_heartbeat.elapsed() > LEASE)
                    .map(|(id, _)| id.clone())
                    .collect()
            };
            for worker in dead {
                self.lose(&worker, "no heartbeat for 5 s");
            }
        }
    }

    /// All workers, by id.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.state
            .lock()
            .members
            .iter()
            .map(|(id, member)| member.info(id))
            .collect()
    }

    /// A client of a worker that is still in the cluster.
    pub fn client(&self, worker: &str) -> Option<TaskClient> {
        let state = self.state.lock();
        state
            .members
            .get(worker)
            .map(|member| member.client.clone())
    }

    /// Whether a worker still takes connections; one that does not is given up at once, before its lease ends.
    pub async fn probe(&self, worker: &str) -> bool {
        let Some(address) = self
            .state
            .lock()
            .members
            .get(worker)
            .map(|member| member.address.clone())
        else {
            return false;
        };
        // A dying process may still accept connections: only an answer counts.
        let reached = async {
            let channel = Endpoint::from_shared(address).ok()?.connect().await.ok()?;
            HealthClient::new(channel)
                .check(HealthCheckRequest::default())
                .await
                .ok()
        };
        let reached = tokio::time::timeout(PROBE, reached).await;
        if matches!(reached, Ok(Some(_))) {
            return true;
        }
        self.lose(worker, "its connection broke and it takes no other");
        false
    }

    /// Probes every worker: after a failure that does not tell which one it was.
    pub async fn probe_all(&self) {
        let workers: Vec<String> = self.state.lock().members.keys().cloned().collect();
        futures::future::join_all(workers.iter().map(|worker| self.probe(worker))).await;
    }

    /// Slots of all workers that take tasks.
    pub fn slots(&self) -> usize {
        let state = self.state.lock();
        state
            .members
            .values()
            .filter(|member| !member.draining)
            .map(|member| member.slots)
            .sum()
    }

    /// Addresses of all workers that take tasks.
    pub fn addresses(&self) -> Vec<String> {
        let state = self.state.lock();
        state
            .members
            .values()
            .filter(|member| !member.draining)
            .map(|member| member.address.clone())
            .collect()
    }

    /// Waits until there is a worker.
    ///
    /// # Errors
    /// None came within `timeout`.
    pub async fn wait_for_worker(&self, timeout: Duration) -> Result<()> {
        let wait = async {
            loop {
                let changed = self.members_changed.notified();
                if self.slots() > 0 {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, wait).await.map_err(|_| {
            Error::exhausted(format!(
                "no worker has registered for {} s: start one with `essaim worker --master http://HOST:7077`, or wait longer with SET essaim.worker_timeout_s",
                timeout.as_secs_f32()
            ))
        })
    }

    /// Returns once there has been no worker for `timeout`, while somebody waits for a slot.
    pub async fn deserted(&self, timeout: Duration) -> Error {
        loop {
            if let Err(error) = self.wait_for_worker(timeout).await {
                return error;
            }
            let changed = self.members_changed.notified();
            if self.slots() > 0 {
                changed.await;
            }
        }
    }

    /// Waits for a slot on some worker. Jobs that hold fewer slots go first; within a job it is first come first served.
    ///
    /// # Errors
    /// The registry is gone.
    pub async fn slot(self: &Arc<Self>, job: &str, avoid: Vec<String>) -> Result<Slot> {
        let granted = {
            let (grant, granted) = oneshot::channel();
            let mut state = self.state.lock();
            state
                .waiting
                .entry(job.to_owned())
                .or_default()
                .push_back(Waiter { avoid, grant });
            let unwanted = self.dispatch(&mut state);
            drop(state);
            drop(unwanted);
            granted
        };
        granted
            .await
            .map_err(|_| Error::internal("the registry has ended"))
    }

    /// Hands free slots to those who wait. Returns those whose waiter has gone in this very moment: giving one back
    /// takes the lock, so the caller drops them after it.
    fn dispatch(self: &Arc<Self>, state: &mut State) -> Vec<Slot> {
        let mut unwanted = Vec::new();
        while let Some((job, position, worker)) = next_grant(state) {
            let Some(waiters) = state.waiting.get_mut(&job) else {
                break;
            };
            let waiter = waiters.remove(position);
            if waiters.is_empty() {
                state.waiting.remove(&job);
            }
            let (Some(waiter), Some(member)) = (waiter, state.members.get_mut(&worker)) else {
                break;
            };
            if waiter.grant.is_closed() {
                continue;
            }
            member.used += 1;
            state.granted += 1;
            *state.held.entry(job.clone()).or_default() += 1;
            let slot = Slot {
                registry: Arc::clone(self),
                number: state.granted,
                job,
                worker,
                client: member.client.clone(),
                lost: member.lost.clone(),
            };
            unwanted.extend(waiter.grant.send(slot).err());
        }
        unwanted
    }
}

/// Which waiter of which job gets a slot on which worker next.
fn next_grant(state: &State) -> Option<(String, usize, String)> {
    let open = |member: &Member| !member.draining && member.used < member.slots;
    let open_workers: Vec<(&String, &Member)> = state
        .members
        .iter()
        .filter(|(_, member)| open(member))
        .collect();
    if open_workers.is_empty() {
        return None;
    }
    let mut jobs: Vec<&String> = state.waiting.keys().collect();
    jobs.sort_by_key(|job| state.held.get(*job).copied().unwrap_or_default());
    for job in jobs {
        for (position, waiter) in state.waiting[job].iter().enumerate() {
            // A worker to be avoided is better than none, but not better than waiting for another.
            let others = state
                .members
                .iter()
                .any(|(id, member)| !member.draining && !waiter.avoid.contains(id));
            let best = open_workers
                .iter()
                .filter(|(id, _)| !others || !waiter.avoid.contains(*id))
                .max_by_key(|(_, member)| member.slots - member.used);
            if let Some((worker, _)) = best {
                return Some((job.clone(), position, (*worker).clone()));
            }
        }
    }
    None
}

/// The right to run one task on one worker; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    registry: Arc<Registry>,
    /// Unique in this master.
    number: u64,
    job: String,
    worker: String,
    client: TaskClient,
    lost: CancellationToken,
}

impl Slot {
    /// The worker's id.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// A client of the worker's tasks.
    pub fn client(&self) -> TaskClient {
        self.client.clone()
    }

    /// Tells what runs here.
    pub fn runs(&self, task: RunningTask) {
        let mut state = self.registry.state.lock();
        if !self.lost.is_cancelled()
            && let Some(member) = state.members.get_mut(&self.worker)
        {
            member.tasks.insert(self.number, task);
        }
    }

    /// Returns once the worker is given up.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let registry = Arc::clone(&self.registry);
        let mut state = registry.state.lock();
        // A worker that was given up and came back under the same id never counted this slot.
        if let (Some(member), false) = (
            state.members.get_mut(&self.worker),
            self.lost.is_cancelled(),
        ) {
            member.used -= 1;
            member.tasks.remove(&self.number);
        }
        if let Some(held) = state.held.get_mut(&self.job) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.job);
            }
        }
        let unwanted = registry.dispatch(&mut state);
        drop(state);
        drop(unwanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(workers: &[(&str, u32)]) -> Arc<Registry> {
        let registry = Arc::new(Registry::default());
        for (id, slots) in workers {
            registry
                .register(RegisterRequest {
                    worker_id: (*id).to_owned(),
                    address: "http://127.0.0.1:1".to_owned(),
                    version: essaim_proto::VERSION.to_owned(),
                    slots: *slots,
                    memory_bytes: 0,
                })
                .unwrap();
        }
        registry
    }

    #[tokio::test]
    async fn a_job_with_fewer_slots_goes_first() {
        let registry = registry(&[("w", 2)]);
        let first = registry.slot("a", vec![]).await.unwrap();
        let _second = registry.slot("a", vec![]).await.unwrap();
        let third = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.slot("a", vec![]).await.unwrap() }
        });
        while !registry.state.lock().waiting.contains_key("a") {
            tokio::task::yield_now().await;
        }
        let other = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.slot("b", vec![]).await.unwrap() }
        });
        while !registry.state.lock().waiting.contains_key("b") {
            tokio::task::yield_now().await;
        }
        drop(first);
        let other = other.await.unwrap();
        assert!(!third.is_finished());
        drop(other);
        third.await.unwrap();
    }

    #[tokio::test]
    async fn a_worker_to_avoid_is_used_only_if_there_is_no_other() {
        let pair = registry(&[("a", 1), ("b", 1)]);
        let slot = pair.slot("j", vec!["a".to_owned()]).await.unwrap();
        assert_eq!(slot.worker(), "b");
        let alone = registry(&[("a", 1)]);
        let slot = alone.slot("j", vec!["a".to_owned()]).await.unwrap();
        assert_eq!(slot.worker(), "a");
    }

    #[tokio::test]
    async fn a_waiter_that_gave_up_takes_no_slot() {
        let registry = registry(&[("w", 1)]);
        let held = registry.slot("a", vec![]).await.unwrap();
        drop(tokio::time::timeout(Duration::from_millis(1), registry.slot("a", vec![])).await);
        drop(held);
        let again = registry.slot("a", vec![]).await.unwrap();
        assert_eq!(registry.workers()[0].slots_used, 1);
        drop(again);
        assert_eq!(registry.workers()[0].slots_used, 0);
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let error = Arc::new(Registry::default())
            .register(RegisterRequest {
                worker_id: "w".to_owned(),
                address: "http://127.0.0.1:1".to_owned(),
                version: "9.9.9".to_owned(),
                slots: 1,
                memory_bytes: 0,
            })
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("9.9.9") && error.contains(essaim_proto::VERSION),
            "{error}"
        );
    }
}
