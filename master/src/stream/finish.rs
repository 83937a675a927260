//! The second half of an epoch: the plan above the cut over what the tasks sent and the state, the sinks' commits, and
//! then the state as it is now.

use crate::Shared;
use crate::jobs::handle::JobHandle;
use crate::jobs::model::{EpochProgress, Place, QueryProgress};
use crate::plan::shape;
use crate::scheduler::TaskFacts;
use crate::stream::SharedCheckpoint;
use crate::stream::checkpoint::EpochCommit;
use crate::stream::context::{EpochContext, States};
use crate::stream::failures::Waits;
use crate::stream::forget::Forgetter;
use crate::stream::plan::Insert;
use crate::stream::read::{Epoch, Job, ms};
use crate::stream::state::Snapshot;
use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::stream::OutputMode;
use essaim_common::{Error, Result};
use futures::future::join_all;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a job's totals are stored.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Finishes epochs, one after the other.
pub struct Finisher {
    pub(super) shared: Arc<Shared>,
    pub(super) job: Arc<Job>,
    pub(super) checkpoint: SharedCheckpoint,
    pub(super) states: Arc<States>,
    /// By INSERT: the last epoch that its sink has committed, as far as is known.
    pub(super) committed: BTreeMap<u32, u64>,
    pub(super) max_state_bytes: u64,
    /// For sources with a journal.
    pub(super) forgetter: Option<Forgetter>,
    /// When the job's record, with its totals, was last stored.
    pub(super) saved: Instant,
}

impl Finisher {
    /// Sees an epoch to its end. After an error the epoch is read and finished again: state is as it was.
    ///
    /// # Errors
    /// A sink refuses the rows or is out of reach; the state grows too large; the state dir is out of reach.
    pub async fn finish(&mut self, epoch: &mut Epoch) -> Result<()> {
        let number = epoch.plan.epoch;
        let started = Instant::now();
        let inputs = epoch
            .inputs
            .take()
            .ok_or_else(|| Error::internal("an epoch is finished twice"))?;
        let context = Arc::new(EpochContext::new(
            number,
            epoch.plan.time_ms,
            epoch.watermarks.clone(),
            Arc::clone(&self.states),
        ));
        let state = self.job.planner.state();
        let config = state
            .config()
            .clone()
            .with_extension(inputs)
            .with_extension(Arc::clone(&context));
        let ctx = Arc::new(TaskContext::from(&state).with_session_config(config));
        let runs = self.job.plan.inserts.iter().map(|insert| {
            let done = self.committed.get(&insert.index).copied();
            run(&self.job.handle, insert, number, done, Arc::clone(&ctx))
        });
        // All to their ends: a sink whose commit is broken off in the middle would have to find out what became of it.
        let runs = join_all(runs).await.into_iter();
        let written = runs.collect::<Result<BTreeMap<u32, u64>>>()?;
        let committed = written.keys().map(|insert| (*insert, number));
        self.committed.extend(committed);
        let pending = context.take_pending();
        let deltas = pending
            .iter()
            .filter(|(_, delta)| !delta.is_empty())
            .map(|(operator, delta)| Ok((operator.clone(), delta.encode()?)))
            .collect::<Result<Vec<_>>>()?;
        self.states.apply(&pending)?;
        epoch.durations_ms.insert("process".to_owned(), ms(started));
        self.check_size()?;
        let waited = Instant::now();
        let mut progress = self.progress(epoch, &written);
        let commit = EpochCommit {
            epoch: number,
            max_event_times: epoch
                .times
                .iter()
                .map(|(table, times)| (table.clone(), times.latest.clone()))
                .collect(),
            watermarks: epoch
                .times
                .iter()
                .filter_map(|(table, times)| Some((table.clone(), times.watermark?)))
                .collect(),
            offsets: epoch
                .plan
                .tables
                .iter()
                .map(|(table, read)| (table.clone(), read.end.clone()))
                .collect(),
            progress: serde_json::json!({
                "epoch": progress,
                "totals": self.job.handle.read(|record| record.totals_with(&progress)),
            }),
        };
        self.keep(&commit, deltas).await?;
        if let Some(forgetter) = &self.forgetter {
            forgetter.committed(&commit.offsets);
        }
        progress
            .durations_ms
            .insert("checkpoint".to_owned(), ms(waited));
        progress.duration_ms = ms(epoch.started);
        self.job.handle.record_epoch(progress);
        if self.saved.elapsed() >= SAVE_EVERY {
            self.saved = Instant::now();
            if let Err(error) = self.shared.jobs.save(&self.job.handle).await {
                tracing::warn!(job = %self.job.handle.id(), %error, "the job's totals are not stored");
            }
        }
        Ok(())
    }

    /// Hands the epoch to the checkpoint. The state is changed already, so this is tried until it works: a full disk
    /// stops the epochs here, and nothing is lost but time.
    async fn keep(&self, commit: &EpochCommit, deltas: Vec<(String, Bytes)>) -> Result<()> {
        let mut waits = Waits::EPOCHS;
        loop {
            let mut checkpoint = self.checkpoint.lock().await;
            match checkpoint.commit(commit, deltas.clone()).await {
                Ok(()) => {
                    if checkpoint.snapshot_due() {
                        let states = self.states.snapshot();
                        // The epoch is kept already, and the commits do without a snapshot.
                        if let Err(error) = checkpoint.snapshot(move || encode(states)).await {
                            tracing::warn!(job = %self.job.handle.id(), %error, "no snapshot of the state is written");
                        }
                    }
                    waits.over(&self.job.handle);
                    return Ok(());
                }
                Err(error) if error.is_transient() => {
                    drop(checkpoint);
                    waits.next(&self.job.handle, &error).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn check_size(&self) -> Result<()> {
        let inserts = self.job.plan.inserts.iter();
        let bytes: u64 = inserts
            .map(|insert| self.states.size(insert.index).bytes as u64)
            .sum();
        if bytes > self.max_state_bytes {
            return Err(Error::exhausted(format!(
                "the state has {} MiB, more than essaim.max_state_bytes ({} MiB) allows: shorten windows or watermark_delay, set essaim.state_ttl, or allow for more",
                bytes >> 20,
                self.max_state_bytes >> 20
            )));
        }
        Ok(())
    }

    /// The end: waits until the last epoch is in the checkpoint, and until sources have cleaned up.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn flush(&mut self) -> Result<()> {
        self.checkpoint.lock().await.flush().await?;
        if let Some(forgetter) = self.forgetter.take() {
            forgetter.finish().await;
        }
        Ok(())
    }

    fn progress(&self, epoch: &Epoch, written: &BTreeMap<u32, u64>) -> EpochProgress {
        let counted = &epoch.facts.progress;
        let queries = self.job.plan.inserts.iter().map(|insert| {
            let watermark = epoch.watermarks.get(&insert.index).map(|marks| marks.now);
            let size = self.states.size(insert.index);
            QueryProgress {
                index: insert.index,
                sink: insert.table.clone(),
                output_mode: insert.mode.as_str().to_owned(),
                output_rows: written.get(&insert.index).copied().unwrap_or_default(),
                late_rows: late_rows(&epoch.facts, insert),
                watermark_ms: watermark.filter(|watermark| *watermark > i64::MIN),
                state_rows: size.rows as u64,
                state_bytes: size.bytes as u64,
            }
        });
        EpochProgress {
            epoch: epoch.plan.epoch,
            started_ms: epoch.started_ms,
            duration_ms: ms(epoch.started),
            input_rows: counted.rows_in,
            records_skipped: counted.records_skipped,
            records_dead_lettered: counted.records_dead_lettered,
            sources: epoch.sources.clone(),
            queries: queries.collect(),
            durations_ms: epoch.durations_ms.clone(),
            retries: epoch.retries,
        }
    }
}

/// Rows that came too late for an INSERT: those that its own filter dropped, and those that its sources put aside.
fn late_rows(facts: &TaskFacts, insert: &Insert) -> u64 {
    let dropped = facts.late_rows.get(&insert.index).copied();
    let put_aside = insert
        .tables
        .iter()
        .filter_map(|table| facts.late_in_source.get(table));
    dropped.unwrap_or_default() + put_aside.sum::<u64>()
}

/// All states in chunks, by operator. Takes a while: not for an async thread.
fn encode(states: BTreeMap<String, Snapshot>) -> Result<Vec<(String, Vec<Bytes>)>> {
    states
        .into_iter()
        .map(|(operator, state)| Ok((operator, state.encode()?.collect::<Result<_>>()?)))
        .collect()
}

/// Runs the upper half of one INSERT, and hands its rows to the sink unless that has committed the epoch before.
async fn run(
    job: &JobHandle,
    insert: &Insert,
    epoch: u64,
    committed: Option<u64>,
    ctx: Arc<TaskContext>,
) -> Result<(u32, u64)> {
    let named = |error: Error| error.context(format!("INSERT INTO {}", insert.table));
    let plan = reset_plan_states(Arc::clone(&insert.upper.plan))?;
    let mut rows = execute_stream(Arc::clone(&plan), ctx)?;
    if committed.is_some_and(|committed| committed >= epoch) {
        drain(&mut rows).await.map_err(named)?;
        return Ok((insert.index, 0));
    }
    let schema = rows.schema();
    let first = loop {
        match rows.next().await.transpose().map_err(|e| named(e.into()))? {
            Some(batch) if batch.num_rows() == 0 => {}
            other => break other,
        }
    };
    // An epoch without rows is not committed: run again it has none either. A complete result without rows is one.
    if first.is_none() && insert.mode != OutputMode::Complete {
        return Ok((insert.index, 0));
    }
    let rest = Arc::new(Mutex::new(rows));
    let rows = Taken {
        first,
        rest: Arc::clone(&rest),
    };
    let rows = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
    let written = insert.sink.commit(epoch, rows).await.map_err(named)?;
    // A sink that found the epoch committed has read nothing; the operators must have come to their ends all the same.
    if let Some(rest) = Arc::into_inner(rest) {
        drain(&mut rest.into_inner()).await.map_err(named)?;
    }
    let index = insert.index as usize;
    job.add_rows(Some(index), Place::Master, &shape::counted(&plan));
    job.update_query(index, |query| {
        shape::add_sink_rows(&mut query.plan, written);
    });
    Ok((insert.index, written))
}

async fn drain(rows: &mut SendableRecordBatchStream) -> Result<()> {
    while let Some(batch) = rows.next().await {
        batch?;
    }
    Ok(())
}

/// Rows of which the first batch has been taken off, and whose rest can be taken back.
struct Taken {
    first: Option<RecordBatch>,
    rest: Arc<Mutex<SendableRecordBatchStream>>,
}

impl Stream for Taken {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(batch) => std::task::Poll::Ready(Some(Ok(batch))),
            None => self.rest.lock().poll_next_unpin(cx),
        }
    }
}
