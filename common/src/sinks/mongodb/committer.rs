//! The sink committer: writes down which staged rows are the result, and from there on carries it through, whoever does.

use super::Mode;
use super::commits::{COLLECTION, Commits, Staged, signed};
use super::target::{Chunk, Target, bytes, digest};
use super::writer::ROW;
use crate::connector::{Begin, Part, SinkCommitter, SinkRun};
use crate::error::{Error, Result};
use crate::sinks::again::again;
use crate::sources::mongodb::client::{Connected, Database, SCAN};
use async_trait::async_trait;
use mongodb::bson::{Bson, doc};
use std::collections::HashSet;

/// Keys that are remembered to find one that comes twice: some 300 MB of memory.
const MAX_KEYS: usize = 8 * 1024 * 1024;

/// Commits one run.
#[derive(Debug)]
pub struct Committer {
    database: Database,
    target: Target,
    commits: Commits,
    epoch: u64,
    generation: u64,
    /// The names of this run's staging collections begin with it, those of every generation; theirs follows.
    prefix: String,
}

impl Committer {
    pub fn new(database: Database, target: Target, run: &SinkRun, prefix: String) -> Self {
        Self {
            database,
            commits: Commits::new(&target.collection, run),
            target,
            epoch: run.epoch,
            generation: run.generation,
            prefix,
        }
    }

    /// What the `_id`s of a staged part's documents begin with.
    fn ids(&self, staged: &Staged) -> String {
        let random = staged.collection.rsplit('_').next().unwrap_or_default();
        format!("{}{random}_", self.commits.ids(self.epoch))
    }

    /// Writes all staged rows to the target and notes that they are in.
    async fn carry_through(&self, connected: &Connected, staged: &[Staged]) -> Result<()> {
        let mut keys = HashSet::new();
        for part in staged {
            again(|| self.commits.check(connected)).await?;
            self.copy(connected, part, &mut keys).await?;
        }
        again(|| self.commits.done(connected, self.epoch)).await?;
        // The rows are there: what cannot be dropped now is only litter.
        self.drop_staged(connected).await;
        Ok(())
    }

    async fn copy(
        &self,
        connected: &Connected,
        staged: &Staged,
        keys: &mut HashSet<u128>,
    ) -> Result<()> {
        let ids = self.ids(staged);
        let collection = connected.collection(&staged.collection);
        let mut cursor = connected.within(SCAN, collection.find(doc! {})).await?;
        let mut chunk = Chunk::default();
        let mut rows = 0;
        while connected.within(SCAN, cursor.advance()).await? {
            rows += 1;
            let mut document = cursor
                .deserialize_current()
                .map_err(|e| Error::internal(format!("a staged row: {e}")))?;
            let (Some(Bson::Document(row)), Ok(number)) =
                (document.remove(ROW), document.get_i64("_id"))
            else {
                return Err(Error::internal(format!(
                    "{} is of another version",
                    staged.collection
                )));
            };
            let document = match self.target.mode {
                Mode::Append => self.target.appended(row, format!("{ids}{number:08x}"))?,
                Mode::Upsert => {
                    let (update, query) = self.target.update(row)?;
                    // Beyond so many keys a repetition is not noticed: one of its rows stays.
                    if keys.len() < MAX_KEYS && !keys.insert(digest(&bytes(&query)?)) {
                        return Err(self.target.repeated(&query));
                    }
                    update
                }
            };
            let size = bytes(&document)?.len();
            if chunk.is_full(size) {
                self.send(connected, std::mem::take(&mut chunk)).await?;
            }
            chunk.push(document, size);
        }
        if rows != staged.rows {
            return Err(Error::unavailable(format!(
                "{} holds {rows} of the {} rows written to it: the server lost some, or somebody removed them. Run the job again",
                staged.collection, staged.rows
            )));
        }
        self.send(connected, chunk).await
    }

    async fn send(&self, connected: &Connected, chunk: Chunk) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        again(|| async {
            self.commits.check(connected).await?;
            self.target.send(connected, &chunk).await
        })
        .await
    }

    /// Takes back what was decided, and of an append also what was written.
    async fn take_back(&self, connected: &Connected) -> Result<()> {
        let known = self.commits.check(connected).await?;
        let Some(pending) = known.pending else {
            return Ok(());
        };
        if self.target.mode == Mode::Append {
            let collection = connected.collection(&self.target.collection);
            for part in &pending {
                let from = self.ids(part);
                // The next character: all that begin with it lie between.
                let to = format!("{}`", from.trim_end_matches('_'));
                let these = doc! { "_id": { "$gte": from, "$lt": to } };
                connected
                    .within(SCAN, collection.delete_many(these))
                    .await?;
            }
        }
        self.commits.undecide(connected).await
    }

    /// Drops the staging collections of this run's generation and of lower ones. A higher generation's are its own.
    async fn drop_staged(&self, connected: &Connected) {
        let dropped = async {
            for name in connected.names().await? {
                let generation = name
                    .strip_prefix(&self.prefix)
                    .and_then(|rest| rest.split_once('_')?.0.parse::<u64>().ok());
                if generation.is_some_and(|generation| generation <= self.generation) {
                    let collection = connected.collection(&name);
                    connected.within(SCAN, collection.drop()).await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = dropped.await {
            tracing::warn!(collection = %self.target.collection, %error, "staging collections are left over");
        }
    }

    fn named(&self, error: Error) -> Error {
        error.context(format!("collection {}", self.target.collection))
    }
}

#[async_trait]
impl SinkCommitter for Committer {
    async fn begin(&self) -> Result<Begin> {
        let connected = self.database.open().await?;
        let known = again(|| self.commits.claim(&connected))
            .await
            .map_err(|e| self.named(e))?;
        if known.epoch.is_some_and(|epoch| epoch >= self.epoch) {
            self.drop_staged(&connected).await;
            return Ok(Begin::AlreadyCommitted);
        }
        if let Some(pending) = known.pending {
            tracing::info!(collection = %self.target.collection, "carrying through what an earlier master had decided to write");
            self.carry_through(&connected, &pending)
                .await
                .map_err(|e| self.named(e))?;
            return Ok(Begin::AlreadyCommitted);
        }
        // What a run before this one left when its master died.
        self.drop_staged(&connected).await;
        Ok(Begin::Fresh)
    }

    async fn commit(&self, parts: Vec<Part>) -> Result<()> {
        let staged: Vec<Staged> = parts
            .into_iter()
            .filter(|part| !part.payload.is_empty())
            .map(|part| Staged {
                collection: part.payload,
                rows: signed(part.rows),
            })
            .collect();
        let connected = self.database.open().await?;
        let written = async {
            again(|| self.target.create(&connected)).await?;
            again(|| self.commits.decide(&connected, &staged)).await?;
            self.carry_through(&connected, &staged).await
        };
        written.await.map_err(|error| {
            let left = match (self.target.mode, error.is_transient()) {
                (Mode::Append, false) => return self.named(error),
                (Mode::Append, true) => format!(
                    "some of the rows may be there, and are removed if the server answers; they are its documents whose \
                     _id begins with {}, unless {} says epoch {}",
                    self.commits.ids(self.epoch),
                    self.commits.place(),
                    self.epoch
                ),
                (Mode::Upsert, _) => format!(
                    "some of the rows may be written, or all if {} says epoch {}: run the job again, which writes them again",
                    self.commits.place(),
                    self.epoch
                ),
            };
            self.named(error).with_hint(left)
        })
    }

    async fn abort(&self) {
        let aborted = async {
            let connected = self.database.open().await?;
            self.take_back(&connected).await?;
            self.drop_staged(&connected).await;
            Ok::<_, Error>(())
        };
        if let Err(error) = aborted.await {
            tracing::warn!(collection = %self.target.collection, %error, "{COLLECTION} or staging collections may be left as they are");
        }
    }
}
