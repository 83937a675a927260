//! Jobs as text for people.

use crate::epoch_text::{self, Flow};
use crate::job_json::{kind, state};
use crate::text::{one_line, rfc3339};
use comfy_table::{CellAlignment, Table, presets};
use essaim_proto::v1::{Job, JobKind, JobState, QueryStatus, StageStatus, TaskAttempt};
use indicatif::{HumanBytes, HumanCount};
use std::collections::BTreeMap;

/// The unsuccessful attempts of a streaming job that are shown, the last ones: over months there are many.
const ATTEMPTS_SHOWN: usize = 10;

/// All jobs, one a line.
pub fn table(jobs: &[Job]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "JOB",
        "NAME",
        "KIND",
        "STATE",
        "SUBMITTED",
        "SECONDS",
        "ROWS/S",
        "LAG",
        "MESSAGE",
    ]);
    for column in 5..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for job in jobs {
        let running = job.state() == JobState::Running;
        let flow = job.last_epoch.as_ref().filter(|_| running).map(Flow::of);
        table.add_row([
            job.id.clone(),
            one_line(&job.name),
            kind(job.kind()),
            state_in_queue(job),
            rfc3339(job.submitted_ms).unwrap_or_default(),
            seconds(job).map(|s| format!("{s:.1}")).unwrap_or_default(),
            flow.map(|flow| epoch_text::rate(flow.input_rows_per_second))
                .unwrap_or_default(),
            flow.map(|flow| HumanCount(flow.lag).to_string())
                .unwrap_or_default(),
            one_line(&job.message),
        ]);
    }
    table.trim_fmt()
}

/// A job's state, and which place it has in the queue.
pub fn state_in_queue(job: &Job) -> String {
    match job.queue_position {
        0 => state(job.state()),
        position => format!("{} (number {position})", state(job.state())),
    }
}

/// How a job ended, in one line.
pub fn outcome(job: &Job) -> String {
    if let Some(totals) = &job.totals {
        return format!(
            "{} after {} epochs: {} rows out",
            state(job.state()),
            HumanCount(totals.epochs),
            HumanCount(totals.output_rows)
        );
    }
    let rows: u64 = job.queries.iter().map(|query| query.rows_out).sum();
    let took = seconds(job)
        .map(|s| format!(" in {s:.1} s"))
        .unwrap_or_default();
    format!(
        "{}{took}: {} rows out",
        state(job.state()),
        HumanCount(rows)
    )
}

/// A batch job with its queries and their stages, or a streaming job with its last epoch as seen at the time `now_ms`,
/// and the attempts that did not succeed.
pub fn status(job: &Job, now_ms: i64) -> String {
    let is_streaming = job.kind() == JobKind::Streaming;
    let mut lines = vec![format!("job:        {}", job.id)];
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{:<11} {value}", format!("{name}:")));
        }
    };
    if job.name != job.id {
        field("name", one_line(&job.name));
    }
    if is_streaming {
        field("kind", kind(job.kind()));
    }
    field("state", state_in_queue(job));
    field("message", one_line(&job.message));
    field("submitted", rfc3339(job.submitted_ms).unwrap_or_default());
    field("started", rfc3339(job.started_ms).unwrap_or_default());
    field("ended", rfc3339(job.ended_ms).unwrap_or_default());
    if is_streaming {
        field("generation", job.generation.to_string());
        for (name, value) in job.last_epoch.iter().flat_map(epoch_text::fields) {
            field(name, value);
        }
        field(
            "in all",
            job.totals
                .as_ref()
                .map(epoch_text::totals)
                .unwrap_or_default(),
        );
        if let Some(epoch) = &job.last_epoch {
            lines.extend(epoch_text::tables(epoch, now_ms));
        }
        last_unsuccessful(job, &mut lines);
        return lines.join("\n");
    }
    if job.generation > 1 {
        field("starts", job.generation.to_string());
    }
    for query in &job.queries {
        lines.push(String::new());
        query_lines(query, &mut lines);
    }
    lines.join("\n")
}

fn query_lines(query: &QueryStatus, lines: &mut Vec<String>) {
    let target = match query.sink.as_str() {
        "" => "client",
        sink => sink,
    };
    let mut line = format!(
        "query {} -> {}: {} rows out, {}",
        query.index,
        one_line(target),
        HumanCount(query.rows_out),
        if query.done { "done" } else { "not done" },
    );
    if !query.execution.is_empty() {
        line.push_str(&format!(", run as {}", query.execution));
    }
    if query.retries > 0 {
        line.push_str(&format!(", started again {} times", query.retries));
    }
    lines.push(line);
    for stage in &query.stages {
        stage_lines(stage, lines);
    }
}

fn stage_lines(stage: &StageStatus, lines: &mut Vec<String>) {
    let mut line = format!(
        "  stage {}: {}/{} tasks done",
        stage.id, stage.tasks_done, stage.tasks
    );
    if stage.tasks_running > 0 {
        line.push_str(&format!(", {} running", stage.tasks_running));
    }
    line.push_str(&format!(
        ", {} rows read ({})",
        HumanCount(stage.rows_in),
        HumanBytes(stage.bytes_in)
    ));
    line.push_str(&format!(
        ", {} skipped, {} dead-lettered",
        HumanCount(stage.records_skipped),
        HumanCount(stage.records_dead_lettered)
    ));
    lines.push(line);
    let mut per_worker: BTreeMap<&str, u64> = BTreeMap::new();
    for attempt in stage.attempts.iter().filter(|a| a.outcome == "succeeded") {
        *per_worker.entry(&attempt.worker).or_default() += 1;
    }
    if !per_worker.is_empty() {
        let counts: Vec<String> = per_worker
            .iter()
            .map(|(worker, tasks)| format!("{worker} {tasks}"))
            .collect();
        lines.push(format!("    tasks per worker: {}", counts.join(", ")));
    }
    for attempt in stage.attempts.iter().filter(|a| is_unsuccessful(a)) {
        lines.push(attempt_line(attempt));
    }
}

fn is_unsuccessful(attempt: &TaskAttempt) -> bool {
    !matches!(attempt.outcome.as_str(), "succeeded" | "running")
}

fn last_unsuccessful(job: &Job, lines: &mut Vec<String>) {
    let stages = job.queries.iter().flat_map(|query| &query.stages);
    let mut attempts: Vec<&TaskAttempt> = stages
        .flat_map(|stage| &stage.attempts)
        .filter(|attempt| is_unsuccessful(attempt))
        .collect();
    attempts.sort_by_key(|attempt| attempt.started_ms);
    let first = attempts.len().saturating_sub(ATTEMPTS_SHOWN);
    if !attempts.is_empty() {
        lines.push(String::new());
        lines.push("attempts that did not succeed:".to_owned());
    }
    lines.extend(
        attempts[first..]
            .iter()
            .map(|attempt| attempt_line(attempt)),
    );
}

fn attempt_line(attempt: &TaskAttempt) -> String {
    let mut line = format!(
        "    task {}, attempt {} on {}: {}",
        attempt.task, attempt.attempt, attempt.worker, attempt.outcome
    );
    if !attempt.reason.is_empty() {
        line.push_str(&format!(": {}", one_line(&attempt.reason)));
    }
    if !attempt.split.is_empty() {
        line.push_str(&format!(" ({})", one_line(&attempt.split)));
    }
    line
}

/// How long the job ran, once it has ended.
fn seconds(job: &Job) -> Option<f64> {
    (job.started_ms > 0 && job.ended_ms > 0)
        .then(|| (job.ended_ms - job.started_ms) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch_text::tests::epoch;
    use essaim_proto::v1::{EpochProgress, EpochTotals};

    fn attempt(task: u32, attempt: u32, worker: &str, outcome: &str) -> TaskAttempt {
        TaskAttempt {
            task,
            attempt,
            worker: worker.into(),
            outcome: outcome.into(),
            ..TaskAttempt::default()
        }
    }

    fn job() -> Job {
        let lost = TaskAttempt {
            reason: "its connection broke".into(),
            split: "toots[1] 0..9".into(),
            ..attempt(1, 1, "w1", "lost")
        };
        Job {
            id: "0190".into(),
            name: "toots".into(),
            kind: JobKind::Batch.into(),
            state: JobState::Succeeded.into(),
            submitted_ms: 1_700_000_000_000,
            started_ms: 1_700_000_000_500,
            ended_ms: 1_700_000_002_000,
            generation: 1,
            queries: vec![QueryStatus {
                sink: "per_minute".into(),
                execution: "tasks".into(),
                rows_out: 1234,
                done: true,
                stages: vec![StageStatus {
                    tasks: 2,
                    tasks_done: 2,
                    rows_in: 1_000_000,
                    bytes_in: 2048,
                    records_skipped: 3,
                    attempts: vec![
                        attempt(0, 1, "w1", "succeeded"),
                        lost,
                        attempt(1, 2, "w2", "succeeded"),
                    ],
                    ..StageStatus::default()
                }],
                ..QueryStatus::default()
            }],
            ..Job::default()
        }
    }

    #[test]
    fn a_status_tells_which_attempt_failed_where_and_why() {
        assert_eq!(
            status(&job(), 0),
            "\
job:        0190
name:       toots
state:      succeeded
submitted:  2023-11-14T22:13:20.000Z
started:    2023-11-14T22:13:20.500Z
ended:      2023-11-14T22:13:22.000Z

query 0 -> per_minute: 1,234 rows out, done, run as tasks
  stage 0: 2/2 tasks done, 1,000,000 rows read (2.00 KiB), 3 skipped, 0 dead-lettered
    tasks per worker: w1 1, w2 1
    task 1, attempt 1 on w1: lost: its connection broke (toots[1] 0..9)"
        );
        assert_eq!(outcome(&job()), "succeeded in 1.5 s: 1,234 rows out");
    }

    fn streaming(epoch: Option<EpochProgress>) -> Job {
        Job {
            id: "0190".into(),
            name: "toots".into(),
            kind: JobKind::Streaming.into(),
            state: JobState::Running.into(),
            submitted_ms: 1_700_000_000_000,
            generation: 3,
            last_epoch: epoch,
            totals: Some(EpochTotals {
                epochs: 42,
                input_rows: 1_000_000,
                output_rows: 17,
                late_rows: 3,
                ..EpochTotals::default()
            }),
            ..Job::default()
        }
    }

    #[test]
    fn a_streaming_job_is_shown_with_its_last_epoch() {
        let text = status(&streaming(Some(epoch(42))), 1_700_000_001_000);
        assert_eq!(
            text,
            "\
job:        0190
name:       toots
kind:       streaming
state:      running
submitted:  2023-11-14T22:13:20.000Z
generation: 3
epoch:      42, begun 2023-11-14T22:13:20.000Z, 532 ms
steps:      latest_offsets 2 ms, tasks 400 ms, process 120 ms, checkpoint 3 ms
rate:       2.3 rows/s in, 2,318 rows/s processed
lag:        12,000 offsets
in all:     42 epochs, 1,000,000 rows in, 17 rows out, 3 late, 0 skipped, 0 dead-lettered, 0 offsets lost

 SOURCE   ROWS  IN/S  DONE/S     LAG  LOST  WATERMARK                 BEHIND
 toots   1,234   2.3   2,318  12,000     0  2023-11-14T22:13:00.532Z  20.5 s

 INSERT           MODE    ROWS OUT  LATE  STATE       SIZE  WATERMARK                 BEHIND
 0 -> per_minute  update        17     3  1,000  64.00 KiB  2023-11-14T22:13:00.532Z  20.5 s"
        );
        let stopped = Job {
            state: JobState::Stopped.into(),
            ..streaming(None)
        };
        assert!(status(&stopped, 0).contains("state:      stopped"));
        assert_eq!(outcome(&stopped), "stopped after 42 epochs: 17 rows out");
    }

    #[test]
    fn a_streaming_job_shows_the_last_attempts_that_failed() {
        let attempts = (0..30).map(|task| attempt(task, 1, "w1", "lost"));
        let mut job = streaming(None);
        job.queries = vec![QueryStatus {
            stages: vec![StageStatus {
                attempts: attempts.collect(),
                ..StageStatus::default()
            }],
            ..QueryStatus::default()
        }];
        let text = status(&job, 0);
        assert_eq!(
            text.matches(" on w1: lost").count(),
            ATTEMPTS_SHOWN,
            "{text}"
        );
        assert!(
            text.contains("task 29,") && !text.contains("task 19,"),
            "{text}"
        );
    }

    #[test]
    fn a_list_shows_how_fast_a_streaming_job_is_and_how_far_behind() {
        let text = table(&[job(), streaming(Some(epoch(42)))]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[2][2..4], ["streaming", "running"], "{text}");
        assert_eq!(lines[2][5..], ["2.3", "12,000"], "{text}");
    }

    #[test]
    fn a_queued_job_shows_its_place() {
        let queued = Job {
            state: JobState::Queued.into(),
            queue_position: 3,
            ..job()
        };
        assert!(status(&queued, 0).contains("state:      queued (number 3)\n"));
        assert!(table(&[queued]).contains(" queued (number 3) "));
    }

    #[test]
    fn a_list_has_one_line_a_job() {
        let text = table(&[job()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[1].contains("0190") && lines[1].contains("1.5"),
            "{text}"
        );
    }
}
