//! Runs a job: a batch job's statements in order, each INSERT to its commit; a streaming job by [`stream`].

use crate::Shared;
use crate::check::walk::Walk;
use crate::jobs::handle::JobHandle;
use crate::jobs::model::{JobKind, JobState};
use crate::jobs::queue::Turn;
use crate::plan::{Planner, Purpose, Query, parse, purpose};
use crate::run;
use crate::stream::failures::Waits;
use crate::stream::{self, End};
use datafusion::sql::parser::Statement;
use essaim_common::scope::JobScope;
use essaim_common::{Error, ErrorKind, Result};
use futures::TryStreamExt;
use std::sync::Arc;
use tracing::Instrument;

/// Checks a job before it is taken: syntax, tables, columns, types, and that it writes something. Tells how it runs.
///
/// # Errors
/// The first thing that is wrong, and where.
pub(crate) async fn check(shared: &Arc<Shared>, sql: &str) -> Result<JobKind> {
    let statements = parse(sql)?;
    let mut walk = Walk::new(shared);
    let outcome = async {
        for statement in statements {
            walk.statement(statement).await?;
        }
        walk.kind()
    }
    .await;
    walk.end().await;
    outcome
}

fn planner(shared: &Arc<Shared>, scope: &Arc<JobScope>) -> Planner {
    Planner::new(
        Arc::clone(&shared.runtime),
        Arc::clone(&shared.registry),
        Arc::clone(scope),
    )
}

/// Sees a job through to its end. A batch job has its place in the queue when this returns.
pub(crate) fn run(
    shared: Arc<Shared>,
    job: Arc<JobHandle>,
) -> impl Future<Output = ()> + Send + 'static {
    let turn = match job.read(|record| record.kind) {
        JobKind::Batch => Some(shared.job_queue.enter(&job)),
        JobKind::Streaming => None,
    };
    // Spans stand at this level so that no filter takes their fields from a line.
    let span = tracing::error_span!("job", job = %job.id());
    run_with(shared, job, turn).instrument(span)
}

async fn run_with(shared: Arc<Shared>, job: Arc<JobHandle>, turn: Option<Turn>) {
    let outcome = tokio::select! {
        outcome = async {
            match turn {
                Some(mut turn) => {
                    turn.come().await;
                    run_statements(&shared, &job)
                        .await
                        .map(|()| JobState::Succeeded)
                }
                None => stream::run(&shared, &job).await.map(|end| match end {
                    End::Stopped => JobState::Stopped,
                    End::Finished => JobState::Succeeded,
                }),
            }
        } => outcome,
        () = job.cancelled() => Err(Error::cancelled("cancelled")),
        error = shared.jobs.taken_over() => Err(error),
    };
    let (state, message) = match outcome {
        Ok(state) => (state, String::new()),
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            (JobState::Cancelled, error.to_string())
        }
        Err(error) => (JobState::Failed, error.to_string()),
    };
    tracing::info!(job = %job.id(), ?state, reason = %message, "ended");
    shared.jobs.advance(&job, state, &message).await;
}

async fn run_statements(shared: &Arc<Shared>, job: &Arc<JobHandle>) -> Result<()> {
    let generation = shared.jobs.begin(job).await?;
    let sql = job.read(|record| record.sql.clone());
    let scope = JobScope::new(job.id(), generation, shared.registry.slots());
    let outcome = run_in_scope(shared, job, &scope, &sql, generation).await;
    scope.release().await;
    outcome
}

async fn run_in_scope(
    shared: &Arc<Shared>,
    job: &Arc<JobHandle>,
    scope: &Arc<JobScope>,
    sql: &str,
    generation: u64,
) -> Result<()> {
    let mut planner = Arc::new(planner(shared, scope));
    let mut index = 0;
    for statement in parse(sql)? {
        match purpose(&statement) {
            Purpose::Setup | Purpose::Rows => exclusive(&mut planner)?.set_up(statement).await?,
            Purpose::Insert => {
                scope.set_query(index as u32);
                let query = plan(&mut planner, statement).await?;
                if generation > 1 && !query.is_restartable() {
                    return Err(Error::new(
                        ErrorKind::Data,
                        format!(
                            "the master was restarted while the job ran, and {} may hold some of its rows already: look there before you submit it again",
                            query.sink.unwrap_or_default()
                        ),
                    ));
                }
                let statement = async {
                    let rows = run::start(shared, &planner, job, index, query).await?;
                    let _: Vec<_> = rows.try_collect().await?;
                    keep(shared, job).await
                };
                // A trace of its own, as each epoch has one.
                let span =
                    tracing::error_span!(parent: None, "query", job = %job.id(), query = index);
                statement.instrument(span).await?;
                index += 1;
            }
        }
    }
    Ok(())
}

/// Writes down how far the job has come. What is committed stays so: a state dir that is full or gone is waited for.
async fn keep(shared: &Arc<Shared>, job: &Arc<JobHandle>) -> Result<()> {
    let mut waits = Waits::BATCH;
    loop {
        match shared.jobs.save(job).await {
            Err(error) if error.is_transient() => waits.next(job, &error).await,
            saved => {
                waits.over(job);
                return saved;
            }
        }
    }
}

async fn plan(planner: &mut Arc<Planner>, statement: Statement) -> Result<Query> {
    exclusive(planner)?.query(statement).await
}

/// The planner while no query of it runs.
fn exclusive(planner: &mut Arc<Planner>) -> Result<&mut Planner> {
    Arc::get_mut(planner).ok_or_else(|| Error::internal("a query of this session still runs"))
}
