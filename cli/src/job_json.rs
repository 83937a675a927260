//! Jobs as JSON for scripts: the contract's names, states in lower case, times as RFC 3339.

use crate::text::rfc3339;
use essaim_proto::v1::{
    CancelResponse, Job, JobState, ListResponse, QueryStatus, StageStatus, SubmitResponse,
    TaskAttempt,
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

/// The word for a state, e.g. `succeeded`.
pub fn state(state: JobState) -> String {
    state
        .as_str_name()
        .trim_start_matches("JOB_STATE_")
        .to_ascii_lowercase()
}

/// The answer to `submit`.
pub fn submitted(response: &SubmitResponse) -> Value {
    json!({ "job_id": response.job_id })
}

/// The answer to `jobs`.
pub fn list(response: &ListResponse) -> Value {
    json!({ "jobs": response.jobs.iter().map(job).collect::<Vec<_>>() })
}

/// The answer to `cancel`.
pub fn cancelled(response: &CancelResponse) -> Value {
    json!({ "state": state(response.state()) })
}

/// A job with all that is known of it.
pub fn job(job: &Job) -> Value {
    json!({
        "id": job.id,
        "name": job.name,
        "sql": job.sql,
        "state": state(job.state()),
        "message": job.message,
        "submitted_at": rfc3339(job.submitted_ms),
        "started_at": rfc3339(job.started_ms),
        "ended_at": rfc3339(job.ended_ms),
        "generation": job.generation,
        "queries": job.queries.iter().map(query).collect::<Vec<_>>(),
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
}
