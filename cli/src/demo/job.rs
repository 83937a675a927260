//! The job while toots come: what is shown of it, and what is killed under it.

use super::cluster::Cluster;
use super::latency::{Produced, Seen};
use super::postgres::Postgres;
use super::process::Group;
use super::screen::Screen;
use super::{LENGTH, account};
use crate::client::{self, Failure, MasterAddress};
use crate::jobs::has_ended;
use anyhow::{Result, bail, ensure};
use essaim_common::net::Link;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{GetRequest, Job, JobState, StopRequest, SubmitRequest};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The job file.
pub const SQL: &str = include_str!("../../../examples/demo/job.sql");
/// What the job is called.
pub const NAME: &str = "demo";

/// When a worker is killed, and when the master, as shares of the time in which toots come.
const WORKER_DIES: f64 = 0.4;
const MASTER_DIES: f64 = 0.65;
/// How long the job may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// Once all toots are sent: without another one counted for so long, no more will be.
const STALL: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);
/// How long a master may take to answer; one that is killed does not.
const ANSWER: Duration = Duration::from_secs(2);

/// The job on a master that may go away and come back.
#[derive(Debug)]
pub struct Running {
    address: String,
    client: Option<JobsClient<Link>>,
    id: String,
}

/// What happened while toots came.
#[derive(Debug, Default)]
pub struct Outcome {
    pub workers_killed: u32,
    pub masters_killed: u32,
    /// When the first of them was killed.
    pub first_kill: Option<Instant>,
    /// The job's last report.
    pub job: Job,
}

/// What the performance needs.
#[derive(Debug)]
pub struct Scene<'a> {
    pub cluster: &'a mut Cluster,
    pub group: &'a Group,
    pub postgres: &'a Postgres,
    pub screen: &'a mut Screen,
    pub produced: &'a Produced,
    pub seen: &'a Seen,
    /// How many toots there are in all, once they are all sent.
    pub total: &'a OnceLock<u64>,
}

impl Running {
    /// Submits the job and waits until it runs.
    ///
    /// # Errors
    /// It is refused or fails.
    pub async fn submit(address: &str) -> Result<Self> {
        let mut client = client::connect(&MasterAddress::plain(address)).await?;
        let submit = SubmitRequest {
            sql: SQL.to_owned(),
            name: NAME.to_owned(),
            from_scratch: false,
        };
        let id = client::answer(client.submit(submit)).await?.job_id;
        let mut running = Self {
            address: address.to_owned(),
            client: Some(client),
            id,
        };
        running
            .wait("run", |job| job.state() == JobState::Running)
            .await?;
        Ok(running)
    }

    /// The job as it is now; absent while its master is away.
    ///
    /// # Errors
    /// The job has failed or was cancelled.
    async fn now(&mut self) -> Result<Option<Job>> {
        let request = GetRequest {
            job_id: self.id.clone(),
        };
        let asked = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => client::connect(&MasterAddress::plain(&self.address)).await?,
            };
            let job = client::answer(client.get(request)).await?;
            Ok::<_, Failure>((client, job))
        };
        // Whatever went wrong, the next question begins with a connection.
        let Ok(Ok((client, job))) = tokio::time::timeout(ANSWER, asked).await else {
            return Ok(None);
        };
        self.client = Some(client);
        if has_ended(job.state()) && job.state() != JobState::Stopped {
            return Err(Failure::Failed(format!("the job failed: {}", job.message)).into());
        }
        Ok(Some(job))
    }

    async fn wait(&mut self, what: &str, is_so: impl Fn(&Job) -> bool) -> Result<Job> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(job) = self.now().await?
                && is_so(&job)
            {
                return Ok(job);
            }
            ensure!(
                Instant::now() < deadline,
                "the job does not {what} within {} s",
                PATIENCE.as_secs()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Shows the job and kills under it until every toot is counted, or none has been for long; then stops it.
    ///
    /// # Errors
    /// The job fails, or the new master does not come up.
    pub async fn perform(mut self, scene: Scene<'_>) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let began = Instant::now();
        let mut all_sent = None;
        let mut last = None;
        loop {
            let share = began.elapsed().as_secs_f64() / LENGTH.as_secs_f64();
            if outcome.workers_killed == 0 && share >= WORKER_DIES {
                let pid = scene.cluster.kill_worker()?;
                outcome.workers_killed += 1;
                outcome.first_kill = Some(Instant::now());
                scene
                    .screen
                    .say(&format!("killed a worker (process {pid}) with SIGKILL"));
            }
            if outcome.masters_killed == 0 && share >= MASTER_DIES {
                let pid = scene.cluster.kill_master()?;
                outcome.masters_killed += 1;
                self.client = None;
                scene
                    .screen
                    .say(&format!("killed the master (process {pid}) with SIGKILL"));
                scene.cluster.start_master(scene.group).await?;
                scene
                    .screen
                    .say("a new master is up, with the state of the old one");
            }
            let now = self.now().await?;
            if let Some(job) = &now
                && job.state() == JobState::Stopped
            {
                bail!("somebody has stopped the job");
            }
            // A new master knows of no epoch before its first.
            last = now.filter(|job| job.last_epoch.is_some()).or(last);
            let seen = scene.seen.last();
            let counted = seen.map_or(0, |(_, toots)| toots);
            if scene.screen.wants_rows() && counted > 0 {
                let tables = newest(scene.postgres).await?;
                scene.screen.rows(tables);
            }
            scene
                .screen
                .show(scene.produced.sent(), counted, last.as_ref());
            if let Some(total) = scene.total.get() {
                let all_sent = *all_sent.get_or_insert_with(Instant::now);
                let changed = seen.map_or(all_sent, |(at, _)| at.max(all_sent));
                if counted >= *total || changed.elapsed() > STALL {
                    break;
                }
            }
            tokio::time::sleep(POLL).await;
        }
        self.stop().await?;
        outcome.job = self
            .wait("stop", |job| job.state() == JobState::Stopped)
            .await?;
        Ok(outcome)
    }

    /// Asks for the job's end after its epoch.
    async fn stop(&self) -> Result<()> {
        let mut client = client::connect(&MasterAddress::plain(&self.address)).await?;
        let request = StopRequest {
            job_id: self.id.clone(),
        };
        client::answer(client.stop(request)).await?;
        Ok(())
    }
}

/// The newest rows of both result tables.
pub async fn newest(postgres: &Postgres) -> Result<String> {
    let mut tables = Vec::new();
    for table in [account::LANGUAGES, account::HASHTAGS] {
        tables.push(account::newest_rows(postgres, table, super::ROWS_SHOWN).await?);
    }
    Ok(tables.join("\n\n"))
}
