//! Runs one planned query: starts it the way it was planned, counts its rows, ends what it started.

use crate::Shared;
use crate::events::{EventKind, Severity};
use crate::jobs::handle::JobHandle;
use crate::jobs::model::{JobError, Place};
use crate::plan::{Execution, Planner, Query, exchange, shape};
use crate::scheduler::Stages;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use essaim_common::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;

/// The fewest workers of an exchange: on a single one there is nothing to exchange, and the master would run all of it.
const EXCHANGING: usize = 2;
/// How long an exchange that broke waits for so many before it makes do with fewer.
const COMES_BACK: Duration = Duration::from_secs(10);

/// Ends the stages of a query when its rows are no longer wanted.
struct StopOnDrop(Arc<Stages>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Starts query number `index` of a job. The query runs while its rows are read and ends when they are dropped.
///
/// # Errors
/// There is no worker, or the plan does not start.
pub(crate) async fn start(
    shared: &Arc<Shared>,
    planner: &Arc<Planner>,
    job: &Arc<JobHandle>,
    index: usize,
    query: Query,
) -> Result<SendableRecordBatchStream> {
    let execution = match &query.execution {
        Execution::Tasks(_) => "tasks",
        Execution::Exchange { .. } => "exchange",
        Execution::Master(_) => "master",
        Execution::Stream(_) => {
            return Err(Error::invalid(
                "an INSERT that reads an UNBOUNDED table does not end by itself: submit it as a job (`essaim submit`)",
            ));
        }
    };
    let shown = shape::of_query(&query.execution);
    job.update_query(index, |record| {
        record.execution = execution.to_owned();
        record.plan = shown;
        record.sink = query.sink.clone().unwrap_or_default();
    });
    if !matches!(query.execution, Execution::Master(_)) {
        wait_for_worker(shared, planner, job).await?;
    }
    let is_insert = query.sink.is_some();
    let mut settings = planner.settings();
    let is_restartable = query.is_restartable();
    settings.speculation &= is_restartable;
    // What runs on the master, whose nodes count their rows.
    let mut upper = None;
    let rows = match query.execution {
        Execution::Master(plan) | Execution::Stream(plan) => {
            upper = Some(Arc::clone(&plan));
            execute_stream(plan, planner.state().task_ctx())?
        }
        Execution::Tasks(cut) => {
            let stages = Stages::new(
                Arc::clone(job),
                index,
                Arc::clone(&shared.registry),
                settings,
                planner.changed_settings().clone(),
            );
            let state = planner.state();
            let config = state.config().clone().with_extension(Arc::clone(&stages));
            let ctx = TaskContext::from(&state).with_session_config(config);
            let stop = StopOnDrop(stages);
            upper = Some(Arc::clone(&cut.upper));
            let rows = execute_stream(cut.upper, Arc::new(ctx))?;
            keep(rows, stop)
        }
        Execution::Exchange { .. } => {
            exchanged(
                Arc::clone(shared),
                Arc::clone(planner),
                Arc::clone(job),
                index,
                query.logical,
                is_restartable,
            )
            .await?
        }
    };
    let counted = Arc::clone(job);
    let ended = Arc::clone(job);
    let schema = rows.schema();
    let rows = rows
        .inspect_ok(move |batch| {
            let rows = if is_insert {
                committed(batch)
            } else {
                batch.num_rows() as u64
            };
            counted.update_query(index, |record| record.rows_out += rows);
            counted.meter().output_rows.add(rows);
            if is_insert {
                counted.meter().sink_commits.inc();
            }
        })
        .chain(futures::stream::poll_fn(move |_| {
            if let Some(upper) = upper.take() {
                ended.add_rows(Some(index), Place::Master, &shape::counted(&upper));
            }
            ended.update_query(index, |record| record.done = true);
            std::task::Poll::Ready(None)
        }));
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// The rows that an INSERT reports: `[count]`.
fn committed(batch: &arrow::array::RecordBatch) -> u64 {
    batch
        .column(0)
        .as_any()
        .downcast_ref::<arrow::array::UInt64Array>()
        .map_or(0, |counts| counts.iter().flatten().sum())
}

/// Rows that end `what` when they end.
fn keep<T: Send + 'static>(rows: SendableRecordBatchStream, what: T) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let rows = rows.inspect(move |_| {
        let _ = &what;
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// Says in the job's message what it is waiting for.
async fn wait_for_worker(
    shared: &Arc<Shared>,
    planner: &Planner,
    job: &Arc<JobHandle>,
) -> Result<()> {
    if shared.registry.slots() > 0 {
        return Ok(());
    }
    job.update(|record| "waiting for a worker to register".clone_into(&mut record.message));
    shared
        .registry
        .wait_for_worker(planner.worker_timeout())
        .await?;
    job.update(|record| record.message.clear());
    Ok(())
}

/// One distributed plan, started again as a whole while nothing of it has been seen.
async fn exchanged(
    shared: Arc<Shared>,
    planner: Arc<Planner>,
    job: Arc<JobHandle>,
    index: usize,
    logical: LogicalPlan,
    is_restartable: bool,
) -> Result<SendableRecordBatchStream> {
    let schema = Arc::new(logical.schema().as_arrow().clone());
    let attempts = if is_restartable {
        planner.settings().max_attempts.max(1)
    } else {
        1
    };
    let rows = async move {
        let mut attempt = 1;
        loop {
            let outcome = first_rows(&shared, &planner, &job.id(), &logical).await;
            match outcome {
                Ok(rows) => return Ok(rows),
                Err(error) if error.is_transient() && attempt < attempts => {
                    attempt += 1;
                    tracing::warn!(job = %job.id(), %error, attempt, "the exchange starts again");
                    job.update_query(index, |record| record.retries += 1);
                    let message = format!("the exchange failed and starts again: {error}");
                    job.event(
                        EventKind::ExchangeRetried,
                        Severity::Warning,
                        None,
                        &message,
                    );
                    job.record_error(JobError::now(message));
                    job.meter().exchange_retries.inc();
                    shared.registry.probe_all().await;
                    // One that was given up is often back in a moment, and on a single one there is no exchange.
                    let back = shared.registry.have_workers(EXCHANGING);
                    if tokio::time::timeout(COMES_BACK, back).await.is_err() {
                        wait_for_worker(&shared, &planner, &job).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    };
    let rows =
        futures::stream::once(async { rows.await.map_err(DataFusionError::from) }).try_flatten();
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// The rows of one attempt, from its first batch on.
async fn first_rows(
    shared: &Arc<Shared>,
    planner: &Planner,
    job: &str,
    logical: &LogicalPlan,
) -> Result<SendableRecordBatchStream> {
    let workers = planner.settings().slot_limit().max(EXCHANGING);
    let slots = shared.registry.gather(job, workers).await?;
    let addresses = slots.iter().map(|slot| slot.address().to_owned()).collect();
    let (plan, state): (Arc<dyn ExecutionPlan>, _) =
        exchange::plan(planner, addresses, shared.registry.peers(), logical).await?;
    let mut rows = keep(execute_stream(plan, state.task_ctx())?, slots);
    let schema = rows.schema();
    let first = rows.try_next().await.map_err(|e| exchange_error(&e))?;
    let rest = rows.map_err(|e| {
        let error = exchange_error(&e);
        // What has been seen cannot be taken back: a new attempt could repeat it.
        let error = Error::new(essaim_common::ErrorKind::Data, error.to_string());
        error
            .context("the exchange broke after its first rows had been sent; run the query again")
            .into()
    });
    let rows = futures::stream::iter(first.map(Ok)).chain(rest);
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// An error of a worker comes back as text: what sounds like a broken connection is worth another attempt.
fn exchange_error(error: &DataFusionError) -> Error {
    let text = error.to_string();
    let broken = [
        "transport error",
        "connection",
        "Connection",
        "broken pipe",
        "h2 protocol",
        "tcp connect",
        "Unavailable",
        "stream closed",
    ];
    // Its report names the operators that hold the most, and one of them is a WorkerConnection.
    let is_full = text.contains("Resources exhausted");
    if !is_full && broken.iter().any(|sign| text.contains(sign)) {
        Error::unavailable(error.strip_backtrace())
    } else {
        Error::from(error)
    }
}
