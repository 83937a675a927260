//! Runs the stages of one query, or of one epoch: a task for each partition, attempts on free slots, retries, stragglers run twice.

mod attempt;
mod spool;

use crate::jobs::handle::JobHandle;
use crate::plan::stage::{Broadcast, Stage};
use crate::registry::Registry;
use crate::scheduler::attempt::Attempts;
pub(crate) use crate::scheduler::spool::Spool;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::scan::EventTimes;
use essaim_common::session::Settings;
use essaim_common::{Error, Result, ipc};
use essaim_proto::v1::{
    DropBroadcastsRequest, EpochParams, PutBroadcastRequest, TaskDone, TaskProgress,
};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span};

/// How long a broadcast may take to reach a worker, and how long dropping one may.
const BROADCAST_DEADLINE: Duration = Duration::from_secs(120);

/// Numbers the runs of stages.
static RUNS: AtomicU64 = AtomicU64::new(1);

/// What all stages of one run of a query share. An extension of the context that the upper half runs in.
#[derive(Debug)]
pub struct Stages {
    pub(crate) job: Arc<JobHandle>,
    pub(crate) query: usize,
    pub(crate) registry: Arc<Registry>,
    pub(crate) settings: Settings,
    /// What the job has SET, for the workers' sessions.
    pub(crate) worker_settings: HashMap<String, String>,
    /// What tasks are told of the epoch that they belong to.
    pub(crate) epoch: Option<EpochParams>,
    facts: Mutex<TaskFacts>,
    running: Mutex<BTreeMap<u32, StageRun>>,
    broadcasts: Mutex<HashMap<String, Arc<Sent>>>,
    /// The query's, or the epoch's.
    span: Span,
}

/// A stage that runs. Dropping it ends its tasks.
#[derive(Debug)]
struct StageRun {
    outputs: Vec<Option<oneshot::Receiver<Result<Spool>>>>,
    _supervisor: AbortOnDropHandle<()>,
}

/// A broadcast on its way: encoded once, sent to each worker once.
#[derive(Debug, Default)]
struct Sent {
    chunks: OnceCell<Vec<Bytes>>,
    workers: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
}

impl Stages {
    /// The stages of `query` of `job`, none of them running yet.
    pub fn new(
        job: Arc<JobHandle>,
        query: usize,
        registry: Arc<Registry>,
        settings: Settings,
        worker_settings: HashMap<String, String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            job,
            query,
            registry,
            settings,
            worker_settings,
            epoch: None,
            facts: Mutex::default(),
            running: Mutex::default(),
            broadcasts: Mutex::default(),
            span: Span::current(),
        })
    }

    /// The stages of one epoch of a streaming job. `statics` are the inputs that its tasks need whole, as made by
    /// [`Stages::statics`]; they outlive the epoch.
    pub fn for_epoch(
        job: Arc<JobHandle>,
        registry: Arc<Registry>,
        settings: Settings,
        worker_settings: HashMap<String, String>,
        epoch: EpochParams,
        statics: &Statics,
    ) -> Arc<Self> {
        Arc::new(Self {
            job,
            query: 0,
            registry,
            settings,
            worker_settings,
            epoch: Some(epoch),
            facts: Mutex::default(),
            running: Mutex::default(),
            broadcasts: Mutex::new(statics.0.clone()),
            span: Span::current(),
        })
    }

    /// Runs all tasks of a stage.
    ///
    /// # Errors
    /// The first error that a task could not get over.
    pub(crate) async fn run(
        self: &Arc<Self>,
        stage: &Arc<Stage>,
        ctx: &Arc<TaskContext>,
    ) -> Result<Vec<Spool>> {
        let mut run = self.start(stage, ctx);
        let outputs: Vec<_> = run.outputs.iter_mut().filter_map(Option::take).collect();
        let mut spools = Vec::with_capacity(outputs.len());
        for output in outputs {
            let spool = output
                .await
                .map_err(|_| Error::cancelled("the epoch has ended"))?;
            spools.push(spool?);
        }
        Ok(spools)
    }

    /// What the tasks that have ended say of the rows that they read.
    pub(crate) fn facts(&self) -> TaskFacts {
        self.facts.lock().clone()
    }

    /// Computes inputs that the tasks of many epochs need whole, by key.
    ///
    /// # Errors
    /// Those of the plans; one of them is too large.
    pub(crate) async fn statics(
        self: &Arc<Self>,
        broadcasts: &[Arc<Broadcast>],
        ctx: &Arc<TaskContext>,
    ) -> Result<Statics> {
        for broadcast in broadcasts {
            self.compute(broadcast, ctx).await?;
        }
        // They are the epochs' from now on: ending this run must not take them from the workers.
        Ok(Statics(std::mem::take(&mut *self.broadcasts.lock())))
    }

    /// Lets go of what [`Stages::statics`] made, here and on the workers.
    pub(crate) fn forget(registry: &Registry, statics: &Statics) {
        drop_broadcasts(registry, statics.0.clone());
    }

    /// What task `partition` of `stage` sends. The first call for any partition starts all tasks of the stage.
    pub fn output(
        self: &Arc<Self>,
        stage: &Arc<Stage>,
        partition: usize,
        ctx: &Arc<TaskContext>,
    ) -> SendableRecordBatchStream {
        let output = {
            let mut running = self.running.lock();
            let run = running
                .entry(stage.id)
                .or_insert_with(|| self.start(stage, ctx));
            run.outputs.get_mut(partition).and_then(Option::take)
        };
        let rows = async move {
            let Some(output) = output else {
                return Err(Error::internal("a task's result is read twice"));
            };
            match output.await {
                Ok(spool) => Ok(spool?.read()),
                Err(_) => Err(Error::cancelled("the query has ended")),
            }
        };
        Box::pin(RecordBatchStreamAdapter::new(
            stage.plan.schema(),
            futures::stream::once(async { rows.await.map_err(DataFusionError::from) })
                .try_flatten(),
        ))
    }

    fn start(self: &Arc<Self>, stage: &Arc<Stage>, ctx: &Arc<TaskContext>) -> StageRun {
        let tasks = stage.tasks();
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        self.job.update_stage(self.query, stage.id, |record| {
            *record = crate::jobs::model::StageRecord {
                id: stage.id,
                run,
                tasks: tasks as u32,
                ..Default::default()
            };
        });
        let (senders, outputs): (Vec<_>, Vec<_>) = (0..tasks)
            .map(|_| {
                let (sender, receiver) = oneshot::channel();
                (sender, Some(receiver))
            })
            .unzip();
        let supervisor = supervise(
            Arc::clone(self),
            Arc::clone(stage),
            Arc::clone(ctx),
            run,
            senders,
        );
        StageRun {
            outputs,
            _supervisor: AbortOnDropHandle::new(tokio::spawn(
                supervisor.instrument(self.span.clone()),
            )),
        }
    }

    /// Ends all tasks, and lets the workers forget what was sent to all of them.
    pub fn stop(&self) {
        self.running.lock().clear();
        let sent = std::mem::take(&mut *self.broadcasts.lock());
        if self.epoch.is_none() {
            drop_broadcasts(&self.registry, sent);
        }
    }

    /// Computes what the stage needs whole, once.
    async fn compute(
        self: &Arc<Self>,
        broadcast: &Broadcast,
        ctx: &Arc<TaskContext>,
    ) -> Result<Arc<Sent>> {
        let sent = Arc::clone(
            self.broadcasts
                .lock()
                .entry(broadcast.key.clone())
                .or_default(),
        );
        sent.chunks
            .get_or_try_init(|| async {
                let rows = broadcast.plan.execute(0, Arc::clone(ctx))?;
                let mut chunks = Vec::new();
                let mut bytes = 0;
                // The planner's estimate may be wrong by some, but not by any factor.
                let limit = self
                    .settings
                    .broadcast_threshold
                    .saturating_mul(4)
                    .max(1 << 20);
                let mut stream = Box::pin(ipc::encode_stream(rows));
                while let Some(chunk) = stream.next().await {
                    let chunk = chunk?;
                    bytes += chunk.len();
                    if bytes > limit {
                        return Err(Error::exhausted(format!(
                            "an input of a join that was to be sent whole to every worker is over {} MiB: SET essaim.execution = 'exchange', or raise essaim.broadcast_threshold (bytes)",
                            limit >> 20
                        )));
                    }
                    chunks.push(chunk);
                }
                Ok(chunks)
            })
            .await?;
        Ok(sent)
    }

    /// Sends what the stage needs whole to a worker that does not have it yet.
    pub(crate) async fn deliver(
        &self,
        stage: &Stage,
        worker: &str,
        client: &mut crate::registry::TaskClient,
    ) -> Result<()> {
        for broadcast in &stage.broadcasts {
            let Some(sent) = self.broadcasts.lock().get(&broadcast.key).cloned() else {
                return Err(Error::cancelled("the query has ended"));
            };
            let arrived = Arc::clone(sent.workers.lock().entry(worker.to_owned()).or_default());
            arrived
                .get_or_try_init(|| async {
                    let chunks = sent.chunks.get().cloned().unwrap_or_default();
                    let mut key = broadcast.key.clone();
                    let messages = chunks
                        .into_iter()
                        .map(move |arrow_ipc| PutBroadcastRequest {
                            key: std::mem::take(&mut key),
                            arrow_ipc,
                        });
                    let call = client.put_broadcast(futures::stream::iter(messages));
                    tokio::time::timeout(BROADCAST_DEADLINE, call)
                        .await
                        .map_err(|_| {
                            Error::unavailable(format!(
                                "worker {worker} did not take a broadcast within 120 s"
                            ))
                        })?
                        .map_err(attempt::from_worker)?;
                    Ok::<_, Error>(())
                })
                .await?;
        }
        Ok(())
    }
}

/// Lets the workers forget what was sent to all of them.
fn drop_broadcasts(registry: &Registry, sent: HashMap<String, Arc<Sent>>) {
    let mut keys_of: HashMap<String, Vec<String>> = HashMap::new();
    for (key, sent) in sent {
        for worker in sent.workers.lock().keys() {
            keys_of.entry(worker.clone()).or_default().push(key.clone());
        }
    }
    for (worker, keys) in keys_of {
        let Some(mut client) = registry.client(&worker) else {
            continue;
        };
        tokio::spawn(async move {
            let call = client.drop_broadcasts(DropBroadcastsRequest { keys });
            if let Ok(Err(status)) = tokio::time::timeout(BROADCAST_DEADLINE, call).await {
                tracing::warn!(%worker, %status, "a worker keeps broadcasts of an ended query");
            }
        });
    }
}

/// Sees a stage through: broadcasts first, then all tasks; the first task that fails for good ends the others.
async fn supervise(
    stages: Arc<Stages>,
    stage: Arc<Stage>,
    ctx: Arc<TaskContext>,
    run: u64,
    outputs: Vec<oneshot::Sender<Result<Spool>>>,
) {
    for broadcast in &stage.broadcasts {
        if let Err(error) = stages.compute(broadcast, &ctx).await {
            fail(outputs, &error);
            return;
        }
    }
    let attempts = Arc::new(Attempts::new(
        Arc::clone(&stages),
        Arc::clone(&stage),
        ctx,
        run,
    ));
    let mut tasks = JoinSet::new();
    let mut waiting: HashMap<usize, oneshot::Sender<Result<Spool>>> =
        outputs.into_iter().enumerate().collect();
    for partition in 0..waiting.len() {
        let attempts = Arc::clone(&attempts);
        let task = async move { (partition, attempts.run(partition).await) };
        tasks.spawn(task.in_current_span());
    }
    while let Some(ended) = tasks.join_next().await {
        let error = match ended {
            Ok((partition, Ok((spool, facts)))) => {
                stages.facts.lock().add(facts);
                if let Some(output) = waiting.remove(&partition) {
                    // A reader that has gone needs no result.
                    let _ = output.send(Ok(spool));
                }
                continue;
            }
            Ok((_, Err(error))) => error,
            Err(panic) => Error::internal(format!("the scheduler panicked: {panic}")),
        };
        fail(waiting.into_values(), &error);
        return;
    }
}

fn fail(outputs: impl IntoIterator<Item = oneshot::Sender<Result<Spool>>>, error: &Error) {
    for output in outputs {
        // A reader that has gone needs no error.
        let _ = output.send(Err(error.clone()));
    }
}

/// Inputs that tasks need whole, computed once for many epochs.
#[derive(Debug, Clone, Default)]
pub struct Statics(HashMap<String, Arc<Sent>>);

impl Statics {
    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// What tasks say of the rows that they read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TaskFacts {
    /// By table.
    pub(crate) event_times: BTreeMap<String, EventTimes>,
    /// By the INSERT's position.
    pub(crate) late_rows: BTreeMap<u32, u64>,
    /// By table: rows too late for every INSERT that reads it, put aside by the source.
    pub(crate) late_in_source: BTreeMap<String, u64>,
    pub(crate) progress: TaskProgress,
}

impl From<TaskDone> for TaskFacts {
    fn from(done: TaskDone) -> Self {
        Self {
            event_times: done
                .event_times
                .into_iter()
                .map(|(table, times)| (table, times.partitions.into_iter().collect()))
                .collect(),
            late_rows: done.late_rows.into_iter().collect(),
            late_in_source: done.late_in_source.into_iter().collect(),
            progress: done.progress.unwrap_or_default(),
        }
    }
}

impl TaskFacts {
    /// Adds those of another task.
    pub(crate) fn add(&mut self, other: Self) {
        for (table, times) in other.event_times {
            let known = self.event_times.entry(table).or_default();
            for (partition, time) in times {
                let latest = known.entry(partition).or_insert(time);
                *latest = time.max(*latest);
            }
        }
        for (query, rows) in other.late_rows {
            *self.late_rows.entry(query).or_default() += rows;
        }
        for (table, rows) in other.late_in_source {
            *self.late_in_source.entry(table).or_default() += rows;
        }
        self.progress.rows_in += other.progress.rows_in;
        self.progress.bytes_in += other.progress.bytes_in;
        self.progress.records_skipped += other.progress.records_skipped;
        self.progress.records_dead_lettered += other.progress.records_dead_lettered;
    }
}

/// How long the tasks of a stage took, to tell which one is a straggler.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    started: AtomicUsize,
    durations: Mutex<Vec<Duration>>,
}

impl Pace {
    pub(crate) fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn done(&self, duration: Duration) {
        self.durations.lock().push(duration);
    }

    /// From when on a task counts as a straggler: Spark's rule, three quarters of the stage being done and this one
    /// having taken `multiplier` times the median; and no less than a second.
    pub(crate) fn limit(&self, tasks: usize, multiplier: f64) -> Option<Duration> {
        if self.started.load(Ordering::Relaxed) < tasks {
            return None;
        }
        let mut durations = self.durations.lock().clone();
        if durations.is_empty() || durations.len() * 4 < tasks * 3 {
            return None;
        }
        durations.sort_unstable();
        let median = durations[durations.len() / 2];
        Some(
            median
                .mul_f64(multiplier.clamp(1.0, 1000.0))
                .max(Duration::from_secs(1)),
        )
    }
}
