//! What the demo says while it runs: lines with the time, a bar for the job where a terminal shows it.

use crate::progress::Progress;
use essaim_proto::v1::{Job, StageStatus};
use indicatif::HumanCount;
use std::io::Write;
use std::time::{Duration, Instant};

/// Between two lines about a job.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the demo writes.
#[derive(Debug)]
pub struct Screen {
    /// Standard output is for the account alone: everything else goes to standard error.
    account_only: bool,
    started: Instant,
    progress: Progress,
    told: Instant,
}

impl Screen {
    /// A screen; the clock starts now.
    pub fn new(account_only: bool) -> Self {
        let now = Instant::now();
        Self {
            account_only,
            started: now,
            progress: Progress::new(),
            told: now,
        }
    }

    /// How long the demo runs.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A line with the time.
    pub fn say(&mut self, text: &str) {
        self.progress.clear();
        self.print(&format!("{:5.1} s  {text}", self.elapsed().as_secs_f64()));
        self.progress = Progress::new();
    }

    /// Text as it is.
    pub fn print(&self, text: &str) {
        // A demo whose reader has gone (`essaim demo | head`) goes on to clean up.
        let _ = if self.account_only {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    /// How far the job is.
    pub fn progress(&mut self, job: &Job) {
        if self.progress.wanted() {
            return self.progress.update(job);
        }
        let Some(query) = job.queries.last().filter(|_| self.told.elapsed() > PAUSE) else {
            return;
        };
        self.told = Instant::now();
        let sum = |of: fn(&StageStatus) -> u64| query.stages.iter().map(of).sum::<u64>();
        self.say(&format!(
            "{}: {} of {} tasks done, {} running, {} rows read",
            query.sink,
            sum(|stage| stage.tasks_done.into()),
            sum(|stage| stage.tasks.into()),
            sum(|stage| stage.tasks_running.into()),
            HumanCount(sum(|stage| stage.rows_in)),
        ));
    }

    /// Takes the bar away for good.
    pub fn job_ended(&mut self) {
        self.progress.clear();
    }
}
