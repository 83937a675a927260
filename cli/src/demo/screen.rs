//! What the demo says while it runs: lines with the time, and the results as they change where a terminal shows them.

use crate::epoch_text::Flow;
use chrono::{DateTime, Utc};
use essaim_proto::v1::{EpochProgress, Job};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines about a job, where no terminal shows it.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the results.
const REFRESH: Duration = Duration::from_millis(250);

/// Where the demo writes.
#[derive(Debug)]
pub struct Screen {
    /// Standard output is for the account alone: everything else goes to standard error.
    account_only: bool,
    /// Whether a terminal shows it.
    terminal: bool,
    started: Instant,
    /// What is drawn over and over, while the job runs.
    live: Option<ProgressBar>,
    /// The newest rows of the results, and when they were read.
    rows: Option<(Instant, String)>,
    /// When a line was last said of the job, and how many toots were sent by then.
    told: Option<(Instant, u64)>,
    /// Toots a second, between the last two times.
    rate: f64,
}

impl Screen {
    /// A screen; the clock starts now.
    pub fn new(account_only: bool) -> Self {
        Self {
            account_only,
            terminal: if account_only {
                std::io::stderr().is_terminal()
            } else {
                std::io::stdout().is_terminal()
            },
            started: Instant::now(),
            live: None,
            rows: None,
            told: None,
            rate: 0.0,
        }
    }

    /// How long the demo runs.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A line with the time.
    pub fn say(&self, text: &str) {
        self.print(&format!("{:5.1} s  {text}", self.elapsed().as_secs_f64()));
    }

    /// Text as it is.
    pub fn print(&self, text: &str) {
        let write = || {
            // A demo whose reader has gone (`essaim demo | head`) goes on to clean up.
            let _ = if self.account_only {
                writeln!(std::io::stderr(), "{text}")
            } else {
                writeln!(std::io::stdout(), "{text}")
            };
        };
        match &self.live {
            Some(live) => live.suspend(write),
            None => write(),
        }
    }

    /// Whether rows are wanted now.
    pub fn wants_rows(&self) -> bool {
        let fresh = |(since, _): &(Instant, String)| since.elapsed() < REFRESH;
        self.terminal && !self.rows.as_ref().is_some_and(fresh)
    }

    /// The newest rows of the results.
    pub fn rows(&mut self, rows: String) {
        self.rows = Some((Instant::now(), rows));
    }

    /// How far the job is: toots sent, toots that PostgreSQL counts, and what the job reports.
    pub fn show(&mut self, sent: u64, counted: u64, job: Option<&Job>) {
        let (since, before) = *self.told.get_or_insert((Instant::now(), sent));
        let due = since.elapsed() >= PAUSE;
        if due {
            self.rate = (sent - before) as f64 / since.elapsed().as_secs_f64();
            self.told = Some((Instant::now(), sent));
        }
        let flow = format!(
            "{} toots sent ({}/s), {} counted",
            HumanCount(sent),
            HumanCount(self.rate.round() as u64),
            HumanCount(counted)
        );
        let epoch = job.and_then(|job| job.last_epoch.as_ref());
        let epoch = epoch.map_or_else(|| "no epoch yet".to_owned(), epoch_line);
        if self.terminal {
            let text = match &self.rows {
                Some((_, rows)) => format!("\n{flow}\n{epoch}\n\n{rows}"),
                None => format!("\n{flow}\n{epoch}"),
            };
            self.live().set_message(text);
        } else if due {
            self.say(&format!("{flow}; {epoch}"));
        }
    }

    fn live(&mut self) -> &ProgressBar {
        let account_only = self.account_only;
        self.live.get_or_insert_with(|| {
            let target = if account_only {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::stdout()
            };
            let live = ProgressBar::with_draw_target(None, target);
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                live.set_style(style);
            }
            live
        })
    }

    /// Takes away what is drawn over and over.
    pub fn job_ended(&mut self) {
        if let Some(live) = self.live.take() {
            live.finish_and_clear();
        }
    }
}

/// The last epoch, its watermark by the clock of today (UTC).
fn epoch_line(epoch: &EpochProgress) -> String {
    let mut line = format!(
        "epoch {}, lag {}",
        epoch.epoch,
        HumanCount(Flow::of(epoch).lag)
    );
    let watermark = epoch.queries.iter().filter_map(|query| query.watermark_ms);
    if let Some(watermark) = watermark
        .min()
        .and_then(DateTime::<Utc>::from_timestamp_millis)
    {
        line.push_str(&format!(", watermark {}", watermark.format("%H:%M:%S")));
    }
    let late: u64 = epoch.queries.iter().map(|query| query.late_rows).sum();
    line.push_str(&format!(", {late} late"));
    line
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.job_ended();
    }
}
