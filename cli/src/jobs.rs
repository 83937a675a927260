//! Jobs from the outside: submit, list, look at, stop, cancel.

use crate::client::{self, Failure, MasterAddress};
use crate::job_json;
use crate::job_text;
use crate::watch::{View, now_ms, watch};
use anyhow::{Context, Result};
use essaim_proto::v1::{
    CancelRequest, GetRequest, Job, JobKind, JobState, ListRequest, StopRequest, SubmitRequest,
    SubmitResponse,
};
use std::io::{Read, Write};

#[derive(Debug, clap::Args)]
pub struct SubmitArgs {
    /// The job file; - for standard input.
    file: String,
    /// A name for people [default: the job's id]. A streaming job goes on where the ended job of its name stands.
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Begin a streaming job anew, without what the job that had its name has left.
    #[arg(long)]
    from_scratch: bool,
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
    /// At most so many, the newest; those that have not ended are listed in any case.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Also the queries of `essaim sql` that have ended.
    #[arg(long)]
    all: bool,
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
    /// Wait until the job has ended, and show the epochs of a streaming job meanwhile.
    #[arg(long)]
    watch: bool,
    /// Print one JSON document; with --watch, one for each epoch of a streaming job.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// The job's id, its beginning, or its name.
    job: String,
    /// Do not wait until the job has stopped.
    #[arg(long)]
    no_wait: bool,
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
        from_scratch: args.from_scratch,
    };
    let (mut client, submitted) = client::interruptible(async {
        let mut client = client::connect(&args.address).await?;
        let submitted = client::answer(client.submit(submit)).await?;
        Ok((client, submitted))
    })
    .await?;
    let id = submitted.job_id.clone();
    if !args.wait {
        if args.json {
            return Ok(job_json::print(&job_json::submitted(&submitted))?);
        }
        say_place(&submitted);
        return say(&id);
    }
    if !args.json {
        say(&id)?;
    }
    let job = tokio::select! {
        job = watch(&mut client, &id, View::bar()) => job?,
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
    let mut client = client::connect(&args.address).await?;
    let request = ListRequest {
        limit: args.limit,
        no_ended_queries: !args.all,
        all_open: true,
    };
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
    let mut client = client::connect(&args.address).await?;
    let job = if args.watch {
        watch(&mut client, &args.job, View::epochs(args.json)).await?
    } else {
        let request = GetRequest { job_id: args.job };
        client::answer(client.get(request)).await?
    };
    // Somebody who reads epochs as JSON expects nothing else.
    let epochs_only = args.watch && args.json && job.kind() == JobKind::Streaming;
    if args.json && !epochs_only {
        job_json::print(&job_json::job(&job))?;
    } else if !args.json {
        say(&job_text::status(&job, now_ms()))?;
    }
    if args.watch { verdict(&job) } else { Ok(()) }
}

/// `essaim stop`. A job that has ended is no error.
///
/// # Errors
/// There is no such job; it is a batch job; it fails or is cancelled before it has stopped.
pub async fn stop(args: StopArgs) -> Result<()> {
    let mut client = client::connect(&args.address).await?;
    let request = StopRequest {
        job_id: args.job.clone(),
    };
    let found = client::answer(client.stop(request)).await?.state();
    if args.no_wait || has_ended(found) {
        if args.json {
            return Ok(job_json::print(&job_json::state_only(found))?);
        }
        return say(&if has_ended(found) {
            had_ended(&args.job, found)
        } else {
            format!("job {} stops after its epoch", args.job)
        });
    }
    let job = watch(&mut client, &args.job, View::bar()).await?;
    if args.json {
        job_json::print(&job_json::state_only(job.state()))?;
    } else {
        say(&job_text::outcome(&job))?;
    }
    verdict(&job)
}

/// `essaim cancel`. A job that has ended is no error.
///
/// # Errors
/// There is no such job.
pub async fn cancel(args: CancelArgs) -> Result<()> {
    let mut client = client::connect(&args.address).await?;
    let request = CancelRequest {
        job_id: args.job.clone(),
    };
    let cancelled = client::answer(client.cancel(request)).await?;
    let state = cancelled.state();
    if args.json {
        return Ok(job_json::print(&job_json::state_only(state))?);
    }
    if has_ended(state) {
        say(&had_ended(&args.job, state))
    } else {
        say(&format!("job {} is cancelled", args.job))
    }
}

/// Tells a person, not a script, that the job waits.
fn say_place(submitted: &SubmitResponse) {
    if submitted.queue_position > 0 {
        eprintln!(
            "queued: number {} of those that wait for other jobs to end",
            submitted.queue_position
        );
    }
}

fn had_ended(job: &str, state: JobState) -> String {
    format!("job {job} had ended: {}", job_json::state(state))
}

/// Whether nothing more becomes of a job.
pub fn has_ended(state: JobState) -> bool {
    matches!(
        state,
        JobState::Succeeded | JobState::Failed | JobState::Cancelled | JobState::Stopped
    )
}

/// An error for a job that ended without success. One that stopped did what it was asked to.
fn verdict(job: &Job) -> Result<()> {
    match job.state() {
        JobState::Succeeded | JobState::Stopped => Ok(()),
        JobState::Cancelled => Err(Failure::Failed(format!("job {} was cancelled", job.id)).into()),
        _ => Err(Failure::Failed(format!("job {} failed: {}", job.id, job.message)).into()),
    }
}

/// The text of a file; `-` stands for standard input.
///
/// # Errors
/// It cannot be read.
pub fn read(file: &str) -> Result<String> {
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

pub fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
