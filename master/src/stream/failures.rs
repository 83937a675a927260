//! What a failure costs: a pause, and after too many of them the job.

use crate::events::{EventKind, Severity};
use crate::jobs::handle::JobHandle;
use crate::jobs::model::JobError;
use essaim_common::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The first pause after an epoch that failed; twice as long after each other one.
const BACK_OFF: Duration = Duration::from_millis(200);
/// The longest one.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(15);
/// How often the first epoch of a job may fail: six minutes.
const FIRST_EPOCH_ATTEMPTS: usize = 30;

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Again,
    /// Somebody asked the job to stop.
    Stop,
}

/// Failures in a row: counted where epochs fail, and forgotten by whoever gets through.
#[derive(Debug, Clone, Default)]
pub(super) struct InARow(Arc<AtomicUsize>);

impl InARow {
    /// What failed goes well again.
    pub(super) fn over(&self, job: &JobHandle) {
        if self.0.swap(0, Ordering::Relaxed) > 0 {
            job.vitals().failed(0);
            job.update(|record| record.message.clear());
        }
    }
}

/// Counts failures in a row, and pauses after each.
#[derive(Default)]
pub(super) struct Failures {
    pub(super) in_a_row: InARow,
    /// `essaim.max_epoch_attempts`.
    pub(super) limit: usize,
}

impl Failures {
    /// Whether it is enough. An address that never answered may be wrong; a job that has worked waits for the outage to end.
    fn are_too_many(&self, count: usize, job: &JobHandle) -> bool {
        let has_worked = || job.read(|record| record.totals.epochs > 0 || record.generation > 1);
        match self.limit {
            0 => count >= FIRST_EPOCH_ATTEMPTS && !has_worked(),
            limit => count >= limit,
        }
    }

    /// Waits before another attempt, if there is to be one, and says so in the job's message.
    pub(super) async fn wait(&mut self, job: &JobHandle, error: &Error) -> Result<After> {
        let count = self.in_a_row.0.fetch_add(1, Ordering::Relaxed) + 1;
        job.meter().epoch_failures.inc();
        job.vitals().failed(count as u64);
        if !error.is_transient() {
            return Err(error.clone());
        }
        if self.are_too_many(count, job) {
            return Err(error.clone().context(format!(
                "an epoch failed {count} times in a row (essaim.max_epoch_attempts), the last time"
            )));
        }
        let pause = BACK_OFF * 2_u32.saturating_pow(count.min(10) as u32 - 1);
        let pause = pause.min(LONGEST_BACK_OFF);
        tracing::warn!(job = %job.id(), %error, attempt = count, ?pause, "an epoch failed and is tried again");
        let message = format!("failed {count} times in a row, tried again: {error}");
        job.event(EventKind::EpochFailed, Severity::Warning, None, &message);
        job.update(|record| {
            record.record_error(JobError::now(error.to_string()));
            record.message = message;
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(After::Again),
            // The epoch that failed is planned and not committed: it is the first one when the job goes on.
            () = job.stop_requested() => Ok(After::Stop),
        }
    }
}

/// Waits for the state dir, as long as it takes, and says so in the job's message.
#[derive(Debug)]
pub(crate) struct Waits {
    count: u32,
    /// What waits.
    who: &'static str,
}

impl Waits {
    pub(crate) const EPOCHS: Self = Self {
        count: 0,
        who: "epochs wait",
    };
    pub(crate) const BATCH: Self = Self {
        count: 0,
        who: "the job waits",
    };

    pub(crate) async fn next(&mut self, job: &JobHandle, error: &Error) {
        let pause = (BACK_OFF * 2_u32.saturating_pow(self.count.min(10))).min(LONGEST_BACK_OFF);
        self.count += 1;
        tracing::warn!(job = %job.id(), %error, ?pause, "{} for the state dir", self.who);
        let message = format!("{} for the state dir: {error}", self.who);
        if self.count == 1 {
            job.event(EventKind::EpochWaits, Severity::Warning, None, &message);
            job.record_error(JobError::now(&message));
        }
        job.update(|record| record.message = message);
        tokio::time::sleep(pause).await;
    }

    pub(crate) fn over(&self, job: &JobHandle) {
        if self.count > 0 {
            job.update(|record| record.message.clear());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::model::{EpochProgress, JobKind, JobRecord};

    #[test]
    fn a_job_that_has_worked_outlives_any_outage_and_one_that_has_not_does_not() {
        let (id, sql) = ("j".to_owned(), String::new());
        let record = JobRecord::new(id.clone(), id, sql, JobKind::Streaming);
        let job = JobHandle::new(record, Arc::default());
        let enough = |count, limit| {
            let failures = Failures {
                limit,
                ..Failures::default()
            };
            failures.are_too_many(count, &job)
        };
        assert!(!enough(FIRST_EPOCH_ATTEMPTS - 1, 0));
        assert!(enough(FIRST_EPOCH_ATTEMPTS, 0));
        job.record_epoch(EpochProgress::default());
        assert!(!enough(1_000_000, 0));
        assert!(!enough(1, 2));
        assert!(enough(2, 2));
    }
}
