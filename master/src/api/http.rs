//! HTTP: probes, and the cluster and its jobs as JSON. Times are RFC 3339, durations ms, sizes bytes.

use crate::Shared;
use crate::jobs::model::{EpochProgress, JobKind, JobRecord, MAX_EPOCHS_KEPT};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use chrono::{DateTime, SecondsFormat, Utc};
use essaim_common::Error;
use essaim_common::secret::redact;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/cluster", get(cluster))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/jobs/{id}", get(job))
        .route("/api/v1/jobs/{id}/epochs", get(epochs))
        .merge(crate::api::pages::router())
        .with_state(shared)
}

/// Ready to run jobs: at least one worker takes tasks.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.registry.slots() > 0 {
        "ready\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "no worker has registered\n",
        )
            .into_response()
    }
}

async fn cluster(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let workers = shared.registry.workers();
    Json(json!({
        "version": essaim_proto::VERSION,
        "slots": workers.iter().map(|w| w.slots).sum::<usize>(),
        "slots_used": workers.iter().map(|w| w.slots_used).sum::<usize>(),
        "memory_reserved_bytes": shared.runtime.memory_pool.reserved(),
        "workers": workers,
    }))
}

#[derive(Debug, Deserialize)]
struct Page {
    limit: Option<usize>,
}

async fn jobs(State(shared): State<Arc<Shared>>, Query(page): Query<Page>) -> Json<Value> {
    let jobs = shared.jobs.list(page.limit.unwrap_or(100).min(1000));
    let jobs: Vec<Value> = jobs
        .iter()
        .map(|handle| handle.read(|record| show(record, false)))
        .collect();
    Json(json!({ "jobs": jobs }))
}

#[derive(Debug, Deserialize)]
struct EpochPage {
    after_epoch: Option<u64>,
    limit: Option<usize>,
}

async fn epochs(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(page): Query<EpochPage>,
) -> Response {
    match shared.jobs.find(&id) {
        Ok(handle) => {
            let limit = page.limit.unwrap_or(100).min(MAX_EPOCHS_KEPT);
            let epochs = handle.epochs(page.after_epoch, limit);
            let epochs: Vec<Value> = epochs.iter().map(|epoch| show_epoch(epoch)).collect();
            Json(json!({ "epochs": epochs })).into_response()
        }
        Err(error) => not_found(&error),
    }
}

async fn job(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match shared.jobs.find(&id) {
        Ok(handle) => Json(handle.read(|record| show(record, true))).into_response(),
        Err(error) => not_found(&error),
    }
}

fn not_found(error: &Error) -> Response {
    let answer = Json(json!({ "error": error.to_string() }));
    (StatusCode::NOT_FOUND, answer).into_response()
}

/// A time that may not have been reached.
fn time(ms: i64) -> Option<String> {
    (ms > 0).then(|| instant(ms))?
}

fn instant(ms: i64) -> Option<String> {
    let time = DateTime::<Utc>::from_timestamp_millis(ms)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

fn show(record: &JobRecord, with_queries: bool) -> Value {
    let mut shown = json!({
        "id": record.id,
        "name": record.name,
        "sql": redact(&record.sql),
        "state": record.state,
        "message": record.message,
        "submitted_at": time(record.submitted_ms),
        "started_at": time(record.started_ms),
        "ended_at": time(record.ended_ms),
        "generation": record.generation,
        "kind": record.kind,
    });
    if record.kind == JobKind::Streaming {
        shown["totals"] = json!(record.totals);
        shown["last_epoch"] = json!(record.epochs.back().map(|epoch| show_epoch(epoch)));
    }
    if with_queries {
        shown["queries"] = json!(record.queries);
    }
    shown
}

/// An epoch with its times in RFC 3339.
fn show_epoch(epoch: &EpochProgress) -> Value {
    let mut shown = json!(epoch);
    rename_time(&mut shown, "started", time);
    for part in ["sources", "queries"] {
        for entry in shown[part].as_array_mut().into_iter().flatten() {
            rename_time(entry, "watermark", instant);
        }
    }
    shown
}

/// Writes `NAME_ms` as `NAME_at`.
fn rename_time(shown: &mut Value, name: &str, write: impl Fn(i64) -> Option<String>) {
    if let Some(fields) = shown.as_object_mut() {
        let ms = fields.remove(&format!("{name}_ms"));
        let at = ms.and_then(|ms| ms.as_i64()).and_then(write);
        fields.insert(format!("{name}_at"), json!(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::model::{QueryProgress, SourceProgress};
    use essaim_common::stream::Offsets;

    #[test]
    fn a_streaming_job_is_shown_with_its_last_epoch_and_totals() {
        let (id, sql) = ("0190".to_owned(), String::new());
        let mut record = JobRecord::new(id, "toots".to_owned(), sql, JobKind::Streaming);
        record.record_epoch(EpochProgress {
            epoch: 7,
            started_ms: 1_700_000_000_000,
            duration_ms: 12.5,
            input_rows: 3,
            sources: vec![SourceProgress {
                end: Offsets([("toots[0]".to_owned(), 9)].into()),
                watermark_ms: Some(0),
                ..SourceProgress::default()
            }],
            queries: vec![QueryProgress::default()],
            ..EpochProgress::default()
        });
        let shown = show(&record, false);
        assert_eq!(shown["kind"], "streaming");
        assert_eq!(shown["totals"]["input_rows"], 3);
        let epoch = &shown["last_epoch"];
        assert_eq!(epoch["started_at"], "2023-11-14T22:13:20.000Z");
        assert_eq!(epoch["duration_ms"], 12.5);
        let source = &epoch["sources"][0];
        assert_eq!(source["end"]["toots[0]"], 9);
        assert_eq!(source["watermark_at"], "1970-01-01T00:00:00.000Z");
        assert_eq!(epoch["queries"][0]["watermark_at"], Value::Null);
    }
}
