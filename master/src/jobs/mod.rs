//! The catalogue of jobs: what was submitted, how it goes, what a restarted master takes up again.

mod epochs;
pub mod handle;
pub(crate) mod meter;
pub mod model;
pub mod state_dir;
mod store;

use crate::jobs::handle::JobHandle;
use crate::jobs::meter::Meters;
use crate::jobs::model::{JobKind, JobRecord, JobState, now_ms};
use crate::jobs::state_dir::StateDir;
use crate::jobs::store::Store;
use essaim_common::metrics::Counter;
use essaim_common::{Error, Result};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Jobs that wait or run at a time; one more is refused.
pub(crate) const MAX_OPEN_JOBS: usize = 1_000;
/// Ended batch jobs that are remembered, and as many streaming jobs, which can be taken up again: those that ended
/// first are forgotten first.
const MAX_ENDED_JOBS: usize = 1_000;
/// Ended queries of clients that are remembered: they must not push jobs out.
const MAX_ENDED_QUERIES: usize = 100;

/// What removes the checkpoint of a streaming job that is forgotten, given the job's id.
type RemoveCheckpoint = Box<dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync>;

/// All jobs that the master remembers.
pub struct Jobs {
    store: Store,
    /// By id. Ids sort by the time of the first submission.
    known: Mutex<BTreeMap<String, Entry>>,
    remove_checkpoint: OnceLock<RemoveCheckpoint>,
    pub(crate) meters: Meters,
    /// Jobs that were not taken because too many were open.
    pub(crate) refused: Counter,
    ended: Mutex<BTreeMap<(JobKind, JobState), u64>>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (store, known) = (&self.store, &self.known);
        f.debug_struct("Jobs")
            .field("store", store)
            .field("known", known)
            .finish_non_exhaustive()
    }
}

/// A job that a client hands in.
#[derive(Debug, Clone)]
pub struct Submission {
    /// May be empty.
    pub name: String,
    pub sql: String,
    pub kind: JobKind,
    /// A streaming job does not go on where the ended job of its name stands.
    pub from_scratch: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    job: Arc<JobHandle>,
    /// A query whose rows go to a client is not stored: nobody would wait for it after a restart.
    stored: bool,
}

impl Entry {
    fn is_open(&self) -> bool {
        self.job.read(|record| !record.state.is_final())
    }

    fn kind(&self) -> JobKind {
        self.job.read(|record| record.kind)
    }

    fn has_name(&self, name: &str) -> bool {
        self.stored && self.job.read(|record| record.name == name)
    }

    /// Sorts by the time of the last submission.
    fn age(&self) -> (i64, String) {
        self.job
            .read(|record| (record.submitted_ms, record.id.clone()))
    }
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
            remove_checkpoint: OnceLock::new(),
            meters: Meters::default(),
            refused: Counter::default(),
            ended: Mutex::default(),
        };
        // Those that are open go first.
        jobs.count(&open);
        Ok((jobs, open))
    }

    /// Names the meters of jobs that are known.
    fn count(&self, jobs: &[Arc<JobHandle>]) {
        for job in jobs {
            let name = job.read(|record| record.name.clone());
            let open = || names(self.known.lock().values().filter(|entry| entry.is_open()));
            job.count_in(self.meters.of(&name, open));
        }
    }

    /// How many jobs have ended since this master started, by kind and state.
    pub(crate) fn ended(&self) -> BTreeMap<(JobKind, JobState), u64> {
        self.ended.lock().clone()
    }

    /// All jobs, in the order of their first submission.
    pub(crate) fn all(&self) -> Vec<Arc<JobHandle>> {
        let known = self.known.lock();
        known.values().map(|entry| Arc::clone(&entry.job)).collect()
    }

    /// The state dir: checkpoints of streaming jobs lie there too.
    pub fn state_dir(&self) -> &Arc<StateDir> {
        self.store.dir()
    }

    /// Looks whether this master may still write to the state dir.
    ///
    /// # Errors
    /// Another master has taken it over (`Invalid`); it is out of reach.
    pub async fn check_fence(&self) -> Result<()> {
        self.store.check_fence().await
    }

    /// Names what removes the checkpoint of a streaming job, given its id, when the job is forgotten. Only the first
    /// call counts.
    pub fn on_forget(
        &self,
        remove: impl Fn(String) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) {
        let _ = self.remove_checkpoint.set(Box::new(remove));
    }

    /// Takes in a job and stores it. A streaming job that has ended is taken up again by its name: it keeps its id and
    /// generation, and its old SQL until [`Self::accept`].
    ///
    /// # Errors
    /// A streaming job of that name has not ended; too many jobs are open; the state dir is out of reach: the job is
    /// not taken then.
    pub async fn submit(&self, submission: Submission) -> Result<Arc<JobHandle>> {
        let (job, before) = self.enter(submission)?;
        if let Err(error) = self.save(&job).await {
            let mut known = self.known.lock();
            match before {
                Some(entry) => known.insert(job.id(), entry),
                None => known.remove(&job.id()),
            };
            return Err(error);
        }
        Ok(job)
    }

    /// Puts a job among those known. Returns it with what it takes the place of.
    fn enter(&self, submission: Submission) -> Result<(Arc<JobHandle>, Option<Entry>)> {
        let Submission {
            name,
            sql,
            kind,
            from_scratch,
        } = submission;
        let mut known = self.known.lock();
        let before = known
            .values()
            .filter(|entry| kind == JobKind::Streaming && entry.kind() == kind)
            .filter(|entry| entry.has_name(&name))
            .max_by_key(|entry| entry.age())
            .cloned();
        if let Some(entry) = &before
            && entry.is_open()
        {
            return Err(Error::invalid(format!(
                "job {name} is running (id {}): stop it with `essaim stop {name}`, or give another name",
                entry.job.id()
            )));
        }
        let before = before.filter(|_| !from_scratch);
        let job = match &before {
            Some(entry) => entry.job.resumed(sql),
            None => new_job(name, sql, kind),
        };
        insert(&mut known, &job, true).inspect_err(|_| self.refused.inc())?;
        drop(known);
        self.count(std::slice::from_ref(&job));
        Ok((job, before))
    }

    /// Takes in a query whose rows go to a client.
    ///
    /// # Errors
    /// Too many jobs are open.
    pub fn add_query(&self, sql: String) -> Result<Arc<JobHandle>> {
        let job = new_job("query".to_owned(), sql, JobKind::Batch);
        insert(&mut self.known.lock(), &job, false).inspect_err(|_| self.refused.inc())?;
        self.count(std::slice::from_ref(&job));
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
            .filter(|entry| entry.has_name(wanted))
            .max_by_key(|entry| entry.age());
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

    /// The jobs that were submitted last, the newest first, at most `limit`.
    pub fn list(&self, limit: usize) -> Vec<Arc<JobHandle>> {
        let mut jobs: Vec<Entry> = self.known.lock().values().cloned().collect();
        jobs.sort_by_cached_key(|entry| std::cmp::Reverse(entry.age()));
        jobs.into_iter()
            .take(limit)
            .map(|entry| entry.job)
            .collect()
    }

    /// Begins the next generation of a job, stores it and returns its number. Nothing may run before: a master that
    /// comes later must know that this generation was given away.
    ///
    /// # Errors
    /// The job has ended; the state dir is out of reach.
    pub async fn begin(&self, job: &Arc<JobHandle>) -> Result<u64> {
        let generation = job.update(|record| {
            if record.state.is_final() {
                return None;
            }
            record.generation += 1;
            record.queries.clear();
            record.state = JobState::Running;
            record.message.clear();
            record.started_ms = now_ms();
            Some(record.generation)
        });
        let generation = generation
            .ok_or_else(|| Error::internal(format!("job {} has ended already", job.id())))?;
        self.save(job).await?;
        Ok(generation)
    }

    /// The SQL of a resubmitted streaming job fits its checkpoint: the SQL before it is forgotten. A job that ends
    /// without this call has its old SQL back.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn accept(&self, job: &Arc<JobHandle>) -> Result<()> {
        if job.update(|record| record.previous_sql.take()).is_some() {
            self.save(job).await?;
        }
        Ok(())
    }

    /// Asks a streaming job to end after the epoch that runs, over restarts of the master too. Returns the state in
    /// which it was; a job that had ended stays as it was.
    ///
    /// # Errors
    /// The job is a batch job; the state dir is out of reach, and the job is asked nevertheless.
    pub async fn stop(&self, job: &Arc<JobHandle>) -> Result<JobState> {
        let (kind, state, id) = job.read(|record| (record.kind, record.state, record.id.clone()));
        if kind == JobKind::Batch {
            return Err(Error::invalid(format!(
                "job {id} is a batch job and has no epochs to stop after: end it with `essaim cancel {id}`"
            )));
        }
        if !state.is_final() {
            job.stop();
            self.save(job).await?;
        }
        Ok(state)
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
            if state.is_final()
                && let Some(sql) = record.previous_sql.take()
            {
                record.sql = sql;
            }
            true
        });
        if !moved {
            return;
        }
        if state.is_final() {
            let kind = job.read(|record| record.kind);
            *self.ended.lock().entry((kind, state)).or_default() += 1;
        }
        if let Err(error) = self.save(job).await {
            tracing::error!(job = %job.id(), %error, "a job's state is not stored: a restarted master would run it again");
        }
        if state.is_final() {
            self.forget_oldest().await;
        }
    }

    /// Stores a job as it is now. Nothing is stored of a query of a client, nor by a handle whose job has been
    /// submitted again or forgotten since.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn save(&self, job: &Arc<JobHandle>) -> Result<()> {
        let _turn = job.saving.lock().await;
        let is_current = self
            .known
            .lock()
            .get(&job.id())
            .is_some_and(|entry| entry.stored && Arc::ptr_eq(&entry.job, job));
        if !is_current {
            return Ok(());
        }
        let record = job.read(Clone::clone);
        self.store.save(&record).await
    }

    async fn forget_oldest(&self) {
        let forgotten: Vec<(String, Entry)> = {
            let mut known = self.known.lock();
            let mut forgotten = surplus(&known, MAX_ENDED_JOBS, |entry| {
                entry.stored && entry.kind() == JobKind::Batch
            });
            forgotten.extend(surplus(&known, MAX_ENDED_JOBS, |entry| {
                entry.stored && entry.kind() == JobKind::Streaming
            }));
            forgotten.extend(surplus(&known, MAX_ENDED_QUERIES, |entry| !entry.stored));
            forgotten
                .into_iter()
                .filter_map(|id| known.remove_entry(&id))
                .collect()
        };
        if !forgotten.is_empty() {
            let known = names(self.known.lock().values());
            self.meters.retain(|name| known.contains(name));
        }
        for (id, entry) in forgotten.into_iter().filter(|(_, entry)| entry.stored) {
            let _turn = entry.job.saving.lock().await;
            // The record goes last: while it is there, whoever finds it can find the checkpoint to remove.
            if entry.kind() == JobKind::Streaming
                && let Some(remove) = self.remove_checkpoint.get()
            {
                remove(id.clone()).await;
            }
            self.store.remove(&id).await;
        }
    }
}

fn names<'a>(entries: impl Iterator<Item = &'a Entry>) -> HashSet<String> {
    let name = |entry: &Entry| entry.job.read(|record| record.name.clone());
    entries.map(name).collect()
}

fn new_job(name: String, sql: String, kind: JobKind) -> Arc<JobHandle> {
    let id = uuid::Uuid::now_v7().to_string();
    JobHandle::new(JobRecord::new(id, name, sql, kind))
}

fn insert(known: &mut BTreeMap<String, Entry>, job: &Arc<JobHandle>, stored: bool) -> Result<()> {
    let open = known.values().filter(|entry| entry.is_open()).count();
    if open >= MAX_OPEN_JOBS {
        return Err(Error::exhausted(format!(
            "{open} jobs are queued or running, no more are taken: cancel some or wait"
        )));
    }
    let entry = Entry {
        job: Arc::clone(job),
        stored,
    };
    known.insert(job.id(), entry);
    Ok(())
}

/// The ids of those ended jobs that are more than are kept, by when they ended.
fn surplus(
    known: &BTreeMap<String, Entry>,
    kept: usize,
    wanted: impl Fn(&Entry) -> bool,
) -> Vec<String> {
    let mut ended: Vec<(i64, String)> = known
        .iter()
        .filter(|(_, entry)| !entry.is_open() && wanted(entry))
        .map(|(id, entry)| (entry.job.read(|record| record.ended_ms), id.clone()))
        .collect();
    ended.sort();
    let count = ended.len().saturating_sub(kept);
    ended.into_iter().take(count).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests;
