//! The jobs that a master knows, by id and by the time of their last submission.

use crate::jobs::handle::JobHandle;
use crate::jobs::model::JobKind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Sorts jobs by the time of their last submission, ms since 1970-01-01 UTC, then by id.
pub type Key = (i64, String);

/// A job with what its handle need not be asked for.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) job: Arc<JobHandle>,
    /// A query whose rows go to a client is not stored: nobody would wait for it after a restart.
    pub(super) stored: bool,
    key: Key,
}

impl Entry {
    pub(super) fn new(job: Arc<JobHandle>, stored: bool) -> Self {
        let key = job.read(|record| (record.submitted_ms, record.id.clone()));
        Self { job, stored, key }
    }

    pub(super) fn is_open(&self) -> bool {
        self.job.read(|record| !record.state.is_final())
    }

    pub(super) fn kind(&self) -> JobKind {
        self.job.read(|record| record.kind)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.stored && self.job.read(|record| record.name == name)
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_id: BTreeMap<String, Entry>,
    by_age: BTreeSet<Key>,
}

impl Known {
    /// Adds a job, or puts another handle in the place of one.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.by_age.insert(entry.key.clone());
        let id = entry.key.1.clone();
        if let Some(before) = self.by_id.insert(id, entry.clone())
            && before.key != entry.key
        {
            self.by_age.remove(&before.key);
        }
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.by_id.remove(id)?;
        self.by_age.remove(&entry.key);
        Some(entry)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Entry> {
        self.by_id.get(id)
    }

    /// By id.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_id.values()
    }

    /// Those whose ids begin with `prefix`, by id.
    pub(super) fn beginning_with(&self, prefix: &str) -> impl Iterator<Item = &Entry> {
        let from = self.by_id.range(prefix.to_owned()..);
        from.take_while(move |(id, _)| id.starts_with(prefix))
            .map(|(_, entry)| entry)
    }

    /// Those submitted before `key`, the newest first.
    pub(super) fn before(&self, key: Option<&Key>) -> impl Iterator<Item = &Entry> {
        use std::ops::Bound::{Excluded, Unbounded};
        let end = key.map_or(Unbounded, Excluded);
        let keys = self.by_age.range::<Key, _>((Unbounded, end)).rev();
        keys.filter_map(|(_, id)| self.by_id.get(id))
    }
}
