//! A client of a master: queries with their progress, and jobs.

use crate::{LONG, wait_for};
use anyhow::{Context, Result, anyhow, bail};
use arrow::array::RecordBatch;
use essaim_common::ipc::Decoder;
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::query_response::Part;
use essaim_proto::v1::{
    CancelRequest, EpochProgress, EpochsRequest, GetRequest, Job, JobState, ListRequest,
    QueryRequest, SubmitRequest, TaskAttempt, WatchRequest,
};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Speaks `essaim.v1.Jobs`.
#[derive(Debug, Clone)]
pub struct Client {
    jobs: JobsClient<Channel>,
    channel: Channel,
}

impl Client {
    /// Connects to the master at `url`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(url: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(Duration::from_secs(5))
            .connect()
            .await
            .with_context(|| format!("connecting to {url}"))?;
        let jobs = JobsClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { jobs, channel })
    }

    /// The connection, for other services of the master.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The rows of the last statement of `sql`.
    ///
    /// # Errors
    /// The query fails (a [`Status`]), or takes longer than [`LONG`].
    pub async fn query(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.start(sql).await?.finish().await?.0)
    }

    /// How the query fails.
    ///
    /// # Errors
    /// It does not, or not within [`LONG`].
    pub async fn query_error(&self, sql: &str) -> Result<Status> {
        match self.query(sql).await {
            Ok(batches) => bail!("{sql:?} did not fail but gave {batches:?}"),
            Err(error) => error.downcast::<Status>(),
        }
    }

    /// Starts a query and hands it over while it runs.
    ///
    /// # Errors
    /// The master refuses it (a [`Status`]).
    pub async fn start(&self, sql: &str) -> Result<RunningQuery> {
        let request = QueryRequest {
            setup: Vec::new(),
            sql: sql.to_owned(),
            progress: true,
        };
        self.start_request(request).await
    }

    /// As [`Self::start`], with all that can be asked for.
    ///
    /// # Errors
    /// The master refuses it (a [`Status`]).
    pub async fn start_request(&self, request: QueryRequest) -> Result<RunningQuery> {
        let mut jobs = self.jobs.clone();
        let (sender, progress) = watch::channel(Job::default());
        // A master may answer with headers only once it has rows: so the call itself is awaited in the task.
        let task = tokio::spawn(async move {
            let mut parts = jobs.query(request).await?.into_inner();
            let mut decoder = Decoder::default();
            let mut batches = Vec::new();
            while let Some(part) = parts.message().await? {
                match part.part.context("an empty part")? {
                    Part::ArrowIpc(chunk) => batches.extend(decoder.decode(chunk)?),
                    Part::Progress(job) => drop(sender.send_replace(job)),
                }
            }
            decoder.schema().context("the answer has no schema")?;
            anyhow::Ok(batches)
        });
        Ok(RunningQuery {
            task: AbortOnDropHandle::new(task),
            progress,
            client: self.clone(),
        })
    }

    /// Submits a job file; returns the job's id.
    ///
    /// # Errors
    /// It is refused (a [`Status`]).
    pub async fn submit(&self, sql: &str, name: &str) -> Result<String> {
        let request = SubmitRequest {
            sql: sql.to_owned(),
            name: name.to_owned(),
            from_scratch: false,
        };
        let response = self.jobs.clone().submit(request).await?;
        Ok(response.into_inner().job_id)
    }

    /// A job by its id or name.
    ///
    /// # Errors
    /// There is none (a [`Status`]).
    pub async fn get(&self, job: &str) -> Result<Job> {
        let job_id = job.to_owned();
        Ok(self
            .jobs
            .clone()
            .get(GetRequest { job_id })
            .await?
            .into_inner())
    }

    /// All jobs, newest first.
    ///
    /// # Errors
    /// Those of the call (a [`Status`]).
    pub async fn list(&self) -> Result<Vec<Job>> {
        let request = ListRequest {
            limit: 10_000,
            ..Default::default()
        };
        Ok(self.jobs.clone().list(request).await?.into_inner().jobs)
    }

    /// Cancels a job; returns the state in which the call found it.
    ///
    /// # Errors
    /// There is none (a [`Status`]).
    pub async fn cancel(&self, job: &str) -> Result<JobState> {
        let job_id = job.to_owned();
        let response = self.jobs.clone().cancel(CancelRequest { job_id }).await?;
        Ok(response.into_inner().state())
    }

    /// The last epochs of a streaming job, at most `limit`, by number.
    ///
    /// # Errors
    /// There is no such job (a [`Status`]).
    pub async fn epochs(&self, job: &str, limit: u32) -> Result<Vec<EpochProgress>> {
        let request = EpochsRequest {
            job_id: job.to_owned(),
            after_epoch: None,
            limit,
        };
        Ok(self.jobs.clone().epochs(request).await?.into_inner().epochs)
    }

    /// A job's changes until its end.
    ///
    /// # Errors
    /// There is none (a [`Status`]).
    pub async fn watch(&self, job: &str) -> Result<Streaming<Job>> {
        let job_id = job.to_owned();
        Ok(self
            .jobs
            .clone()
            .watch(WatchRequest { job_id })
            .await?
            .into_inner())
    }

    /// The job once it looks as `wanted`.
    ///
    /// # Errors
    /// It ends without, or does not within [`LONG`].
    pub async fn wait_until(&self, job: &str, wanted: impl Fn(&Job) -> bool) -> Result<Job> {
        let found = wait_for(&format!("job {job}"), LONG, async || {
            let job = self.get(job).await?;
            Ok((wanted(&job) || ended(&job)).then_some(job))
        })
        .await?;
        match wanted(&found) {
            true => Ok(found),
            false => Err(anyhow!("job {job} ended before: {found:?}")),
        }
    }

    /// The job once it has ended.
    ///
    /// # Errors
    /// It does not within [`LONG`].
    pub async fn wait_job(&self, job: &str) -> Result<Job> {
        self.wait_until(job, ended).await
    }

    /// Submits a job file and waits until it has succeeded.
    ///
    /// # Errors
    /// It is refused or fails.
    pub async fn run_job(&self, sql: &str, name: &str) -> Result<Job> {
        let id = self.submit(sql, name).await?;
        let job = self.wait_job(&id).await?;
        match job.state() {
            JobState::Succeeded => Ok(job),
            state => bail!("job {name} is {state:?}: {}", job.message),
        }
    }
}

/// Whether a job has reached its last state.
pub fn ended(job: &Job) -> bool {
    matches!(
        job.state(),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled | JobState::Stopped
    )
}

/// Tasks of all stages of a job: running now, and done.
pub fn tasks(job: &Job) -> (u32, u32) {
    let stages = || job.queries.iter().flat_map(|query| &query.stages);
    (
        stages().map(|stage| stage.tasks_running).sum(),
        stages().map(|stage| stage.tasks_done).sum(),
    )
}

/// All attempts of a job's tasks, each with its query, stage and task.
pub fn attempts(job: &Job) -> Vec<((u32, u32, u32), &TaskAttempt)> {
    let stages = job.queries.iter().flat_map(|query| {
        let stages = query.stages.iter();
        stages.map(move |stage| (query.index, stage))
    });
    stages
        .flat_map(|(query, stage)| {
            let attempts = stage.attempts.iter();
            attempts.map(move |attempt| ((query, stage.id, attempt.task), attempt))
        })
        .collect()
}

/// A query on its way. Dropping it ends the call, and so the query.
#[derive(Debug)]
pub struct RunningQuery {
    task: AbortOnDropHandle<Result<Vec<RecordBatch>>>,
    progress: watch::Receiver<Job>,
    client: Client,
}

impl RunningQuery {
    /// The query's job once it looks as `wanted`.
    ///
    /// # Errors
    /// The query ends without, or does not look so within [`LONG`].
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Job) -> bool) -> Result<Job> {
        let found = {
            let waited = tokio::time::timeout(LONG, self.progress.wait_for(|job| wanted(job)));
            waited.await.map(|found| found.map(|job| job.clone()))
        };
        match found {
            Ok(Ok(job)) => Ok(job),
            Ok(Err(_)) => bail!(
                "the query ended before {what}: {:?} {:?}",
                (&mut self.task).await,
                self.progress.borrow()
            ),
            Err(_) => bail!("waited for {what}: {:?}", self.progress.borrow()),
        }
    }

    /// The rows, and the job as it stood at the end.
    ///
    /// # Errors
    /// The query fails (a [`Status`]), or takes longer than [`LONG`].
    pub async fn finish(self) -> Result<(Vec<RecordBatch>, Job)> {
        let last = self.progress.clone();
        let batches = tokio::time::timeout(LONG, self.task)
            .await
            .with_context(|| {
                format!("the query takes longer than {LONG:?}: {:?}", last.borrow())
            })??;
        let batches = batches?;
        // The last progress may be older than the last change: the master's memory is better if it keeps queries.
        let seen = last.borrow().clone();
        let job = self.client.get(&seen.id).await.unwrap_or(seen);
        Ok((batches, job))
    }
}
