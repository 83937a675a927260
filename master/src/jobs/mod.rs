//! The catalogue of jobs: what was submitted, how it goes, what a restarted master takes up again.

pub mod handle;
pub mod model;
pub mod state_dir;
mod store;

use crate::jobs::handle::JobHandle;
use crate::jobs::model::{JobRecord, JobState, now_ms};
use crate::jobs::state_dir::StateDir;
use crate::jobs::store::Store;
use essaim_common::{Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Jobs that wait or run at a time; one more is refused.
const MAX_OPEN_JOBS: usize = 1_000;
/// Ended jobs that are remembered; the oldest are forgotten first.
const MAX_ENDED_JOBS: usize = 1_000;
/// Ended queries of clients that are remembered: they must not push jobs out.
const MAX_ENDED_QUERIES: usize = 100;

/// All jobs that the master remembers.
#[derive(Debug)]
pub struct Jobs {
    store: Store,
    /// By id. Ids sort by the time of submission.
    known: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    job: Arc<JobHandle>,
    /// A query whose rows go to a client is not stored: nobody would wait for it after a restart.
    stored: bool,
}

impl Jobs {
    /// Reads the jobs of a state dir. Returns those that had not ended, oldest first.
    ///
    /// # Errors
    /// The state dir is out of reach or holds a file that is none of ours.
    pub async fn open(state_dir: &str) -> Result<(Self, Vec<Arc<JobHandle>>)> {
        let store = Store::open(state_dir).await?;
        let mut known = BTreeMap::new();
        let mut open = Vec::new();
        for record in store.load().await? {
            let id = record.id.clone();
            let is_open = !record.state.is_final();
            let job = JobHandle::new(record);
            if is_open {
                open.push(Arc::clone(&job));
            }
            known.insert(id, Entry { job, stored: true });
        }
        let jobs = Self {
            store,
            known: Mutex::new(known),
        };
        Ok((jobs, open))
    }

    /// Where the master keeps what must outlive it.
    pub fn state_dir(&self) -> &Arc<StateDir> {
        self.store.dir()
    }

    /// Whether this master still owns the state dir.
    ///
    /// # Errors
    /// Another master has taken it over (`Invalid`); it is out of reach (`Unavailable`).
    pub async fn check_fence(&self) -> Result<()> {
        self.store.check_fence().await
    }

    /// Takes in a job and stores it.
    ///
    /// # Errors
    /// Too many jobs are open, or the state dir is out of reach: the job is not taken then.
    pub async fn submit(&self, name: String, sql: String) -> Result<Arc<JobHandle>> {
        let job = self.add(name, sql, true)?;
        if let Err(error) = self.save(&job).await {
            self.known.lock().remove(&job.id());
            return Err(error);
        }
        Ok(job)
    }

    /// Takes in a query whose rows go to a client.
    ///
    /// # Errors
    /// Too many jobs are open.
    pub fn add_query(&self, sql: String) -> Result<Arc<JobHandle>> {
        self.add("query".to_owned(), sql, false)
    }

    fn add(&self, name: String, sql: String, stored: bool) -> Result<Arc<JobHandle>> {
        let id = uuid::Uuid::now_v7().to_string();
        let job = JobHandle::new(JobRecord::new(id.clone(), name, sql));
        let mut known = self.known.lock();
        let open = known
            .values()
            .filter(|entry| !entry.job.read(|record| record.state.is_final()))
            .count();
        if open >= MAX_OPEN_JOBS {
            return Err(Error::exhausted(format!(
                "{open} jobs are queued or running, no more are taken: cancel some or wait"
            )));
        }
        let entry = Entry {
            job: Arc::clone(&job),
            stored,
        };
        known.insert(id, entry);
        Ok(job)
    }

    /// A job by its id, the beginning of its id, or its name (the newest of that name).
    ///
    /// # Errors
    /// There is none, or the beginning fits several.
    pub fn find(&self, wanted: &str) -> Result<Arc<JobHandle>> {
        let known = self.known.lock();
        if let Some(entry) = known.get(wanted) {
            return Ok(Arc::clone(&entry.job));
        }
        let named = known
            .values()
            .rev()
            .find(|entry| entry.stored && entry.job.read(|record| record.name == wanted));
        if let Some(entry) = named {
            return Ok(Arc::clone(&entry.job));
        }
        let mut fitting = known
            .iter()
            .filter(|(id, _)| !wanted.is_empty() && id.starts_with(wanted));
        match (fitting.next(), fitting.next()) {
            (Some((_, entry)), None) => Ok(Arc::clone(&entry.job)),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "several jobs begin with {wanted}: give more of the id"
            ))),
            _ => Err(Error::invalid(format!(
                "there is no job {wanted}: `essaim jobs` lists them"
            ))),
        }
    }

    /// The newest jobs, at most `limit`.
    pub fn list(&self, limit: usize) -> Vec<Arc<JobHandle>> {
        let known = self.known.lock();
        let newest = known.values().rev().take(limit);
        newest.map(|entry| Arc::clone(&entry.job)).collect()
    }

    /// Moves a job to its next state and stores it. A job that has ended stays as it is.
    pub async fn advance(&self, job: &Arc<JobHandle>, state: JobState, message: &str) {
        let moved = job.update(|record| {
            if record.state.is_final() {
                return false;
            }
            record.state = state;
            message.clone_into(&mut record.message);
            match state {
                JobState::Running => record.started_ms = now_ms(),
                _ if state.is_final() => record.ended_ms = now_ms(),
                _ => {}
            }
            true
        });
        if !moved {
            return;
        }
        let is_stored = self
            .known
            .lock()
            .get(&job.id())
            .is_some_and(|entry| entry.stored);
        if is_stored && let Err(error) = self.save(job).await {
            tracing::error!(job = %job.id(), %error, "a job's state is not stored: a restarted master would run it again");
        }
        if state.is_final() {
            self.forget_oldest().await;
        }
    }

    /// Stores a job as it is now.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn save(&self, job: &JobHandle) -> Result<()> {
        let record = job.read(Clone::clone);
        self.store.save(&record).await
    }

    async fn forget_oldest(&self) {
        let forgotten: Vec<Entry> = {
            let mut known = self.known.lock();
            let mut surplus: Vec<String> = Vec::new();
            for (stored, kept) in [(true, MAX_ENDED_JOBS), (false, MAX_ENDED_QUERIES)] {
                let ended: Vec<&String> = known
                    .iter()
                    .filter(|(_, entry)| entry.stored == stored)
                    .filter(|(_, entry)| entry.job.read(|record| record.state.is_final()))
                    .map(|(id, _)| id)
                    .collect();
                let count = ended.len().saturating_sub(kept);
                surplus.extend(ended.into_iter().take(count).cloned());
            }
            surplus.iter().filter_map(|id| known.remove(id)).collect()
        };
        for entry in forgotten.iter().filter(|entry| entry.stored) {
            self.store.remove(&entry.job.id()).await;
        }
    }
}
