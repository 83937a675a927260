//! A job that is known to the master: its record, who waits for changes of it, and how it is asked to end.

use crate::events::{EventKind, Events, Severity};
use crate::jobs::meter::{Meter, Vitals};
use crate::jobs::model::{EpochProgress, JobError, JobRecord, Place, QueryRecord, StageRecord};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::sync::CancellationToken;

/// Shared by those who run the job and those who look at it. It lasts until the job ends: a streaming job that is
/// submitted again gets another one.
#[derive(Debug)]
pub struct JobHandle {
    record: Mutex<JobRecord>,
    changed: watch::Sender<u64>,
    cancel: CancellationToken,
    stop: CancellationToken,
    /// Held while the record is stored: what is stored last is the record as it is now. Handed on to the job's next
    /// handle.
    pub(super) saving: Arc<AsyncMutex<()>>,
    events: Arc<Events>,
    /// Shared by all jobs of the name.
    meter: OnceLock<Arc<Meter>>,
    vitals: Vitals,
}

impl JobHandle {
    /// A handle of a record, whose events go to `events`.
    pub fn new(record: JobRecord, events: Arc<Events>) -> Arc<Self> {
        Self::with(record, Arc::default(), events)
    }

    /// A handle of this job, which has ended and is submitted again.
    pub(super) fn resumed(&self, sql: String) -> Arc<Self> {
        let record = self.read(|record| record.resumed(sql));
        Self::with(record, Arc::clone(&self.saving), Arc::clone(&self.events))
    }

    fn with(record: JobRecord, saving: Arc<AsyncMutex<()>>, events: Arc<Events>) -> Arc<Self> {
        let stop = CancellationToken::new();
        if record.stop_requested {
            stop.cancel();
        }
        Arc::new(Self {
            record: Mutex::new(record),
            changed: watch::Sender::new(0),
            cancel: CancellationToken::new(),
            stop,
            saving,
            events,
            meter: OnceLock::new(),
            vitals: Vitals::default(),
        })
    }

    /// Where the job is counted from now on. Only the first call matters.
    pub(super) fn count_in(&self, meter: Arc<Meter>) {
        let _ = self.meter.set(meter);
    }

    /// Where the job is counted.
    pub(crate) fn meter(&self) -> &Meter {
        self.meter.get_or_init(Arc::default)
    }

    /// How a streaming job is at this moment.
    pub(crate) fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// The job's id.
    pub fn id(&self) -> String {
        self.record.lock().id.clone()
    }

    /// Looks at the record.
    pub fn read<T>(&self, look: impl FnOnce(&JobRecord) -> T) -> T {
        look(&self.record.lock())
    }

    /// Changes the record and tells those who watch.
    pub fn update<T>(&self, change: impl FnOnce(&mut JobRecord) -> T) -> T {
        let result = change(&mut self.record.lock());
        self.changed.send_modify(|version| *version += 1);
        result
    }

    /// Changes one query of the record, which is added if need be.
    pub fn update_query<T>(&self, query: usize, change: impl FnOnce(&mut QueryRecord) -> T) -> T {
        self.update(|record| {
            while record.queries.len() <= query {
                record.queries.push(QueryRecord {
                    index: record.queries.len() as u32,
                    ..QueryRecord::default()
                });
            }
            change(&mut record.queries[query])
        })
    }

    /// Changes one stage of one query, which is added if need be.
    pub fn update_stage<T>(
        &self,
        query: usize,
        stage: u32,
        change: impl FnOnce(&mut StageRecord) -> T,
    ) -> T {
        self.update_query(query, |query| {
            let position = match query.stages.iter().position(|known| known.id == stage) {
                Some(position) => position,
                None => {
                    query.stages.push(StageRecord {
                        id: stage,
                        ..StageRecord::default()
                    });
                    query.stages.len() - 1
                }
            };
            change(&mut query.stages[position])
        })
    }

    /// A receiver that wakes whenever the record changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes an event of this job.
    pub fn event(
        &self,
        kind: EventKind,
        severity: Severity,
        worker: Option<&str>,
        message: impl Into<String>,
    ) {
        let id = self.id();
        self.events
            .write(kind, severity, Some(&id), worker, message);
    }

    /// Keeps an error among the job's last ones.
    pub fn record_error(&self, error: JobError) {
        self.update(|record| record.record_error(error));
    }

    /// Counts rows that the nodes of one place of a query's plan have yielded, by their positions; `None` stands for all
    /// queries.
    pub(crate) fn add_rows(&self, query: Option<usize>, place: Place, rows: &[Option<u64>]) {
        if rows.iter().all(Option::is_none) {
            return;
        }
        self.update(|record| match query {
            Some(query) => {
                if let Some(query) = record.queries.get_mut(query) {
                    query.plan.add_rows(place, rows);
                }
            }
            None => {
                for query in &mut record.queries {
                    query.plan.add_rows(place, rows);
                }
            }
        });
    }

    /// The number of the last change.
    pub fn version(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Takes in an epoch that was committed, tells those who watch, and forgets all but the last 1,000.
    pub fn record_epoch(&self, epoch: EpochProgress) {
        self.meter().epoch(&epoch);
        self.vitals.epoch_ended(epoch.epoch);
        self.update(|record| record.record_epoch(epoch));
    }

    /// The epochs with a number higher than `after`, at most `limit`, the newest of them; by number.
    pub fn epochs(&self, after: Option<u64>, limit: usize) -> Vec<Arc<EpochProgress>> {
        self.read(|record| {
            let known = &record.epochs;
            let behind = known.partition_point(|epoch| after.is_some_and(|a| epoch.epoch <= a));
            let first = behind.max(known.len().saturating_sub(limit));
            known.range(first..).cloned().collect()
        })
    }

    /// Asks a streaming job to end after the epoch that runs.
    pub fn stop(&self) {
        self.update(|record| record.stop_requested = true);
        self.stop.cancel();
    }

    /// Whether somebody has asked for the end after the epoch that runs.
    pub fn is_stop_requested(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns once somebody has asked for the end after the epoch that runs.
    pub async fn stop_requested(&self) {
        self.stop.cancelled().await;
    }

    /// Asks for the job's end.
    pub fn cancel(&self) {
        if !self.cancel.is_cancelled() && self.read(|record| !record.state.is_final()) {
            let message = "somebody asked for its end";
            self.event(EventKind::JobCancelling, Severity::Info, None, message);
        }
        self.cancel.cancel();
    }

    /// Returns once somebody has asked for the job's end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}
