//! Jobs in pages, one job, and its epochs.

use crate::Shared;
use crate::api::http::job_shapes::{Epoch, EpochsPage, Job, JobSummary, JobsPage};
use crate::api::http::{Named, NoParams, Params, answer, limit, not_found};
use crate::jobs::handle::JobHandle;
use crate::jobs::known::Key;
use crate::jobs::list::Wanted;
use crate::jobs::model::{JobKind, JobState, MAX_EPOCHS_KEPT, now_ms};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use essaim_common::Result;
use serde::Deserialize;
use std::sync::Arc;

/// Jobs of a page, unless it is asked for more or fewer, and at most; those of the page that updates hold, too.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// Which jobs are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobParams {
    /// Only jobs in this state.
    state: Option<JobState>,
    /// Only jobs of this kind.
    kind: Option<JobKind>,
    /// Only jobs with this text in their names, in capitals or not.
    name: Option<String>,
    /// Whether the queries of clients that have ended are listed too, as they are unless this is false.
    queries: Option<bool>,
    /// At most so many; 100, at most 1,000.
    limit: Option<usize>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

/// Jobs, those that were submitted last first: all that have not ended, and the last 10,000 batch and 1,000 streaming
/// jobs and 100 queries that have.
pub(super) async fn jobs(
    State(shared): State<Arc<Shared>>,
    Params(params): Params<JobParams>,
) -> Response {
    let before = match params.page_token.as_deref().map(read_token) {
        Some(None) => {
            let message = "page_token is none of ours: take next_page_token of the page before";
            return answer(StatusCode::BAD_REQUEST, message);
        }
        token => token.flatten(),
    };
    let wanted = Wanted {
        state: params.state,
        kind: params.kind,
        name: params.name.map(|name| name.to_lowercase()),
        no_ended_queries: params.queries == Some(false),
    };
    let limit = limit(params.limit, MAX_PAGE);
    Json(page(&shared, &wanted, limit, before)).into_response()
}

/// What `/api/v1/jobs` answers.
fn page(shared: &Shared, wanted: &Wanted, limit: usize, before: Option<Key>) -> JobsPage {
    let page = shared.jobs.page(wanted, limit, before);
    JobsPage {
        jobs: summaries(&page.jobs),
        next_page_token: page.next.map(|(ms, id)| format!("{ms}-{id}")),
    }
}

/// All jobs that have not ended and the [`PAGE`] that were submitted last, without clients' queries that have ended.
pub(super) fn overview(shared: &Shared) -> JobsPage {
    let wanted = Wanted {
        no_ended_queries: true,
        ..Wanted::default()
    };
    JobsPage {
        jobs: summaries(&shared.jobs.with_open(&wanted, PAGE)),
        next_page_token: None,
    }
}

fn summaries(jobs: &[Arc<JobHandle>]) -> Vec<JobSummary> {
    jobs.iter().map(|job| job.read(JobSummary::new)).collect()
}

fn read_token(token: &str) -> Option<Key> {
    let (ms, id) = token.split_once('-')?;
    Some((ms.parse().ok()?, id.to_owned()))
}

/// One job with its SQL, plan, stages, attempts and errors.
pub(super) async fn job(
    State(shared): State<Arc<Shared>>,
    Named(id): Named,
    Params(NoParams {}): Params<NoParams>,
) -> Response {
    match shared.jobs.find(&id) {
        Ok(handle) => match show(&shared, &handle).await {
            Ok(job) => Json(job).into_response(),
            Err(error) => answer(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        },
        Err(error) => not_found(&error),
    }
}

/// What `/api/v1/jobs/{id}` answers.
pub(super) async fn show(shared: &Shared, job: &JobHandle) -> Result<Job> {
    let shown = |record: &_| Job::new(record, now_ms());
    shared.jobs.look(job, shown).await
}

/// Which epochs are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EpochParams {
    /// At most so many, the newest of them; 100, at most 1,000.
    limit: Option<usize>,
    /// Only epochs with a higher number.
    after_epoch: Option<u64>,
}

/// What the last epochs of a streaming job did; none for a batch job.
pub(super) async fn epochs(
    State(shared): State<Arc<Shared>>,
    Named(id): Named,
    Params(params): Params<EpochParams>,
) -> Response {
    match shared.jobs.find(&id) {
        Ok(handle) => {
            let limit = limit(params.limit, MAX_EPOCHS_KEPT);
            Json(epochs_of(&handle, params.after_epoch, limit)).into_response()
        }
        Err(error) => not_found(&error),
    }
}

/// What `/api/v1/jobs/{id}/epochs` answers.
pub(super) fn epochs_of(job: &JobHandle, after: Option<u64>, limit: usize) -> EpochsPage {
    let epochs = job.epochs(after, limit);
    let epochs = epochs.iter().map(|epoch| Epoch::new(epoch)).collect();
    EpochsPage { epochs }
}
