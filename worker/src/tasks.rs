//! Serves the tasks below the cut: decodes a stage's plan, runs one partition of it, streams the rows back.

use crate::metrics::{TaskCounts, TaskOutcome};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::DistributedTaskContext;
use datafusion_proto::bytes::physical_plan_from_bytes_with_extension_codec;
use essaim_common::bad_records::BadRecords;
use essaim_common::broadcast::Broadcasts;
use essaim_common::codec::EssaimCodec;
use essaim_common::ipc::{self, Decoder};
use essaim_common::late::LateFilterExec;
use essaim_common::net::Peers;
use essaim_common::scan::ScanExec;
use essaim_common::stream::EpochParams;
use essaim_common::threads::computed_on;
use essaim_common::{Error, Result, trace};
use essaim_proto::v1;
use essaim_proto::v1::tasks_server::Tasks;
use essaim_proto::v1::{
    DropBroadcastsRequest, DropBroadcastsResponse, ProbeRequest, ProbeResponse,
    PutBroadcastRequest, PutBroadcastResponse, RunRequest, RunResponse, TaskDone, TaskProgress,
    run_response::Part,
};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::unconstrained;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

const PROGRESS: Duration = Duration::from_millis(500);

/// How many tasks run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge {
    inner: Arc<(AtomicUsize, Notify)>,
}

impl Gauge {
    pub(crate) fn running(&self) -> usize {
        self.inner.0.load(Ordering::Acquire)
    }

    /// Returns once no task runs.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.inner.1.notified();
            if self.running() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn enter(&self) {
        self.inner.0.fetch_add(1, Ordering::AcqRel);
    }

    fn leave(&self) {
        self.inner.0.fetch_sub(1, Ordering::AcqRel);
        self.inner.1.notify_waiters();
    }
}

/// One running task; it has ended when this is dropped.
struct Running {
    plan: Arc<dyn ExecutionPlan>,
    gauge: Gauge,
    counts: Arc<TaskCounts>,
    started: Instant,
    /// What has been counted of its rows so far.
    counted: TaskProgress,
    /// How it ends if nothing else is said.
    outcome: TaskOutcome,
}

impl Running {
    fn new(plan: Arc<dyn ExecutionPlan>, gauge: Gauge, counts: Arc<TaskCounts>) -> Self {
        gauge.enter();
        Self {
            plan,
            gauge,
            counts,
            started: Instant::now(),
            counted: TaskProgress::default(),
            outcome: TaskOutcome::Cancelled,
        }
    }

    /// The last word of a task that has sent all its rows.
    fn done(&mut self) -> TaskDone {
        let metrics = self.plan.metrics();
        let rows_out = metrics.and_then(|metrics| metrics.output_rows());
        let mut done = TaskDone {
            progress: Some(self.progress()),
            rows_out: rows_out.unwrap_or_default() as u64,
            ..TaskDone::default()
        };
        add_facts(&self.plan, &mut done);
        node_rows(&self.plan, &mut done.node_rows);
        self.counts.rows_out.add(done.rows_out);
        self.counts.late_rows.add(
            done.late_rows
                .values()
                .chain(done.late_in_source.values())
                .sum(),
        );
        self.outcome = TaskOutcome::Succeeded;
        done
    }

    /// How far it is; counted for metrics too.
    fn progress(&mut self) -> TaskProgress {
        let now = progress(&self.plan);
        let before = std::mem::replace(&mut self.counted, now);
        self.counts.progress(&before, &now);
        now
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.progress();
        self.counts.spilled_bytes.add(spilled(&self.plan));
        self.counts.ended(self.outcome, self.started.elapsed());
        self.gauge.leave();
    }
}

/// Around everything that a task does. Its name is "JOB/QUERY/STAGE/TASK/ATTEMPT".
fn task_span(request: &RunRequest) -> Span {
    let mut parts = request.task.splitn(5, '/');
    let mut part = || parts.next().unwrap_or_default();
    // At this level no filter takes the fields from a line.
    let job = part();
    let mut number = || part().parse::<u64>().ok();
    let span = tracing::error_span!(
        "task",
        job,
        query = number(),
        epoch = tracing::field::Empty,
        stage = number(),
        task = number(),
        attempt = number(),
    );
    if let Some(epoch) = &request.epoch {
        span.record("epoch", epoch.epoch);
    }
    span
}

/// The gRPC service.
#[derive(Clone)]
pub(crate) struct TaskService {
    /// The worker's.
    id: String,
    /// The way to the other workers.
    peers: Peers,
    state: Arc<SessionState>,
    gauge: Gauge,
    counts: Arc<TaskCounts>,
    /// Where tasks compute.
    threads: Handle,
}

impl TaskService {
    pub(crate) fn new(
        id: String,
        peers: Peers,
        state: SessionState,
        gauge: Gauge,
        counts: Arc<TaskCounts>,
        threads: Handle,
    ) -> Self {
        Self {
            id,
            peers,
            state: Arc::new(state),
            gauge,
            counts,
            threads,
        }
    }

    /// The task's context: the worker's own with the job's settings on top.
    fn context(&self, request: &RunRequest) -> Result<Arc<TaskContext>> {
        let state = &self.state;
        let mut config = state.config().clone();
        for (name, value) in &request.settings {
            config.options_mut().set(name, value)?;
        }
        // The plan has one partition; which one of the stage's it is, a sink's writer asks here.
        config.set_extension(Arc::new(DistributedTaskContext {
            task_index: request.partition as usize,
            task_count: 0,
        }));
        config.set_extension(Arc::new(BadRecords::default()));
        if let Some(epoch) = &request.epoch {
            config.set_extension(Arc::new(EpochParams {
                epoch: epoch.epoch,
                watermarks: epoch.watermarks.clone().into_iter().collect(),
                late_before: epoch.late_before.clone().into_iter().collect(),
            }));
        }
        Ok(Arc::new(TaskContext::new(
            Some(request.task.clone()),
            state.session_id().to_owned(),
            config,
            state.scalar_functions().clone(),
            state.higher_order_functions().clone(),
            state.aggregate_functions().clone(),
            state.window_functions().clone(),
            Arc::clone(state.runtime_env()),
        )))
    }

    fn broadcasts(&self) -> Result<Arc<Broadcasts>> {
        self.state
            .config()
            .get_extension::<Broadcasts>()
            .ok_or_else(|| Error::internal("the worker's session holds no broadcasts"))
    }

    fn start(&self, request: RunRequest) -> Result<BoxStream<'static, Result<RunResponse>>> {
        let context = self.context(&request)?;
        let plan =
            physical_plan_from_bytes_with_extension_codec(&request.plan, &context, &EssaimCodec)?;
        let partitions = plan.output_partitioning().partition_count();
        if partitions != 1 {
            return Err(Error::internal(format!(
                "the plan of task {} has {partitions} partitions, not one",
                request.task
            )));
        }
        let bad_records = context.session_config().get_extension();
        let rows = plan.execute(0, context)?;
        let running = Running::new(plan, self.gauge.clone(), Arc::clone(&self.counts));
        tracing::debug!("running");
        Ok(Box::pin(respond(
            running,
            ipc::encode_stream(rows),
            bad_records.unwrap_or_default(),
        )))
    }
}

/// Rows as they come, progress in between, and a last word.
fn respond(
    running: Running,
    chunks: impl Stream<Item = Result<bytes::Bytes>> + Send + 'static,
    bad_records: Arc<BadRecords>,
) -> impl Stream<Item = Result<RunResponse>> + Send + 'static {
    // A panic in a plan is an error of this task, not the end of a connection that others share.
    let chunks = AssertUnwindSafe(chunks).catch_unwind().map(|chunk| {
        chunk.unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Error::internal(format!("the plan panicked: {message}")))
        })
    });
    let mut ticks = tokio::time::interval(PROGRESS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.reset();
    let span = Span::current();
    let state = Answer::Rows(Box::pin(chunks), ticks, running);
    futures::stream::unfold(state, move |state| {
        let bad_records = Arc::clone(&bad_records);
        let step = async move {
            let (mut chunks, mut ticks, mut running) = match state {
                Answer::Rows(chunks, ticks, running) => (chunks, ticks, running),
                Answer::Last(last) => return Some((*last, Answer::Over)),
                Answer::Over => return None,
            };
            let part = tokio::select! {
                biased;
                chunk = chunks.next() => match chunk {
                    Some(Ok(chunk)) => Part::ArrowIpc(chunk),
                    ended => {
                        let last = match ended {
                            Some(Err(error)) => {
                                tracing::warn!(%error, "failed");
                                running.outcome = TaskOutcome::Failed;
                                Err(error)
                            }
                            _ => {
                                let done = running.done();
                                tracing::debug!(rows_out = done.rows_out, "done");
                                Ok(response(Part::Done(done)))
                            }
                        };
                        let records = bad_records.noted();
                        if records.is_empty() {
                            return Some((last, Answer::Over));
                        }
                        let told = response(Part::BadRecords(v1::BadRecords { records }));
                        return Some((Ok(told), Answer::Last(Box::new(last))));
                    }
                },
                // Rows that are always ready use up the budget of every poll: the clock must not need any of it.
                _ = unconstrained(ticks.tick()) => Part::Progress(running.progress()),
            };
            let next = Answer::Rows(chunks, ticks, running);
            Some((Ok(response(part)), next))
        };
        step.instrument(span.clone())
    })
}

/// Where the answer to a call stands.
enum Answer<S> {
    Rows(S, tokio::time::Interval, Running),
    /// The last word, after what was told before it.
    Last(Box<Result<RunResponse>>),
    Over,
}

fn response(part: Part) -> RunResponse {
    RunResponse { part: Some(part) }
}

/// What the leaves of a plan have counted.
fn progress(plan: &Arc<dyn ExecutionPlan>) -> TaskProgress {
    let mut sum = TaskProgress::default();
    add_progress(plan, &mut sum);
    sum
}

fn add_progress(plan: &Arc<dyn ExecutionPlan>, sum: &mut TaskProgress) {
    for child in plan.children() {
        add_progress(child, sum);
    }
    if !plan.children().is_empty() {
        return;
    }
    let Some(metrics) = plan.metrics() else {
        return;
    };
    let count = |name: &str| {
        metrics
            .sum_by_name(name)
            .map_or(0, |value| value.as_usize() as u64)
    };
    if plan.is::<ScanExec>() {
        sum.rows_in += count("rows_in");
        sum.bytes_in += count("bytes_in");
        sum.records_skipped += count("records_skipped");
        sum.records_dead_lettered += count("records_dead_lettered");
    } else {
        sum.rows_in += metrics.output_rows().unwrap_or_default() as u64;
        sum.bytes_in += count("bytes_scanned");
    }
}

/// What each node of a plan has yielded, from the root down, left to right; -1 if it does not count. Returns the root's.
fn node_rows(plan: &Arc<dyn ExecutionPlan>, rows: &mut Vec<i64>) -> i64 {
    let position = rows.len();
    rows.push(-1);
    let children: Vec<i64> = plan
        .children()
        .into_iter()
        .map(|child| node_rows(child, rows))
        .collect();
    let metrics = plan.metrics();
    let count = |name: &str| {
        let sum = metrics.as_ref().and_then(|found| found.sum_by_name(name));
        sum.map_or(0, |value| value.as_usize() as i64)
    };
    let own = if plan.is::<ScanExec>() {
        let dropped = ["records_skipped", "records_dead_lettered", "late_rows"];
        count("rows_in") - dropped.into_iter().map(count).sum::<i64>()
    } else if let (Some(filter), [input]) = (plan.downcast_ref::<LateFilterExec>(), &children[..]) {
        match input {
            -1 => -1,
            input => input - filter.late_rows() as i64,
        }
    } else {
        let counted = metrics.as_ref().and_then(|found| found.output_rows());
        counted.map_or(-1, |rows| rows as i64)
    };
    rows[position] = own;
    own
}

/// Bytes that the operators of a plan have written to temporary files.
fn spilled(plan: &Arc<dyn ExecutionPlan>) -> u64 {
    let own = plan.metrics().and_then(|metrics| metrics.spilled_bytes());
    let below = plan.children().into_iter().map(spilled);
    own.unwrap_or_default() as u64 + below.sum::<u64>()
}

/// What an epoch is told of its rows: the latest event times, and how many came too late.
fn add_facts(plan: &Arc<dyn ExecutionPlan>, done: &mut TaskDone) {
    for child in plan.children() {
        add_facts(child, done);
    }
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        let read = scan.event_times();
        if !read.is_empty() {
            let table = done.event_times.entry(scan.table().to_owned());
            let times = &mut table.or_default().partitions;
            for (partition, time) in read {
                let known = times.entry(partition).or_insert(time);
                *known = time.max(*known);
            }
        }
        let late = plan
            .metrics()
            .and_then(|metrics| metrics.sum_by_name("late_rows"))
            .map_or(0, |late| late.as_usize() as u64);
        if late > 0 {
            let table = scan.table().to_owned();
            *done.late_in_source.entry(table).or_default() += late;
        }
    }
    if let Some(filter) = plan.downcast_ref::<LateFilterExec>() {
        *done.late_rows.entry(filter.query()).or_default() += filter.late_rows() as u64;
    }
}

#[tonic::async_trait]
impl Tasks for TaskService {
    type RunStream = BoxStream<'static, Result<RunResponse, Status>>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let span = task_span(&request);
        trace::adopt(&span, &metadata);
        // Decoding a plan takes a while, and what it spawns computes there too.
        let (service, within) = (self.clone(), span.clone());
        let started = self
            .threads
            .spawn(async move { within.in_scope(|| service.start(request)) })
            .await
            .unwrap_or_else(|_| Err(Error::internal("the plan panicked at its start")));
        match started {
            Ok(responses) => Ok(Response::new(
                computed_on(&self.threads, responses)
                    .map(|response| response.map_err(Status::from))
                    .boxed(),
            )),
            Err(error) => {
                span.in_scope(|| tracing::warn!(%error, "refused"));
                self.counts.ended(TaskOutcome::Refused, Duration::ZERO);
                Err(error.into())
            }
        }
    }

    async fn put_broadcast(
        &self,
        request: Request<Streaming<PutBroadcastRequest>>,
    ) -> Result<Response<PutBroadcastResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut key = String::new();
        let mut decoder = Decoder::default();
        let mut batches = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            if key.is_empty() {
                key = chunk.key;
            }
            batches.extend(decoder.decode(chunk.arrow_ipc)?);
        }
        self.broadcasts()?.put(key, batches);
        Ok(Response::new(PutBroadcastResponse {}))
    }

    async fn drop_broadcasts(
        &self,
        request: Request<DropBroadcastsRequest>,
    ) -> Result<Response<DropBroadcastsResponse>, Status> {
        let broadcasts = self.broadcasts()?;
        for key in request.into_inner().keys {
            broadcasts.drop_key(&key);
        }
        Ok(Response::new(DropBroadcastsResponse {}))
    }

    async fn probe(
        &self,
        request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let runtime = Arc::clone(self.state.runtime_env());
        let answer =
            crate::probe::probe(&self.id, &self.peers, &runtime, request.into_inner()).await;
        Ok(Response::new(answer))
    }
}
