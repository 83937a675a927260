//! Which epochs of a streaming job are in a folder, agreed on by masters that may not know of each other's end.
//!
//! ```text
//! <log>/generations/<generation>             a fence: lower generations have ended
//! <log>/claims/<generation>.json             the first epoch that is this generation's
//! <log>/epochs/<epoch>.<generation>.json     the decision: the epoch is committed, with these files
//! <log>/compacted/<first>-<last>.json        the same for many epochs, in their place
//! <log>/staging/<generation>/<uuid>.…        files not yet moved to where readers see them
//! ```
//!
//! A master decides an epoch and *then* looks for a higher fence; its successor writes its fence and *then* lists the
//! decisions. So one of them sees the other: either the successor counts the decision, or the old master does not act
//! on it. A decision that a successor did not count is of an epoch that its claim covers, and so void.

use super::superseded;
use crate::connector::SinkRun;
use crate::error::{Error, Result};
use crate::object_stores::failed;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Small objects read at the same time.
const READS_AT_ONCE: usize = 16;

/// A committed epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) epoch: u64,
    pub(super) generation: u64,
    /// The rows replace those of all earlier epochs.
    pub(super) replaces: bool,
    /// `None` if there are no rows.
    pub(super) file: Option<EntryFile>,
}

/// The file of a committed epoch; paths in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryFile {
    /// Where it was written.
    pub(super) staged: String,
    /// Where readers see it.
    pub(super) path: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Entry {
    pub(super) fn rows(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.rows)
    }
}

/// What a generation began with.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Claim {
    /// Epochs from here on are this generation's.
    first: u64,
    /// The generation whose decisions below `first` count; `None` for the first generation.
    base: Option<u64>,
}

/// Many entries in one object.
#[derive(Debug, Serialize)]
struct Compacted<'a> {
    entries: &'a [Entry],
}

/// What a new generation finds.
#[derive(Debug)]
pub(super) struct Found {
    /// The last epoch that counts.
    pub(super) last: Option<u64>,
    /// Those that count and have not been compacted, by epoch.
    pub(super) valid: Vec<Entry>,
    /// Decisions of masters that came too late.
    pub(super) void: Vec<Entry>,
    /// Whether this generation has made its claim in an earlier call.
    claimed: bool,
    base: Option<u64>,
}

/// The log of one INSERT, as one generation sees it.
#[derive(Debug)]
pub(super) struct EpochLog {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    run: SinkRun,
    /// Files are local: they are told to reach the disk.
    local: bool,
}

impl EpochLog {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        folder: Path,
        run: SinkRun,
        local: bool,
    ) -> Self {
        Self {
            store,
            folder,
            run,
            local,
        }
    }

    /// What this generation stages.
    pub(super) fn staging(&self) -> Path {
        self.folder
            .clone()
            .join("staging")
            .join(self.run.generation.to_string())
    }

    fn claim_path(&self, generation: u64) -> Path {
        self.folder
            .clone()
            .join("claims")
            .join(format!("{generation}.json"))
    }

    fn entry_path(&self, epoch: u64, generation: u64) -> Path {
        self.folder
            .clone()
            .join("epochs")
            .join(format!("{epoch:020}.{generation}.json"))
    }

    /// Shuts out lower generations.
    ///
    /// # Errors
    /// A higher one is there.
    pub(super) async fn fence(&self) -> Result<()> {
        self.check_fence().await?;
        let fences = self.folder.clone().join("generations");
        let own = fences.join(self.run.generation.to_string());
        match self.create(&own, PutPayload::new()).await? {
            true => self.check_fence().await,
            false => Ok(()),
        }
    }

    /// Whether this generation is still the highest.
    ///
    /// # Errors
    /// It is not.
    pub(super) async fn check_fence(&self) -> Result<()> {
        let fences = self.list("generations").await?;
        let highest = fences
            .iter()
            .filter_map(|path| path.filename()?.parse::<u64>().ok())
            .max();
        match highest {
            Some(theirs) if theirs > self.run.generation => {
                Err(superseded(&self.folder, &self.run, theirs))
            }
            _ => Ok(()),
        }
    }

    /// Which epochs count, after [`Self::fence`].
    pub(super) async fn find(&self) -> Result<Found> {
        let mut claims: Vec<(u64, Claim)> = Vec::new();
        for path in self.list("claims").await? {
            let generation = path
                .filename()
                .and_then(|name| name.strip_suffix(".json")?.parse().ok());
            // A master that comes back late does not judge what its successors did.
            let Some(generation) = generation.filter(|found| *found <= self.run.generation) else {
                continue;
            };
            if let Some(claim) = self.read(&path).await? {
                claims.push((generation, claim));
            }
        }
        claims.sort_unstable_by_key(|(generation, _)| *generation);
        let newest = claims.last().copied();
        // Who owns which epochs, the newest first: (first epoch, generation).
        let mut owners = Vec::new();
        let mut next = newest;
        while let Some((generation, claim)) = next {
            owners.push((claim.first, generation));
            next = claims
                .iter()
                .copied()
                .find(|(older, _)| Some(*older) == claim.base && *older < generation);
        }
        let counts = |entry: &Entry| {
            let owner = owners.iter().find(|(first, _)| entry.epoch >= *first);
            // What lies before the oldest claim left was cleared up when that was made.
            owner.is_none_or(|(_, generation)| *generation == entry.generation)
        };
        let paths = self.list("epochs").await?;
        let entries: Vec<Option<Entry>> = futures::stream::iter(paths)
            .map(|path| async move { self.read::<Entry>(&path).await })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        let (mut valid, void): (Vec<Entry>, Vec<Entry>) = entries
            .into_iter()
            .flatten()
            .filter(|entry| entry.generation <= self.run.generation)
            .partition(counts);
        valid.sort_unstable_by_key(|entry| entry.epoch);
        let before_claim = newest.and_then(|(_, claim)| claim.first.checked_sub(1));
        Ok(Found {
            last: valid.last().map(|entry| entry.epoch).max(before_claim),
            valid,
            void,
            claimed: newest.is_some_and(|(generation, _)| generation == self.run.generation),
            base: newest.map(|(generation, _)| generation),
        })
    }

    /// Takes over all epochs behind those found. From here on no other decision about them counts.
    ///
    /// # Errors
    /// A higher generation is there.
    pub(super) async fn claim(&self, found: &Found) -> Result<()> {
        if !found.claimed {
            let claim = Claim {
                first: found.last.map_or(0, |last| last + 1),
                base: found.base,
            };
            let path = self.claim_path(self.run.generation);
            self.create(&path, json(&claim)?).await?;
        }
        self.check_fence().await
    }

    /// Removes void decisions, and the fences and claims of lower generations. After [`Self::claim`].
    pub(super) async fn clear(&self, found: &Found) -> Result<()> {
        for entry in &found.void {
            let path = self.entry_path(entry.epoch, entry.generation);
            self.delete(&path).await?;
        }
        for folder in ["claims", "generations"] {
            for path in self.list(folder).await? {
                let generation: Option<u64> = path
                    .filename()
                    .and_then(|name| name.trim_end_matches(".json").parse().ok());
                if generation.is_some_and(|generation| generation < self.run.generation) {
                    self.delete(&path).await?;
                }
            }
        }
        self.clear_staging().await
    }

    /// Removes what this generation and lower ones staged.
    async fn clear_staging(&self) -> Result<()> {
        let staging = self.folder.clone().join("staging");
        let of_mine = |name: &str| {
            let generation = name.parse::<u64>();
            generation.is_ok_and(|generation| generation <= self.run.generation)
        };
        for path in self.list("staging").await? {
            let generation = path
                .prefix_match(&staging)
                .and_then(|mut parts| parts.next());
            if generation.is_some_and(|name| of_mine(name.as_ref())) {
                self.delete(&path).await?;
            }
        }
        // Half-written files, which a store does not list.
        if self.local
            && let Ok(mut folders) = tokio::fs::read_dir(format!("/{staging}")).await
        {
            while let Ok(Some(folder)) = folders.next_entry().await {
                if folder.file_name().to_str().is_some_and(of_mine) {
                    let _ = tokio::fs::remove_dir_all(folder.path()).await;
                }
            }
        }
        Ok(())
    }

    /// Commits an epoch. Returns the entry that counts: an earlier one of this generation stands.
    pub(super) async fn decide(&self, entry: Entry) -> Result<Entry> {
        let path = self.entry_path(entry.epoch, entry.generation);
        if self.create(&path, json(&entry)?).await? {
            return Ok(entry);
        }
        self.read(&path)
            .await?
            .ok_or_else(|| Error::internal(format!("{path} has been removed")))
    }

    /// Puts all entries but the last into one object.
    pub(super) async fn compact(&self, entries: &mut Vec<Entry>) -> Result<()> {
        let Some(keep) = entries.len().checked_sub(1) else {
            return Ok(());
        };
        let old = &entries[..keep];
        if let ([first, ..], [.., last]) = (old, old)
            // Rows that have been replaced are of no interest.
            && !last.replaces
        {
            let name = format!("{:020}-{:020}.json", first.epoch, last.epoch);
            let path = self.folder.clone().join("compacted").join(name);
            self.store
                .put(&path, json(&Compacted { entries: old })?)
                .await
                .map_err(|e| failed(&path, &e))?;
            self.sync(&path).await?;
        }
        for entry in old {
            let path = self.entry_path(entry.epoch, entry.generation);
            self.delete(&path).await?;
        }
        entries.drain(..keep);
        Ok(())
    }

    /// Makes a local file and its name safe from a power failure.
    pub(super) async fn sync(&self, path: &Path) -> Result<()> {
        if !self.local {
            return Ok(());
        }
        let file = std::path::PathBuf::from(format!("/{path}"));
        let synced = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&file)?.sync_all()?;
            match file.parent() {
                Some(folder) => std::fs::File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        })
        .await
        .map_err(|e| Error::internal(e.to_string()))?;
        synced.map_err(|e| Error::unavailable(format!("/{path}: {e}")))
    }

    pub(super) async fn delete(&self, path: &Path) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(path, &error)),
        }
    }

    /// `false` if it is there already.
    async fn create(&self, path: &Path, payload: PutPayload) -> Result<bool> {
        match self
            .store
            .put_opts(path, payload, PutMode::Create.into())
            .await
        {
            Ok(_) => self.sync(path).await.map(|()| true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(failed(path, &error)),
        }
    }

    async fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        let bytes = match self.store.get(path).await {
            Ok(found) => found.bytes().await.map_err(|e| failed(path, &e))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(path, &error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::internal(format!("{path} is of another version: {e}")))
    }

    async fn list(&self, name: &str) -> Result<Vec<Path>> {
        let folder = self.folder.clone().join(name);
        self.store
            .list(Some(&folder))
            .map_ok(|file| file.location)
            .try_collect()
            .await
            .map_err(|e| failed(&folder, &e))
    }
}

fn json(value: &impl Serialize) -> Result<PutPayload> {
    serde_json::to_vec(value)
        .map(PutPayload::from)
        .map_err(|e| Error::internal(e.to_string()))
}
