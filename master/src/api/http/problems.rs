//! What is wrong with the cluster and its jobs, in words.

use crate::Shared;
use crate::api::http::shapes::{Problem, instant};
use crate::events::Severity;
use crate::jobs::list::Wanted;
use crate::jobs::model::{JobKind, JobRecord, JobState};
use crate::registry::LostWorker;

/// Problems that are shown.
const MAX_PROBLEMS: usize = 100;
/// How long a job that failed is a problem, ms.
const FAILED_SHOWN_MS: i64 = 600_000;
/// Epochs over which a lag must have grown.
const LAG_EPOCHS: usize = 10;
/// A lag that takes longer than this to read is told, s.
const LAG_SECONDS: f64 = 30.0;

/// All problems at `now` (ms since 1970-01-01 UTC), the worst first, then the newest.
pub(super) fn problems(shared: &Shared, lost: &[LostWorker], now: i64) -> Vec<Problem> {
    let mut found: Vec<(i64, Problem)> = Vec::new();
    let mut add = |severity, since: i64, job: Option<String>, worker: Option<String>, message| {
        let since_at = instant(since);
        let problem = Problem {
            severity,
            since_at,
            job,
            worker,
            message,
        };
        found.push((since, problem));
    };
    if let Some(trouble) = shared.jobs.state_dir_trouble() {
        let severity = if trouble.is_lost {
            Severity::Error
        } else {
            Severity::Warning
        };
        add(severity, trouble.since_ms, None, None, trouble.message);
    }
    let open = shared.jobs.open_jobs();
    if shared.registry.slots() == 0 {
        let (severity, waiting) = match open.len() {
            0 => (Severity::Warning, String::new()),
            count => (
                Severity::Error,
                format!(", and {}", counted(count, "job waits", "jobs wait")),
            ),
        };
        let since = lost.last().map_or(shared.started_ms, |lost| lost.lost_ms);
        let message = format!(
            "no worker takes tasks{waiting}: start one with `essaim worker --master http://HOST:7077`"
        );
        add(severity, since, None, None, message);
    }
    let others = shared.registry.slots() > 0;
    for lost in lost {
        let ago = (now - lost.lost_ms).max(0) / 1000;
        let tasks = match (lost.tasks, others) {
            (0, _) => "it had no tasks".to_owned(),
            (1, true) => "its task started again on another worker".to_owned(),
            (count, true) => format!("its {count} tasks started again on other workers"),
            (count, false) => {
                format!(
                    "its {} for another worker",
                    counted(count, "task waits", "tasks wait")
                )
            }
        };
        let (id, why) = (&lost.info.id, &lost.why);
        let message = format!("worker {id} was lost {ago} s ago ({why}); {tasks}");
        add(
            Severity::Warning,
            lost.lost_ms,
            None,
            Some(id.clone()),
            message,
        );
    }
    for job in &open {
        job.read(|record| {
            for (since, message) in of_running(record) {
                let id = Some(record.id.clone());
                add(Severity::Warning, since, id, None, message);
            }
        });
    }
    let failed = Wanted {
        state: Some(JobState::Failed),
        no_ended_queries: true,
        ..Wanted::default()
    };
    for job in shared.jobs.page(&failed, MAX_PROBLEMS, None).jobs {
        job.read(|record| {
            if record.ended_ms >= now - FAILED_SHOWN_MS {
                let message = format!("job {} failed: {}", record.name, record.message);
                let id = Some(record.id.clone());
                add(Severity::Error, record.ended_ms, id, None, message);
            }
        });
    }
    found.sort_by_key(|(since, problem)| {
        let is_error = problem.severity == Severity::Error;
        (std::cmp::Reverse(is_error), std::cmp::Reverse(*since))
    });
    let problems = found.into_iter().map(|(_, problem)| problem);
    problems.take(MAX_PROBLEMS).collect()
}

fn counted(count: usize, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}

/// What is wrong with a job that has not ended, each since when (ms).
fn of_running(record: &JobRecord) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    let name = &record.name;
    if !record.message.is_empty() {
        let begun = record.started_ms.max(record.submitted_ms);
        let since = record.errors.back().map_or(begun, |error| error.at_ms);
        found.push((since.max(begun), format!("job {name}: {}", record.message)));
    }
    if record.kind == JobKind::Streaming
        && let Some(behind) = falls_behind(record)
    {
        found.push(behind);
    }
    found
}

/// A lag that has grown over the last epochs, and is not read soon.
fn falls_behind(record: &JobRecord) -> Option<(i64, String)> {
    let epochs = &record.epochs;
    let last = epochs.back()?;
    let first = epochs.get(epochs.len().checked_sub(LAG_EPOCHS)?)?;
    for source in &last.sources {
        let before = first.sources.iter().find(|s| s.table == source.table)?;
        let seconds = source.lag as f64 / source.processed_rows_per_second.max(1.0);
        if source.lag > before.lag && seconds > LAG_SECONDS {
            let message = format!(
                "job {} falls behind: {} offsets of table {} wait, {:.0} s of work at {:.0} rows a second, and they become more",
                record.name, source.lag, source.table, seconds, source.processed_rows_per_second
            );
            return Some((first.started_ms, message));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::model::{EpochProgress, SourceProgress};

    fn job(lags: &[u64]) -> JobRecord {
        let (id, sql) = ("0190".to_owned(), String::new());
        let mut record = JobRecord::new(id, "toots".to_owned(), sql, JobKind::Streaming);
        for (number, lag) in lags.iter().enumerate() {
            record.record_epoch(EpochProgress {
                epoch: number as u64,
                started_ms: 1_000 * number as i64,
                sources: vec![SourceProgress {
                    table: "toots".to_owned(),
                    lag: *lag,
                    processed_rows_per_second: 100.0,
                    ..SourceProgress::default()
                }],
                ..EpochProgress::default()
            });
        }
        record
    }

    #[test]
    fn a_job_whose_lag_grows_and_takes_long_falls_behind() {
        let growing: Vec<u64> = (1..=12).map(|epoch| epoch * 1_000).collect();
        let (since, message) = falls_behind(&job(&growing)).unwrap();
        assert_eq!(since, 2_000);
        assert!(
            message.contains("12000 offsets of table toots"),
            "{message}"
        );
        assert!(message.contains("120 s of work"), "{message}");
        let shrinking: Vec<u64> = growing.iter().rev().copied().collect();
        let small: Vec<u64> = (1..=12).collect();
        for lags in [&growing[..9], &shrinking, &small, &[]] {
            assert_eq!(falls_behind(&job(lags)), None);
        }
    }

    #[test]
    fn what_a_job_waits_for_is_a_problem_since_its_last_error() {
        let mut record = job(&[]);
        assert!(of_running(&record).is_empty());
        record.message = "failed 2 times in a row".to_owned();
        let begun = record.submitted_ms;
        let told = |record: &JobRecord| of_running(record).remove(0);
        assert_eq!(told(&record).0, begun);
        record.record_error(crate::jobs::model::JobError {
            at_ms: begun + 5,
            ..Default::default()
        });
        let (since, message) = told(&record);
        assert_eq!(since, begun + 5);
        assert_eq!(message, "job toots: failed 2 times in a row");
    }
}
