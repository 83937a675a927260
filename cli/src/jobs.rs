//! Jobs from the outside: submit, list, look at, cancel.

use crate::client::{self, Failure, MasterAddress};
use crate::job_json;
use crate::job_text;
use crate::progress::Progress;
use anyhow::{Context, Result};
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{
    CancelRequest, GetRequest, Job, JobState, ListRequest, SubmitRequest, WatchRequest,
};
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// How long a watcher looks for a master that went away: jobs survive it, so the watch should.
const MASTER_AWAY: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct SubmitArgs {
    /// The job file; - for standard input.
    file: String,
    /// A name for people [default: the job's id].
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Wait until the job has ended.
    #[arg(long)]
    wait: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

#[derive(Debug, clap::Args)]
pub struct JobsArgs {
    /// At most so many, the newest.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The job's id, its beginning, or its name.
    job: String,
    /// Wait until the job has ended.
    #[arg(long)]
    watch: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// The job's id, its beginning, or its name.
    job: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

/// `essaim submit`.
///
/// # Errors
/// The file cannot be read, the job is refused, or, with `--wait`, does not succeed.
pub async fn submit(args: SubmitArgs) -> Result<()> {
    let submit = SubmitRequest {
        sql: read(&args.file)?,
        name: args.name,
    };
    let (mut client, submitted) = client::interruptible(async {
        let mut client = client::connect(&args.address.master).await?;
        let submitted = client::answer(client.submit(submit)).await?;
        Ok((client, submitted))
    })
    .await?;
    let id = submitted.job_id.clone();
    if !args.wait {
        if args.json {
            return Ok(job_json::print(&job_json::submitted(&submitted))?);
        }
        return say(&id);
    }
    if !args.json {
        say(&id)?;
    }
    let job = tokio::select! {
        job = watch(&mut client, &id) => job?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted(format!(
            "no longer waiting, but job {id} goes on: `essaim cancel {id}` ends it"
        )).into()),
    };
    if args.json {
        job_json::print(&job_json::job(&job))?;
    } else {
        say(&job_text::outcome(&job))?;
    }
    verdict(&job)
}

/// `essaim jobs`.
///
/// # Errors
/// The master cannot be reached.
pub async fn list(args: JobsArgs) -> Result<()> {
    let mut client = client::connect(&args.address.master).await?;
    let request = ListRequest { limit: args.limit };
    let listed = client::answer(client.list(request)).await?;
    if args.json {
        return Ok(job_json::print(&job_json::list(&listed))?);
    }
    say(&job_text::table(&listed.jobs))
}

/// `essaim status`.
///
/// # Errors
/// There is no such job, or, with `--watch`, it does not succeed.
pub async fn status(args: StatusArgs) -> Result<()> {
    let mut client = client::connect(&args.address.master).await?;
    let job = if args.watch {
        watch(&mut client, &args.job).await?
    } else {
        let request = GetRequest { job_id: args.job };
        client::answer(client.get(request)).await?
    };
    if args.json {
        job_json::print(&job_json::job(&job))?;
    } else {
        say(&job_text::status(&job))?;
    }
    if args.watch { verdict(&job) } else { Ok(()) }
}

/// `essaim cancel`. A job that has ended is no error.
///
/// # Errors
/// There is no such job.
pub async fn cancel(args: CancelArgs) -> Result<()> {
    let mut client = client::connect(&args.address.master).await?;
    let request = CancelRequest {
        job_id: args.job.clone(),
    };
    let cancelled = client::answer(client.cancel(request)).await?;
    if args.json {
        return Ok(job_json::print(&job_json::cancelled(&cancelled))?);
    }
    let state = cancelled.state();
    if has_ended(state) {
        say(&format!(
            "job {} had ended: {}",
            args.job,
            job_json::state(state)
        ))
    } else {
        say(&format!("job {} is cancelled", args.job))
    }
}

/// Follows a job to its end, also over a restart of the master.
async fn watch(client: &mut JobsClient<Channel>, job: &str) -> Result<Job> {
    let mut progress = Progress::new();
    let mut id = job.to_owned();
    let mut last_heard = Instant::now();
    loop {
        let lost = match follow(client, &mut id, &mut progress, &mut last_heard).await {
            Ok(Some(job)) => return Ok(job),
            Ok(None) => Failure::Unreachable(format!(
                "the master stopped reporting on job {id}: `essaim status {id}` asks again"
            )),
            Err(failure @ Failure::Unreachable(_)) => failure,
            Err(failure) => return Err(failure.into()),
        };
        if last_heard.elapsed() > MASTER_AWAY {
            return Err(lost.into());
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Follows a job until it ends or the stream does. `id` becomes the job's own.
async fn follow(
    client: &mut JobsClient<Channel>,
    id: &mut String,
    progress: &mut Progress,
    last_heard: &mut Instant,
) -> Result<Option<Job>, Failure> {
    let request = WatchRequest { job_id: id.clone() };
    let mut reports = client::answer(client.watch(request)).await?;
    while let Some(job) = reports.message().await? {
        *last_heard = Instant::now();
        id.clone_from(&job.id);
        if has_ended(job.state()) {
            return Ok(Some(job));
        }
        progress.update(&job);
    }
    Ok(None)
}

/// Whether nothing more becomes of a job.
pub fn has_ended(state: JobState) -> bool {
    matches!(
        state,
        JobState::Succeeded | JobState::Failed | JobState::Cancelled
    )
}

/// An error for a job that ended without success.
fn verdict(job: &Job) -> Result<()> {
    match job.state() {
        JobState::Succeeded => Ok(()),
        JobState::Cancelled => Err(Failure::Failed(format!("job {} was cancelled", job.id)).into()),
        _ => Err(Failure::Failed(format!("job {} failed: {}", job.id, job.message)).into()),
    }
}

fn read(file: &str) -> Result<String> {
    let mut sql = String::new();
    if file == "-" {
        std::io::stdin()
            .read_to_string(&mut sql)
            .context("standard input")?;
    } else {
        sql = read_file(file)?;
    }
    Ok(sql)
}

/// A file of SQL; one that cannot be read is wrong usage.
///
/// # Errors
/// [`Failure::Usage`].
pub fn read_file(file: &str) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| Failure::Usage(format!("{file}: {e}")))
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
