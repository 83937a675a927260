//! The OpenAPI document, made of the handlers and the types of their answers.

use crate::api::http::{cluster, jobs, updates};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use std::sync::LazyLock;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Essaim",
        description = "The state of an Essaim cluster and its jobs. Times are RFC 3339 in UTC, durations ms, sizes bytes; what is absent is null.",
        license(name = "Apache-2.0")
    ),
    paths(
        cluster::cluster,
        cluster::workers,
        cluster::worker,
        cluster::events,
        jobs::jobs,
        jobs::job,
        jobs::epochs,
        updates::updates,
        document,
    )
)]
struct Document;

/// It never changes: written once.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut document = Document::openapi();
    essaim_proto::VERSION.clone_into(&mut document.info.version);
    // Strings, numbers and lists of them under string keys: it cannot fail.
    document.to_json().unwrap_or_default()
});

/// This document.
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}
