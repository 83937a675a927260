//! Follows a job to its end, also over a restart of the master, and shows meanwhile what becomes of it.

use crate::client::{self, Failure};
use crate::jobs::has_ended;
use crate::progress::Progress;
use crate::{epoch_text, job_json, job_text};
use anyhow::Result;
use essaim_common::net::Link;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{EpochProgress, EpochsRequest, Job, JobKind, WatchRequest};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How long a watcher looks for a master that went away: jobs survive it, so the watch should.
const MASTER_AWAY: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// As many epochs as a master keeps.
const ALL_EPOCHS: u32 = 1_000;

/// What is shown of a job while it runs.
#[derive(Debug)]
pub enum View {
    /// A bar on standard error.
    Bar(Progress),
    /// Of a streaming job its epochs, on standard output; of a batch job the bar.
    Epochs(Epochs),
}

impl View {
    /// The bar.
    pub fn bar() -> Self {
        Self::Bar(Progress::new())
    }

    /// The epochs, as JSON or as text.
    pub fn epochs(json: bool) -> Self {
        let form = if json {
            Form::Json
        } else if std::io::stdout().is_terminal() {
            Form::Screen(None)
        } else {
            Form::Lines
        };
        Self::Epochs(Epochs {
            form,
            seen: None,
            bar: Progress::new(),
        })
    }

    async fn show(&mut self, client: &mut JobsClient<Link>, job: &Job) -> Result<()> {
        match self {
            Self::Bar(bar) => bar.update(job),
            Self::Epochs(epochs) if job.kind() != JobKind::Streaming => epochs.bar.update(job),
            Self::Epochs(epochs) => epochs.show(client, job).await?,
        }
        Ok(())
    }
}

/// Shows every epoch once, or the last one in place.
#[derive(Debug)]
pub struct Epochs {
    form: Form,
    /// The epoch that was shown last.
    seen: Option<u64>,
    /// For a batch job.
    bar: Progress,
}

#[derive(Debug)]
enum Form {
    /// The job's status, drawn over the one before.
    Screen(Option<ProgressBar>),
    /// A line an epoch.
    Lines,
    /// A JSON object an epoch, each on a line.
    Json,
}

impl Epochs {
    async fn show(&mut self, client: &mut JobsClient<Link>, job: &Job) -> Result<()> {
        match &mut self.form {
            Form::Screen(screen) => {
                let screen = screen.get_or_insert_with(|| {
                    let screen = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
                    if let Ok(style) = ProgressStyle::with_template("{msg}") {
                        screen.set_style(style);
                    }
                    screen
                });
                screen.set_message(job_text::status(job, now_ms()));
            }
            Form::Lines => {
                for epoch in self.unseen(client, job).await? {
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "{}", epoch_text::line(&epoch))?;
                    out.flush()?;
                }
            }
            Form::Json => {
                for epoch in self.unseen(client, job).await? {
                    job_json::print_line(&job_json::epoch(&epoch))?;
                }
            }
        }
        Ok(())
    }

    /// The epochs since the last call, at first only the last one. Reports come ten times a second at most, epochs may
    /// come faster: those in between are asked for.
    async fn unseen(
        &mut self,
        client: &mut JobsClient<Link>,
        job: &Job,
    ) -> Result<Vec<EpochProgress>, Failure> {
        let Some(last) = &job.last_epoch else {
            return Ok(Vec::new());
        };
        let unseen = match self.seen {
            Some(seen) if last.epoch <= seen => Vec::new(),
            Some(seen) if last.epoch > seen + 1 => {
                let request = EpochsRequest {
                    job_id: job.id.clone(),
                    after_epoch: Some(seen),
                    limit: ALL_EPOCHS,
                };
                client::answer(client.epochs(request)).await?.epochs
            }
            _ => vec![last.clone()],
        };
        if let Some(last) = unseen.last() {
            self.seen = Some(last.epoch);
        }
        Ok(unseen)
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        if let Form::Screen(Some(screen)) = &self.form {
            screen.finish_and_clear();
        }
    }
}

/// Follows a job to its end.
///
/// # Errors
/// There is no such job; the master has been away for a minute; standard output is closed.
pub async fn watch(client: &mut JobsClient<Link>, job: &str, mut view: View) -> Result<Job> {
    let mut id = job.to_owned();
    let mut last_heard = Instant::now();
    loop {
        let lost = match follow(client, &mut id, &mut view, &mut last_heard).await {
            Ok(Some(job)) => return Ok(job),
            Ok(None) => Failure::Unreachable(format!(
                "the master stopped reporting on job {id}: `essaim status {id}` asks again"
            )),
            Err(error) => match error.downcast() {
                Ok(failure @ Failure::Unreachable(_)) => failure,
                Ok(failure) => return Err(failure.into()),
                Err(error) => return Err(error),
            },
        };
        if last_heard.elapsed() > MASTER_AWAY {
            return Err(lost.into());
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Follows a job until it ends or the stream does. `id` becomes the job's own.
async fn follow(
    client: &mut JobsClient<Link>,
    id: &mut String,
    view: &mut View,
    last_heard: &mut Instant,
) -> Result<Option<Job>> {
    let request = WatchRequest { job_id: id.clone() };
    let mut reports = client::answer(client.watch(request)).await?;
    while let Some(job) = reports.message().await.map_err(Failure::from)? {
        *last_heard = Instant::now();
        id.clone_from(&job.id);
        view.show(client, &job).await?;
        if has_ended(job.state()) {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use essaim_proto::v1::JobState;

    #[tokio::test]
    async fn each_epoch_is_shown_once_though_reports_skip_some() {
        let fake = Fake::start(Job::default()).await;
        let mut client = fake.client().await;
        let report = |epoch| Job {
            id: "0190".into(),
            kind: JobKind::Streaming.into(),
            state: JobState::Running.into(),
            last_epoch: Some(epoch_text::tests::epoch(epoch)),
            ..Job::default()
        };
        let View::Epochs(mut epochs) = View::epochs(true) else {
            panic!("not epochs");
        };
        let mut shown = Vec::new();
        for epoch in [7, 7, 8, 12, 12] {
            let unseen = epochs.unseen(&mut client, &report(epoch)).await.unwrap();
            shown.push(unseen.iter().map(|epoch| epoch.epoch).collect::<Vec<_>>());
        }
        let expected: [&[u64]; 5] = [&[7], &[], &[8], &[9, 10, 11, 12], &[]];
        assert_eq!(shown, expected);
    }
}
