//! One task from its first attempt to its result: where it runs, when it runs again, which attempt counts.

use crate::events::{EventKind, Severity};
use crate::jobs::model::{
    self, AttemptRecord, JobError, JobKind, MAX_ATTEMPTS_KEPT, Outcome, now_ms,
};
use crate::plan::shape;
use crate::plan::stage::Stage;
use crate::registry::{RunningTask, Slot};
use crate::scheduler::spool::{Spool, SpoolWriter};
use crate::scheduler::{Pace, Stages, TaskFacts};
use crate::shares::{Place, Wanted};
use datafusion::execution::TaskContext;
use datafusion_proto::bytes::physical_plan_to_bytes_with_extension_codec;
use essaim_common::bad_records::MAX_BAD_RECORDS;
use essaim_common::codec::EssaimCodec;
use essaim_common::ipc::Decoder;
use essaim_common::{Error, Result, trace};
use essaim_proto::v1::run_response::Part;
use essaim_proto::v1::{RunRequest, TaskProgress};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Code, Request, Status};
use tracing::{Instrument, Span};

/// A worker that says nothing for so long, not even how far it is, is taken for stuck.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a task rests after its first failure; twice as long after each other one.
const BACK_OFF: Duration = Duration::from_millis(200);
/// How often a running task is compared with the others.
const STRAGGLER_CHECK: Duration = Duration::from_millis(250);

/// All attempts of one stage.
#[derive(Debug)]
pub(crate) struct Attempts {
    stages: Arc<Stages>,
    stage: Arc<Stage>,
    ctx: Arc<TaskContext>,
    /// The number of this run of the stage.
    run: u64,
    pace: Pace,
}

/// An attempt that did not succeed.
struct Failure {
    worker: Option<String>,
    /// The worker died: no fault of the task, so far as one can tell.
    lost: bool,
    error: Error,
}

impl Attempts {
    pub(crate) fn new(
        stages: Arc<Stages>,
        stage: Arc<Stage>,
        ctx: Arc<TaskContext>,
        run: u64,
    ) -> Self {
        Self {
            stages,
            stage,
            ctx,
            run,
            pace: Pace::default(),
        }
    }

    /// Runs task `partition` until one attempt succeeds or too many have failed.
    pub(crate) async fn run(&self, partition: usize) -> Result<(Spool, TaskFacts)> {
        let settings = &self.stages.settings;
        let mut avoid: Vec<String> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut started = 1;
        let (mut failed, mut lost) = (0, 0);
        running.push(self.attempt(partition, started, Duration::ZERO, avoid.clone()));
        loop {
            tokio::select! {
                Some(outcome) = running.next() => match outcome {
                    Ok(result) => return Ok(result),
                    Err(failure) => {
                        let error = failure.error;
                        // Without a worker another attempt would have none either.
                        if failure.worker.is_none() {
                            if running.is_empty() {
                                return Err(error);
                            }
                            continue;
                        }
                        // Deaths count apart: a task that kills its workers must come to an end too.
                        if failure.lost { lost += 1 } else { failed += 1 }
                        avoid.extend(failure.worker);
                        if !error.is_transient() {
                            return Err(error);
                        }
                        if failed.max(lost) >= settings.max_attempts.max(1) {
                            return Err(error.context(format!(
                                "task {partition} of stage {} ({}) failed {failed} times and lost its worker {lost} times (essaim.max_attempts is {}), the last time",
                                self.stage.id,
                                self.stage.task_label(partition),
                                settings.max_attempts
                            )));
                        }
                        if running.is_empty() {
                            started += 1;
                            // What is out of reach now may be back in a moment.
                            let pause = BACK_OFF * 2_u32.saturating_pow(failed.min(8) as u32) / 2;
                            let pause = if failure.lost { Duration::ZERO } else { pause };
                            running.push(self.attempt(partition, started, pause, avoid.clone()));
                        }
                    }
                },
                straggler = self.straggles(partition), if settings.speculation && running.len() == 1 => {
                    avoid.push(straggler);
                    started += 1;
                    running.push(self.attempt(partition, started, Duration::ZERO, avoid.clone()));
                }
            }
        }
    }

    /// Returns the worker of a running attempt once it takes much longer than the other tasks did.
    async fn straggles(&self, partition: usize) -> String {
        let mut checks = tokio::time::interval(STRAGGLER_CHECK);
        loop {
            checks.tick().await;
            let multiplier = self.stages.settings.speculation_multiplier;
            let Some(limit) = self.pace.limit(self.stage.tasks(), multiplier) else {
                continue;
            };
            let running = self.stages.job.read(|record| {
                let query = record.queries.get(self.stages.query)?;
                let stage = query.stages.iter().find(|s| s.id == self.stage.id)?;
                stage
                    .attempts
                    .iter()
                    .find(|a| a.task as usize == partition && a.outcome == Outcome::Running)
                    .map(|a| (a.worker.clone(), a.started_ms))
            });
            if let Some((worker, started_ms)) = running {
                // With one worker there is nobody to be faster.
                if now_ms() - started_ms > limit.as_millis() as i64
                    && self.stages.registry.workers().len() > 1
                {
                    return worker;
                }
            }
        }
    }

    async fn attempt(
        &self,
        partition: usize,
        number: u32,
        pause: Duration,
        avoid: Vec<String>,
    ) -> Result<(Spool, TaskFacts), Failure> {
        let span = tracing::error_span!(
            "attempt",
            query = self.stages.query,
            stage = self.stage.id,
            task = partition,
            attempt = number,
            worker = tracing::field::Empty,
        );
        self.attempt_in_span(partition, number, pause, avoid)
            .instrument(span)
            .await
    }

    async fn attempt_in_span(
        &self,
        partition: usize,
        number: u32,
        pause: Duration,
        avoid: Vec<String>,
    ) -> Result<(Spool, TaskFacts), Failure> {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let job = self.stages.job.id();
        let registry = &self.stages.registry;
        let timeout = Duration::from_secs(self.stages.settings.worker_timeout_s);
        let streaming = self.stages.job.read(|record| record.kind) == JobKind::Streaming;
        let wanted = Wanted {
            job: job.clone(),
            streaming,
            limit: self.stages.settings.slot_limit(),
            place: Place::Avoiding(avoid),
        };
        let slot = tokio::select! {
            slot = registry.slot(wanted) => slot,
            error = registry.deserted(timeout) => Err(error),
        };
        let slot = slot.map_err(|error| Failure {
            worker: None,
            lost: false,
            // A streaming job waits for workers, however long they are away.
            error: if streaming {
                Error::unavailable(error.to_string())
            } else {
                error
            },
        })?;
        Span::current().record("worker", slot.worker());
        if number == 1 {
            self.pace.start();
        }
        let started = Instant::now();
        let split = self.stage.task_label(partition);
        slot.runs(RunningTask {
            job_name: self.stages.job.read(|record| record.name.clone()),
            job: job.clone(),
            query: self.stages.query as u32,
            stage: self.stage.id,
            task: partition as u32,
            attempt: number,
            split: split.clone(),
            started_ms: now_ms(),
        });
        let mut record = Record::new(self, partition, number, slot.worker(), split);
        let name = format!(
            "{job}/{}/{}/{partition}/{number}",
            self.stages.query, self.stage.id
        );
        let outcome = tokio::select! {
            outcome = self.call(&slot, partition, name, &mut record) => outcome,
            () = slot.lost() => Err(Error::unavailable(format!("worker {} was lost", slot.worker()))),
        };
        match outcome {
            Ok(result) => {
                self.pace.done(started.elapsed());
                record.end(Outcome::Succeeded, "");
                Ok(result)
            }
            Err(error) => {
                let lost = error.is_transient()
                    && (slot.is_lost() || !registry.probe(slot.worker()).await);
                let outcome = if lost { Outcome::Lost } else { Outcome::Failed };
                tracing::warn!(%error, ?outcome, "an attempt at a task ended");
                record.end(outcome, &error.to_string());
                self.tell_failure(partition, number, slot.worker(), &error);
                Err(Failure {
                    worker: Some(slot.worker().to_owned()),
                    lost,
                    error,
                })
            }
        }
    }

    /// Keeps the error with the job.
    fn tell_failure(&self, partition: usize, number: u32, worker: &str, error: &Error) {
        let (job, stage) = (&self.stages.job, self.stage.id);
        let what = format!("attempt {number} of task {partition} of stage {stage} on {worker}");
        job.record_error(JobError::now(format!("{what}: {error}")));
        let message = format!("{what} failed: {error}");
        job.event(
            EventKind::TaskFailed,
            Severity::Warning,
            Some(worker),
            message,
        );
    }

    /// The call itself: everything that the worker sends, kept until its last word.
    async fn call(
        &self,
        slot: &Slot,
        partition: usize,
        task: String,
        record: &mut Record<'_>,
    ) -> Result<(Spool, TaskFacts)> {
        let request = RunRequest {
            task,
            plan: physical_plan_to_bytes_with_extension_codec(
                self.stage.task_plan(partition)?,
                &EssaimCodec,
            )?,
            partition: partition as u32,
            settings: self.stages.worker_settings.clone(),
            epoch: self.stages.epoch.clone(),
        };
        let mut client = slot.client();
        self.stages
            .deliver(&self.stage, slot.worker(), &mut client)
            .await?;
        let silent = || {
            Error::unavailable(format!(
                "worker {} has said nothing for {} s",
                slot.worker(),
                SILENCE.as_secs()
            ))
        };
        let mut request = Request::new(request);
        trace::inject(request.metadata_mut());
        let mut responses = tokio::time::timeout(SILENCE, client.run(request))
            .await
            .map_err(|_| silent())?
            .map_err(from_worker)?
            .into_inner();
        let mut decoder = Decoder::default();
        let mut spool = SpoolWriter::new(self.stage.plan.schema(), self.ctx.runtime_env());
        loop {
            let response = tokio::time::timeout(SILENCE, responses.message())
                .await
                .map_err(|_| silent())?
                .map_err(from_worker)?;
            match response.and_then(|response| response.part) {
                Some(Part::ArrowIpc(chunk)) => {
                    for batch in decoder.decode(chunk)? {
                        spool.push(batch).await?;
                    }
                }
                Some(Part::Progress(progress)) => record.progress(&progress),
                Some(Part::Done(done)) => {
                    record.progress(&done.progress.unwrap_or_default());
                    let rows = shape::of_task(&self.stage, partition, &done.node_rows);
                    let facts = TaskFacts::from(done);
                    // The call is read to its end: one that is dropped before counts as reset, and a connection bears
                    // only so many of those. The result is complete already, whatever comes.
                    while let Ok(Ok(Some(_))) =
                        tokio::time::timeout(SILENCE, responses.message()).await
                    {
                    }
                    let spool = spool.finish()?;
                    // The stages of an epoch belong to all INSERTs.
                    let query = self.stages.epoch.is_none().then_some(self.stages.query);
                    let place = model::Place::Stage(self.stage.id);
                    self.stages.job.add_rows(query, place, &rows);
                    return Ok((spool, facts));
                }
                Some(Part::BadRecords(bad)) => {
                    for record in bad.records.into_iter().take(MAX_BAD_RECORDS) {
                        let partition = format!("{}[{}]", record.topic, record.partition);
                        let table = self.stage.table_of(&partition);
                        let error = JobError::of_record(record, table);
                        self.stages.job.record_error(error);
                    }
                }
                None => {
                    return Err(Error::unavailable(format!(
                        "worker {} ended a task without a last word",
                        slot.worker()
                    )));
                }
            }
        }
    }
}

/// What a call to a worker ends with. Nobody but the master cancels a task, so a call that was cancelled from without
/// is one whose connection broke.
pub(super) fn from_worker(status: Status) -> Error {
    match status.code() {
        Code::Cancelled => Error::unavailable(format!("the call broke off: {}", status.message())),
        _ => status.into(),
    }
}

/// The attempt's entry in the job's record. An attempt that is dropped was superseded by a faster one, or cancelled.
struct Record<'a> {
    attempts: &'a Attempts,
    /// Where the entry stands, if it was kept.
    position: Option<usize>,
    counted: TaskProgress,
    ended: bool,
}

impl<'a> Record<'a> {
    fn new(
        attempts: &'a Attempts,
        partition: usize,
        number: u32,
        worker: &str,
        split: String,
    ) -> Self {
        let position = attempts.update(|stage| {
            stage.tasks_running += 1;
            if stage.attempts.len() >= MAX_ATTEMPTS_KEPT {
                return None;
            }
            stage.attempts.push(AttemptRecord {
                task: partition as u32,
                attempt: number,
                worker: worker.to_owned(),
                outcome: Outcome::Running,
                reason: String::new(),
                started_ms: now_ms(),
                ended_ms: 0,
                rows_in: 0,
                split,
            });
            Some(stage.attempts.len() - 1)
        });
        Self {
            attempts,
            position,
            counted: TaskProgress::default(),
            ended: false,
        }
    }

    /// Counts what is new since the last time.
    fn progress(&mut self, now: &TaskProgress) {
        let before = std::mem::replace(&mut self.counted, *now);
        let position = self.position;
        self.attempts.update(|stage| {
            stage.rows_in += now.rows_in - before.rows_in;
            stage.bytes_in += now.bytes_in - before.bytes_in;
            stage.records_skipped += now.records_skipped - before.records_skipped;
            stage.records_dead_lettered += now.records_dead_lettered - before.records_dead_lettered;
            if let Some(attempt) = position.and_then(|at| stage.attempts.get_mut(at)) {
                attempt.rows_in = now.rows_in;
            }
        });
    }

    fn end(&mut self, outcome: Outcome, reason: &str) {
        self.ended = true;
        let counted = self.counted;
        let meter = self.attempts.stages.job.meter();
        meter.attempt(outcome);
        if outcome == Outcome::Succeeded {
            meter.input_bytes.add(counted.bytes_in);
            // An epoch is counted when it is committed: it may be read several times.
            if self.attempts.stages.epoch.is_none() {
                meter.input_rows.add(counted.rows_in);
                meter.records_skipped.add(counted.records_skipped);
                meter
                    .records_dead_lettered
                    .add(counted.records_dead_lettered);
            }
        }
        let position = self.position;
        self.attempts.update(|stage| {
            stage.tasks_running -= 1;
            if outcome == Outcome::Succeeded {
                stage.tasks_done += 1;
            } else {
                if matches!(outcome, Outcome::Failed | Outcome::Lost) {
                    stage.tasks_failed += 1;
                }
                // Only winning attempts count.
                stage.rows_in -= counted.rows_in;
                stage.bytes_in -= counted.bytes_in;
                stage.records_skipped -= counted.records_skipped;
                stage.records_dead_lettered -= counted.records_dead_lettered;
            }
            if let Some(attempt) = position.and_then(|at| stage.attempts.get_mut(at)) {
                attempt.outcome = outcome;
                attempt.reason = reason.to_owned();
                attempt.ended_ms = now_ms();
            }
        });
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Superseded, "");
        }
    }
}

impl Attempts {
    /// Changes the stage's record, unless that is of a later run by now.
    fn update<T: Default>(&self, change: impl FnOnce(&mut model::StageRecord) -> T) -> T {
        let run = self.run;
        let change = |record: &mut model::StageRecord| {
            if record.run == run {
                change(record)
            } else {
                T::default()
            }
        };
        self.stages
            .job
            .update_stage(self.stages.query, self.stage.id, change)
    }
}
