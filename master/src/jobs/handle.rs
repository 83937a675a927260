//! A job that is known to the master: its record, who waits for changes of it, and how it is cancelled.

use crate::jobs::model::{JobRecord, QueryRecord, StageRecord};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Shared by those who run the job and those who look at it.
#[derive(Debug)]
pub struct JobHandle {
    record: Mutex<JobRecord>,
    changed: watch::Sender<u64>,
    cancel: CancellationToken,
}

impl JobHandle {
    /// A handle of a record.
    pub fn new(record: JobRecord) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(record),
            changed: watch::Sender::new(0),
            cancel: CancellationToken::new(),
        })
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

    /// Asks for the job's end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns once somebody has asked for the job's end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}
