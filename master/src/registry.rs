//! Who is in the cluster: workers with their leases, and slots of theirs for those who want them.

mod leases;
mod slot;

pub use slot::Slot;

use crate::events::{EventKind, Events, Severity};
use crate::jobs::model::now_ms;
use crate::shares::{Lanes, Place, Shares, Wanted};
use essaim_common::metrics::Counter;
use essaim_common::net::{Link, Peers};
use essaim_common::{Error, Result};
use essaim_proto::v1::tasks_client::TasksClient;
use essaim_proto::v1::{HeartbeatRequest, RegisterRequest};
use essaim_proto::{MAX_MESSAGE_BYTES, PROTOCOL, VERSION};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// How often a worker shall be heard.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Without a heartbeat for this long a worker is given up.
pub const LEASE: Duration = Duration::from_secs(5);

/// The client of a worker's tasks; cheap to clone, one connection a worker.
pub type TaskClient = TasksClient<Link>;

fn client(link: Link) -> TaskClient {
    TasksClient::new(link)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

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
    /// Tasks of streaming jobs beside the slots, while batch tasks hold those.
    pub spares_used: usize,
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
    memory_bytes: u64,
    memory_reserved_bytes: u64,
    registered_ms: i64,
    last_heartbeat: Instant,
    last_heartbeat_ms: i64,
    /// By the number of their slot.
    tasks: BTreeMap<u64, RunningTask>,
    client: TaskClient,
    /// Cancelled when the worker is given up: whoever waits for its answer need not wait longer.
    lost: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<String, Member>,
    /// The slots of each member.
    lanes: BTreeMap<String, Lanes>,
    shares: Shares<oneshot::Sender<Slot>>,
    /// Workers that were given up of late, the last one last.
    lost: VecDeque<LostWorker>,
    /// How many slots have been granted: the number of the last one.
    granted: u64,
}

impl Member {
    fn info(&self, id: &str, lanes: &Lanes) -> WorkerInfo {
        WorkerInfo {
            id: id.to_owned(),
            address: self.address.clone(),
            version: self.version.clone(),
            slots: lanes.slots,
            slots_used: lanes.used(),
            spares_used: lanes.spare,
            memory_bytes: self.memory_bytes,
            memory_reserved_bytes: self.memory_reserved_bytes,
            state: if lanes.closed {
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

/// Takes a member out, with its slots.
fn take(state: &mut State, worker: &str) -> Option<(Member, Lanes)> {
    let member = state.members.remove(worker)?;
    Some((member, state.lanes.remove(worker).unwrap_or_default()))
}

/// The cluster's members.
#[derive(Debug)]
pub struct Registry {
    /// The way to them.
    peers: Peers,
    state: Mutex<State>,
    /// A worker came, left or drains. Not told of slots that come and go.
    members_changed: Notify,
    events: Arc<Events>,
    pub(crate) joined: Counter,
    /// Workers that left by themselves.
    pub(crate) left: Counter,
    /// Workers that were given up.
    pub(crate) lost: Counter,
}

impl Registry {
    /// Nobody is in the cluster yet; who comes and goes is written to `events`, and is reached as `peers` says.
    pub fn new(events: Arc<Events>, peers: Peers) -> Self {
        Self {
            events,
            peers,
            state: Mutex::default(),
            members_changed: Notify::new(),
            joined: Counter::default(),
            left: Counter::default(),
            lost: Counter::default(),
        }
    }

    /// The way to the members.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Takes a worker in, or renews one that lost its master for a moment.
    ///
    /// # Errors
    /// Another protocol than the master's, no slots, or an address that is none.
    pub fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<()> {
        if request.protocol != PROTOCOL {
            return Err(other_protocol(&request));
        }
        if request.slots == 0 {
            return Err(Error::invalid(format!(
                "worker {} offers no slots: start it with --slots 1 or more",
                request.worker_id
            )));
        }
        let link = self.peers.link(&request.address).map_err(|error| {
            error.context(format!(
                "worker {} cannot be reached by the address that it gives (its --advertise)",
                request.worker_id
            ))
        })?;
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
        tracing::info!(worker = %request.worker_id, address = %request.address, slots = request.slots, version = %request.version, "joined");
        let client = client(link);
        self.joined.inc();
        let lanes = Lanes {
            slots: request.slots as usize,
            ..Lanes::default()
        };
        state.lanes.insert(request.worker_id.clone(), lanes);
        state.members.insert(
            request.worker_id,
            Member {
                address: request.address,
                version: request.version,
                memory_bytes: request.memory_bytes,
                memory_reserved_bytes: 0,
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

    /// Renews a lease. Returns how many tasks the worker was given that have not ended; `None` if it has no lease.
    pub fn heartbeat(self: &Arc<Self>, request: &HeartbeatRequest) -> Option<usize> {
        let mut state = self.state.lock();
        let member = state.members.get_mut(&request.worker_id)?;
        member.last_heartbeat = Instant::now();
        member.last_heartbeat_ms = now_ms();
        member.memory_reserved_bytes = request.memory_reserved_bytes;
        let lanes = state.lanes.get_mut(&request.worker_id)?;
        let tasks = lanes.tasks();
        if request.draining && !lanes.closed {
            tracing::info!(worker = %request.worker_id, tasks, "draining");
            lanes.closed = true;
            let message = format!("worker {} takes no more tasks", request.worker_id);
            self.event(
                EventKind::WorkerDraining,
                Severity::Info,
                &request.worker_id,
                message,
            );
            self.closed(state, &request.worker_id);
        }
        Some(tasks)
    }

    /// A worker has ended by itself; tasks that it leaves go to others.
    pub fn leave(self: &Arc<Self>, worker: &str) {
        let mut state = self.state.lock();
        if let Some((member, _)) = take(&mut state, worker) {
            tracing::info!(%worker, "left");
            self.left.inc();
            let message = format!("worker {worker} left by itself");
            self.event(EventKind::WorkerLeft, Severity::Info, worker, message);
            member.lost.cancel();
            self.closed(state, worker);
        }
    }

    /// Gives a worker up; its tasks fail over at once.
    pub fn lose(self: &Arc<Self>, worker: &str, why: &str) {
        let mut state = self.state.lock();
        if let Some((member, lanes)) = take(&mut state, worker) {
            tracing::warn!(%worker, %why, "lost");
            self.lost.inc();
            let tasks = lanes.tasks();
            let message = format!("worker {worker} was lost with {tasks} tasks: {why}");
            self.event(EventKind::WorkerLost, Severity::Warning, worker, message);
            if state.lost.len() >= MAX_LOST_KEPT {
                state.lost.pop_front();
            }
            state.lost.push_back(LostWorker {
                info: WorkerInfo {
                    state: WorkerState::Lost,
                    slots_used: 0,
                    spares_used: 0,
                    memory_reserved_bytes: 0,
                    tasks: Vec::new(),
                    ..member.info(worker, &lanes)
                },
                lost_ms: now_ms(),
                why: why.to_owned(),
                tasks,
            });
            member.lost.cancel();
            self.closed(state, worker);
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
        state.shares.waiting(|waiter| !waiter.is_closed())
    }

    fn event(&self, kind: EventKind, severity: Severity, worker: &str, message: String) {
        self.events
            .write(kind, severity, None, Some(worker), message);
    }

    /// After a worker has become one that takes no more tasks.
    fn closed(self: &Arc<Self>, mut state: MutexGuard<'_, State>, worker: &str) {
        state.shares.close(worker);
        // Those who would rather not have gone to another may have to now.
        let unwanted = self.dispatch(&mut state);
        drop(state);
        drop(unwanted);
        self.members_changed.notify_waiters();
    }

    /// All workers, by id.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let state = self.state.lock();
        let both = state.members.iter().zip(state.lanes.values());
        both.map(|((id, member), lanes)| member.info(id, lanes))
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

    /// Slots of all workers that take tasks.
    pub fn slots(&self) -> usize {
        let state = self.state.lock();
        let open = state.lanes.values().filter(|lanes| !lanes.closed);
        open.map(|lanes| lanes.slots).sum()
    }

    /// Ids and addresses of all workers that take tasks, those with the most free slots first.
    pub fn open_workers(&self) -> Vec<(String, String)> {
        let state = self.state.lock();
        let both = state.members.iter().zip(state.lanes.values());
        let mut open: Vec<_> = both.filter(|(_, lanes)| !lanes.closed).collect();
        open.sort_by_key(|(_, lanes)| lanes.used() as i64 - lanes.slots as i64);
        open.into_iter()
            .map(|((id, member), _)| (id.clone(), member.address.clone()))
            .collect()
    }

    /// Returns once so many workers take tasks.
    pub async fn have_workers(&self, count: usize) {
        loop {
            let changed = self.members_changed.notified();
            if self.open_workers().len() >= count {
                return;
            }
            changed.await;
        }
    }

    /// Waits until there is a worker.
    ///
    /// # Errors
    /// None came within `timeout`.
    pub async fn wait_for_worker(&self, timeout: Duration) -> Result<()> {
        tokio::time::timeout(timeout, self.have_workers(1)).await.map_err(|_| {
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

    /// Waits for a slot; [`crate::shares`] says who is next.
    ///
    /// # Errors
    /// The only worker that would do has gone.
    pub async fn slot(self: &Arc<Self>, wanted: Wanted) -> Result<Slot> {
        let place = wanted.place.clone();
        let granted = {
            let (grant, granted) = oneshot::channel();
            let mut state = self.state.lock();
            let is_gone = |worker| state.lanes.get(worker).is_none_or(|lanes| lanes.closed);
            if matches!(&wanted.place, Place::On(worker) if is_gone(worker)) {
                drop(grant);
            } else {
                state.shares.wait(wanted, grant);
            }
            let unwanted = self.dispatch(&mut state);
            drop(state);
            drop(unwanted);
            granted
        };
        granted.await.map_err(|_| match place {
            Place::On(worker) => Error::unavailable(format!("worker {worker} leaves")),
            Place::Avoiding(_) => Error::internal("the registry has ended"),
        })
    }

    /// Waits for a slot on each worker that is there, on at most `limit` of them. An exchange needs them all at once:
    /// everybody gathers them in the same order, so that no two wait for each other.
    ///
    /// # Errors
    /// All workers have gone meanwhile.
    pub async fn gather(self: &Arc<Self>, job: &str, limit: usize) -> Result<Vec<Slot>> {
        let mut workers: Vec<String> = self.open_workers().into_iter().map(|(id, _)| id).collect();
        workers.truncate(limit);
        workers.sort();
        let mut slots = Vec::with_capacity(workers.len());
        for worker in workers {
            let wanted = Wanted {
                job: job.to_owned(),
                streaming: false,
                limit: usize::MAX,
                place: Place::On(worker),
            };
            // Without those that leave before it is their turn.
            slots.extend(self.slot(wanted).await.ok());
        }
        if slots.is_empty() {
            return Err(Error::unavailable("all workers have left"));
        }
        Ok(slots)
    }

    /// Hands free slots to those who wait. Returns those whose waiter has gone in this very moment: giving one back
    /// takes the lock, so the caller drops them after it.
    fn dispatch(self: &Arc<Self>, state: &mut State) -> Vec<Slot> {
        let mut unwanted = Vec::new();
        while let Some(grant) = state.shares.next(&state.lanes) {
            let (Some(member), Some(lanes)) = (
                state.members.get(&grant.worker),
                state.lanes.get_mut(&grant.worker),
            ) else {
                break;
            };
            if grant.waiter.is_closed() {
                state.shares.give_back(&grant.job, grant.start);
                continue;
            }
            *lanes.count(grant.lane) += 1;
            state.granted += 1;
            let slot = Slot {
                registry: Arc::clone(self),
                number: state.granted,
                job: grant.job,
                worker: grant.worker,
                address: member.address.clone(),
                lane: grant.lane,
                start: grant.start,
                client: member.client.clone(),
                lost: member.lost.clone(),
            };
            unwanted.extend(grant.waiter.send(slot).err());
        }
        unwanted
    }
}

/// Names both versions: who reads it wants to know which side to replace.
fn other_protocol(request: &RegisterRequest) -> Error {
    let (worker, theirs) = (&request.worker_id, request.protocol);
    let what = match theirs.cmp(&PROTOCOL) {
        std::cmp::Ordering::Less => "start the worker with the master's version",
        _ => "start the master with the worker's version; the worker waits for it",
    };
    Error::invalid(format!(
        "worker {worker} is Essaim {} and speaks protocol {theirs}, this master is Essaim {VERSION} and speaks protocol {PROTOCOL}: {what}",
        request.version
    ))
}

#[cfg(test)]
pub(crate) mod tests;
