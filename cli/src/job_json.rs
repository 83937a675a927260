//! Jobs as JSON for scripts: the contract's names, states in lower case, times as RFC 3339.

use crate::text::{instant, rfc3339};
use essaim_proto::v1::{
    EpochProgress, EpochTotals, Job, JobKind, JobState, ListResponse, QueryProgress, QueryStatus,
    SourceProgress, StageStatus, SubmitResponse, TaskAttempt,
};
use serde_json::{Value, json};
use std::io::Write;

/// Prints one document on standard output.
///
/// # Errors
/// Standard output is closed.
pub fn print(document: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{document:#}")?;
    out.flush()
}

/// Prints one document on a line of its own on standard output.
///
/// # Errors
/// Standard output is closed.
pub fn print_line(document: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{document}")?;
    out.flush()
}

/// The word for a state, e.g. `succeeded`.
pub fn state(state: JobState) -> String {
    state
        .as_str_name()
        .trim_start_matches("JOB_STATE_")
        .to_ascii_lowercase()
}

/// The word for a kind of job, e.g. `streaming`.
pub fn kind(kind: JobKind) -> String {
    kind.as_str_name()
        .trim_start_matches("JOB_KIND_")
        .to_ascii_lowercase()
}

/// The answer to `submit`.
pub fn submitted(response: &SubmitResponse) -> Value {
    json!({ "job_id": response.job_id, "queue_position": response.queue_position })
}

/// The answer to `jobs`.
pub fn list(response: &ListResponse) -> Value {
    json!({ "jobs": response.jobs.iter().map(job).collect::<Vec<_>>() })
}

/// The answer to `cancel` and `stop`.
pub fn state_only(found: JobState) -> Value {
    json!({ "state": state(found) })
}

/// A job with all that is known of it.
pub fn job(job: &Job) -> Value {
    let mut shown = json!({
        "id": job.id,
        "name": job.name,
        "sql": job.sql,
        "state": state(job.state()),
        "message": job.message,
        "queue_position": job.queue_position,
        "submitted_at": rfc3339(job.submitted_ms),
        "started_at": rfc3339(job.started_ms),
        "ended_at": rfc3339(job.ended_ms),
        "generation": job.generation,
        "kind": kind(job.kind()),
        "queries": job.queries.iter().map(query).collect::<Vec<_>>(),
    });
    if job.kind() == JobKind::Streaming {
        shown["last_epoch"] = json!(job.last_epoch.as_ref().map(epoch));
        shown["totals"] = json!(job.totals.as_ref().map(totals));
    }
    shown
}

fn totals(totals: &EpochTotals) -> Value {
    json!({
        "epochs": totals.epochs,
        "input_rows": totals.input_rows,
        "output_rows": totals.output_rows,
        "late_rows": totals.late_rows,
        "records_skipped": totals.records_skipped,
        "records_dead_lettered": totals.records_dead_lettered,
        "lost": totals.lost,
    })
}

/// An epoch of a streaming job with all that is known of it.
pub fn epoch(epoch: &EpochProgress) -> Value {
    json!({
        "epoch": epoch.epoch,
        "started_at": rfc3339(epoch.started_ms),
        "duration_ms": epoch.duration_ms,
        "input_rows": epoch.input_rows,
        "records_skipped": epoch.records_skipped,
        "records_dead_lettered": epoch.records_dead_lettered,
        "sources": epoch.sources.iter().map(source).collect::<Vec<_>>(),
        "queries": epoch.queries.iter().map(query_progress).collect::<Vec<_>>(),
        "durations_ms": epoch.durations_ms,
        "retries": epoch.retries,
    })
}

fn source(source: &SourceProgress) -> Value {
    json!({
        "table": source.table,
        "start": source.start,
        "end": source.end,
        "latest": source.latest,
        "lag": source.lag,
        "input_rows": source.input_rows,
        "input_rows_per_second": source.input_rows_per_second,
        "processed_rows_per_second": source.processed_rows_per_second,
        "watermark_at": source.watermark_ms.and_then(instant),
        "lost": source.lost,
    })
}

fn query_progress(query: &QueryProgress) -> Value {
    json!({
        "index": query.index,
        "sink": query.sink,
        "output_mode": query.output_mode,
        "output_rows": query.output_rows,
        "late_rows": query.late_rows,
        "watermark_at": query.watermark_ms.and_then(instant),
        "state_rows": query.state_rows,
        "state_bytes": query.state_bytes,
    })
}

fn query(query: &QueryStatus) -> Value {
    json!({
        "index": query.index,
        "sink": query.sink,
        "execution": query.execution,
        "stages": query.stages.iter().map(stage).collect::<Vec<_>>(),
        "rows_out": query.rows_out,
        "done": query.done,
        "retries": query.retries,
    })
}

fn stage(stage: &StageStatus) -> Value {
    json!({
        "id": stage.id,
        "tasks": stage.tasks,
        "tasks_done": stage.tasks_done,
        "tasks_running": stage.tasks_running,
        "rows_in": stage.rows_in,
        "bytes_in": stage.bytes_in,
        "records_skipped": stage.records_skipped,
        "records_dead_lettered": stage.records_dead_lettered,
        "attempts": stage.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn attempt(attempt: &TaskAttempt) -> Value {
    json!({
        "task": attempt.task,
        "attempt": attempt.attempt,
        "worker": attempt.worker,
        "outcome": attempt.outcome,
        "reason": attempt.reason,
        "started_at": rfc3339(attempt.started_ms),
        "ended_at": rfc3339(attempt.ended_ms),
        "rows_in": attempt.rows_in,
        "split": attempt.split,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_the_names_of_the_contract() {
        let message = Job {
            id: "0190".into(),
            state: JobState::Failed.into(),
            submitted_ms: 1_700_000_000_000,
            queries: vec![QueryStatus {
                stages: vec![StageStatus {
                    records_dead_lettered: 3,
                    attempts: vec![TaskAttempt {
                        outcome: "lost".into(),
                        ..TaskAttempt::default()
                    }],
                    ..StageStatus::default()
                }],
                ..QueryStatus::default()
            }],
            ..Job::default()
        };
        let value = job(&message);
        assert_eq!(value["state"], "failed");
        assert_eq!(value["submitted_at"], "2023-11-14T22:13:20.000Z");
        assert_eq!(value["started_at"], Value::Null);
        let stage = &value["queries"][0]["stages"][0];
        assert_eq!(stage["records_dead_lettered"], 3);
        assert_eq!(stage["attempts"][0]["outcome"], "lost");
    }

    #[test]
    fn an_epoch_keeps_the_names_of_the_contract() {
        let message = EpochProgress {
            epoch: 7,
            started_ms: 1_700_000_000_000,
            duration_ms: 12.5,
            sources: vec![SourceProgress {
                table: "toots".into(),
                end: [("toots[0]".to_owned(), 9)].into(),
                watermark_ms: Some(0),
                ..SourceProgress::default()
            }],
            queries: vec![QueryProgress::default()],
            durations_ms: [("tasks".to_owned(), 8.0)].into(),
            ..EpochProgress::default()
        };
        let streaming = Job {
            kind: JobKind::Streaming.into(),
            last_epoch: Some(message),
            totals: Some(EpochTotals {
                late_rows: 2,
                ..EpochTotals::default()
            }),
            ..Job::default()
        };
        let value = job(&streaming);
        assert_eq!(value["kind"], "streaming");
        assert_eq!(value["totals"]["late_rows"], 2);
        let epoch = &value["last_epoch"];
        assert_eq!(epoch["started_at"], "2023-11-14T22:13:20.000Z");
        assert_eq!(epoch["durations_ms"]["tasks"], 8.0);
        let source = &epoch["sources"][0];
        assert_eq!(source["end"]["toots[0]"], 9);
        assert_eq!(source["watermark_at"], "1970-01-01T00:00:00.000Z");
        assert_eq!(epoch["queries"][0]["watermark_at"], Value::Null);
    }
}
