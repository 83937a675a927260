//! Jobs in pages, newest first, and how many there are of each state.

use crate::jobs::Jobs;
use crate::jobs::handle::JobHandle;
use crate::jobs::known::Key;
use crate::jobs::model::{JobKind, JobState};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Jobs that are looked at before the others may have the catalogue again.
const CHUNK: usize = 256;

/// Which jobs are wanted: those that fit all that is given.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub state: Option<JobState>,
    pub kind: Option<JobKind>,
    /// A part of the name, in small letters.
    pub name: Option<String>,
    /// Not the queries of clients that have ended: the clients have seen how.
    pub no_ended_queries: bool,
}

impl Wanted {
    fn takes(&self, job: &JobHandle) -> bool {
        job.read(|record| {
            self.state.is_none_or(|state| state == record.state)
                && self.kind.is_none_or(|kind| kind == record.kind)
                && self
                    .name
                    .as_ref()
                    .is_none_or(|name| record.name.to_lowercase().contains(name))
        })
    }
}

/// A page of jobs.
#[derive(Debug)]
pub struct JobsPage {
    pub jobs: Vec<Arc<JobHandle>>,
    /// Where the next page begins, if there is one.
    pub next: Option<Key>,
}

impl Jobs {
    /// The jobs that were submitted last before `before`, the newest first, at most `limit`.
    pub fn page(&self, wanted: &Wanted, limit: usize, before: Option<Key>) -> JobsPage {
        let mut at = before;
        let mut jobs = Vec::with_capacity(limit.min(CHUNK));
        let mut last: Option<Key> = None;
        loop {
            let chunk: Vec<(Key, Arc<JobHandle>)> = {
                let known = self.known.lock();
                known
                    .before(at.as_ref())
                    .filter(|entry| entry.stored || !wanted.no_ended_queries || entry.is_open())
                    .take(CHUNK)
                    .map(|entry| (entry.key().clone(), Arc::clone(&entry.job)))
                    .collect()
            };
            let is_last = chunk.len() < CHUNK;
            for (key, job) in chunk {
                at = Some(key.clone());
                if !wanted.takes(&job) {
                    continue;
                }
                if jobs.len() >= limit {
                    return JobsPage { jobs, next: last };
                }
                jobs.push(job);
                last = Some(key);
            }
            if is_last {
                return JobsPage { jobs, next: None };
            }
        }
    }

    /// The jobs that were submitted last, the newest first, at most `limit`.
    pub fn list(&self, limit: usize) -> Vec<Arc<JobHandle>> {
        self.page(&Wanted::default(), limit, None).jobs
    }

    /// The jobs that were submitted last, at most `limit`, and all that have not ended, the newest first.
    pub fn with_open(&self, wanted: &Wanted, limit: usize) -> Vec<Arc<JobHandle>> {
        let last = self.page(wanted, limit, None).jobs;
        let key = |job: &Arc<JobHandle>| job.read(|job| (job.submitted_ms, job.id.clone()));
        let open = self.open_jobs().into_iter();
        let all = last.into_iter().chain(open.filter(|job| wanted.takes(job)));
        let by_age: BTreeMap<Key, Arc<JobHandle>> = all.map(|job| (key(&job), job)).collect();
        by_age.into_values().rev().collect()
    }

    /// How many jobs there are of each state.
    pub fn counts(&self) -> HashMap<JobState, usize> {
        let mut counts = HashMap::new();
        for entry in self.known.lock().entries() {
            let state = entry.job.read(|record| record.state);
            *counts.entry(state).or_default() += 1;
        }
        counts
    }

    /// The jobs that have not ended, oldest first.
    pub fn open_jobs(&self) -> Vec<Arc<JobHandle>> {
        let known = self.known.lock();
        let mut open: Vec<_> = known
            .before(None)
            .filter(|entry| entry.is_open())
            .map(|entry| Arc::clone(&entry.job))
            .collect();
        open.reverse();
        open
    }
}
