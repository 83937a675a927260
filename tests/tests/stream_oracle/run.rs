//! A job under test: how far it has come, what its epochs did, and whether its tables hold what they should.

use crate::events::Feed;
use anyhow::{Context, Result, bail, ensure};
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{EpochProgress, EpochsRequest, Job, JobState, StopRequest, SubmitRequest};
use essaim_tests::client::{Client, ended};
use essaim_tests::cluster::shared;
use essaim_tests::postgres::Database;
use essaim_tests::{LONG, unique, wait_for};

/// A streaming job.
#[derive(Debug, Clone)]
pub struct Run {
    pub client: Client,
    pub name: String,
    pub id: String,
}

impl Run {
    /// Submits a job to the shared cluster.
    pub async fn start(sql: &str) -> Result<Self> {
        let client = shared().await?.client().await?;
        Self::start_on(client, sql, &unique("oracle")).await
    }

    pub async fn start_on(client: Client, sql: &str, name: &str) -> Result<Self> {
        let id = client.submit(sql, name).await.context(sql.to_owned())?;
        Ok(Self {
            client,
            name: name.to_owned(),
            id,
        })
    }

    fn jobs(&self) -> JobsClient<tonic::transport::Channel> {
        JobsClient::new(self.client.channel())
    }

    /// Waits until an epoch that read the last of what was sent has been committed.
    pub async fn drained(&self, feed: &Feed) -> Result<Job> {
        self.drained_tables(&[("events", feed)]).await
    }

    /// The same for several tables.
    pub async fn drained_tables(&self, feeds: &[(&str, &Feed)]) -> Result<Job> {
        self.until(|job| feeds.iter().all(|(table, feed)| has_read(job, table, feed)))
            .await
    }

    /// The job once it looks as `wanted`.
    ///
    /// # Errors
    /// It ends without; the message says why.
    pub async fn until(&self, wanted: impl Fn(&Job) -> bool) -> Result<Job> {
        let job = wait_for(&format!("job {}", self.name), LONG, async || {
            let job = self.client.get(&self.id).await?;
            Ok((wanted(&job) || ended(&job)).then_some(job))
        })
        .await;
        let job = match job {
            Ok(job) => job,
            Err(error) => {
                return Err(error.context(format!("{:?}", self.client.get(&self.id).await)));
            }
        };
        if !wanted(&job) {
            bail!("job {} is {:?}: {}", self.name, job.state(), job.message);
        }
        Ok(job)
    }

    /// All epochs that its master remembers.
    pub async fn epochs(&self) -> Result<Vec<EpochProgress>> {
        let request = EpochsRequest {
            job_id: self.id.clone(),
            after_epoch: None,
            limit: 1000,
        };
        Ok(self.jobs().epochs(request).await?.into_inner().epochs)
    }

    pub async fn cancel(self) -> Result<()> {
        self.client.cancel(&self.id).await?;
        Ok(())
    }

    /// Stops it at an epoch's end.
    pub async fn stop(&self) -> Result<()> {
        let job_id = self.id.clone();
        self.jobs().stop(StopRequest { job_id }).await?;
        let job = self.client.wait_job(&self.id).await?;
        ensure!(job.state() == JobState::Stopped, "{job:?}");
        Ok(())
    }

    /// How the job fails.
    pub async fn failure(&self) -> Result<String> {
        let job = self.client.wait_job(&self.id).await?;
        ensure!(job.state() == JobState::Failed, "{job:?}");
        Ok(job.message)
    }

    /// Submits other SQL under its name.
    pub async fn resubmit(&self, sql: &str, from_scratch: bool) -> Result<Self> {
        let request = SubmitRequest {
            sql: sql.to_owned(),
            name: self.name.clone(),
            from_scratch,
        };
        let id = self.jobs().submit(request).await?.into_inner().job_id;
        Ok(Self { id, ..self.clone() })
    }
}

fn has_read(job: &Job, table: &str, feed: &Feed) -> bool {
    let Some(epoch) = &job.last_epoch else {
        return false;
    };
    let Some(source) = epoch.sources.iter().find(|source| source.table == table) else {
        return false;
    };
    feed.sent.iter().enumerate().all(|(partition, sent)| {
        let name = format!("{}[{partition}]", feed.topic.name);
        source.end.get(&name).copied().unwrap_or(0) == sent.len() as i64
    })
}

/// Compares the rows of two queries as multisets.
///
/// # Errors
/// They differ; shows some of the rows that are only in one.
pub async fn same(database: &Database, got: &str, wanted: &str) -> Result<()> {
    let only = async |a: &str, b: &str| {
        let sql =
            format!("(SELECT * FROM ({a}) a) EXCEPT ALL (SELECT * FROM ({b}) b) ORDER BY 1, 2");
        database.rows(&sql).await
    };
    let (extra, missing) = (only(got, wanted).await?, only(wanted, got).await?);
    let text = |rows: &[Vec<Option<String>>]| {
        let rows = rows.iter().take(8).map(|row| {
            let values = row.iter().map(|value| value.as_deref().unwrap_or("NULL"));
            values.collect::<Vec<_>>().join(" | ")
        });
        rows.collect::<Vec<_>>().join("\n  ")
    };
    ensure!(
        extra.is_empty() && missing.is_empty(),
        "{got}\n{} rows that should not be there:\n  {}\n{} rows that are missing:\n  {}",
        extra.len(),
        text(&extra),
        missing.len(),
        text(&missing)
    );
    Ok(())
}
