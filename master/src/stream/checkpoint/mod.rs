//! The checkpoint of a streaming job: what each epoch reads, written before it runs, and the state that it leaves.
//!
//! ```text
//! checkpoint/<job>/fingerprint                      what the state is of, written once
//!                  generations/<generation>         which objects of older generations count
//!                  plans/<epoch>.<generation>       offsets and time of an epoch, written before it runs
//!                  commits/<epoch>.<generation>     watermarks and changes of state, written after it
//!                  snapshots/<epoch>.<generation>   all state, now and then; older objects go
//!                  sources/<table>/…                the journals of sources that cannot be read again
//! ```
//! Each run of a job has a higher generation. A master that was asleep goes on under its old one, and what it writes
//! then counts for nobody.

mod frame;
mod journal;
#[cfg(test)]
mod journal_tests;
mod names;
mod restore;
#[cfg(test)]
mod tests;

use crate::jobs::state_dir::StateDir;
use crate::stream::checkpoint::frame::{Kind, Parts};
use crate::stream::checkpoint::names::{Generation, Name};
use bytes::Bytes;
use essaim_common::stream::Offsets;
use essaim_common::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

pub use journal::TableJournals;
pub use restore::Restored;

/// A snapshot is due when the commits since the last one hold more bytes than it, and this many or
/// [`SNAPSHOT_EPOCHS`] of them.
const SNAPSHOT_BYTES: u64 = 4 << 20;
const SNAPSHOT_EPOCHS: u64 = 100;
/// A snapshot is due after so many commits in any case: a restart reads them all.
const MOST_COMMITS: u64 = 5_000;
/// Old objects that are removed at a time.
const REMOVALS: usize = 8;

/// What an epoch reads, of all UNBOUNDED tables. It is run again with exactly this after a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochPlan {
    pub epoch: u64,
    /// Wall-clock time at which it was planned, ms since 1970-01-01 UTC.
    pub time_ms: i64,
    pub tables: BTreeMap<String, TablePlan>,
}

/// What an epoch reads of one table: from `start`, up to and without `end`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePlan {
    pub start: Offsets,
    pub end: Offsets,
    /// The end of the source when the epoch was planned.
    pub latest: Offsets,
    /// Partitions that do not hold the watermark back.
    pub idle: BTreeSet<String>,
    /// Offsets passed over because the source had deleted them.
    pub lost: u64,
}

/// What an epoch left, beside the changes of state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochCommit {
    pub epoch: u64,
    /// By table and partition: the highest event time seen, ms.
    pub max_event_times: BTreeMap<String, BTreeMap<String, i64>>,
    /// By table: its watermark, ms. Tables without one are left out.
    pub watermarks: BTreeMap<String, i64>,
    /// Where the next epoch reads on, by table.
    pub offsets: BTreeMap<String, Offsets>,
    /// What the epoch tells about itself.
    pub progress: serde_json::Value,
}

/// A plan, a commit or a snapshot as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Stored<T> {
    generation: u64,
    /// The epoch before, `None` for a job's first.
    previous: Option<u64>,
    content: T,
}

/// The checkpoint of one generation of a job.
///
/// Commits and snapshots are written in the background, one of each at a time; dropping it gives them up, which is no
/// more than a crash at that moment.
#[derive(Debug)]
pub struct Checkpoint {
    objects: Objects,
    generation: Generation,
    /// The last epoch with a plan, and with a commit.
    planned: Option<u64>,
    committed: Option<EpochCommit>,
    commit: Option<Pending>,
    snapshot: Option<AbortOnDropHandle<Result<Snapshotted>>>,
    /// Objects that are there and may have to go.
    known: BTreeSet<Name>,
    /// Bytes of the last snapshot, and of the commits since, and how many these are.
    snapshot_bytes: u64,
    commit_bytes: u64,
    commits: u64,
}

/// A commit on its way into the state dir.
#[derive(Debug)]
struct Pending {
    name: Name,
    meta: Arc<Stored<EpochCommit>>,
    parts: Parts,
    /// `None` after a failure.
    task: Option<AbortOnDropHandle<Result<u64>>>,
}

#[derive(Debug)]
struct Snapshotted {
    name: Name,
    bytes: u64,
    removed: Vec<Name>,
}

/// A job's part of the state dir.
#[derive(Debug, Clone)]
struct Objects {
    dir: Arc<StateDir>,
    job: Arc<str>,
}

impl Checkpoint {
    /// Opens a job's checkpoint for a new generation, above all before it, and reads what is there.
    ///
    /// All sinks have begun their new generation before: an old master that still ran could write and commit an epoch
    /// that this does not see.
    ///
    /// # Errors
    /// This generation or a higher one has been opened (`Invalid`); an object that is needed is broken (`Data`); the
    /// state dir is out of reach (`Unavailable`).
    pub async fn open(dir: &Arc<StateDir>, job: &str, generation: u64) -> Result<(Self, Restored)> {
        let objects = Objects {
            dir: Arc::clone(dir),
            job: Arc::from(job),
        };
        restore::open(objects, generation).await
    }

    /// Writes down what the state is of, so that another query is not run on it. Once, before the first epoch.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn write_fingerprint(&self, fingerprint: &serde_json::Value) -> Result<()> {
        let content = frame::encode(Kind::Fingerprint, fingerprint, Parts::new())?;
        let name = names::fingerprint(&self.objects.job);
        self.objects.dir.put(&name, content).await
    }

    /// Writes down what an epoch reads, before it runs. Returns the plan to run: if an earlier call for the epoch ended
    /// in an error, what that wrote may be there, and holds.
    ///
    /// # Errors
    /// The state dir is out of reach; the epoch is not the next one.
    pub async fn write_plan(&mut self, plan: &EpochPlan) -> Result<EpochPlan> {
        self.check_next(self.planned, plan.epoch, "planned")?;
        let name = self.name(Kind::Plan, plan.epoch);
        let stored = Stored {
            generation: name.generation,
            previous: self.planned,
            content: plan.clone(),
        };
        let content = frame::encode(Kind::Plan, &stored, Parts::new())?;
        self.known.insert(name);
        let path = name.of(&self.objects.job);
        let held = if self.objects.dir.create(&path, content).await? {
            stored.content
        } else {
            self.objects.plan(name).await?.content
        };
        self.planned = Some(plan.epoch);
        Ok(held)
    }

    /// Hands over what an epoch left, to be written in the background. Waits for the commit before.
    ///
    /// `deltas`: the changes of state by operator.
    ///
    /// # Errors
    /// The commit before cannot be written: it is kept, and this one is not taken; call again. The epoch is not the
    /// next one.
    pub async fn commit(
        &mut self,
        commit: &EpochCommit,
        deltas: Vec<(String, Bytes)>,
    ) -> Result<()> {
        self.flush().await?;
        self.collect_snapshot().await;
        let previous = self.committed.as_ref().map(|last| last.epoch);
        self.check_next(previous, commit.epoch, "committed")?;
        let name = self.name(Kind::Commit, commit.epoch);
        let stored = Stored {
            generation: name.generation,
            previous,
            content: commit.clone(),
        };
        let mut pending = Pending {
            name,
            meta: Arc::new(stored),
            parts: deltas,
            task: None,
        };
        pending.start(&self.objects);
        self.commit = Some(pending);
        self.committed = Some(commit.clone());
        self.planned = self.planned.max(Some(commit.epoch));
        self.known.insert(name);
        Ok(())
    }

    /// Waits until the last commit is written; one that failed is tried again once.
    ///
    /// # Errors
    /// It cannot be written. It is kept: call again.
    pub async fn flush(&mut self) -> Result<()> {
        let Some(pending) = &mut self.commit else {
            return Ok(());
        };
        let mut tries = u8::from(pending.start(&self.objects));
        // The commit stays in its place while this waits: whoever stops waiting loses nothing.
        while let Some(task) = &mut pending.task {
            let written = match task.await {
                Ok(written) => written,
                Err(error) => Err(Error::internal(format!("a commit was given up: {error}"))),
            };
            pending.task = None;
            match written {
                Ok(bytes) => {
                    self.commit = None;
                    self.commit_bytes += bytes;
                    self.commits += 1;
                    return Ok(());
                }
                Err(error) if tries > 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(job = %self.objects.job, %error, "a commit is written again");
                    tries += 1;
                    pending.start(&self.objects);
                }
            }
        }
        Ok(())
    }

    /// Whether a snapshot saves more than it costs. Not while one is being written.
    pub fn snapshot_due(&self) -> bool {
        let many = self.commit_bytes >= SNAPSHOT_BYTES || self.commits >= SNAPSHOT_EPOCHS;
        let worth = many && self.commit_bytes > self.snapshot_bytes;
        let writing = self
            .snapshot
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        !writing && (worth || self.commits >= MOST_COMMITS)
    }

    /// Writes all state as the last commit left it in the background; then older objects go. `encode` is called there,
    /// on a thread where it may take its time: for each operator its chunks. A snapshot that cannot be written is given
    /// up with a warning, and is due again later.
    ///
    /// # Errors
    /// The last commit cannot be written; nothing has been committed; a snapshot is being written.
    pub async fn snapshot(
        &mut self,
        encode: impl FnOnce() -> Result<Vec<(String, Vec<Bytes>)>> + Send + 'static,
    ) -> Result<()> {
        self.flush().await?;
        if !self.collect_snapshot().await {
            return Err(Error::internal("a snapshot is already being written"));
        }
        let Some(commit) = self.committed.clone() else {
            return Err(Error::internal("a snapshot before the first commit"));
        };
        let name = self.name(Kind::Snapshot, commit.epoch);
        let stored = Stored {
            generation: name.generation,
            previous: None,
            content: commit,
        };
        let objects = self.objects.clone();
        let mut known = self.known.clone();
        known.insert(name);
        let generation = self.generation.generation;
        let work = async move {
            let state = tokio::task::spawn_blocking(encode)
                .await
                .map_err(|e| Error::internal(format!("a snapshot was given up: {e}")))??;
            let parts = state
                .into_iter()
                .flat_map(|(operator, chunks)| {
                    chunks
                        .into_iter()
                        .map(move |chunk| (operator.clone(), chunk))
                })
                .collect();
            let bytes = objects.put(name, Arc::new(stored), parts).await?;
            let removed = objects.remove_old(generation, superseded(&known)).await;
            Ok(Snapshotted {
                name,
                bytes,
                removed,
            })
        };
        self.commit_bytes = 0;
        self.commits = 0;
        self.snapshot = Some(AbortOnDropHandle::new(tokio::spawn(work)));
        Ok(())
    }

    /// Takes in a snapshot that has been written. Returns whether none is being written any more.
    async fn collect_snapshot(&mut self) -> bool {
        let Some(task) = &mut self.snapshot else {
            return true;
        };
        if !task.is_finished() {
            return false;
        }
        let written = task.await;
        self.snapshot = None;
        match written {
            Ok(Ok(written)) => {
                self.snapshot_bytes = written.bytes;
                self.known.insert(written.name);
                for name in &written.removed {
                    self.known.remove(name);
                }
                tracing::debug!(job = %self.objects.job, epoch = written.name.epoch, bytes = written.bytes, "snapshot written");
            }
            // It is due again after as many commits as always: a store in trouble is not tried with it at every epoch.
            Ok(Err(error)) => self.no_snapshot(&error),
            Err(error) => self.no_snapshot(&error),
        }
        true
    }

    fn no_snapshot(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(job = %self.objects.job, %error, "a snapshot was not written; the commits before it stay");
    }

    fn name(&self, kind: Kind, epoch: u64) -> Name {
        Name {
            kind,
            epoch,
            generation: self.generation.generation,
        }
    }

    fn check_next(&self, last: Option<u64>, epoch: u64, done: &str) -> Result<()> {
        match last {
            Some(last) if last.checked_add(1) != Some(epoch) => Err(Error::internal(format!(
                "epoch {epoch} is {done} after epoch {last}"
            ))),
            _ => Ok(()),
        }
    }
}

impl Pending {
    /// Starts to write it unless that goes on already. Returns whether it was started.
    fn start(&mut self, objects: &Objects) -> bool {
        if self.task.is_some() {
            return false;
        }
        let (objects, name) = (objects.clone(), self.name);
        let (meta, parts) = (Arc::clone(&self.meta), self.parts.clone());
        let work = async move { objects.put(name, meta, parts).await };
        let span = tracing::error_span!("checkpoint");
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(work.instrument(span))));
        true
    }
}

impl Objects {
    /// Writes a commit or a snapshot. Returns its bytes.
    async fn put(&self, name: Name, meta: Arc<Stored<EpochCommit>>, parts: Parts) -> Result<u64> {
        // The checksum of a large state takes a while.
        let encoded =
            tokio::task::spawn_blocking(move || frame::encode(name.kind, &*meta, parts)).await;
        let content =
            encoded.map_err(|e| Error::internal(format!("encoding was given up: {e}")))??;
        let bytes = content.iter().map(|chunk| chunk.len() as u64).sum();
        self.dir.put(&name.of(&self.job), content).await?;
        Ok(bytes)
    }

    /// Removes objects that are no longer needed, and returns which ones are gone.
    ///
    /// It looks for a newer generation first. As the snapshots that make the objects superfluous were there before, any
    /// generation that opens after this look has seen them: the removal may then be as late as it likes.
    async fn remove_old(&self, generation: u64, old: Vec<Name>) -> Vec<Name> {
        match self.newest_generation().await {
            Ok(newest) if newest <= Some(generation) => {}
            Ok(_) => return Vec::new(),
            Err(error) => {
                tracing::warn!(job = %self.job, %error, "old objects stay in the checkpoint");
                return Vec::new();
            }
        }
        futures::stream::iter(old)
            .map(|name| async move {
                match self.dir.remove(&name.of(&self.job)).await {
                    Ok(()) => Some(name),
                    Err(error) => {
                        tracing::warn!(job = %self.job, %error, "an old object stays in the checkpoint");
                        None
                    }
                }
            })
            .buffer_unordered(REMOVALS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    async fn newest_generation(&self) -> Result<Option<u64>> {
        let found = self.dir.list(&names::generations(&self.job)).await?;
        Ok(found
            .iter()
            .filter_map(|found| names::parse_generation(&self.job, &found.name))
            .max())
    }
}

/// What is older than the last snapshot but one. The newest may turn out to be broken.
fn superseded(known: &BTreeSet<Name>) -> Vec<Name> {
    let snapshots = known.iter().filter(|name| name.kind == Kind::Snapshot);
    let Some(kept) = snapshots.rev().nth(1).copied() else {
        return Vec::new();
    };
    let old = |name: &&Name| match name.kind {
        Kind::Snapshot => name.epoch < kept.epoch,
        _ => name.epoch <= kept.epoch,
    };
    known.iter().filter(old).copied().collect()
}

/// Removes a job's checkpoint: its next run begins from scratch. Not while the job runs.
///
/// # Errors
/// The state dir is out of reach: part of the checkpoint may be left, as it was or unusable; call again.
pub async fn discard(dir: &StateDir, job: &str) -> Result<()> {
    let found = dir.list(&names::root(job)).await?;
    // The newest generation says which objects count: after it has gone, none does.
    let (generations, others): (Vec<_>, Vec<_>) = found
        .iter()
        .partition(|found| names::parse_generation(job, &found.name).is_some());
    for found in generations {
        dir.remove(&found.name).await?;
    }
    let mut removals = Vec::with_capacity(others.len());
    for found in others {
        removals.push(dir.remove(&found.name));
    }
    futures::stream::iter(removals)
        .buffer_unordered(REMOVALS)
        .try_collect::<()>()
        .await?;
    dir.remove_folder(&names::root(job)).await
}
