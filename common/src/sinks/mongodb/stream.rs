//! The sink of a streaming job: an epoch's documents, each under an `_id` made of its content or found by its key, and
//! then the epoch's number.
//!
//! Without transactions a master that dies in the middle leaves a part of its epoch. The epoch runs again with the same
//! rows, in whatever order: so an appended document's `_id` is job, query, epoch, a digest of the row, and how many equal
//! rows came before. Written again it is there already. What an attempt has left that the next one does not bring, because
//! the query does not give the same rows twice, is removed before the epoch counts as committed.

use super::commits::{COLLECTION, Commits, Known};
use super::target::{Chunk, Target, bytes, digest};
use super::{Mode, encode};
use crate::connector::SinkRun;
use crate::error::{Error, Result};
use crate::sinks::again::again;
use crate::sinks::postgres::writer::next_rows;
use crate::sources::mongodb::client::{Connected, Database, SCAN};
use crate::stream::StreamSink;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use mongodb::bson::{Document, doc};
use std::collections::{HashMap, HashSet};

/// Rows of one epoch that can be told apart: some 300 MB of memory.
const MAX_ROWS: usize = 8 * 1024 * 1024;
/// Documents that are removed by one request.
const REMOVED_AT_ONCE: usize = 1_000;

/// Writes the epochs of one INSERT.
#[derive(Debug)]
pub struct MongoStream {
    database: Database,
    target: Target,
    commits: Commits,
    /// One epoch at a time.
    session: tokio::sync::Mutex<Session>,
}

/// What is remembered between epochs.
#[derive(Debug, Default)]
struct Session {
    committed: Option<u64>,
    /// Whether nothing was committed since `begin`, so that an attempt may have left documents.
    after_begin: bool,
}

/// The rows of an epoch so far.
#[derive(Debug)]
enum Seen {
    /// How many rows have a digest, by half of it: two rows that share that half by chance only count on.
    Rows(HashMap<u64, u32>),
    /// The digests of keys.
    Keys(HashSet<u128>),
}

/// An epoch on its way.
struct Epoch<'a> {
    sink: &'a MongoStream,
    connected: &'a Connected,
    /// What the `_id`s of its documents begin with.
    ids: String,
    seen: Seen,
    chunk: Chunk,
    rows: u64,
}

impl Epoch<'_> {
    async fn add(&mut self, row: Document) -> Result<()> {
        let target = &self.sink.target;
        let (document, size) = match &mut self.seen {
            Seen::Rows(seen) => {
                let bytes = bytes(&row)?;
                let digest = digest(&bytes);
                let before = seen.entry(half(digest)).or_default();
                let id = format!("{}{digest:032x}_{before:x}", self.ids);
                *before += 1;
                if seen.len() > MAX_ROWS {
                    return Err(Error::exhausted(format!(
                        "an epoch brings more than {MAX_ROWS} rows, which cannot be told apart: give the stream's table a \
                         smaller max_offsets_per_trigger"
                    )));
                }
                let size = bytes.len() + id.len();
                (target.appended(row, id)?, size)
            }
            Seen::Keys(seen) => {
                let (update, query) = target.update(row)?;
                // Beyond so many keys a repetition is not noticed: one of its rows stays.
                if seen.len() < MAX_ROWS && !seen.insert(digest(&bytes(&query)?)) {
                    return Err(target.repeated(&query));
                }
                let size = bytes(&update)?.len();
                (update, size)
            }
        };
        if self.chunk.is_full(size) {
            self.send().await?;
        }
        self.chunk.push(document, size);
        self.rows += 1;
        Ok(())
    }

    /// Sends what has been collected, as long as no later master has begun.
    async fn send(&mut self) -> Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() {
            return Ok(());
        }
        let sink = self.sink;
        again(|| async {
            sink.commits.check(self.connected).await?;
            sink.target.send(self.connected, &chunk).await
        })
        .await
    }

    /// Whether this attempt has written the document of an `_id`.
    fn wrote(&self, id: &str) -> bool {
        let Seen::Rows(seen) = &self.seen else {
            return true;
        };
        let parts = || {
            let (digest, number) = id.strip_prefix(&self.ids)?.split_once('_')?;
            let digest = u128::from_str_radix(digest, 16).ok()?;
            Some((digest, u32::from_str_radix(number, 16).ok()?))
        };
        parts().is_some_and(|(digest, number)| {
            seen.get(&half(digest)).is_some_and(|count| number < *count)
        })
    }
}

fn half(digest: u128) -> u64 {
    (digest >> 64) as u64
}

impl MongoStream {
    pub fn new(database: Database, target: Target, run: &SinkRun) -> Self {
        Self {
            database,
            commits: Commits::new(&target.collection, run),
            target,
            session: tokio::sync::Mutex::default(),
        }
    }

    async fn try_begin(&self) -> Result<Known> {
        let connected = self.database.open().await?;
        let known = self.commits.claim(&connected).await?;
        self.target.create(&connected).await?;
        Ok(known)
    }

    /// Writes an epoch that is not in yet; returns how many rows it has.
    async fn write(
        &self,
        epoch: u64,
        rows: &mut SendableRecordBatchStream,
        session: &Session,
    ) -> Result<u64> {
        let connected = self.database.open().await?;
        let mut writing = Epoch {
            sink: self,
            connected: &connected,
            ids: self.commits.ids(epoch),
            seen: match self.target.mode {
                Mode::Append => Seen::Rows(HashMap::new()),
                Mode::Upsert => Seen::Keys(HashSet::new()),
            },
            chunk: Chunk::default(),
            rows: 0,
        };
        while let Some(batch) = next_rows(rows).await? {
            for row in encode::documents(&batch)? {
                writing.add(row).await?;
            }
        }
        writing.send().await?;
        if session.after_begin && self.target.mode == Mode::Append {
            let first = session.committed.map_or(0, |committed| committed + 1);
            again(|| self.remove_strays(&writing, first, epoch)).await?;
        }
        again(|| self.commits.done(&connected, epoch)).await?;
        Ok(writing.rows)
    }

    /// Removes what earlier attempts at the epochs from `first` to `last` left and this one has not written.
    async fn remove_strays(&self, written: &Epoch<'_>, first: u64, last: u64) -> Result<()> {
        let connected = written.connected;
        let collection = connected.collection(&self.target.collection);
        let range =
            doc! { "_id": { "$gte": self.commits.ids(first), "$lt": self.commits.ids(last + 1) } };
        let find = collection.find(range).projection(doc! { "_id": 1 });
        let mut cursor = connected.within(SCAN, find).await?;
        let mut strays = Vec::new();
        loop {
            let more = connected.within(SCAN, cursor.advance()).await?;
            if more
                && let Ok(id) = cursor.current().get_str("_id")
                && !written.wrote(id)
            {
                strays.push(id.to_owned());
            }
            if strays.len() == REMOVED_AT_ONCE || (!more && !strays.is_empty()) {
                self.commits.check(connected).await?;
                let these = std::mem::take(&mut strays);
                tracing::info!(
                    collection = %self.target.collection, documents = these.len(),
                    "removing what an earlier attempt at the epoch wrote"
                );
                let delete = collection.delete_many(doc! { "_id": { "$in": these } });
                connected.within(SCAN, delete).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl StreamSink for MongoStream {
    async fn begin(&self) -> Result<Option<u64>> {
        let mut session = self.session.lock().await;
        let known = again(|| self.try_begin())
            .await
            .map_err(|e| e.context(format!("collection {}", self.target.collection)))?;
        *session = Session {
            committed: known.epoch,
            after_begin: true,
        };
        Ok(known.epoch)
    }

    async fn commit(&self, epoch: u64, mut rows: SendableRecordBatchStream) -> Result<u64> {
        let mut session = self.session.lock().await;
        if session
            .committed
            .is_some_and(|committed| committed >= epoch)
        {
            return Ok(0);
        }
        let written = self.write(epoch, &mut rows, &session).await;
        match written {
            Ok(written) => {
                *session = Session {
                    committed: Some(epoch),
                    after_begin: false,
                };
                Ok(written)
            }
            Err(error) => {
                // Some of the documents may be there.
                session.after_begin = true;
                Err(error.context(format!("collection {}", self.target.collection)))
            }
        }
    }

    fn describe(&self) -> String {
        let how = match self.target.mode {
            Mode::Append => "documents are added, each once by its _id".to_owned(),
            Mode::Upsert => format!("documents are replaced by ({})", self.target.key.join(", ")),
        };
        format!(
            "{}, collection {}, {how}, epochs in {COLLECTION}",
            self.database.place(),
            self.target.collection
        )
    }
}
