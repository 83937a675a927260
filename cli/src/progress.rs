//! A bar on standard error while a job or query takes long, if somebody is there to see it.

use crate::{epoch_text, job_text};
use essaim_proto::v1::{Job, JobKind};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// What is over sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// The bar of one job or query. Gone from the screen once dropped.
#[derive(Debug)]
pub struct Progress {
    wanted: bool,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar that shows if standard error is a terminal.
    pub fn new() -> Self {
        Self {
            wanted: std::io::stderr().is_terminal(),
            started: Instant::now(),
            bar: None,
        }
    }

    /// Whether anybody would see it.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// Shows how far `job` is.
    pub fn update(&mut self, job: &Job) {
        if !self.wanted || self.started.elapsed() < PATIENCE {
            return;
        }
        let is_streaming = job.kind() == JobKind::Streaming;
        let queued = (job.queue_position > 0).then(|| job_text::state_in_queue(job));
        let message = queued.unwrap_or_else(|| job.message.clone());
        let bar = self.bar.get_or_insert_with(|| {
            // A streaming job comes no nearer to its end.
            let template = if is_streaming {
                "{wide_msg}"
            } else {
                "{bar:24} {wide_msg}"
            };
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        if is_streaming {
            let last = job.last_epoch.as_ref().map(epoch_text::line);
            bar.set_message(last.unwrap_or_else(|| crate::text::one_line(&job.message)));
            return;
        }
        let done = Totals::of(job);
        let (position, length) = done.bar();
        bar.set_length(length);
        bar.set_position(position);
        bar.set_message(done.text(self.started.elapsed(), &message));
    }

    /// Takes the bar away for good: rows or a result follow.
    pub fn clear(&mut self) {
        self.wanted = false;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A job's stages added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    tasks: u64,
    tasks_done: u64,
    rows_in: u64,
}

impl Totals {
    fn of(job: &Job) -> Self {
        let mut totals = Self::default();
        for stage in job.queries.iter().flat_map(|query| &query.stages) {
            totals.tasks += u64::from(stage.tasks);
            totals.tasks_done += u64::from(stage.tasks_done);
            totals.rows_in += stage.rows_in;
        }
        totals
    }

    /// Position and length of the bar. One without length would be shown full.
    fn bar(&self) -> (u64, u64) {
        (self.tasks_done, self.tasks.max(1))
    }

    fn text(&self, elapsed: Duration, message: &str) -> String {
        let rate = self.rows_in as f64 / elapsed.as_secs_f64().max(0.001);
        let mut text = format!(
            "{}/{} tasks, {} rows, {} rows/s",
            self.tasks_done,
            self.tasks,
            HumanCount(self.rows_in),
            HumanCount(rate as u64),
        );
        if !message.is_empty() {
            text.push_str(", ");
            text.push_str(&crate::text::one_line(message));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::v1::{QueryStatus, StageStatus};

    #[test]
    fn stages_of_all_queries_are_added_up() {
        let stage = |tasks, tasks_done, rows_in| StageStatus {
            tasks,
            tasks_done,
            rows_in,
            ..StageStatus::default()
        };
        let query = |stages| QueryStatus {
            stages,
            ..QueryStatus::default()
        };
        let job = Job {
            queries: vec![
                query(vec![stage(8, 8, 1_000_000), stage(2, 1, 0)]),
                query(vec![stage(4, 0, 234_567)]),
            ],
            ..Job::default()
        };
        let totals = Totals::of(&job);
        assert_eq!(
            totals.text(Duration::from_secs(2), ""),
            "9/14 tasks, 1,234,567 rows, 617,283 rows/s"
        );
    }

    #[test]
    fn a_bar_is_empty_while_no_task_is_known() {
        assert_eq!(Totals::of(&Job::default()).bar(), (0, 1));
    }
}
