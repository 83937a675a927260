//! HTTP: probes, and the cluster and its jobs as JSON. Times are RFC 3339, sizes bytes.

use crate::Shared;
use crate::jobs::model::JobRecord;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use chrono::{DateTime, SecondsFormat, Utc};
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

async fn job(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match shared.jobs.find(&id) {
        Ok(handle) => Json(handle.read(|record| show(record, true))).into_response(),
        Err(error) => (
            StatusCode::NOT_FOUND,
            Json(json!({ "error": error.to_string() })),
        )
            .into_response(),
    }
}

fn time(ms: i64) -> Option<String> {
    (ms > 0)
        .then(|| DateTime::<Utc>::from_timestamp_millis(ms))?
        .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
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
    });
    if with_queries {
        shown["queries"] = json!(record.queries);
    }
    shown
}
