//! Runs streaming jobs: epoch after epoch of the same plan, with state in between.
//!
//! An epoch's way: [`read`] plans what it reads, writes that down and runs its tasks; [`finish`] runs the half above
//! the cut over what they sent and over the state, hands the result to the sinks, and keeps the changed state. While
//! an epoch is finished, the next one is read. [`checkpoint`] is what a restarted master goes on with.

mod aggregate;
pub mod checkpoint;
pub mod context;
mod dedup;
pub(crate) mod failures;
mod feed;
mod finish;
mod forget;
pub mod input;
mod join;
mod late;
mod pace;
pub mod plan;
mod read;
mod session;
mod setup;
pub mod state;
mod statics;
mod upper;
mod watermark;

use crate::Shared;
use crate::jobs::handle::JobHandle;
use crate::stream::checkpoint::Checkpoint;
use crate::stream::failures::{After, Failures};
use crate::stream::finish::Finisher;
use crate::stream::read::{Epoch, Reader};
use essaim_common::{Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span};

pub(crate) use setup::{check, explain};

/// How long a job that is to stop may take for its epoch.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a streaming job came to an end without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Somebody asked for it; it can go on later.
    Stopped,
    /// With the trigger 'available_now': everything has been read.
    Finished,
}

/// Sees a streaming job through to its end.
///
/// # Errors
/// The job is wrong; its state is of another query; an epoch failed for good; the job was cancelled.
pub(crate) async fn run(shared: &Arc<Shared>, job: &Arc<JobHandle>) -> Result<End> {
    tokio::select! {
        end = epochs(shared, job) => end,
        () = patience(job) => Ok(End::Stopped),
    }
}

/// Returns a while after the job was asked to stop: what hangs is broken off. An epoch that was planned and not committed
/// is the first one when the job goes on, so nothing is lost or repeated.
async fn patience(job: &JobHandle) {
    job.stop_requested().await;
    tokio::time::sleep(STOP_PATIENCE).await;
    tracing::warn!(job = %job.id(), "the epoch did not end within {STOP_PATIENCE:?}: stopped without it");
}

async fn epochs(shared: &Arc<Shared>, job: &Arc<JobHandle>) -> Result<End> {
    let mut failures = Failures::default();
    loop {
        let (mut reader, finisher) = match setup::start(shared, job).await {
            Ok(started) => started,
            Err(error) => {
                if failures.wait(job, &error).await? == After::Stop {
                    return Ok(End::Stopped);
                }
                continue;
            }
        };
        failures.limit = reader.max_epoch_attempts();
        reader.failures = failures.in_a_row.clone();
        if let Some(end) = planned(shared, job, reader, finisher, &mut failures).await? {
            return Ok(end);
        }
        tracing::info!("the job is planned anew");
    }
}

/// Runs the epochs of a job that is planned, to its end or until the plan is of no more use.
async fn planned(
    shared: &Arc<Shared>,
    job: &Arc<JobHandle>,
    mut reader: Reader,
    mut finisher: Finisher,
    failures: &mut Failures,
) -> Result<Option<End>> {
    loop {
        let epoch = tokio::select! {
            epoch = reader.next() => epoch,
            () = job.stop_requested() => return stopped(&mut finisher).await,
        };
        let mut epoch = match epoch {
            Ok(Some(epoch)) => epoch,
            Ok(None) => {
                finisher.flush().await?;
                return Ok(Some(End::Finished));
            }
            Err(_) if reader.is_outdated() => {
                finisher.flush().await?;
                return Ok(None);
            }
            Err(error) => {
                if failures.wait(job, &error).await? == After::Stop {
                    return Ok(Some(End::Stopped));
                }
                continue;
            }
        };
        // From here on one epoch is finished while the next is read, until there is a reason to stop.
        loop {
            let read = async move {
                let next = reader.next().await;
                (reader, next)
            };
            let ahead = AbortOnDropHandle::new(tokio::spawn(read.in_current_span()));
            let span = std::mem::replace(&mut epoch.span, Span::none());
            while let Err(error) = finish(shared, &mut finisher, &mut epoch)
                .instrument(span.clone())
                .await
            {
                epoch.retries += 1;
                let wait = failures.wait(job, &error).instrument(span.clone());
                if wait.await? == After::Stop {
                    return Ok(Some(End::Stopped));
                }
            }
            drop(span);
            failures.in_a_row.over(job);
            let next = tokio::select! {
                next = ahead => next,
                () = job.stop_requested() => return stopped(&mut finisher).await,
            };
            let (back, next) = next
                .map_err(|e| Error::internal(format!("the reading of an epoch panicked: {e}")))?;
            reader = back;
            match next {
                Ok(Some(next)) => epoch = next,
                Ok(None) => {
                    finisher.flush().await?;
                    return Ok(Some(End::Finished));
                }
                Err(_) if reader.is_outdated() => {
                    finisher.flush().await?;
                    return Ok(None);
                }
                Err(error) => {
                    if failures.wait(job, &error).await? == After::Stop {
                        return Ok(Some(End::Stopped));
                    }
                    break;
                }
            }
        }
    }
}

/// Finishes an epoch, which is read again if it has been tried before.
async fn finish(shared: &Arc<Shared>, finisher: &mut Finisher, epoch: &mut Epoch) -> Result<()> {
    if epoch.inputs.is_none() {
        epoch.read_again(shared).await?;
    }
    let span = tracing::error_span!("finish");
    finisher.finish(epoch).instrument(span).await
}

async fn stopped(finisher: &mut Finisher) -> Result<Option<End>> {
    finisher.flush().await?;
    Ok(Some(End::Stopped))
}

/// The checkpoint, shared by those who read and those who finish.
type SharedCheckpoint = Arc<Mutex<Checkpoint>>;
