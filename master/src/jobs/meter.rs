//! What is counted of jobs for metrics: by the job's name, of which a bounded number have series of their own.

use crate::jobs::model::{EpochProgress, Outcome};
use essaim_common::metrics::{Counter, Durations};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Names that have series of their own; jobs of other names share those of [`OTHER`].
pub(crate) const MAX_NAMES: usize = 200;
/// The label of jobs that came when there were [`MAX_NAMES`] names.
pub(crate) const OTHER: &str = "other";

/// The steps of an epoch, as in [`EpochProgress::durations_ms`].
pub(crate) const STEPS: [&str; 6] = [
    "latest_offsets",
    "write_offsets",
    "static_tables",
    "tasks",
    "process",
    "checkpoint",
];

/// The outcomes of an attempt at a task.
pub(crate) const OUTCOMES: [(Outcome, &str); 4] = [
    (Outcome::Succeeded, "succeeded"),
    (Outcome::Failed, "failed"),
    (Outcome::Lost, "lost"),
    (Outcome::Superseded, "superseded"),
];

/// What all jobs of one name have done since this master started.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// The value of the label `job`.
    pub(crate) label: String,
    pub(crate) input_rows: Counter,
    pub(crate) input_bytes: Counter,
    pub(crate) output_rows: Counter,
    pub(crate) late_rows: Counter,
    pub(crate) records_skipped: Counter,
    pub(crate) records_dead_lettered: Counter,
    pub(crate) lost_offsets: Counter,
    pub(crate) sink_commits: Counter,
    /// Exchanges that were started again as a whole.
    pub(crate) exchange_retries: Counter,
    pub(crate) epochs: Durations,
    pub(crate) epoch_failures: Counter,
    /// By step as in [`STEPS`], in microseconds.
    pub(crate) step_micros: [Counter; STEPS.len()],
    /// By outcome as in [`OUTCOMES`].
    pub(crate) attempts: [Counter; OUTCOMES.len()],
}

impl Meter {
    /// Counts an epoch that was committed.
    pub(crate) fn epoch(&self, epoch: &EpochProgress) {
        self.input_rows.add(epoch.input_rows);
        self.records_skipped.add(epoch.records_skipped);
        self.records_dead_lettered.add(epoch.records_dead_lettered);
        self.lost_offsets
            .add(epoch.sources.iter().map(|source| source.lost).sum());
        for query in &epoch.queries {
            self.output_rows.add(query.output_rows);
            self.late_rows.add(query.late_rows);
            self.sink_commits.add(u64::from(query.output_rows > 0));
        }
        self.epochs.observe(from_ms(epoch.duration_ms));
        for (step, micros) in STEPS.iter().zip(&self.step_micros) {
            if let Some(ms) = epoch.durations_ms.get(*step) {
                micros.add(from_ms(*ms).as_micros() as u64);
            }
        }
    }

    /// Whether jobs of the name have epochs.
    pub(crate) fn has_epochs(&self) -> bool {
        self.epochs.count() > 0
    }

    /// Counts an attempt that has ended.
    pub(crate) fn attempt(&self, ended: Outcome) {
        let at = OUTCOMES.iter().position(|(outcome, _)| *outcome == ended);
        if let Some(counter) = at.and_then(|at| self.attempts.get(at)) {
            counter.inc();
        }
    }
}

fn from_ms(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

/// The meters by name. A name keeps its meter while a job of that name is remembered.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    by_name: Mutex<BTreeMap<String, Arc<Meter>>>,
    other: Mutex<Option<Arc<Meter>>>,
}

impl Meters {
    /// The meter of a new job. When there are too many, a name gives way that is not among those of `open` jobs; failing
    /// that, the job shares the meter of [`OTHER`].
    pub(crate) fn of(&self, name: &str, open: impl FnOnce() -> HashSet<String>) -> Arc<Meter> {
        let mut by_name = self.by_name.lock();
        if let Some(known) = by_name.get(name) {
            return Arc::clone(known);
        }
        if by_name.len() >= MAX_NAMES {
            let open = open();
            let ended = by_name.keys().find(|name| !open.contains(*name)).cloned();
            let Some(ended) = ended else {
                return Arc::clone(self.other.lock().get_or_insert_with(|| meter(OTHER)));
            };
            by_name.remove(&ended);
        }
        let new = meter(name);
        by_name.insert(name.to_owned(), Arc::clone(&new));
        new
    }

    /// Forgets the names of which no job is remembered.
    pub(crate) fn retain(&self, is_known: impl Fn(&str) -> bool) {
        self.by_name.lock().retain(|name, _| is_known(name));
    }

    /// All meters, by name; the one that others share comes last.
    pub(crate) fn all(&self) -> Vec<Arc<Meter>> {
        let by_name = self.by_name.lock();
        let other = self.other.lock().clone();
        by_name.values().cloned().chain(other).collect()
    }
}

fn meter(label: &str) -> Arc<Meter> {
    Arc::new(Meter {
        label: label.to_owned(),
        ..Meter::default()
    })
}

/// How a streaming job is at this moment.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    failures_in_a_row: AtomicU64,
    /// In bytes; 0 before the job is set up.
    state_limit: AtomicU64,
    /// Epochs that have been planned and not committed, with the time at which their reading began.
    under_way: Mutex<VecDeque<(u64, Instant)>>,
}

impl Vitals {
    /// An epoch failed so many times in a row; 0 when one has been committed again.
    pub(crate) fn failed(&self, in_a_row: u64) {
        self.failures_in_a_row.store(in_a_row, Ordering::Relaxed);
    }

    /// How often an epoch has failed since the last one that was committed.
    pub(crate) fn failures_in_a_row(&self) -> u64 {
        self.failures_in_a_row.load(Ordering::Relaxed)
    }

    /// What `essaim.max_state_bytes` of the job is.
    pub(crate) fn limit_state(&self, bytes: u64) {
        self.state_limit.store(bytes, Ordering::Relaxed);
    }

    /// The limit of the job's state, in bytes, once it is known.
    pub(crate) fn state_limit(&self) -> Option<u64> {
        Some(self.state_limit.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// The reading of an epoch begins, or begins again.
    pub(crate) fn epoch_began(&self, epoch: u64) {
        let mut under_way = self.under_way.lock();
        if under_way.iter().all(|(known, _)| *known != epoch) {
            under_way.push_back((epoch, Instant::now()));
        }
    }

    /// An epoch has been committed.
    pub(crate) fn epoch_ended(&self, epoch: u64) {
        self.under_way.lock().retain(|(known, _)| *known > epoch);
    }

    /// How long the oldest epoch that has not been committed has been under way.
    pub(crate) fn epoch_age(&self) -> Duration {
        let under_way = self.under_way.lock();
        let began = under_way.iter().map(|(_, began)| *began).min();
        began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_too_many_takes_the_place_of_an_ended_one_or_shares() {
        let meters = Meters::default();
        let names = |n| format!("job {n:03}");
        let all_open = || (0..MAX_NAMES).map(names).collect();
        for n in 0..MAX_NAMES {
            meters.of(&names(n), all_open).epoch_failures.inc();
        }
        let shared = meters.of("one more", all_open);
        assert_eq!(shared.label, OTHER);
        assert!(Arc::ptr_eq(&shared, &meters.of("and another", all_open)));
        assert_eq!(meters.of("job 007", all_open).epoch_failures.get(), 1);

        let one_ended = || (0..MAX_NAMES).filter(|n| *n != 7).map(names).collect();
        let own = meters.of("one more", one_ended);
        assert_eq!(own.label, "one more");
        let labels: Vec<String> = meters.all().iter().map(|m| m.label.clone()).collect();
        assert_eq!(labels.len(), MAX_NAMES + 1);
        assert!(!labels.contains(&"job 007".to_owned()));

        meters.retain(|name| name == "one more");
        let labels: Vec<String> = meters.all().iter().map(|m| m.label.clone()).collect();
        assert_eq!(labels, ["one more", OTHER]);
    }

    #[test]
    fn an_epoch_is_under_way_until_it_is_committed() {
        let vitals = Vitals::default();
        assert_eq!(vitals.epoch_age(), Duration::ZERO);
        vitals.epoch_began(3);
        vitals.epoch_began(4);
        vitals.epoch_began(3);
        assert!(vitals.epoch_age() > Duration::ZERO);
        vitals.epoch_ended(3);
        assert!(vitals.epoch_age() > Duration::ZERO);
        vitals.epoch_ended(4);
        assert_eq!(vitals.epoch_age(), Duration::ZERO);
    }
}
