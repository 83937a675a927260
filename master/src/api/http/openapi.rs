//! The OpenAPI document: the endpoints, with the schemas of the types that they answer with.

use crate::api::http::job_shapes::{EpochsPage, Job, JobsPage};
use crate::api::http::shape::{Schemas, Shape};
use crate::api::http::shapes::{ClusterStatus, ErrorAnswer, EventsPage, Worker, WorkersPage};
use crate::jobs::model::{JobKind, JobState};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// What any endpoint may answer, before it is looked at.
const REFUSED: [(u16, &str); 3] = [
    (
        401,
        "This listener has tokens, and the request shows none that is known and has not expired",
    ),
    (403, "The token is not for this"),
    (
        429,
        "Too many requests a second; Retry-After says when to come again",
    ),
];
/// How the status of an error is described.
const WRONG: (u16, &str) = (400, "A parameter is wrong");
const NO_JOB: (u16, &str) = (404, "There is no such job, or several begin so");
const NO_WORKER: (u16, &str) = (404, "There is no such worker");
const UNREACHABLE: (u16, &str) = (
    503,
    "The job ended long ago, and the state dir is out of reach",
);
const TOO_MANY: (u16, &str) = (503, "64 such connections are open");

const JOB: Parameter = Parameter {
    name: "id",
    place: "path",
    about: "The job's id, the beginning of it, or its name.",
    schema: String::schema,
};
const LIMIT: &str = "At most so many; 100 if it is not given, 1,000 at most, 1 at least.";

/// A part of a path, or a parameter behind the question mark.
struct Parameter {
    name: &'static str,
    place: &'static str,
    about: &'static str,
    schema: fn(&mut Schemas) -> Value,
}

impl Parameter {
    fn query(name: &'static str, schema: fn(&mut Schemas) -> Value, about: &'static str) -> Self {
        Self {
            name,
            place: "query",
            about,
            schema,
        }
    }
}

/// The document as it is drawn up.
#[derive(Default)]
struct Draft {
    paths: Map<String, Value>,
    schemas: Schemas,
}

impl Draft {
    /// An endpoint that answers with a type.
    fn get<T: Shape>(
        &mut self,
        path: &str,
        about: &str,
        parameters: &[Parameter],
        errors: &[(u16, &str)],
    ) {
        let schema = T::schema(&mut self.schemas);
        let content = json!({ "application/json": { "schema": schema } });
        self.add(path, about, parameters, &content, errors);
    }

    fn add(
        &mut self,
        path: &str,
        about: &str,
        parameters: &[Parameter],
        content: &Value,
        errors: &[(u16, &str)],
    ) {
        let schemas = &mut self.schemas;
        let mut responses = Map::new();
        responses.insert(
            "200".to_owned(),
            json!({ "description": "As asked for", "content": content }),
        );
        for (status, about) in errors.iter().chain(&REFUSED) {
            let schema = ErrorAnswer::schema(schemas);
            let content = json!({ "application/json": { "schema": schema } });
            responses.insert(
                status.to_string(),
                json!({ "description": about, "content": content }),
            );
        }
        let parameters = parameters.iter().map(|parameter| {
            json!({
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.about,
                "schema": (parameter.schema)(schemas),
            })
        });
        let parameters: Vec<_> = parameters.collect();
        let get = json!({
            "description": about,
            "parameters": parameters,
            "responses": responses,
        });
        self.paths.insert(path.to_owned(), json!({ "get": get }));
    }
}

fn cluster(draft: &mut Draft) {
    draft.get::<ClusterStatus>(
        "/api/v1/cluster",
        "The cluster: version, slots, memory, jobs by state, workers, and what is wrong.",
        &[],
        &[WRONG],
    );
    draft.get::<WorkersPage>(
        "/api/v1/workers",
        "The workers with the tasks that they run.",
        &[],
        &[WRONG],
    );
    let id = Parameter {
        name: "id",
        place: "path",
        about: "The worker's id.",
        schema: String::schema,
    };
    draft.get::<Worker>(
        "/api/v1/workers/{id}",
        "One worker.",
        &[id],
        &[WRONG, NO_WORKER],
    );
    draft.get::<EventsPage>(
        "/api/v1/events",
        "What happened lately: the last 1,000 events of this master.",
        &[
            Parameter::query("limit", usize::schema, LIMIT),
            Parameter::query("after", u64::schema, "Only events with a higher id."),
            Parameter::query(
                "job",
                String::schema,
                "Only events of this job: its id, the beginning of it, or its name.",
            ),
            Parameter::query(
                "worker",
                String::schema,
                "Only events of this worker, by its id.",
            ),
        ],
        &[WRONG, NO_JOB],
    );
}

fn jobs(draft: &mut Draft) {
    draft.get::<JobsPage>(
        "/api/v1/jobs",
        "Jobs, those that were submitted last first: all that have not ended, and the last 10,000 batch jobs, 1,000 \
         streaming jobs and 100 queries that have.",
        &[
            Parameter::query("state", JobState::schema, "Only jobs in this state."),
            Parameter::query("kind", JobKind::schema, "Only jobs of this kind."),
            Parameter::query(
                "name",
                String::schema,
                "Only jobs with this text in their names, in capitals or not.",
            ),
            Parameter::query(
                "queries",
                bool::schema,
                "Whether the queries of clients that have ended are listed too, as they are unless this is false.",
            ),
            Parameter::query("limit", usize::schema, LIMIT),
            Parameter::query(
                "page_token",
                String::schema,
                "`next_page_token` of the page before.",
            ),
        ],
        &[WRONG],
    );
    draft.get::<Job>(
        "/api/v1/jobs/{id}",
        "One job with its SQL, plans, stages, attempts and errors.",
        &[JOB],
        &[WRONG, NO_JOB, UNREACHABLE],
    );
    draft.get::<EpochsPage>(
        "/api/v1/jobs/{id}/epochs",
        "What the last epochs of a streaming job did; none for a batch job.",
        &[
            JOB,
            Parameter::query("limit", usize::schema, LIMIT),
            Parameter::query(
                "after_epoch",
                u64::schema,
                "Only epochs with a higher number.",
            ),
        ],
        &[WRONG, NO_JOB],
    );
}

fn streams(draft: &mut Draft) {
    let schema = String::schema(&mut draft.schemas);
    draft.add(
        "/api/v1/updates",
        "Changes as server-sent events: `cluster` and `jobs` (the first 100) as their endpoints answer, `event` for \
         each new event, and with `job` that job as `job` and its new epochs as `epochs`. All but events at first, then \
         each at most once a second and only when it has changed. A comment after 15 s without changes.",
        &[Parameter::query(
            "job",
            String::schema,
            "Also this job and its epochs: its id, the beginning of it, or its name.",
        )],
        &json!({ "text/event-stream": { "schema": schema } }),
        &[WRONG, NO_JOB, TOO_MANY],
    );
    draft.add(
        "/api/v1/openapi.json",
        "This document.",
        &[],
        &json!({ "application/json": { "schema": { "type": "object" } } }),
        &[],
    );
}

/// It never changes: written once.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut draft = Draft::default();
    cluster(&mut draft);
    jobs(&mut draft);
    streams(&mut draft);
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Essaim",
            "version": essaim_proto::VERSION,
            "description": "The state of an Essaim cluster and its jobs. Times are RFC 3339 in UTC, durations ms, sizes \
                            bytes; what is absent is null.",
            "license": { "name": "Apache-2.0" },
        },
        "paths": draft.paths,
        "components": { "schemas": draft.schemas },
    });
    document.to_string()
});

/// The document.
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_that_is_named_is_there() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        let text = DOCUMENT.as_str();
        let named = text.split("\"#/components/schemas/").skip(1);
        let mut count = 0;
        for name in named.filter_map(|rest| rest.split('"').next()) {
            let schema = &document["components"]["schemas"][name];
            assert!(schema["type"].is_string(), "{name}: {schema}");
            count += 1;
        }
        assert!(count > 20, "{count}");
    }
}
