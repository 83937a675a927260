//! Opens a checkpoint: finds what counts, reads it, and shuts older generations out.

use crate::stream::checkpoint::frame::{self, Kind, Parts};
use crate::stream::checkpoint::names::{self, Generation, Name};
use crate::stream::checkpoint::{Checkpoint, EpochCommit, EpochPlan, Objects, Stored, superseded};
use bytes::Bytes;
use essaim_common::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// Objects that are read at a time.
const READS: usize = 16;
/// How often a checkpoint is looked through while an old master still changes it.
const LOOKS: u32 = 3;

/// What a job left behind.
#[derive(Debug, Default)]
pub struct Restored {
    /// What the state is of; `None` for a new job.
    pub fingerprint: Option<serde_json::Value>,
    /// What the last committed epoch left.
    pub committed: Option<EpochCommit>,
    /// All state as of a snapshot: an operator's id and its chunks in their order.
    pub snapshot: Vec<(String, Vec<Bytes>)>,
    /// The changes of the epochs after the snapshot, in order.
    pub deltas: Vec<(u64, Vec<(String, Bytes)>)>,
    /// Epochs that were planned and not committed, in order. They are run again as they are.
    pub planned: Vec<EpochPlan>,
}

/// The state that counts, read.
#[derive(Debug, Default)]
struct State {
    committed: Option<EpochCommit>,
    snapshot: Parts,
    deltas: Vec<(u64, Parts)>,
    snapshot_bytes: u64,
    commit_bytes: u64,
    /// Snapshots that cannot be read.
    broken: BTreeSet<Name>,
}

/// Why looking through a checkpoint came to no end.
enum Stop {
    Failed(Error),
    /// Something is missing: it may have been written, or removed, while this looked.
    Missing(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) async fn open(objects: Objects, number: u64) -> Result<(Checkpoint, Restored)> {
    objects
        .dir
        .remove_half_written(&names::root(&objects.job))
        .await?;
    let mut look = 1;
    let (last, known, state, planned) = loop {
        match look_through(&objects, number).await {
            Ok(found) => break found,
            Err(Stop::Missing(_)) if look < LOOKS => look += 1,
            Err(Stop::Missing(error) | Stop::Failed(error)) => return Err(error),
        }
    };
    let fingerprint = match last {
        Some(_) => objects.fingerprint().await?,
        None => None,
    };
    let last = last.unwrap_or_default();
    let resumed_after = state.committed.as_ref().map(|commit| commit.epoch);
    let generation = next_generation(&last, number, resumed_after, &known, &planned);
    objects.claim(&generation).await?;

    let (mut known, surplus) = sort_out(known, &generation, &state.broken);
    let mut gone = superseded(&known);
    gone.extend(surplus);
    for name in objects.remove_old(number, gone).await {
        known.remove(&name);
    }
    objects.remove_old_generations(number).await;
    let plans: Vec<EpochPlan> = planned.into_iter().map(|(_, plan)| plan).collect();
    let checkpoint = Checkpoint {
        objects,
        generation,
        planned: plans.last().map(|plan| plan.epoch).max(resumed_after),
        committed: state.committed.clone(),
        commit: None,
        snapshot: None,
        known,
        snapshot_bytes: state.snapshot_bytes,
        commit_bytes: state.commit_bytes,
        commits: state.deltas.len() as u64,
    };
    let restored = Restored {
        fingerprint,
        committed: state.committed,
        snapshot: gather(state.snapshot),
        deltas: state.deltas,
        planned: plans,
    };
    Ok((checkpoint, restored))
}

type Looked = (
    Option<Generation>,
    BTreeMap<Name, u64>,
    State,
    Vec<(Name, EpochPlan)>,
);

/// Lists what is there and reads what counts: the last generation, all objects with their bytes, state, plans.
async fn look_through(objects: &Objects, number: u64) -> Result<Looked, Stop> {
    let found = objects.dir.list(&names::root(&objects.job)).await?;
    let newest = found
        .iter()
        .filter_map(|found| names::parse_generation(&objects.job, &found.name))
        .max();
    if newest >= Some(number) {
        return Err(objects.superseded(number).into());
    }
    let known: BTreeMap<Name, u64> = found
        .iter()
        .filter_map(|found| Some((Name::parse(&objects.job, &found.name)?, found.bytes)))
        .collect();
    let Some(newest) = newest else {
        return Ok((None, known, State::default(), Vec::new()));
    };
    let path = names::generation(&objects.job, newest);
    let (last, _) = objects.read::<Generation>(Kind::Generation, &path).await?;
    let counting: BTreeMap<Name, u64> = known
        .iter()
        .filter(|(name, _)| name.kind != Kind::Plan && last.counts(**name))
        .map(|(name, bytes)| (*name, *bytes))
        .collect();
    let state = read_state(objects, &counting).await?;
    let committed = state.committed.as_ref().map(|commit| commit.epoch);
    let waiting = known
        .keys()
        .filter(|name| name.kind == Kind::Plan && last.counts_plan(**name))
        .filter(|name| Some(name.epoch) > committed)
        .copied();
    let planned = read_plans(objects, committed, waiting.collect()).await?;
    Ok((Some(last), known, state, planned))
}

/// Reads the newest snapshot that can be read, and the commits after it.
async fn read_state(objects: &Objects, counting: &BTreeMap<Name, u64>) -> Result<State, Stop> {
    let mut state = State::default();
    let mut broken = None;
    let snapshots = counting.keys().filter(|name| name.kind == Kind::Snapshot);
    for name in snapshots.rev() {
        match objects.stored::<EpochCommit>(*name).await {
            Ok((stored, parts)) => {
                state.committed = Some(stored.content);
                state.snapshot = parts;
                state.snapshot_bytes = counting[name];
                break;
            }
            Err(Stop::Failed(error)) if error.kind() == ErrorKind::Data => {
                tracing::warn!(job = %objects.job, %error, "the snapshot before it is tried");
                state.broken.insert(*name);
                broken.get_or_insert(error);
            }
            Err(stop) => return Err(stop),
        }
    }
    let base = state.committed.as_ref().map(|commit| commit.epoch);
    let commits: Vec<Name> = counting
        .keys()
        .filter(|name| name.kind == Kind::Commit && Some(name.epoch) > base)
        .copied()
        .collect();
    state.commit_bytes = commits.iter().map(|name| counting[name]).sum();
    let mut read = futures::stream::iter(commits)
        .map(|name| async move { Ok::<_, Stop>((name, objects.stored(name).await?)) })
        .buffered(READS);
    while let Some((name, (stored, parts))) = read.try_next().await? {
        let stored: Stored<EpochCommit> = stored;
        let last = state.committed.as_ref().map(|commit| commit.epoch);
        if stored.previous != last {
            let missing = objects.missing(name, stored.previous, last);
            // Nothing precedes a broken snapshot that stood in for all before it.
            return Err(match broken {
                Some(broken) if state.deltas.is_empty() => broken.into(),
                _ => Stop::Missing(missing),
            });
        }
        state.deltas.push((stored.content.epoch, parts));
        state.committed = Some(stored.content);
    }
    drop(read);
    match broken {
        // Without a commit before it there was nothing to fall back to.
        Some(broken) if state.committed.is_none() => Err(broken.into()),
        _ => Ok(state),
    }
}

async fn read_plans(
    objects: &Objects,
    committed: Option<u64>,
    waiting: Vec<Name>,
) -> Result<Vec<(Name, EpochPlan)>, Stop> {
    let mut planned: Vec<(Name, EpochPlan)> = Vec::with_capacity(waiting.len());
    let mut last = committed;
    for name in waiting {
        let (stored, _) = objects.stored::<EpochPlan>(name).await?;
        if stored.previous != last {
            return Err(Stop::Missing(objects.missing(name, stored.previous, last)));
        }
        last = Some(name.epoch);
        planned.push((name, stored.content));
    }
    Ok(planned)
}

/// What the new generation takes over from the last one.
fn next_generation(
    last: &Generation,
    number: u64,
    resumed_after: Option<u64>,
    known: &BTreeMap<Name, u64>,
    planned: &[(Name, EpochPlan)],
) -> Generation {
    let in_use: BTreeSet<u64> = known.keys().map(|name| name.generation).collect();
    let mut before = last.before.clone();
    if !last.opening.is_empty() {
        before.insert(last.generation, resumed_after);
    }
    // An older one keeps its end: that lies before.
    before.retain(|generation, _| in_use.contains(generation));
    Generation {
        generation: number,
        opening: uuid::Uuid::new_v4().to_string(),
        resumed_after,
        before,
        adopted: planned
            .iter()
            .map(|(name, plan)| (plan.epoch, name.generation))
            .collect(),
    }
}

/// Parts what is there into what counts and what does not.
fn sort_out(
    known: BTreeMap<Name, u64>,
    generation: &Generation,
    broken: &BTreeSet<Name>,
) -> (BTreeSet<Name>, Vec<Name>) {
    let (counting, surplus): (BTreeSet<Name>, BTreeSet<Name>) =
        known.into_keys().partition(|name| match name.kind {
            Kind::Plan => {
                Some(name.epoch) <= generation.resumed_after || generation.counts_plan(*name)
            }
            _ => generation.counts(*name) && !broken.contains(name),
        });
    (counting, surplus.into_iter().collect())
}

/// The chunks of a snapshot, by operator.
fn gather(parts: Parts) -> Vec<(String, Vec<Bytes>)> {
    let mut gathered: Vec<(String, Vec<Bytes>)> = Vec::new();
    for (operator, bytes) in parts {
        match gathered.last_mut() {
            Some((last, chunks)) if *last == operator => chunks.push(bytes),
            _ => gathered.push((operator, vec![bytes])),
        }
    }
    gathered
}

impl Objects {
    /// A plan of this generation that is there.
    pub(super) async fn plan(&self, name: Name) -> Result<Stored<EpochPlan>> {
        match self.stored(name).await {
            Ok((stored, _)) => Ok(stored),
            Err(Stop::Failed(error) | Stop::Missing(error)) => Err(error),
        }
    }

    async fn fingerprint(&self) -> Result<Option<serde_json::Value>> {
        let path = names::fingerprint(&self.job);
        match self.dir.get(&path).await? {
            Some(object) => {
                let (fingerprint, _) = frame::decode(Kind::Fingerprint, object)
                    .map_err(|error| self.broken(&path, error))?;
                Ok(Some(fingerprint))
            }
            None => Ok(None),
        }
    }

    /// Reads a plan, a commit or a snapshot.
    async fn stored<T: DeserializeOwned + Numbered>(
        &self,
        name: Name,
    ) -> Result<(Stored<T>, Parts), Stop> {
        let path = name.of(&self.job);
        let (stored, parts) = self.read::<Stored<T>>(name.kind, &path).await?;
        if stored.content.epoch() != name.epoch || stored.generation != name.generation {
            let renamed = Error::data("it holds another epoch than its name says");
            return Err(self.broken(&path, renamed).into());
        }
        Ok((stored, parts))
    }

    async fn read<M: DeserializeOwned>(&self, kind: Kind, path: &str) -> Result<(M, Parts), Stop> {
        let Some(object) = self.dir.get(path).await? else {
            let gone = Error::data("it has gone");
            return Err(Stop::Missing(self.broken(path, gone)));
        };
        frame::decode(kind, object).map_err(|error| self.broken(path, error).into())
    }

    pub(super) fn broken(&self, path: &str, error: Error) -> Error {
        error.context(format_args!(
            "{} of a streaming job's checkpoint is broken: put it back from a copy, or submit the job anew under another name",
            self.dir.show(path)
        ))
    }

    fn missing(&self, name: Name, previous: Option<u64>, last: Option<u64>) -> Error {
        let show = |epoch: Option<u64>| match epoch {
            Some(epoch) => format!("epoch {epoch}"),
            None => "the beginning".to_owned(),
        };
        Error::data(format!(
            "{} follows {}, but what there is ends with {}: objects of the checkpoint are missing; put them back from a copy, or submit the job anew under another name",
            self.dir.show(&name.of(&self.job)),
            show(previous),
            show(last)
        ))
    }

    pub(super) fn superseded(&self, number: u64) -> Error {
        Error::invalid(format!(
            "another master has taken over job {}: {} or a higher one is there; this one must stop",
            self.job,
            self.dir.show(&names::generation(&self.job, number))
        ))
    }

    /// Makes the new generation the one that counts.
    async fn claim(&self, generation: &Generation) -> Result<()> {
        let path = names::generation(&self.job, generation.generation);
        let content = frame::encode(Kind::Generation, generation, Parts::new())?;
        if !self.dir.create(&path, content).await? {
            // A call to the store may have been repeated after a lost answer: then it is ours.
            let ours = match self.read::<Generation>(Kind::Generation, &path).await {
                Ok((there, _)) => there == *generation,
                Err(Stop::Failed(error) | Stop::Missing(error)) => return Err(error),
            };
            if !ours {
                return Err(self.superseded(generation.generation));
            }
        }
        if self.newest_generation().await? > Some(generation.generation) {
            return Err(self.superseded(generation.generation));
        }
        Ok(())
    }

    /// Removes the openings before the last one.
    async fn remove_old_generations(&self, number: u64) {
        let removed = async {
            let found = self.dir.list(&names::generations(&self.job)).await?;
            let mut old: Vec<u64> = found
                .iter()
                .filter_map(|found| names::parse_generation(&self.job, &found.name))
                .filter(|found| *found < number)
                .collect();
            old.pop();
            for generation in old {
                let name = names::generation(&self.job, generation);
                self.dir.remove(&name).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(job = %self.job, %error, "old generations stay in the checkpoint");
        }
    }
}

/// What belongs to an epoch.
trait Numbered {
    fn epoch(&self) -> u64;
}

impl Numbered for EpochPlan {
    fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Numbered for EpochCommit {
    fn epoch(&self) -> u64 {
        self.epoch
    }
}
