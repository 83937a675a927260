//! The worker's metrics: what its tasks have counted, and how it is at the moment of a scrape. `docs/metrics.md` lists
//! them.

use crate::http;
use essaim_common::metrics::{Counter, Durations, Page};
use essaim_proto::v1::TaskProgress;
use std::time::Duration;

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskOutcome {
    Succeeded,
    Failed,
    /// The master did not want it any more, or has gone.
    Cancelled,
    /// Its plan did not start.
    Refused,
}

const OUTCOMES: [(TaskOutcome, &str); 4] = [
    (TaskOutcome::Succeeded, "succeeded"),
    (TaskOutcome::Failed, "failed"),
    (TaskOutcome::Cancelled, "cancelled"),
    (TaskOutcome::Refused, "refused"),
];

/// What all tasks together have done since the worker started.
#[derive(Debug, Default)]
pub(crate) struct TaskCounts {
    /// By outcome as in [`OUTCOMES`].
    outcomes: [Counter; OUTCOMES.len()],
    durations: Durations,
    rows_in: Counter,
    bytes_in: Counter,
    records_skipped: Counter,
    records_dead_lettered: Counter,
    pub(crate) rows_out: Counter,
    pub(crate) late_rows: Counter,
    pub(crate) spilled_bytes: Counter,
}

impl TaskCounts {
    /// A task has ended after so long.
    pub(crate) fn ended(&self, ended: TaskOutcome, took: Duration) {
        let at = OUTCOMES.iter().position(|(outcome, _)| *outcome == ended);
        if let Some(counter) = at.and_then(|at| self.outcomes.get(at)) {
            counter.inc();
        }
        self.durations.observe(took);
    }

    /// A task has come from `before` to `now`.
    pub(crate) fn progress(&self, before: &TaskProgress, now: &TaskProgress) {
        let pairs = [
            (&self.rows_in, before.rows_in, now.rows_in),
            (&self.bytes_in, before.bytes_in, now.bytes_in),
            (
                &self.records_skipped,
                before.records_skipped,
                now.records_skipped,
            ),
            (
                &self.records_dead_lettered,
                before.records_dead_lettered,
                now.records_dead_lettered,
            ),
        ];
        for (counter, before, now) in pairs {
            counter.add(now.saturating_sub(before));
        }
    }
}

/// Everything that is known now.
pub(crate) fn page(of: &http::Page) -> Page {
    let mut page = Page::of_process("worker", &of.runtime);
    of.listeners.add_to(&mut page);
    lease(&mut page, of);
    let counts = &of.counts;
    let mut ended = page.counter("essaim_worker_tasks_total", "Tasks that ended.");
    for ((_, outcome), counter) in OUTCOMES.iter().zip(&counts.outcomes) {
        ended.count(&[("outcome", outcome)], counter);
    }
    page.histogram(
        "essaim_worker_task_duration_seconds",
        "How long tasks took, however they ended.",
    )
    .durations(&[], &counts.durations);
    let mut each = |name, help, counter| {
        page.counter(name, help).count(&[], counter);
    };
    each(
        "essaim_worker_input_rows_total",
        "Rows that tasks read, also those whose result did not count.",
        &counts.rows_in,
    );
    each(
        "essaim_worker_input_bytes_total",
        "Bytes that tasks read.",
        &counts.bytes_in,
    );
    each(
        "essaim_worker_output_rows_total",
        "Rows that tasks sent to the master.",
        &counts.rows_out,
    );
    each(
        "essaim_worker_late_rows_total",
        "Rows that tasks dropped because they came behind the watermark.",
        &counts.late_rows,
    );
    each(
        "essaim_worker_records_skipped_total",
        "Records that did not decode and were skipped (on_error).",
        &counts.records_skipped,
    );
    each(
        "essaim_worker_records_dead_lettered_total",
        "Records that did not decode and were put aside (on_error).",
        &counts.records_dead_lettered,
    );
    each(
        "essaim_worker_spilled_bytes_total",
        "Bytes that operators of tasks wrote to temporary files.",
        &counts.spilled_bytes,
    );
    page
}

/// The worker's place in the cluster, and what it holds for it.
fn lease(page: &mut Page, of: &http::Page) {
    let flag = |is: bool| f64::from(u8::from(is));
    page.gauge(
        "essaim_worker_info",
        "Always 1; the label is the worker's id in the master's metrics.",
    )
    .add(&[("worker", &of.lease.worker)], 1.0);
    page.gauge(
        "essaim_worker_registered",
        "1 while the master knows the worker, else 0.",
    )
    .add(&[], flag(of.lease.is_registered()));
    page.gauge(
        "essaim_worker_draining",
        "1 once the worker takes no more tasks.",
    )
    .add(&[], flag(of.lease.is_draining()));
    page.counter(
        "essaim_worker_lease_failures_total",
        "Leases that were lost or could not be had.",
    )
    .count(&[], &of.lease.failures);
    page.gauge("essaim_worker_slots", "Tasks that may run at a time.")
        .add(&[], of.slots as f64);
    page.gauge("essaim_worker_tasks_running", "Tasks that run.")
        .add(&[], of.gauge.running() as f64);
    let (inputs, bytes) = of.broadcasts.size();
    page.gauge(
        "essaim_worker_broadcasts",
        "Inputs of joins that are held whole for tasks.",
    )
    .add(&[], inputs as f64);
    page.gauge("essaim_worker_broadcast_bytes", "Their memory.")
        .add(&[], bytes as f64);
}
