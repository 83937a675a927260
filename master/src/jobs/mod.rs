//! The catalogue of jobs: what was submitted, how it goes, what a restarted master takes up again.

mod epochs;
mod errors;
mod fence;
pub mod handle;
pub(crate) mod known;
pub mod list;
pub(crate) mod meter;
pub mod model;
pub(crate) mod plan;
pub mod queue;
pub mod state_dir;
mod store;

use crate::events::{EventKind, Events, Severity};
use crate::jobs::fence::Fence;
pub use crate::jobs::fence::StateDirTrouble;
use crate::jobs::handle::JobHandle;
use crate::jobs::known::{Entry, Known};
use crate::jobs::meter::Meters;
use crate::jobs::model::{JobError, JobKind, JobRecord, JobState, now_ms};
use crate::jobs::state_dir::StateDir;
use crate::jobs::store::Store;
use essaim_common::metrics::Counter;
use essaim_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Jobs that wait or run at a time; one more is refused.
pub(crate) const MAX_OPEN_JOBS: usize = 1_000;
/// Ended batch jobs that are remembered: those that ended first are forgotten first.
const MAX_ENDED_BATCH_JOBS: usize = 10_000;
/// Ended batch jobs that are in memory with all that is known of them; of the others that is in the state dir.
const MAX_WHOLE_BATCH_JOBS: usize = 1_000;
/// Ended streaming jobs that are remembered, and can be taken up again.
const MAX_ENDED_STREAMING_JOBS: usize = 1_000;
/// How often an idle master looks whether the state dir is still its own.
const FENCE_PERIOD: Duration = Duration::from_secs(2);
/// Characters of a job's name at most: as many as a label of a metric holds.
const MAX_NAME: usize = 128;
/// Ended queries of clients that are remembered: they must not push jobs out.
const MAX_ENDED_QUERIES: usize = 100;

/// All jobs that the master remembers.
#[derive(Debug)]
pub struct Jobs {
    store: Store,
    known: Mutex<Known>,
    events: Arc<Events>,
    fence: Fence,
    pub(crate) meters: Meters,
    /// Jobs that were not taken because too many were open.
    pub(crate) refused: Counter,
    ended: Mutex<BTreeMap<(JobKind, JobState), u64>>,
    /// Ids of jobs whose last state could not be stored.
    unsaved: Mutex<HashSet<String>>,
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

impl Jobs {
    /// Reads the jobs of a state dir. Returns those that had not ended, oldest first.
    ///
    /// # Errors
    /// The state dir is out of reach or holds a file that is none of ours.
    pub async fn open(state_dir: &str, events: Arc<Events>) -> Result<(Self, Vec<Arc<JobHandle>>)> {
        let store = Store::open(state_dir).await?;
        let mut known = Known::default();
        let mut open = Vec::new();
        for record in store.load().await? {
            let is_open = !record.state.is_final();
            let job = JobHandle::new(record, Arc::clone(&events));
            if is_open {
                open.push(Arc::clone(&job));
            }
            known.insert(Entry::new(job, true));
        }
        let jobs = Self {
            store,
            known: Mutex::new(known),
            events,
            fence: Fence::default(),
            meters: Meters::default(),
            refused: Counter::default(),
            ended: Mutex::default(),
            unsaved: Mutex::default(),
        };
        // Those that are open go first.
        jobs.count(&open);
        jobs.count(&jobs.last_ended());
        Ok((jobs, open))
    }

    /// Names the meters of jobs that are known.
    fn count(&self, jobs: &[Arc<JobHandle>]) {
        for job in jobs {
            let name = job.read(|record| record.name.clone());
            let open = || names(self.known.lock().entries().filter(|entry| entry.is_open()));
            job.count_in(self.meters.of(&name, open));
        }
    }

    /// The last job of each name of which none is open, as many as have meters left: that it failed is told over a
    /// restart of the master too.
    fn last_ended(&self) -> Vec<Arc<JobHandle>> {
        let known = self.known.lock();
        let open = names(known.entries().filter(|entry| entry.is_open()));
        let mut left = meter::MAX_NAMES.saturating_sub(open.len());
        let mut seen = open;
        let newest = known.before(None).filter(|entry| {
            let is_new = left > 0 && seen.insert(entry.job.read(|record| record.name.clone()));
            left -= usize::from(is_new);
            is_new
        });
        newest.map(|entry| Arc::clone(&entry.job)).collect()
    }

    /// How many jobs have ended since this master started, by kind and state.
    pub(crate) fn ended(&self) -> BTreeMap<(JobKind, JobState), u64> {
        self.ended.lock().clone()
    }

    /// All jobs, in the order of their first submission.
    pub(crate) fn all(&self) -> Vec<Arc<JobHandle>> {
        let known = self.known.lock();
        known
            .entries()
            .map(|entry| Arc::clone(&entry.job))
            .collect()
    }

    /// The state dir: checkpoints of streaming jobs lie there too.
    pub fn state_dir(&self) -> &Arc<StateDir> {
        self.store.dir()
    }

    /// Looks whether this master may still write to the state dir, and remembers the answer as the master's trouble.
    ///
    /// # Errors
    /// Another master has taken it over (`Invalid`); it is out of reach.
    pub async fn check_fence(&self) -> Result<()> {
        let outcome = self.store.check_fence().await;
        self.fence.learn(&outcome, &self.events);
        outcome
    }

    /// What is wrong with the state dir, as it was last seen.
    pub fn state_dir_trouble(&self) -> Option<StateDirTrouble> {
        self.fence.trouble()
    }

    /// Looks after the state dir while nothing else does, until another master has taken it over: this master's jobs
    /// end then, instead of going on beside the other's with nothing that they may commit.
    pub async fn watch_state_dir(&self) {
        let mut ticks = tokio::time::interval(FENCE_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = self.check_fence().await;
            match outcome {
                Ok(()) => self.save_again().await,
                Err(error) if error.kind() == ErrorKind::Invalid => return,
                Err(_) => {}
            }
        }
    }

    /// Stores what could not be stored before.
    async fn save_again(&self) {
        let unsaved = std::mem::take(&mut *self.unsaved.lock());
        for id in unsaved {
            let job = self
                .known
                .lock()
                .get(&id)
                .map(|entry| Arc::clone(&entry.job));
            let Some(job) = job else { continue };
            match self.save(&job).await {
                Ok(()) => tracing::info!(job = %id, "its state is stored after all"),
                Err(_) => {
                    self.unsaved.lock().insert(id);
                }
            }
        }
    }

    /// Returns once another master is known to have taken the state dir over.
    pub async fn taken_over(&self) -> Error {
        self.fence.lost().await
    }

    /// Takes in a job and stores it. A streaming job that has ended is taken up again by its name: it keeps its id and
    /// generation, and its old SQL until [`Self::accept`].
    ///
    /// # Errors
    /// The name is no name; a streaming job of that name has not ended; too many jobs are open; the state dir is out of reach: the job is
    /// not taken then.
    pub async fn submit(&self, submission: Submission) -> Result<Arc<JobHandle>> {
        check_name(&submission.name)?;
        let (job, before) = self.enter(submission)?;
        if let Err(error) = self.save(&job).await {
            let mut known = self.known.lock();
            known.remove(&job.id());
            if let Some(entry) = before {
                known.insert(entry);
            }
            return Err(error);
        }
        let (name, kind) = job.read(|record| (record.name.clone(), record.kind));
        let message = format!("{} job {name} was submitted", kind.as_str());
        job.event(EventKind::JobSubmitted, Severity::Info, None, message);
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
            .entries()
            .filter(|entry| kind == JobKind::Streaming && entry.kind() == kind)
            .filter(|entry| entry.has_name(&name))
            .max_by_key(|entry| entry.key())
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
            None => self.new_job(name, sql, kind),
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
        let job = self.new_job("query".to_owned(), sql, JobKind::Batch);
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
            .entries()
            .filter(|entry| entry.has_name(wanted))
            .max_by_key(|entry| entry.key());
        if let Some(entry) = named {
            return Ok(Arc::clone(&entry.job));
        }
        let mut fitting = known.beginning_with(wanted).filter(|_| !wanted.is_empty());
        match (fitting.next(), fitting.next()) {
            (Some(entry), None) => Ok(Arc::clone(&entry.job)),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "several jobs begin with {wanted}: give more of the id"
            ))),
            _ => Err(Error::invalid(format!(
                "there is no job {wanted}: `essaim jobs` lists them"
            ))),
        }
    }

    /// Looks at all that is known of a job.
    ///
    /// # Errors
    /// Part of it is in the state dir, which is out of reach.
    pub async fn look<T>(&self, job: &JobHandle, look: impl FnOnce(&JobRecord) -> T) -> Result<T> {
        if job.read(|record| record.is_short)
            && let Some(record) = self.store.get(&job.id()).await?
        {
            return Ok(look(&record));
        }
        Ok(job.read(look))
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
        let message = format!("run {generation} of the job began");
        job.event(EventKind::JobStarted, Severity::Info, None, message);
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
            let message = "somebody asked for its end after the epoch that runs";
            job.event(EventKind::JobStopping, Severity::Info, None, message);
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
            if state == JobState::Failed {
                record.record_error(JobError::now(message));
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
            tracing::error!(job = %job.id(), %error, "a job's state is not stored: a master that is restarted before it is would run it again");
            self.unsaved.lock().insert(job.id());
        }
        if state.is_final() {
            self.tell_end(job, state, message);
            self.forget_oldest().await;
        }
    }

    /// The end of a query of a client is only told if it failed: they are many.
    fn tell_end(&self, job: &Arc<JobHandle>, state: JobState, message: &str) {
        let failed = state == JobState::Failed;
        let id = job.id();
        let stored = self.known.lock().get(&id).is_none_or(|entry| entry.stored);
        if !stored && !failed {
            return;
        }
        let name = job.read(|record| record.name.clone());
        let severity = if failed {
            Severity::Error
        } else {
            Severity::Info
        };
        let why = match message {
            "" => String::new(),
            message => format!(": {message}"),
        };
        let message = format!("job {name} {}{why}", state.as_str());
        job.event(EventKind::JobEnded, severity, None, message);
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
        let forgotten: Vec<Entry> = {
            let mut known = self.known.lock();
            let batch = |entry: &Entry| entry.stored && entry.kind() == JobKind::Batch;
            let whole = |entry: &Entry| batch(entry) && !entry.job.read(|r| r.is_short);
            for id in surplus(&known, MAX_WHOLE_BATCH_JOBS, whole) {
                if let Some(entry) = known.get(&id) {
                    entry.job.update(JobRecord::shorten);
                }
            }
            let streaming = |entry: &Entry| entry.stored && entry.kind() == JobKind::Streaming;
            let mut forgotten = surplus(&known, MAX_ENDED_BATCH_JOBS, batch);
            forgotten.extend(surplus(&known, MAX_ENDED_STREAMING_JOBS, streaming));
            forgotten.extend(surplus(&known, MAX_ENDED_QUERIES, |entry| !entry.stored));
            forgotten
                .into_iter()
                .filter_map(|id| known.remove(&id))
                .collect()
        };
        if !forgotten.is_empty() {
            let known = names(self.known.lock().entries());
            self.meters.retain(|name| known.contains(name));
        }
        for entry in forgotten.into_iter().filter(|entry| entry.stored) {
            let _turn = entry.job.saving.lock().await;
            self.store.remove(&entry.job.id(), entry.kind()).await;
        }
    }

    fn new_job(&self, name: String, sql: String, kind: JobKind) -> Arc<JobHandle> {
        let id = uuid::Uuid::now_v7().to_string();
        let record = JobRecord::new(id, name, sql, kind);
        JobHandle::new(record, Arc::clone(&self.events))
    }
}

/// Names are labels of metrics, columns of lists and words of commands.
fn check_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    if length > MAX_NAME {
        return Err(Error::invalid(format!(
            "the job's name has {length} characters: give it one of {MAX_NAME} at most (--name)"
        )));
    }
    if name.contains(char::is_control) {
        return Err(Error::invalid(format!(
            "the job's name {name:?} holds control characters: give it one without (--name)"
        )));
    }
    Ok(())
}

fn names<'a>(entries: impl Iterator<Item = &'a Entry>) -> HashSet<String> {
    let name = |entry: &Entry| entry.job.read(|record| record.name.clone());
    entries.map(name).collect()
}

fn insert(known: &mut Known, job: &Arc<JobHandle>, stored: bool) -> Result<()> {
    let open = known.entries().filter(|entry| entry.is_open()).count();
    if open >= MAX_OPEN_JOBS {
        return Err(Error::exhausted(format!(
            "{open} jobs are queued or running, no more are taken: cancel some or wait"
        )));
    }
    known.insert(Entry::new(Arc::clone(job), stored));
    Ok(())
}

/// The ids of those ended jobs that are more than are kept, by when they ended.
fn surplus(known: &Known, kept: usize, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
    let ended = known
        .entries()
        .filter(|entry| wanted(entry) && !entry.is_open());
    let mut ended: Vec<(i64, &str)> = ended
        .map(|entry| {
            let ended_ms = entry.job.read(|record| record.ended_ms);
            (ended_ms, entry.key().1.as_str())
        })
        .collect();
    let count = ended.len().saturating_sub(kept);
    if count == 0 {
        return Vec::new();
    }
    ended.select_nth_unstable(count - 1);
    let surplus = ended.into_iter().take(count);
    surplus.map(|(_, id)| id.to_owned()).collect()
}

#[cfg(test)]
mod tests;
