//! HTTP of a worker: probes and metrics.

use crate::membership::Lease;
use crate::metrics::{self, TaskCounts};
use crate::tasks::Gauge;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use datafusion::execution::runtime_env::RuntimeEnv;
use essaim_common::broadcast::Broadcasts;
use essaim_common::metrics::Listeners;
use std::sync::Arc;

/// What the pages are made of.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) runtime: Arc<RuntimeEnv>,
    pub(crate) gauge: Gauge,
    pub(crate) slots: usize,
    pub(crate) counts: Arc<TaskCounts>,
    pub(crate) listeners: Listeners,
    pub(crate) lease: Arc<Lease>,
    pub(crate) broadcasts: Arc<Broadcasts>,
}

impl Page {
    /// All routes.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(self))
    }
}

/// Ready to run tasks: the master knows this worker, and it is not about to leave.
async fn ready(State(page): State<Arc<Page>>) -> Response {
    let trouble = if page.lease.is_draining() {
        "draining\n"
    } else if !page.lease.is_registered() {
        "not registered with the master\n"
    } else {
        return "ready\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, trouble).into_response()
}

async fn metrics(State(page): State<Arc<Page>>) -> Response {
    match metrics::page(&page).text() {
        Ok(text) => ([(CONTENT_TYPE, essaim_common::metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
