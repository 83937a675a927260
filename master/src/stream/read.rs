//! The first half of an epoch: what to read, written down before it is read, and the tasks that read it.

use crate::Shared;
use crate::events::{EventKind, Severity};
use crate::jobs::handle::JobHandle;
use crate::jobs::model::{JobError, SourceProgress, now_ms};
use crate::plan::Planner;
use crate::scheduler::{Stages, TaskFacts};
use crate::stream::SharedCheckpoint;
use crate::stream::checkpoint::{EpochPlan, TablePlan};
use crate::stream::context::Watermarks;
use crate::stream::failures::{InARow, Waits};
use crate::stream::input::{Input, InputId, Inputs};
use crate::stream::pace::{self, Pace};
use crate::stream::plan::StreamPlan;
use crate::stream::statics::{Held, Tables};
use crate::stream::watermark::{self, Idleness, TableTimes};
use arrow::array::RecordBatch;
use datafusion::execution::TaskContext;
use essaim_common::connector::Split;
use essaim_common::outputs::split_outputs;
use essaim_common::scan::EventTimes;
use essaim_common::stream::{Available, Offsets};
use essaim_common::{Error, Result};
use essaim_proto::v1::EpochParams;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{Instrument, Span};

/// With the trigger '0', how long to wait before a look at sources that had nothing new: ever longer.
const IDLE_LEAST: Duration = Duration::from_millis(5);
const IDLE_MOST: Duration = Duration::from_millis(100);
/// Tasks of a large epoch for each slot: more balance better. A small one has one for each slot, as tasks cost more than
/// their rows.
const TASKS_PER_SLOT: usize = 2;
/// Offsets of a small epoch.
const SMALL: u64 = 50_000;

/// When epochs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// So often; 0 for as fast as it goes.
    Every(Duration),
    /// Until everything that was there at the start has been read.
    AvailableNow,
}

/// What all epochs of a run share.
#[derive(Debug)]
pub struct Job {
    pub handle: Arc<JobHandle>,
    pub planner: Arc<Planner>,
    pub plan: StreamPlan,
}

/// Plans and reads epochs.
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) job: Arc<Job>,
    pub(super) checkpoint: SharedCheckpoint,
    pub(super) trigger: Trigger,
    pub(super) next_epoch: u64,
    /// Where the next epoch starts, by table.
    pub(super) positions: BTreeMap<String, Offsets>,
    pub(super) times: BTreeMap<String, TableTimes>,
    pub(super) idleness: BTreeMap<String, Idleness>,
    /// Epochs that were planned before a failure: they are read as planned.
    pub(super) planned: VecDeque<EpochPlan>,
    pub(super) pace: Pace,
    pub(super) tables: Tables,
    /// With [`Trigger::AvailableNow`]: where to end.
    pub(super) target: Option<BTreeMap<String, Offsets>>,
    pub(super) last_start: Option<Instant>,
    pub(super) idle: Duration,
    /// Whether the last epoch left something behind only because it would have been too large: no reason to wait for
    /// the trigger.
    pub(super) behind: bool,
    /// What the job's message says of a source that brings nothing.
    pub(super) trouble: Option<String>,
    pub(super) failures: InARow,
    /// The last look at the sources failed.
    pub(super) stumbled: bool,
}

/// An epoch that has been read.
pub struct Epoch {
    pub plan: EpochPlan,
    pub params: EpochParams,
    /// By INSERT.
    pub watermarks: BTreeMap<u32, Watermarks>,
    /// What is known of event time once this epoch is over.
    pub times: BTreeMap<String, TableTimes>,
    pub inputs: Option<Arc<Inputs>>,
    pub facts: TaskFacts,
    /// By table.
    pub sources: Vec<SourceProgress>,
    pub started: Instant,
    pub started_ms: i64,
    pub durations_ms: BTreeMap<String, f64>,
    pub retries: u32,
    /// Around everything that the epoch does; a trace of its own.
    pub span: Span,
    job: Arc<Job>,
    held: Arc<Held>,
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Epoch({})", self.plan.epoch)
    }
}

pub(super) fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

impl Reader {
    /// Whether the job has to be planned anew: the tables that its streams are joined with have changed so much that
    /// the INSERTs would be planned otherwise now.
    pub fn is_outdated(&self) -> bool {
        self.tables.outdated
    }

    /// How often an epoch may fail in a row.
    pub fn max_epoch_attempts(&self) -> usize {
        self.job.planner.settings().max_epoch_attempts
    }

    /// Reads the next epoch, once there is something to read. `None` when there will be nothing more. May be called
    /// again after an error, and after it was dropped while it waited: a planned epoch is kept.
    ///
    /// # Errors
    /// A source or the state dir is out of reach; a task failed too often.
    pub async fn next(&mut self) -> Result<Option<Epoch>> {
        let mut durations = BTreeMap::new();
        let new = match self.planned.front() {
            Some(_) => None,
            None => match self.plan(&mut durations).await? {
                Some(plan) => Some(plan),
                None => return Ok(None),
            },
        };
        let number = self.planned.front().or(new.as_ref()).map(|plan| plan.epoch);
        let span = tracing::error_span!(parent: None, "epoch", job = %self.job.handle.id(), epoch = number);
        self.read(new, durations).instrument(span).await
    }

    /// Writes down what the next epoch reads, if that is `new`, and reads it.
    async fn read(
        &mut self,
        new: Option<EpochPlan>,
        mut durations: BTreeMap<String, f64>,
    ) -> Result<Option<Epoch>> {
        if let Some(plan) = new {
            let started = Instant::now();
            let write = self.write_plan(plan);
            let plan = write
                .instrument(tracing::error_span!("write_offsets"))
                .await?;
            durations.insert("write_offsets".to_owned(), ms(started));
            self.planned.push_back(plan);
        }
        let Some(plan) = self.planned.front().cloned() else {
            return Ok(None);
        };
        let started = Instant::now();
        let started_ms = now_ms();
        self.job.handle.vitals().epoch_began(plan.epoch);
        if self.job.plan.has_statics && self.shared.registry.slots() == 0 {
            wait_for_worker(&self.shared, &self.job).await?;
        }
        let held = self.tables.held(&self.shared, &self.job).await?;
        if self.job.plan.has_statics {
            durations.insert("static_tables".to_owned(), ms(started));
        }
        let before = self.times.clone();
        let params = self.params(plan.epoch, &before);
        let tasks = Instant::now();
        let (inputs, facts) = read(&self.shared, &self.job, &plan, &params, &held).await?;
        durations.insert("tasks".to_owned(), ms(tasks));
        // Nothing fails from here on: the reader moves on to the next epoch.
        self.planned.pop_front();
        self.next_epoch = plan.epoch + 1;
        for (table, read) in &plan.tables {
            self.positions.insert(table.clone(), read.end.clone());
            if let Some(source) = self.job.plan.sources.get(table) {
                let times = self.times.entry(table.clone()).or_default();
                let none = EventTimes::new();
                let seen = facts.event_times.get(table).unwrap_or(&none);
                times.advance(seen, &read.end, &read.idle, &source.options());
            }
        }
        let offsets = plan
            .tables
            .values()
            .map(|read| pace::distance(&read.start, &read.end))
            .sum();
        self.pace
            .learn(offsets, started.elapsed(), self.finishing());
        let watermarks = self.job.plan.inserts.iter().map(|insert| {
            let of = |times| watermark::of_tables(times, &insert.tables);
            let marks = Watermarks {
                before: of(&before),
                now: of(&self.times),
            };
            (insert.index, marks)
        });
        let watermarks = watermarks.collect();
        let since = self.last_start.replace(started);
        let sources = self.progress(&plan, since.map(|last| started - last), started);
        Ok(Some(Epoch {
            plan,
            params,
            watermarks,
            times: self.times.clone(),
            inputs: Some(Arc::new(inputs)),
            facts,
            sources,
            started,
            started_ms,
            durations_ms: durations,
            retries: 0,
            span: Span::current(),
            job: Arc::clone(&self.job),
            held,
        }))
    }

    /// Writes a plan down. A full disk or an unreachable state dir stops the epochs here until it is gone.
    async fn write_plan(&self, plan: EpochPlan) -> Result<EpochPlan> {
        let mut waits = Waits::EPOCHS;
        loop {
            let written = async {
                // An old master that wakes up stops here at the latest.
                self.shared.jobs.check_fence().await?;
                self.checkpoint.lock().await.write_plan(&plan).await
            };
            match written.await {
                Err(error) if error.is_transient() => waits.next(&self.job.handle, &error).await,
                written => {
                    waits.over(&self.job.handle);
                    return written;
                }
            }
        }
    }

    /// How long the last epoch took to finish.
    fn finishing(&self) -> Duration {
        let ms = self.job.handle.read(|record| {
            let last = record.epochs.back()?;
            last.durations_ms.get("process").copied()
        });
        Duration::from_secs_f64(ms.unwrap_or_default() / 1000.0)
    }

    fn params(&self, epoch: u64, before: &BTreeMap<String, TableTimes>) -> EpochParams {
        let mut params = EpochParams {
            epoch,
            ..EpochParams::default()
        };
        let mut late_before: BTreeMap<&String, i64> = BTreeMap::new();
        for insert in &self.job.plan.inserts {
            let watermark = watermark::of_tables(before, &insert.tables);
            if watermark > i64::MIN {
                params.watermarks.insert(insert.index, watermark);
            }
            // Too late for every INSERT that reads the table, and for each row of it.
            let bound = insert.late_before(watermark);
            for table in &insert.tables {
                let least = late_before.entry(table).or_insert(bound);
                *least = bound.min(*least);
            }
        }
        let late_before = late_before
            .into_iter()
            .filter(|(_, bound)| *bound > i64::MIN);
        params.late_before = late_before.map(|(t, bound)| (t.clone(), bound)).collect();
        params
    }

    /// Waits for something to read, and says what the next epoch reads of it.
    async fn plan(&mut self, durations: &mut BTreeMap<String, f64>) -> Result<Option<EpochPlan>> {
        loop {
            self.wait_for_trigger().await;
            let looked = Instant::now();
            let available = match self.available().await {
                Ok(available) => available,
                Err(error) => {
                    self.stumbled = true;
                    return Err(error);
                }
            };
            // Nothing may come to read for hours, and no epoch would say that the outage is over.
            if std::mem::take(&mut self.stumbled) {
                self.failures.over(&self.job.handle);
            }
            durations.insert("latest_offsets".to_owned(), ms(looked));
            self.tell_trouble();
            let time_ms = now_ms();
            if self.trigger == Trigger::AvailableNow && self.target.is_none() {
                let latest = available.iter();
                self.target = Some(latest.map(|(t, a)| (t.clone(), a.latest.clone())).collect());
            }
            let limit = self.pace.limit();
            self.behind = false;
            let mut tables = BTreeMap::new();
            let mut rows = 0;
            let mut moves = false;
            for (table, available) in available {
                let Some(source) = self.job.plan.sources.get(&table) else {
                    continue;
                };
                let options = source.options();
                let idleness = self.idleness.entry(table.clone()).or_default();
                let times = self.times.entry(table.clone()).or_default();
                let never = |partition: &str| {
                    !times.latest.contains_key(partition)
                        && available.start.0.get(partition) == available.latest.0.get(partition)
                };
                let (start, latest) = (&available.start, &available.latest);
                let idle = idleness.look(start, latest, never, &options, time_ms);
                let until = match self.target.as_ref().and_then(|target| target.get(&table)) {
                    Some(target) => capped(latest, target),
                    None => latest.clone(),
                };
                let most = options.max_offsets_per_trigger.unwrap_or(limit);
                let end = pace::end(start, &until, most);
                let read = pace::distance(start, &end);
                self.behind |= options.max_offsets_per_trigger.is_none() && end != until;
                rows += read;
                let mut after = times.clone();
                after.advance(&BTreeMap::new(), &end, &idle, &options);
                moves |= after != *times || self.positions.get(&table) != Some(start);
                tables.insert(
                    table,
                    TablePlan {
                        start: available.start,
                        end,
                        latest: available.latest,
                        idle,
                        lost: available.lost,
                    },
                );
            }
            if rows == 0 && self.trigger == Trigger::AvailableNow {
                return Ok(None);
            }
            if rows == 0 && !moves {
                self.idle = (self.idle * 2).clamp(IDLE_LEAST, IDLE_MOST);
                continue;
            }
            self.idle = Duration::ZERO;
            return Ok(Some(EpochPlan {
                epoch: self.next_epoch,
                time_ms,
                tables,
            }));
        }
    }

    /// Says in the job's message which source brings nothing, and takes it back when it does.
    fn tell_trouble(&mut self) {
        let mut sources = self.job.plan.sources.iter();
        let now = sources.find_map(|(table, source)| {
            let why = source.trouble()?;
            Some(format!("table {table} brings nothing for now: {why}"))
        });
        if now == self.trouble {
            return;
        }
        if let (None, Some(why)) = (&self.trouble, &now) {
            let handle = &self.job.handle;
            handle.event(EventKind::SourceSilent, Severity::Warning, None, why);
            handle.record_error(JobError::now(why));
        }
        let message = now.clone().unwrap_or_default();
        self.job.handle.update(|record| record.message = message);
        self.trouble = now;
    }

    async fn wait_for_trigger(&mut self) {
        if self.behind {
            return;
        }
        let every = match self.trigger {
            Trigger::Every(every) if every > Duration::ZERO => every,
            _ => {
                tokio::time::sleep(self.idle).await;
                return;
            }
        };
        // Spark's rule: at multiples of the interval after the last start, and at once if that has passed.
        if let Some(last) = self.last_start {
            let due = last + every;
            tokio::time::sleep_until(due.into()).await;
            if self.idle > Duration::ZERO {
                tokio::time::sleep(every.min(IDLE_MOST)).await;
            }
        } else if self.idle > Duration::ZERO {
            tokio::time::sleep(every.min(IDLE_MOST)).await;
        }
    }

    async fn available(&self) -> Result<BTreeMap<String, Available>> {
        let looks = self
            .job
            .plan
            .sources
            .iter()
            .map(|(table, source)| async move {
                let none = Offsets::default();
                let from = self.positions.get(table).unwrap_or(&none);
                let available = source
                    .available(from)
                    .await
                    .map_err(|e| e.context(format!("table {table}")))?;
                Ok::<_, Error>((table.clone(), available))
            });
        Ok(try_join_all(looks).await?.into_iter().collect())
    }

    fn progress(
        &self,
        plan: &EpochPlan,
        since_last: Option<Duration>,
        started: Instant,
    ) -> Vec<SourceProgress> {
        let per_second = |rows: u64, time: Duration| rows as f64 / time.as_secs_f64().max(1e-3);
        let sources = plan.tables.iter().map(|(table, read)| {
            let rows = pace::distance(&read.start, &read.end);
            SourceProgress {
                table: table.clone(),
                start: read.start.clone(),
                end: read.end.clone(),
                latest: read.latest.clone(),
                lag: pace::distance(&read.end, &read.latest),
                input_rows: rows,
                input_rows_per_second: since_last.map_or(0.0, |time| per_second(rows, time)),
                processed_rows_per_second: per_second(rows, started.elapsed()),
                watermark_ms: self.times.get(table).and_then(|times| times.watermark),
                lost: read.lost,
            }
        });
        sources.collect()
    }
}

/// `offsets`, none of them behind `target`; partitions that the target does not have are left where they start.
fn capped(offsets: &Offsets, target: &Offsets) -> Offsets {
    let capped = offsets.0.iter().filter_map(|(partition, offset)| {
        let target = target.0.get(partition)?;
        Some((partition.clone(), *offset.min(target)))
    });
    Offsets(capped.collect())
}

impl Epoch {
    /// Reads the epoch once more, exactly as it was planned.
    ///
    /// # Errors
    /// A task failed too often.
    pub async fn read_again(&mut self, shared: &Arc<Shared>) -> Result<()> {
        let (inputs, facts) = read(shared, &self.job, &self.plan, &self.params, &self.held).await?;
        self.inputs = Some(Arc::new(inputs));
        self.facts = facts;
        Ok(())
    }
}

/// Runs the tasks of an epoch.
async fn read(
    shared: &Arc<Shared>,
    job: &Arc<Job>,
    plan: &EpochPlan,
    params: &EpochParams,
    held: &Held,
) -> Result<(Inputs, TaskFacts)> {
    let inputs = Inputs::default();
    held.fill(&inputs);
    let settings = job.planner.settings();
    let slots = shared.registry.slots().min(settings.slot_limit()).max(1);
    let offsets: u64 = plan
        .tables
        .values()
        .map(|read| pace::distance(&read.start, &read.end))
        .sum();
    let tasks = if offsets <= SMALL {
        slots
    } else {
        slots * TASKS_PER_SLOT
    };
    let mut splits: HashMap<String, Vec<Arc<[Split]>>> = HashMap::new();
    for (table, read) in &plan.tables {
        let source = job.plan.sources.get(table).ok_or_else(|| {
            Error::internal(format!("an epoch of table {table}, which is not read"))
        })?;
        let found = source
            .splits(&read.start, &read.end, tasks)
            .map_err(|e| e.context(format!("table {table}")))?;
        splits.insert(table.clone(), grouped(found, tasks));
    }
    let stages = Stages::for_epoch(
        Arc::clone(&job.handle),
        Arc::clone(&shared.registry),
        settings,
        job.planner.changed_settings().clone(),
        params.clone(),
        &held.broadcasts,
    );
    let stop = StopOnDrop(Arc::clone(&stages));
    let state = job.planner.state();
    let config = state.config().clone().with_extension(Arc::clone(&stages));
    let ctx = Arc::new(TaskContext::from(&state).with_session_config(config));
    let runs = job.plan.stages.iter().map(|stage| {
        let has_splits = stage
            .tables
            .iter()
            .any(|table| splits.get(table).is_some_and(|groups| !groups.is_empty()));
        let of_epoch = stage.of_epoch(&splits, &held.keys);
        let (stages, ctx) = (Arc::clone(&stages), Arc::clone(&ctx));
        async move {
            if !has_splits {
                return Ok(None);
            }
            let spools = stages.run(&of_epoch?, &ctx).await?;
            Ok::<_, Error>(Some((stage, spools)))
        }
    });
    if plan.tables.values().any(|read| read.start != read.end) && shared.registry.slots() == 0 {
        wait_for_worker(shared, job).await?;
    }
    let outputs = try_join_all(runs).await?;
    for (stage, spools) in outputs.into_iter().flatten() {
        if let [input] = stage.inputs.as_slice() {
            inputs.put(*input, Input::Spools(spools));
            continue;
        }
        let mut outputs: HashMap<InputId, Vec<RecordBatch>> = HashMap::new();
        for spool in spools {
            let mut packed = spool.read();
            while let Some(batch) = packed.try_next().await? {
                for (output, batch) in split_outputs(&batch)? {
                    let input = stage
                        .inputs
                        .get(output)
                        .ok_or_else(|| Error::internal("a stage has an output too many"))?;
                    outputs.entry(*input).or_default().push(batch);
                }
            }
        }
        for (input, batches) in outputs {
            inputs.put(input, Input::Batches(batches.into()));
        }
    }
    let facts = stages.facts();
    drop(stop);
    Ok((inputs, facts))
}

/// Waits for a worker, without end: a stream goes on when one comes back.
///
/// # Errors
/// The job is to stop; another master has taken over, and the workers with it.
async fn wait_for_worker(shared: &Arc<Shared>, job: &Job) -> Result<()> {
    job.handle
        .update(|record| "waiting for a worker to register".clone_into(&mut record.message));
    loop {
        let waited = tokio::select! {
            waited = shared.registry.wait_for_worker(job.planner.worker_timeout()) => waited,
            () = job.handle.stop_requested() => {
                return Err(Error::unavailable("stopped while there was no worker"));
            }
        };
        let Err(error) = waited else { break };
        shared.jobs.check_fence().await?;
        tracing::warn!(job = %job.handle.id(), %error, "an epoch waits for a worker");
    }
    job.handle.update(|record| record.message.clear());
    Ok(())
}

/// Puts splits together into at most `most` groups of about equal size; each becomes one task.
fn grouped(splits: Vec<Split>, most: usize) -> Vec<Arc<[Split]>> {
    let count = splits.len().min(most.max(1));
    let mut groups: Vec<(u64, Vec<Split>)> = (0..count).map(|_| (0, Vec::new())).collect();
    let mut splits = splits;
    splits.sort_by_key(|split| std::cmp::Reverse(split.rows));
    for split in splits {
        // The largest first, each to the group that has least.
        if let Some((rows, group)) = groups.iter_mut().min_by_key(|(rows, _)| *rows) {
            *rows += split.rows.unwrap_or(1).max(1);
            group.push(split);
        }
    }
    groups.into_iter().map(|(_, group)| group.into()).collect()
}

/// Ends the tasks of an epoch that nobody waits for any more.
struct StopOnDrop(Arc<Stages>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The rows of a plan of the master, in memory.
pub(super) async fn collect(
    plan: &Arc<dyn datafusion::physical_plan::ExecutionPlan>,
    ctx: &Arc<TaskContext>,
) -> Result<Vec<RecordBatch>> {
    let mut rows = datafusion::physical_plan::execute_stream(Arc::clone(plan), Arc::clone(ctx))?;
    let mut batches = Vec::new();
    while let Some(batch) = rows.next().await {
        batches.push(batch?);
    }
    Ok(batches)
}
