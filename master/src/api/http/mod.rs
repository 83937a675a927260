//! HTTP: probes, and the cluster and its jobs as JSON under `/api/v1`. Times are RFC 3339, durations ms, sizes bytes.

mod cluster;
mod job_shapes;
mod jobs;
mod openapi;
mod problems;
mod shape;
mod shapes;
pub(crate) mod updates;

use crate::Shared;
use crate::api::http::shapes::ErrorAnswer;
use crate::metrics;
use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use essaim_common::Error;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/cluster", get(cluster::cluster))
        .route("/api/v1/workers", get(cluster::workers))
        .route("/api/v1/workers/{id}", get(cluster::worker))
        .route("/api/v1/jobs", get(jobs::jobs))
        .route("/api/v1/jobs/{id}", get(jobs::job))
        .route("/api/v1/jobs/{id}/epochs", get(jobs::epochs))
        .route("/api/v1/events", get(cluster::events))
        .route("/api/v1/updates", get(updates::updates))
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/api/v1/{*rest}", any(unknown))
        .method_not_allowed_fallback(|| async {
            let message = "the status API is read with GET; jobs are changed over gRPC";
            answer(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .merge(crate::api::pages::router())
        .with_state(shared)
}

/// Ready to run jobs: at least one worker takes tasks.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.registry.slots() > 0 {
        "ready\n".into_response()
    } else {
        let message = "no worker has registered\n";
        (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match metrics::page(&shared).text() {
        Ok(text) => ([(CONTENT_TYPE, essaim_common::metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn unknown() -> Response {
    let message = "there is no such endpoint: /api/v1/openapi.json describes them all";
    answer(StatusCode::NOT_FOUND, message)
}

/// An error in the shape that all errors have.
fn answer(status: StatusCode, message: impl Into<String>) -> Response {
    let error = message.into();
    (status, Json(ErrorAnswer { error })).into_response()
}

fn not_found(error: &Error) -> Response {
    answer(StatusCode::NOT_FOUND, error.to_string())
}

/// How many are wanted of a list: 100 unless it is said, one at least.
fn limit(wanted: Option<usize>, most: usize) -> usize {
    wanted.unwrap_or(100).clamp(1, most)
}

/// The part of a path that names something; what is no text is answered with 400 and a reason.
struct Named(String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let wrong = |e: PathRejection| answer(StatusCode::BAD_REQUEST, e.body_text());
        let Path(name) = Path::from_request_parts(parts, state)
            .await
            .map_err(wrong)?;
        Ok(Self(name))
    }
}

/// The parameters of an endpoint that has none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

/// The parameters behind the question mark; what does not fit is answered with 400 and a reason.
struct Params<T>(T);

impl<T, S> FromRequestParts<S> for Params<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let wrong = |e: QueryRejection| answer(StatusCode::BAD_REQUEST, e.body_text());
        let Query(params) = Query::from_request_parts(parts, state)
            .await
            .map_err(wrong)?;
        Ok(Self(params))
    }
}
