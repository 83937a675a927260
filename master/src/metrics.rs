//! The master's metrics: looks at the cluster and its jobs at the moment of a scrape. `docs/metrics.md` lists them.

use crate::jobs::handle::JobHandle;
use crate::jobs::meter::{Meter, OUTCOMES, STEPS};
use crate::jobs::model::{EpochProgress, JobKind, JobRecord, JobState, SourceProgress, now_ms};
use crate::jobs::{Jobs, MAX_OPEN_JOBS};
use crate::registry::{Registry, WorkerInfo, WorkerState};
use crate::{MAX_RUNNING, Shared};
use essaim_common::metrics::{Counter, Page};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Workers that have series of their own.
const MAX_WORKERS: usize = 200;

/// Everything that is known now.
pub(crate) fn page(shared: &Shared) -> Page {
    let mut page = Page::of_process("master", &shared.runtime);
    shared.listeners.add_to(&mut page);
    cluster(&mut page, &shared.registry);
    workers(&mut page, &shared.registry.workers());
    jobs(&mut page, &shared.jobs);
    counters(&mut page, &shared.jobs);
    epochs(&mut page, &shared.jobs);
    streams(&mut page, &shared.jobs);
    page
}

fn cluster(page: &mut Page, registry: &Registry) {
    page.counter(
        "essaim_cluster_workers_joined_total",
        "Workers that registered for the first time.",
    )
    .count(&[], &registry.joined);
    page.counter(
        "essaim_cluster_workers_left_total",
        "Workers that left by themselves.",
    )
    .count(&[], &registry.left);
    page.counter(
        "essaim_cluster_workers_lost_total",
        "Workers that were given up: no heartbeat, or a broken connection.",
    )
    .count(&[], &registry.lost);
    page.gauge("essaim_cluster_tasks_queued", "Tasks that wait for a slot.")
        .add(&[], registry.waiting() as f64);
}

fn workers(page: &mut Page, workers: &[WorkerInfo]) {
    let mut states = page.gauge("essaim_cluster_workers", "Workers that are registered.");
    for (state, name) in [
        (WorkerState::Active, "active"),
        (WorkerState::Draining, "draining"),
    ] {
        let count = workers.iter().filter(|worker| worker.state == state);
        states.add(&[("state", name)], count.count() as f64);
    }
    let mut sum = |name, help, value: fn(&WorkerInfo) -> u64| {
        let sum: u64 = workers.iter().map(value).sum();
        page.gauge(name, help).add(&[], sum as f64);
    };
    sum("essaim_cluster_slots", "Slots of all workers.", |w| {
        w.slots as u64
    });
    sum(
        "essaim_cluster_slots_used",
        "Slots in which a task runs.",
        |w| w.slots_used as u64,
    );
    let mut each = |name, help, value: fn(&WorkerInfo) -> f64| {
        let mut family = page.gauge(name, help);
        for worker in workers.iter().take(MAX_WORKERS) {
            family.add(&[("worker", &worker.id)], value(worker));
        }
    };
    each(
        "essaim_cluster_worker_slots",
        "Slots of a worker.",
        |worker| worker.slots as f64,
    );
    each(
        "essaim_cluster_worker_slots_used",
        "Slots of a worker in which a task runs.",
        |worker| worker.slots_used as f64,
    );
    each(
        "essaim_cluster_worker_memory_limit_bytes",
        "Memory that a worker's tasks may reserve together.",
        |worker| worker.memory_bytes as f64,
    );
    each(
        "essaim_cluster_worker_memory_reserved_bytes",
        "Memory that a worker's tasks had reserved at its last heartbeat.",
        |worker| worker.memory_reserved_bytes as f64,
    );
    each(
        "essaim_cluster_worker_heartbeat_age_seconds",
        "Time since a worker's last heartbeat.",
        |worker| (now_ms() - worker.last_heartbeat_ms).max(0) as f64 / 1000.0,
    );
}

/// How many jobs there are, in which state, and what became of the last one of each name.
fn jobs(page: &mut Page, jobs: &Jobs) {
    let mut counts: BTreeMap<(JobKind, JobState), u64> = BTreeMap::new();
    for kind in [JobKind::Batch, JobKind::Streaming] {
        counts.insert((kind, JobState::Queued), 0);
        counts.insert((kind, JobState::Running), 0);
    }
    let mut last: BTreeMap<String, (i64, JobKind, JobState)> = BTreeMap::new();
    for job in jobs.all() {
        let (kind, state, submitted_ms) =
            job.read(|record| (record.kind, record.state, record.submitted_ms));
        *counts.entry((kind, state)).or_default() += 1;
        let known = last
            .entry(job.meter().label.clone())
            .or_insert((submitted_ms, kind, state));
        if known.0 <= submitted_ms {
            *known = (submitted_ms, kind, state);
        }
    }
    let mut family = page.gauge("essaim_jobs", "Jobs that the master remembers.");
    for ((kind, state), count) in counts {
        let labels = [("kind", kind.as_str()), ("state", state.as_str())];
        family.add(&labels, count as f64);
    }
    page.gauge(
        "essaim_jobs_open_limit",
        "Jobs that may be queued or running; one more is refused.",
    )
    .add(&[], MAX_OPEN_JOBS as f64);
    page.gauge(
        "essaim_jobs_running_limit",
        "Batch jobs that run at a time; the others stay queued.",
    )
    .add(&[], MAX_RUNNING as f64);
    page.counter(
        "essaim_jobs_refused_total",
        "Jobs that were not taken because too many were open.",
    )
    .count(&[], &jobs.refused);
    let mut ended = page.counter("essaim_jobs_ended_total", "Jobs that ended.");
    for ((kind, state), count) in jobs.ended() {
        let labels = [("kind", kind.as_str()), ("state", state.as_str())];
        ended.add(&labels, count as f64);
    }
    let mut states = page.gauge(
        "essaim_job_state",
        "Always 1; the label says how the last job of the name is.",
    );
    for meter in jobs.meters.all() {
        if let Some((_, kind, state)) = last.get(&meter.label) {
            let labels = [
                ("job", meter.label.as_str()),
                ("kind", kind.as_str()),
                ("state", state.as_str()),
            ];
            states.add(&labels, 1.0);
        }
    }
    let dir = jobs.state_dir();
    page.counter(
        "essaim_state_dir_errors_total",
        "Requests to the state dir that did not work.",
    )
    .count(&[], &dir.errors);
    page.histogram(
        "essaim_state_dir_request_duration_seconds",
        "How long requests to the state dir took.",
    )
    .durations(&[], &dir.requests);
}

/// What jobs have done, by name.
fn counters(page: &mut Page, jobs: &Jobs) {
    let meters = jobs.meters.all();
    let mut each = |name, help, counter: fn(&Meter) -> &Counter| {
        let mut family = page.counter(name, help);
        for meter in &meters {
            family.count(&[("job", &meter.label)], counter(meter));
        }
    };
    each(
        "essaim_job_input_rows_total",
        "Rows read: of batch jobs by tasks that succeeded, of streaming jobs by epochs that were committed.",
        |meter| &meter.input_rows,
    );
    each(
        "essaim_job_input_bytes_total",
        "Bytes read by tasks that succeeded.",
        |meter| &meter.input_bytes,
    );
    each(
        "essaim_job_output_rows_total",
        "Rows committed to sinks or sent to clients.",
        |meter| &meter.output_rows,
    );
    each(
        "essaim_job_sink_commits_total",
        "Commits of rows to a sink.",
        |meter| &meter.sink_commits,
    );
    each(
        "essaim_job_late_rows_total",
        "Rows that came behind the watermark and were dropped.",
        |meter| &meter.late_rows,
    );
    each(
        "essaim_job_records_skipped_total",
        "Records that did not decode and were skipped (on_error).",
        |meter| &meter.records_skipped,
    );
    each(
        "essaim_job_records_dead_lettered_total",
        "Records that did not decode and were put aside (on_error).",
        |meter| &meter.records_dead_lettered,
    );
    each(
        "essaim_job_lost_offsets_total",
        "Offsets passed over because the source had deleted them.",
        |meter| &meter.lost_offsets,
    );
    each(
        "essaim_job_exchange_retries_total",
        "Exchanges that were started again as a whole.",
        |meter| &meter.exchange_retries,
    );
    each(
        "essaim_job_epoch_failures_total",
        "Attempts at an epoch that failed.",
        |meter| &meter.epoch_failures,
    );
    let mut attempts = page.counter(
        "essaim_job_task_attempts_total",
        "Attempts at tasks that ended: succeeded, failed, lost with their worker, or superseded by a faster one or a cancel.",
    );
    for meter in &meters {
        for ((_, outcome), counter) in OUTCOMES.iter().zip(&meter.attempts) {
            attempts.count(&[("job", &meter.label), ("outcome", outcome)], counter);
        }
    }
}

/// What is counted of streaming jobs only.
fn epochs(page: &mut Page, jobs: &Jobs) {
    let meters = jobs.meters.all();
    let streaming: Vec<&Arc<Meter>> = meters.iter().filter(|m| m.has_epochs()).collect();
    let mut durations = page.histogram(
        "essaim_job_epoch_duration_seconds",
        "How long epochs took that were committed.",
    );
    for meter in &streaming {
        durations.durations(&[("job", &meter.label)], &meter.epochs);
    }
    let mut steps = page.counter(
        "essaim_job_epoch_step_seconds_total",
        "Time that committed epochs spent in each step.",
    );
    for meter in &streaming {
        for (step, micros) in STEPS.iter().zip(&meter.step_micros) {
            let labels = [("job", meter.label.as_str()), ("step", step)];
            steps.add(&labels, micros.get() as f64 / 1e6);
        }
    }
}

/// How the streaming jobs of one label are now: sums and worst cases of those that share it.
#[derive(Debug, Default)]
struct Stream {
    failures_in_a_row: u64,
    epoch_age: f64,
    last_epoch: Option<f64>,
    lag: Option<u64>,
    worst_lag: u64,
    watermark_lag: Option<f64>,
    state_rows: u64,
    state_bytes: u64,
    state_limit: u64,
}

impl Stream {
    fn add(&mut self, job: &JobHandle, record: &JobRecord, now: i64) {
        let vitals = job.vitals();
        self.failures_in_a_row = self.failures_in_a_row.max(vitals.failures_in_a_row());
        self.epoch_age = self.epoch_age.max(vitals.epoch_age().as_secs_f64());
        self.state_limit += vitals.state_limit().unwrap_or_default();
        if let Some(epoch) = record.epochs.back() {
            self.add_epoch(epoch, now);
        }
    }

    fn add_epoch(&mut self, epoch: &EpochProgress, now: i64) {
        let seconds = |ms: i64| ms as f64 / 1000.0;
        let ended = seconds(epoch.started_ms) + epoch.duration_ms / 1000.0;
        // The one that is worst off speaks for the others.
        self.last_epoch = Some(self.last_epoch.map_or(ended, |known| known.min(ended)));
        for source in &epoch.sources {
            *self.lag.get_or_insert_default() += source.lag;
            self.worst_lag = self.worst_lag.max(worst_lag(source));
        }
        for query in &epoch.queries {
            self.state_rows += query.state_rows;
            self.state_bytes += query.state_bytes;
            if let Some(watermark) = query.watermark_ms {
                let behind = seconds(now - watermark);
                self.watermark_lag = Some(self.watermark_lag.map_or(behind, |b| b.max(behind)));
            }
        }
    }
}

/// The lag of the partition that has most.
fn worst_lag(source: &SourceProgress) -> u64 {
    let lags = source.latest.0.iter().map(|(partition, latest)| {
        let end = source.end.0.get(partition).unwrap_or(latest);
        u64::try_from(latest - end).unwrap_or_default()
    });
    lags.max().unwrap_or_default()
}

fn streams(page: &mut Page, jobs: &Jobs) {
    let now = now_ms();
    let mut streams: BTreeMap<String, Stream> = BTreeMap::new();
    for job in jobs.all() {
        job.read(|record| {
            if record.kind == JobKind::Streaming && !record.state.is_final() {
                let label = job.meter().label.clone();
                streams.entry(label).or_default().add(&job, record, now);
            }
        });
    }
    let mut each = |name, help, value: fn(&Stream) -> Option<f64>| {
        let mut family = page.gauge(name, help);
        for (label, stream) in &streams {
            if let Some(value) = value(stream) {
                family.add(&[("job", label)], value);
            }
        }
    };
    each(
        "essaim_job_epoch_failures_in_a_row",
        "How often an epoch has failed since the last one that was committed.",
        |stream| Some(stream.failures_in_a_row as f64),
    );
    each(
        "essaim_job_epoch_age_seconds",
        "How long the oldest epoch that is not committed has been under way; 0 if there is none.",
        |stream| Some(stream.epoch_age),
    );
    each(
        "essaim_job_last_epoch_timestamp_seconds",
        "When the last epoch was committed, since 1970-01-01 UTC.",
        |stream| stream.last_epoch,
    );
    each(
        "essaim_job_lag_offsets",
        "Offsets that the sources had and the last epoch did not read, of all partitions.",
        |stream| stream.lag.map(|lag| lag as f64),
    );
    each(
        "essaim_job_partition_lag_offsets",
        "The same, of the one partition that has most.",
        |stream| stream.lag.map(|_| stream.worst_lag as f64),
    );
    each(
        "essaim_job_watermark_lag_seconds",
        "How far the watermark is behind the clock, of the INSERT that is furthest behind.",
        |stream| stream.watermark_lag,
    );
    each(
        "essaim_job_state_rows",
        "Groups, keys and buffered rows that are kept.",
        |stream| Some(stream.state_rows as f64),
    );
    each(
        "essaim_job_state_bytes",
        "Memory of what is kept.",
        |stream| Some(stream.state_bytes as f64),
    );
    each(
        "essaim_job_state_limit_bytes",
        "Above so much state the job fails (essaim.max_state_bytes).",
        |stream| Some(stream.state_limit as f64).filter(|limit| *limit > 0.0),
    );
}
