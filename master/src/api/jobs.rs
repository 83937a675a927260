//! The gRPC service that clients call.

use crate::Shared;
use crate::batch;
use crate::check;
use crate::doctor;
use crate::jobs::Submission;
use crate::jobs::handle::JobHandle;
use crate::jobs::list::Wanted;
use crate::jobs::model::{JobState, MAX_EPOCHS_KEPT};
use crate::jobs::queue::Turn;
use crate::plan::{MAX_SQL_BYTES, Planner, Purpose, parse, purpose};
use crate::run;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::EmptyRecordBatchStream;
use essaim_common::scope::JobScope;
use essaim_common::threads::computed_on;
use essaim_common::{Error, ErrorKind, Result, ipc};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1;
use essaim_proto::v1::jobs_server::Jobs;
use essaim_proto::v1::query_response::Part;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use tracing::Instrument;

/// Clients hear of changes at most so often.
const WATCH_PERIOD: Duration = Duration::from_millis(100);
/// Epochs of many partitions are large, and jobs with them; an answer holds at most so many bytes of them.
const MAX_ANSWER_BYTES: usize = MAX_MESSAGE_BYTES / 2;
/// Jobs that a list holds at most.
const MAX_LISTED: usize = 1_000;

/// `essaim.v1.Jobs`.
#[derive(Debug)]
pub struct JobsService(pub(crate) Arc<Shared>);

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Jobs for JobsService {
    type WatchStream = BoxStream<'static, Result<v1::Job, Status>>;
    type QueryStream = BoxStream<'static, Result<v1::QueryResponse, Status>>;

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Answer<v1::SubmitResponse> {
        let request = request.into_inner();
        let (shared, sql) = (Arc::clone(&self.0), request.sql.clone());
        let kind = self.planned(async move { batch::check(&shared, &sql).await });
        let submission = Submission {
            kind: kind.await?,
            name: request.name,
            sql: request.sql,
            from_scratch: request.from_scratch,
        };
        // A client that goes away from now on leaves a job that runs, not one that is known and never begins.
        let shared = Arc::clone(&self.0);
        let submitted = tokio::spawn(async move {
            let job = shared.jobs.submit(submission).await?;
            shared.run_job(Arc::clone(&job));
            Ok::<_, Error>(job)
        });
        let job = submitted
            .await
            .map_err(|e| Error::internal(format!("the job was not taken: {e}")))??;
        let (job_id, queue_position) =
            job.read(|record| (record.id.clone(), record.queue_position));
        Ok(Response::new(v1::SubmitResponse {
            job_id,
            queue_position,
        }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        let request = request.into_inner();
        let limit = match request.limit {
            0 => 100,
            limit => (limit as usize).min(MAX_LISTED),
        };
        let wanted = Wanted {
            no_ended_queries: request.no_ended_queries,
            ..Wanted::default()
        };
        let known = match request.all_open {
            true => self.0.jobs.with_open(&wanted, limit),
            false => self.0.jobs.page(&wanted, limit, None).jobs,
        };
        let mut jobs = Vec::with_capacity(known.len());
        let mut bytes = 0;
        for job in known {
            let job = job.read(|record| record.to_proto(false));
            bytes += job.encoded_len();
            if bytes > MAX_ANSWER_BYTES {
                break;
            }
            jobs.push(job);
        }
        Ok(Response::new(v1::ListResponse { jobs }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::Job> {
        let job = self.find(&request.into_inner().job_id)?;
        let shown = self.0.jobs.look(&job, |record| record.to_proto(true));
        Ok(Response::new(shown.await?))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Answer<v1::CancelResponse> {
        let job = self.find(&request.into_inner().job_id)?;
        let state = job.read(|record| record.to_proto(false).state);
        job.cancel();
        Ok(Response::new(v1::CancelResponse { state }))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<v1::StopResponse> {
        let job = self.find(&request.into_inner().job_id)?;
        let state = self.0.jobs.stop(&job).await?.to_proto() as i32;
        Ok(Response::new(v1::StopResponse { state }))
    }

    async fn epochs(&self, request: Request<v1::EpochsRequest>) -> Answer<v1::EpochsResponse> {
        let request = request.into_inner();
        let job = self.find(&request.job_id)?;
        let limit = match request.limit {
            0 => 100,
            limit => (limit as usize).min(MAX_EPOCHS_KEPT),
        };
        let known = job.epochs(request.after_epoch, limit);
        let mut epochs = Vec::with_capacity(known.len());
        let mut bytes = 0;
        for epoch in known.iter().rev() {
            let epoch = epoch.to_proto(true);
            bytes += epoch.encoded_len();
            if bytes > MAX_ANSWER_BYTES {
                break;
            }
            epochs.push(epoch);
        }
        epochs.reverse();
        Ok(Response::new(v1::EpochsResponse { epochs }))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        let job = self.find(&request.into_inner().job_id)?;
        Ok(Response::new(watch(job).map(Ok).boxed()))
    }

    async fn check(&self, request: Request<v1::CheckRequest>) -> Answer<v1::CheckResponse> {
        let (shared, sql) = (Arc::clone(&self.0), request.into_inner().sql);
        let found = self.planned(async move { Ok(check::check(&shared, &sql).await) });
        Ok(Response::new(found.await?))
    }

    async fn doctor(&self, request: Request<v1::DoctorRequest>) -> Answer<v1::DoctorResponse> {
        let request = request.into_inner();
        Ok(Response::new(doctor::examine(&self.0, request).await?))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answer<Self::QueryStream> {
        let request = request.into_inner();
        let bytes = request.sql.len() + request.setup.iter().map(String::len).sum::<usize>();
        if bytes > MAX_SQL_BYTES {
            return Err(Error::invalid(format!(
                "the SQL text has {bytes} bytes, at most {MAX_SQL_BYTES} are taken"
            ))
            .into());
        }
        let job = self.0.jobs.add_query(request.sql.clone())?;
        let guard = QueryGuard {
            shared: Arc::clone(&self.0),
            job: Arc::clone(&job),
        };
        // The answer begins at once: what the query waits for is seen in its progress, and a client that goes away
        // ends it at any point.
        let chunks = chunks(
            Arc::clone(&self.0),
            Arc::clone(&job),
            request.clone(),
            guard,
        );
        let chunks = computed_on(&self.0.queries.handle(), chunks.boxed());
        let progress = request.progress.then(|| watch(job));
        Ok(Response::new(answer(chunks, progress).boxed()))
    }
}

impl JobsService {
    /// Plans something on the threads for it, as long as somebody waits.
    async fn planned<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let threads = self.0.queries.handle();
        let work = AbortOnDropHandle::new(threads.spawn(work.in_current_span()));
        work.await
            .unwrap_or_else(|e| Err(Error::internal(format!("the planning broke off: {e}"))))
    }

    fn find(&self, wanted: &str) -> std::result::Result<Arc<JobHandle>, Status> {
        self.0
            .jobs
            .find(wanted)
            .map_err(|e| Status::not_found(e.to_string()))
    }
}

/// The job now and whenever it has changed, until it has ended.
fn watch(job: Arc<JobHandle>) -> impl Stream<Item = v1::Job> + Send + 'static {
    let changes = job.watch();
    futures::stream::unfold(Some((job, changes, true)), |state| async move {
        let (job, mut changes, first) = state?;
        if !first {
            tokio::time::sleep(WATCH_PERIOD).await;
            // The sender lives in the handle that we hold.
            let _ = changes.changed().await;
        }
        changes.mark_unchanged();
        let (record, ended) = job.read(|record| (record.to_proto(true), record.state.is_final()));
        Some((record, (!ended).then_some((job, changes, false))))
    })
}

/// Moves a query's job to its end, however the query ends.
struct QueryGuard {
    shared: Arc<Shared>,
    job: Arc<JobHandle>,
}

impl QueryGuard {
    async fn end(&self, outcome: &Result<(), Error>) {
        let (state, message) = match outcome {
            Ok(()) => (JobState::Succeeded, String::new()),
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                (JobState::Cancelled, error.to_string())
            }
            Err(error) => (JobState::Failed, error.to_string()),
        };
        self.shared.jobs.advance(&self.job, state, &message).await;
    }
}

impl Drop for QueryGuard {
    fn drop(&mut self) {
        let ended = self.job.read(|record| record.state.is_final());
        if !ended {
            let shared = Arc::clone(&self.shared);
            let job = Arc::clone(&self.job);
            self.shared.spawn(async move {
                let message = "the client has gone";
                shared
                    .jobs
                    .advance(&job, JobState::Cancelled, message)
                    .await;
            });
        }
    }
}

/// What must live as long as the rows of a query are read.
struct Running {
    rows: std::pin::Pin<Box<dyn Stream<Item = Result<bytes::Bytes>> + Send>>,
    scope: Arc<JobScope>,
    guard: QueryGuard,
    _turn: Option<Turn>,
}

/// The query's Arrow IPC stream.
fn chunks(
    shared: Arc<Shared>,
    job: Arc<JobHandle>,
    request: v1::QueryRequest,
    guard: QueryGuard,
) -> impl Stream<Item = Result<bytes::Bytes>> + Send + 'static {
    enum State {
        Start(
            Arc<Shared>,
            Arc<JobHandle>,
            Box<v1::QueryRequest>,
            QueryGuard,
        ),
        Running(Running),
        Ended,
    }
    let span = tracing::error_span!(parent: None, "query", job = %job.id());
    let start = State::Start(shared, job, Box::new(request), guard);
    let step = |state| async move {
        let mut running = match state {
            State::Start(shared, job, request, guard) => {
                let scope = JobScope::new(job.id(), 1, shared.registry.slots());
                let begun = tokio::select! {
                    begun = begin(&shared, &job, &request, &scope) => begun,
                    () = job.cancelled() => Err(Error::cancelled("cancelled")),
                    error = shared.jobs.taken_over() => Err(error),
                };
                match begun {
                    Ok((rows, most, turn)) => Running {
                        rows: Box::pin(at_most(most, ipc::encode_stream(rows))),
                        scope,
                        guard,
                        _turn: turn,
                    },
                    Err(error) => {
                        scope.release().await;
                        guard.end(&Err(error.clone())).await;
                        return Some((Err(error), State::Ended));
                    }
                }
            }
            State::Running(running) => running,
            State::Ended => return None,
        };
        let job = Arc::clone(&running.guard.job);
        let next = tokio::select! {
            next = running.rows.next() => next,
            () = job.cancelled() => Some(Err(Error::cancelled("cancelled"))),
            error = running.guard.shared.jobs.taken_over() => Some(Err(error)),
        };
        match next {
            Some(Ok(chunk)) => Some((Ok(chunk), State::Running(running))),
            Some(Err(error)) => {
                running.scope.release().await;
                running.guard.end(&Err(error.clone())).await;
                Some((Err(error), State::Ended))
            }
            None => {
                running.scope.release().await;
                running.guard.end(&Ok(())).await;
                None
            }
        }
    };
    futures::stream::unfold(start, move |state| step(state).instrument(span.clone()))
}

/// The chunks of a result until they are more than `most` bytes together.
fn at_most(
    most: u64,
    chunks: impl Stream<Item = Result<bytes::Bytes>> + Send + 'static,
) -> impl Stream<Item = Result<bytes::Bytes>> + Send + 'static {
    let mut sent = 0;
    chunks.map(move |chunk| {
        let chunk = chunk?;
        sent += chunk.len() as u64;
        if sent > most {
            return Err(Error::exhausted(format!(
                "the result has more than {most} bytes: INSERT it INTO a table, add a LIMIT, or SET essaim.max_result_bytes higher"
            )));
        }
        Ok(chunk)
    })
}

/// Waits for the query's turn, runs the statements up to the last one and starts that one. Returns its rows, how many
/// bytes of them may be sent, and the turn.
async fn begin(
    shared: &Arc<Shared>,
    job: &Arc<JobHandle>,
    request: &v1::QueryRequest,
    scope: &Arc<JobScope>,
) -> Result<(SendableRecordBatchStream, u64, Option<Turn>)> {
    let mut statements = parse(&request.sql)?;
    // A declaration takes next to nothing: it need not wait.
    let is_work = |statement| purpose(statement) != Purpose::Setup;
    let mut turn = None;
    if statements.iter().any(is_work) {
        turn.insert(shared.query_queue.enter(job)).come().await;
    }
    shared.jobs.advance(job, JobState::Running, "").await;
    let mut planner = Planner::new(
        Arc::clone(&shared.runtime),
        Arc::clone(&shared.registry),
        Arc::clone(scope),
    );
    for text in &request.setup {
        for statement in parse(text)? {
            planner.set_up(statement).await?;
        }
    }
    let Some(last) = statements.pop() else {
        return Err(Error::invalid("there is no statement"));
    };
    let mut planner = Arc::new(planner);
    let mut index = 0;
    for statement in statements {
        let own = Arc::get_mut(&mut planner)
            .ok_or_else(|| Error::internal("a query of this session still runs"))?;
        if purpose(&statement) == Purpose::Setup {
            own.set_up(statement).await?;
            continue;
        }
        scope.set_query(index as u32);
        let query = own.query(statement).await?;
        let mut rows = run::start(shared, &planner, job, index, query).await?;
        while let Some(batch) = rows.next().await {
            batch?;
        }
        index += 1;
    }
    let own = Arc::get_mut(&mut planner)
        .ok_or_else(|| Error::internal("a query of this session still runs"))?;
    if purpose(&last) == Purpose::Setup {
        own.set_up(last).await?;
        let schema = Arc::new(arrow::datatypes::Schema::empty());
        return Ok((
            Box::pin(EmptyRecordBatchStream::new(schema)),
            u64::MAX,
            turn,
        ));
    }
    let most = own.settings().max_result_bytes;
    scope.set_query(index as u32);
    let query = own.query(last).await?;
    let rows = run::start(shared, &planner, job, index, query).await?;
    Ok((rows, most, turn))
}

/// Chunks, and progress in between if it is wanted.
fn answer(
    chunks: impl Stream<Item = Result<bytes::Bytes>> + Send + 'static,
    progress: Option<impl Stream<Item = v1::Job> + Send + 'static>,
) -> impl Stream<Item = Result<v1::QueryResponse, Status>> + Send + 'static {
    let progress = match progress {
        Some(progress) => progress.boxed(),
        None => futures::stream::pending().boxed(),
    };
    let state = Some((Box::pin(chunks), progress));
    futures::stream::unfold(state, |state| async move {
        let (mut chunks, mut progress) = state?;
        let part = tokio::select! {
            biased;
            chunk = chunks.next() => match chunk {
                Some(Ok(chunk)) => Part::ArrowIpc(chunk),
                Some(Err(error)) => return Some((Err(error.into()), None)),
                None => {
                    // The last word on the query is its final state.
                    let mut last = None;
                    while let Some(Some(job)) = futures::FutureExt::now_or_never(progress.next()) {
                        last = Some(job);
                    }
                    let part = Part::Progress(last?);
                    return Some((Ok(v1::QueryResponse { part: Some(part) }), None));
                }
            },
            Some(job) = progress.next() => Part::Progress(job),
        };
        let response = v1::QueryResponse { part: Some(part) };
        Some((Ok(response), Some((chunks, progress))))
    })
}
