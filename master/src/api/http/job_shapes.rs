//! What the status API says of jobs. The OpenAPI document is made of these types.

use crate::api::http::shape::{Schemas, Shape, Time, named, object, shapes, words};
use crate::api::http::shapes::{instant, reached};
use crate::jobs::model::{
    self, AttemptRecord, JobKind, JobRecord, JobState, Outcome, QueryRecord, StageRecord,
};
use essaim_common::secret::redact_sql;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Attempts of a stage that are shown, the last ones.
const MAX_ATTEMPTS_SHOWN: usize = 1_000;

shapes! {
    /// Jobs, newest first.
    JobsPage {
        jobs: Vec<JobSummary>,
        /// What to ask for the next page with; null on the last one.
        next_page_token: Option<String>,
    }

    /// A job as a list shows it.
    JobSummary {
        id: String,
        name: String,
        kind: JobKind,
        state: JobState,
        /// Why it failed, or what it waits for; empty otherwise.
        message: String,
        submitted_at: Time,
        started_at: Option<Time>,
        ended_at: Option<Time>,
        /// How often a master has started it.
        generation: u64,
        /// From 1; null unless it waits for others to end.
        queue_position: Option<u32>,
        /// Of a streaming job: all its epochs together, also those before a restart.
        totals: Option<Totals>,
        /// Of a streaming job: the last epoch that was committed.
        last_epoch: Option<Epoch>,
        /// Of a streaming job: those of the epoch that runs.
        tasks: TaskCounts,
        /// Rows read and rows committed or sent; of a streaming job by all its epochs.
        rows_in: u64,
        rows_out: u64,
    }

    /// Tasks of all stages together.
    TaskCounts {
        total: u32,
        done: u32,
        running: u32,
        /// Attempts that failed or whose worker was lost.
        failed: u32,
    }

    /// What the epochs of a streaming job did together.
    Totals {
        /// Epochs that were committed.
        epochs: u64,
        input_rows: u64,
        output_rows: u64,
        late_rows: u64,
        records_skipped: u64,
        records_dead_lettered: u64,
        /// Offsets passed over because a source had deleted them.
        lost: u64,
    }

    /// What a list does not show of a job.
    JobDetails {
        /// As submitted, without passwords.
        sql: String,
        /// One for each INSERT or query, in order.
        queries: Vec<Query>,
        /// The last 100, the newest last.
        errors: Vec<JobError>,
    }

    /// One INSERT or query of a job.
    Query {
        /// Position in the job, from 0.
        index: u32,
        /// The sink's table; empty for a query whose rows go to a client.
        sink: String,
        /// `tasks` (cut at its aggregate), `exchange` (one distributed plan), `master` (nothing to distribute) or `stream`
        /// (epoch by epoch); empty until it is planned.
        execution: String,
        /// Rows committed to the sink or sent to the client since this master runs the job.
        rows_out: u64,
        done: bool,
        /// How often an exchange was started again as a whole.
        retries: u32,
        plan: Plan,
        /// The stages of a streaming job are those of all its INSERTs, shown with the first.
        stages: Vec<Stage>,
    }

    /// A query's plan as a graph.
    Plan {
        /// At most 500; the rest of a larger plan is left out.
        nodes: Vec<PlanNode>,
        /// They point the way rows flow, from source to sink.
        edges: Vec<PlanEdge>,
    }

    /// An operator.
    PlanNode {
        /// Unique in the plan.
        id: u32,
        name: String,
        /// Its expressions, columns and the like, without passwords.
        detail: String,
        /// Where it runs: `master`, `stage N` or `exchange`.
        place as "where": String,
        /// Rows that it has yielded since this master runs the job; null if that is not known.
        rows: Option<u64>,
    }

    /// Rows flow from one node to another.
    PlanEdge {
        from: u32,
        to: u32,
    }

    /// A stage: tasks of one plan over splits.
    Stage {
        id: u32,
        tasks: u32,
        tasks_done: u32,
        tasks_running: u32,
        /// Attempts that failed or whose worker was lost.
        tasks_failed: u32,
        rows_in: u64,
        bytes_in: u64,
        records_skipped: u64,
        records_dead_lettered: u64,
        /// The last 1,000.
        attempts: Vec<Attempt>,
    }

    /// One attempt of a task.
    Attempt {
        task: u32,
        /// From 1.
        attempt: u32,
        /// The worker's id.
        worker: String,
        outcome: Outcome,
        /// Why, if it did not succeed.
        reason: String,
        started_at: Time,
        ended_at: Option<Time>,
        /// Until now if it runs.
        duration_ms: u64,
        rows_in: u64,
        /// What it reads.
        split: String,
    }

    /// Something that went wrong, whether or not the job got over it.
    JobError {
        at: Time,
        message: String,
        /// Table, topic, partition and offset of the record that it is about, if it is about one.
        table: Option<String>,
        topic: Option<String>,
        partition: Option<i32>,
        offset: Option<i64>,
    }

    /// Epochs of a streaming job.
    EpochsPage {
        /// By number, the newest last.
        epochs: Vec<Epoch>,
    }

    /// One epoch that was committed.
    Epoch {
        epoch: u64,
        started_at: Option<Time>,
        duration_ms: f64,
        /// Rows read, of all sources.
        input_rows: u64,
        records_skipped: u64,
        records_dead_lettered: u64,
        /// One for each UNBOUNDED table.
        sources: Vec<Source>,
        /// One for each INSERT.
        queries: Vec<EpochQuery>,
        /// What each step took: `latest_offsets`, `write_offsets`, `static_tables` (if a stream is joined with a table),
        /// `tasks`, `process` (merge, emit and commit), `checkpoint` (the wait for the checkpoint of the one before).
        durations_ms: BTreeMap<String, f64>,
        /// How often it was started again after an error.
        retries: u32,
    }

    /// What an epoch read of one table.
    Source {
        table: String,
        /// By partition, e.g. `toots[3]`: the first offset read, the first not read, the first that was not there yet.
        start: BTreeMap<String, i64>,
        end: BTreeMap<String, i64>,
        latest: BTreeMap<String, i64>,
        /// Offsets between `end` and `latest`, of all partitions.
        lag: u64,
        input_rows: u64,
        /// Rows that arrived, by the time since the epoch before began.
        input_rows_per_second: f64,
        /// Rows read, by the time that the epoch took.
        processed_rows_per_second: f64,
        /// Null before the first row with an event time.
        watermark_at: Option<Time>,
        /// Offsets passed over because the source had deleted them.
        lost: u64,
    }

    /// What an epoch did for one INSERT.
    EpochQuery {
        /// Position in the job, from 0.
        index: u32,
        sink: String,
        /// `append`, `update` or `complete`.
        output_mode: String,
        output_rows: u64,
        /// Rows that came behind the watermark.
        late_rows: u64,
        /// Null before the first row with an event time.
        watermark_at: Option<Time>,
        /// Groups, keys and buffered rows that are kept.
        state_rows: u64,
        state_bytes: u64,
    }
}

words! {
    JobState: Queued, Running, Succeeded, Failed, Cancelled, Stopped;
    JobKind: Batch, Streaming;
    Outcome: Running, Succeeded, Failed, Lost, Superseded;
}

/// One job.
#[derive(Debug, Serialize)]
pub(crate) struct Job {
    #[serde(flatten)]
    summary: JobSummary,
    #[serde(flatten)]
    details: JobDetails,
}

impl Shape for Job {
    fn schema(schemas: &mut Schemas) -> Value {
        named(schemas, "Job", |schemas| {
            let mut fields = JobSummary::fields(schemas);
            fields.extend(JobDetails::fields(schemas));
            object("One job.", fields)
        })
    }
}

impl JobSummary {
    /// A job in a list.
    pub(super) fn new(record: &JobRecord) -> Self {
        let is_streaming = record.kind == JobKind::Streaming;
        let mut tasks = TaskCounts {
            total: 0,
            done: 0,
            running: 0,
            failed: 0,
        };
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
            queue_position: (record.queue_position > 0).then_some(record.queue_position),
            totals: is_streaming.then(|| Totals::new(&record.totals)),
            last_epoch: record.epochs.back().map(|epoch| Epoch::new(epoch)),
            tasks,
            rows_in: record.rows_in(),
            rows_out: record.rows_out(),
        }
    }
}

impl Job {
    pub(super) fn new(record: &JobRecord, now_ms: i64) -> Self {
        let queries = record.queries.iter();
        Self {
            summary: JobSummary::new(record),
            details: JobDetails {
                sql: redact_sql(&record.sql),
                queries: queries.map(|query| Query::new(query, now_ms)).collect(),
                errors: record.errors.iter().map(JobError::new).collect(),
            },
        }
    }
}

impl Totals {
    fn new(totals: &model::EpochTotals) -> Self {
        Self {
            epochs: totals.epochs,
            input_rows: totals.input_rows,
            output_rows: totals.output_rows,
            late_rows: totals.late_rows,
            records_skipped: totals.records_skipped,
            records_dead_lettered: totals.records_dead_lettered,
            lost: totals.lost,
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
        let shown = json!(JobSummary::new(&record));
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
        let shown = json!(Job::new(&record, 0)).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("postgres://"), "{shown}");
    }
}
