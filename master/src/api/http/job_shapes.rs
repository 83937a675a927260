//! What the status API says of jobs. The OpenAPI document is made of these types.

use crate::api::http::shapes::{instant, reached};
use crate::jobs::model::{
    self, AttemptRecord, EpochTotals, JobKind, JobRecord, JobState, Outcome, QueryRecord,
    StageRecord,
};
use essaim_common::secret::redact;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Attempts of a stage that are shown, the last ones.
const MAX_ATTEMPTS_SHOWN: usize = 1_000;

/// Jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobsPage {
    pub jobs: Vec<JobSummary>,
    /// What to ask for the next page with; null on the last one.
    #[schema(required)]
    pub next_page_token: Option<String>,
}

/// A job as a list shows it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobSummary {
    pub id: String,
    pub name: String,
    pub kind: JobKind,
    pub state: JobState,
    /// Why it failed, or what it waits for; empty otherwise.
    pub message: String,
    #[schema(format = DateTime)]
    pub submitted_at: String,
    #[schema(required, format = DateTime)]
    pub started_at: Option<String>,
    #[schema(required, format = DateTime)]
    pub ended_at: Option<String>,
    /// How often a master has started it.
    pub generation: u64,
    /// From 1; null unless it is queued.
    #[schema(required)]
    pub queue_position: Option<usize>,
    /// Of a streaming job: all its epochs together, also those before a restart.
    #[schema(required)]
    pub totals: Option<EpochTotals>,
    /// Of a streaming job: the last epoch that was committed.
    #[schema(required)]
    pub last_epoch: Option<Epoch>,
    /// Of a streaming job: those of the epoch that runs.
    pub tasks: TaskCounts,
    /// Rows read and rows committed or sent; of a streaming job by all its epochs.
    pub rows_in: u64,
    pub rows_out: u64,
}

/// Tasks of all stages together.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct TaskCounts {
    pub total: u32,
    pub done: u32,
    pub running: u32,
    /// Attempts that failed or whose worker was lost.
    pub failed: u32,
}

/// One job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Job {
    #[serde(flatten)]
    pub summary: JobSummary,
    /// As submitted, without passwords.
    pub sql: String,
    /// One for each INSERT or query, in order.
    pub queries: Vec<Query>,
    /// The last 100, the newest last.
    pub errors: Vec<JobError>,
}

/// One INSERT or query of a job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Query {
    /// Position in the job, from 0.
    pub index: u32,
    /// The sink's table; empty for a query whose rows go to a client.
    pub sink: String,
    /// `tasks` (cut at its aggregate), `exchange` (one distributed plan), `master` (nothing to distribute) or `stream`
    /// (epoch by epoch); empty until it is planned.
    pub execution: String,
    /// Rows committed to the sink or sent to the client since this master runs the job.
    pub rows_out: u64,
    pub done: bool,
    /// How often an exchange was started again as a whole.
    pub retries: u32,
    pub plan: Plan,
    /// The stages of a streaming job are those of all its INSERTs, shown with the first.
    pub stages: Vec<Stage>,
}

/// A query's plan as a graph.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Plan {
    /// At most 500; the rest of a larger plan is left out.
    pub nodes: Vec<PlanNode>,
    /// They point the way rows flow, from source to sink.
    pub edges: Vec<PlanEdge>,
}

/// An operator.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlanNode {
    /// Unique in the plan.
    pub id: u32,
    #[schema(example = "AggregateExec")]
    pub name: String,
    /// Its expressions, columns and the like, without passwords.
    pub detail: String,
    /// Where it runs: `master`, `stage N` or `exchange`.
    #[serde(rename = "where")]
    #[schema(example = "stage 0")]
    pub place: String,
    /// Rows that it has yielded since this master runs the job; null if that is not known.
    #[schema(required)]
    pub rows: Option<u64>,
}

/// Rows flow from one node to another.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlanEdge {
    pub from: u32,
    pub to: u32,
}

/// A stage: tasks of one plan over splits.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Stage {
    pub id: u32,
    pub tasks: u32,
    pub tasks_done: u32,
    pub tasks_running: u32,
    /// Attempts that failed or whose worker was lost.
    pub tasks_failed: u32,
    pub rows_in: u64,
    pub bytes_in: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    /// The last 1,000.
    pub attempts: Vec<Attempt>,
}

/// One attempt of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Attempt {
    pub task: u32,
    /// From 1.
    pub attempt: u32,
    /// The worker's id.
    pub worker: String,
    pub outcome: Outcome,
    /// Why, if it did not succeed.
    pub reason: String,
    #[schema(format = DateTime)]
    pub started_at: String,
    #[schema(required, format = DateTime)]
    pub ended_at: Option<String>,
    /// Until now if it runs.
    pub duration_ms: u64,
    pub rows_in: u64,
    /// What it reads.
    #[schema(example = "toots toots[3] 0..1500")]
    pub split: String,
}

/// Something that went wrong, whether or not the job got over it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobError {
    #[schema(format = DateTime)]
    pub at: String,
    pub message: String,
    /// Table, topic, partition and offset of the record that it is about, if it is about one.
    #[schema(required)]
    pub table: Option<String>,
    #[schema(required)]
    pub topic: Option<String>,
    #[schema(required)]
    pub partition: Option<i32>,
    #[schema(required)]
    pub offset: Option<i64>,
}

/// Epochs of a streaming job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EpochsPage {
    /// By number, the newest last.
    pub epochs: Vec<Epoch>,
}

/// One epoch that was committed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Epoch {
    pub epoch: u64,
    #[schema(required, format = DateTime)]
    pub started_at: Option<String>,
    pub duration_ms: f64,
    /// Rows read, of all sources.
    pub input_rows: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    /// One for each UNBOUNDED table.
    pub sources: Vec<Source>,
    /// One for each INSERT.
    pub queries: Vec<EpochQuery>,
    /// What each step took: `latest_offsets`, `write_offsets`, `static_tables` (if a stream is joined with a table),
    /// `tasks`, `process` (merge, emit and commit), `checkpoint` (the wait for the checkpoint of the one before).
    pub durations_ms: BTreeMap<String, f64>,
    /// How often it was started again after an error.
    pub retries: u32,
}

/// What an epoch read of one table.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Source {
    pub table: String,
    /// By partition, e.g. `toots[3]`: the first offset read, the first not read, the first that was not there yet.
    pub start: BTreeMap<String, i64>,
    pub end: BTreeMap<String, i64>,
    pub latest: BTreeMap<String, i64>,
    /// Offsets between `end` and `latest`, of all partitions.
    pub lag: u64,
    pub input_rows: u64,
    /// Rows that arrived, by the time since the epoch before began.
    pub input_rows_per_second: f64,
    /// Rows read, by the time that the epoch took.
    pub processed_rows_per_second: f64,
    /// Null before the first row with an event time.
    #[schema(required, format = DateTime)]
    pub watermark_at: Option<String>,
    /// Offsets passed over because the source had deleted them.
    pub lost: u64,
}

/// What an epoch did for one INSERT.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EpochQuery {
    /// Position in the job, from 0.
    pub index: u32,
    pub sink: String,
    /// `append`, `update` or `complete`.
    pub output_mode: String,
    pub output_rows: u64,
    /// Rows that came behind the watermark.
    pub late_rows: u64,
    /// Null before the first row with an event time.
    #[schema(required, format = DateTime)]
    pub watermark_at: Option<String>,
    /// Groups, keys and buffered rows that are kept.
    pub state_rows: u64,
    pub state_bytes: u64,
}

impl JobSummary {
    /// A job in a list.
    pub(super) fn new(record: &JobRecord, queue_position: Option<usize>) -> Self {
        let is_streaming = record.kind == JobKind::Streaming;
        let mut tasks = TaskCounts::default();
        for stage in record.stages() {
            tasks.total += stage.tasks;
            tasks.done += stage.tasks_done;
            tasks.running += stage.tasks_running;
            tasks.failed += stage.tasks_failed;
        }
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            kind: record.kind,
            state: record.state,
            message: record.message.clone(),
            submitted_at: instant(record.submitted_ms),
            started_at: reached(record.started_ms),
            ended_at: reached(record.ended_ms),
            generation: record.generation,
            queue_position,
            totals: is_streaming.then_some(record.totals),
            last_epoch: record.epochs.back().map(|epoch| Epoch::new(epoch)),
            tasks,
            rows_in: record.rows_in(),
            rows_out: record.rows_out(),
        }
    }
}

impl Job {
    pub(super) fn new(record: &JobRecord, queue_position: Option<usize>, now_ms: i64) -> Self {
        let queries = record.queries.iter();
        Self {
            summary: JobSummary::new(record, queue_position),
            sql: redact(&record.sql),
            queries: queries.map(|query| Query::new(query, now_ms)).collect(),
            errors: record.errors.iter().map(JobError::new).collect(),
        }
    }
}

impl Query {
    fn new(query: &QueryRecord, now_ms: i64) -> Self {
        let nodes = query.plan.nodes.iter().map(|node| PlanNode {
            id: node.id,
            name: node.name.clone(),
            detail: node.detail.clone(),
            place: node.place.show(),
            rows: node.rows,
        });
        let edges = query.plan.edges.iter().map(|edge| PlanEdge {
            from: edge.from,
            to: edge.to,
        });
        let stages = query.stages.iter();
        Self {
            index: query.index,
            sink: query.sink.clone(),
            execution: query.execution.clone(),
            rows_out: query.rows_out,
            done: query.done,
            retries: query.retries,
            plan: Plan {
                nodes: nodes.collect(),
                edges: edges.collect(),
            },
            stages: stages.map(|stage| Stage::new(stage, now_ms)).collect(),
        }
    }
}

impl Stage {
    fn new(stage: &StageRecord, now_ms: i64) -> Self {
        let left_out = stage.attempts.len().saturating_sub(MAX_ATTEMPTS_SHOWN);
        let attempts = stage.attempts.iter().skip(left_out);
        Self {
            id: stage.id,
            tasks: stage.tasks,
            tasks_done: stage.tasks_done,
            tasks_running: stage.tasks_running,
            tasks_failed: stage.tasks_failed,
            rows_in: stage.rows_in,
            bytes_in: stage.bytes_in,
            records_skipped: stage.records_skipped,
            records_dead_lettered: stage.records_dead_lettered,
            attempts: attempts
                .map(|attempt| Attempt::new(attempt, now_ms))
                .collect(),
        }
    }
}

impl Attempt {
    fn new(attempt: &AttemptRecord, now_ms: i64) -> Self {
        let end_ms = if attempt.ended_ms > 0 {
            attempt.ended_ms
        } else {
            now_ms
        };
        Self {
            task: attempt.task,
            attempt: attempt.attempt,
            worker: attempt.worker.clone(),
            outcome: attempt.outcome,
            reason: attempt.reason.clone(),
            started_at: instant(attempt.started_ms),
            ended_at: reached(attempt.ended_ms),
            duration_ms: u64::try_from(end_ms - attempt.started_ms).unwrap_or_default(),
            rows_in: attempt.rows_in,
            split: attempt.split.clone(),
        }
    }
}

impl JobError {
    fn new(error: &model::JobError) -> Self {
        Self {
            at: instant(error.at_ms),
            message: error.message.clone(),
            table: error.table.clone(),
            topic: error.topic.clone(),
            partition: error.partition,
            offset: error.offset,
        }
    }
}

impl Epoch {
    pub(super) fn new(epoch: &model::EpochProgress) -> Self {
        Self {
            epoch: epoch.epoch,
            started_at: reached(epoch.started_ms),
            duration_ms: epoch.duration_ms,
            input_rows: epoch.input_rows,
            records_skipped: epoch.records_skipped,
            records_dead_lettered: epoch.records_dead_lettered,
            sources: epoch.sources.iter().map(Source::new).collect(),
            queries: epoch.queries.iter().map(EpochQuery::new).collect(),
            durations_ms: epoch.durations_ms.clone(),
            retries: epoch.retries,
        }
    }
}

impl Source {
    fn new(source: &model::SourceProgress) -> Self {
        Self {
            table: source.table.clone(),
            start: source.start.0.clone(),
            end: source.end.0.clone(),
            latest: source.latest.0.clone(),
            lag: source.lag,
            input_rows: source.input_rows,
            input_rows_per_second: source.input_rows_per_second,
            processed_rows_per_second: source.processed_rows_per_second,
            watermark_at: source.watermark_ms.map(instant),
            lost: source.lost,
        }
    }
}

impl EpochQuery {
    fn new(query: &model::QueryProgress) -> Self {
        Self {
            index: query.index,
            sink: query.sink.clone(),
            output_mode: query.output_mode.clone(),
            output_rows: query.output_rows,
            late_rows: query.late_rows,
            watermark_at: query.watermark_ms.map(instant),
            state_rows: query.state_rows,
            state_bytes: query.state_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::model::{EpochProgress, QueryProgress, SourceProgress};
    use essaim_common::stream::Offsets;
    use serde_json::{Value, json};

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
        let shown = json!(JobSummary::new(&record, None));
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

    #[test]
    fn passwords_are_not_shown() {
        let sql = "LOCATION 'postgres://app:hunter2@db/x'".to_owned();
        let record = JobRecord::new("0190".to_owned(), String::new(), sql, JobKind::Batch);
        let shown = json!(Job::new(&record, None, 0)).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("postgres://"), "{shown}");
    }
}
