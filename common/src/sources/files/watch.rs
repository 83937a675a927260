//! The master's half of a watched folder: finds new files, notes them in the journal, and cleans up behind the sinks.

use super::clean::CleanUp;
use super::declared::Declared;
use super::file::FileVersion;
use super::known::Known;
use super::place::{MAX_FILES, Place};
use super::plan::FileSplit;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::journal::{Journal, Journals};
use crate::stream::{Available, Offsets, StreamOptions, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

/// The one partition: the number of a file is its offset.
const PARTITION: &str = "files";
/// Files noted at a time.
const NOTED: usize = 1_000;
/// The journal is compacted when at least so many files have been committed since, and an eighth of what is remembered:
/// a summary holds all of that.
const COMPACT_AFTER: i64 = 100;

/// A folder of files, read continuously.
#[derive(Debug)]
pub(super) struct Watch {
    declared: Declared,
    options: StreamOptions,
    /// How often to look for new files.
    interval: Duration,
    inner: Arc<Inner>,
    /// The look for new files that goes on in the background.
    looking: Mutex<Option<AbortOnDropHandle<Result<()>>>>,
}

/// What the look in the background shares.
#[derive(Debug)]
struct Inner {
    place: Place,
    max_age_ms: i64,
    clean_up: CleanUp,
    /// `None` until the job has started.
    journal: OnceCell<Arc<dyn Journal>>,
    known: Mutex<Known>,
    notes: tokio::sync::Mutex<Notes>,
    last_look: Mutex<Option<Instant>>,
}

/// How far the journal is.
#[derive(Debug, Default)]
struct Notes {
    /// What may or may not be in the journal, after an error: it goes there first.
    unsure: Vec<FileVersion>,
    /// What the journal was last told to forget.
    compacted: i64,
}

impl Watch {
    /// A stream of the files of `place`.
    pub fn new(
        declared: Declared,
        options: StreamOptions,
        place: Place,
        interval: Duration,
        max_age_ms: i64,
        clean_up: CleanUp,
    ) -> Self {
        Self {
            declared,
            options,
            interval,
            inner: Arc::new(Inner {
                place,
                max_age_ms,
                clean_up,
                journal: OnceCell::new(),
                known: Mutex::new(Known::new(max_age_ms)),
                notes: tokio::sync::Mutex::default(),
                last_look: Mutex::default(),
            }),
            looking: Mutex::default(),
        }
    }

    /// Begins to look for new files if it is time, and returns what the last look came to.
    async fn look(&self) -> Result<()> {
        let ended = {
            let mut looking = self.looking.lock();
            match looking.as_ref() {
                Some(task) if !task.is_finished() => return Ok(()),
                _ => looking.take(),
            }
        };
        if let Some(task) = ended {
            let looked = task.await;
            looked.map_err(|e| Error::internal(format!("looking for files broke down: {e}")))??;
        }
        let last = *self.inner.last_look.lock();
        match last {
            // What is there when the job starts is known before its first epoch.
            None => self.inner.look().await,
            Some(last) if last.elapsed() >= self.interval => {
                let inner = Arc::clone(&self.inner);
                let task = tokio::spawn(async move { inner.look().await });
                *self.looking.lock() = Some(AbortOnDropHandle::new(task));
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }
}

fn offset(offsets: &Offsets) -> Result<i64> {
    match offsets.0.iter().next() {
        None => Ok(0),
        Some((partition, offset)) if partition == PARTITION && offsets.0.len() == 1 => Ok(*offset),
        Some((partition, _)) => Err(Error::invalid(format!(
            "the position {partition} is none of a folder: a job that reads something else needs a new name"
        ))),
    }
}

fn at(number: i64) -> Offsets {
    Offsets([(PARTITION.to_owned(), number)].into())
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

#[async_trait]
impl StreamSource for Watch {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.declared.schema)
    }

    fn options(&self) -> StreamOptions {
        self.options.clone()
    }

    async fn open(&self, journals: &dyn Journals) -> Result<()> {
        let (journal, journaled) = journals.open().await?;
        let known = Known::restore(
            self.inner.max_age_ms,
            journaled.summary.as_ref(),
            journaled.first,
            &journaled.entries,
            now_ms(),
        )?;
        self.inner.notes.lock().await.compacted = journaled.first;
        *self.inner.known.lock() = known;
        let set = self.inner.journal.set(journal);
        set.map_err(|_| Error::internal("a stream of files is opened twice"))
    }

    async fn start(&self) -> Result<Offsets> {
        Ok(at(0))
    }

    async fn available(&self, from: &Offsets) -> Result<Available> {
        let from = offset(from)?;
        // What only plans a job notes nothing, and so finds nothing.
        let end = match self.inner.journal.get() {
            Some(_) => {
                self.look().await?;
                self.inner.known.lock().end()
            }
            None => from,
        };
        if end < from {
            return Err(Error::data(format!(
                "{}: file {from} is next, and the journal of found files ends at {end}: part of the state dir is gone; run the job under a new name",
                self.inner.place.url()
            )));
        }
        Ok(Available {
            start: at(from),
            latest: at(end),
            lost: 0,
        })
    }

    fn splits(&self, from: &Offsets, to: &Offsets, _target: usize) -> Result<Vec<Split>> {
        let files = self.inner.known.lock().range(offset(from)?, offset(to)?)?;
        let split = |file: FileVersion| {
            let (label, bytes) = (self.inner.place.storage.url(&file.path), file.size);
            let files = vec![file];
            let payload = serde_json::to_vec(&FileSplit { files, rows: None })
                .map_err(|e| Error::internal(e.to_string()))?;
            Ok(Split {
                label,
                payload,
                partition: PARTITION.to_owned(),
                rows: None,
                bytes: Some(bytes),
            })
        };
        files.into_iter().map(split).collect()
    }

    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        self.declared.reader(projection)
    }

    async fn committed(&self, offsets: &Offsets) -> Result<()> {
        let below = offset(offsets)?;
        self.inner.committed(below).await
    }
}

impl Inner {
    /// Finds new files, and notes them before anybody hears of them.
    async fn look(&self) -> Result<()> {
        let began = Instant::now();
        let listed = self.place.list().await?;
        let mut notes = self.notes.lock().await;
        let unsure = std::mem::take(&mut notes.unsure);
        self.note(&mut notes, unsure).await?;
        let new = self.known.lock().new_of(listed);
        let remembered = self.known.lock().remembered() + new.len();
        if remembered > MAX_FILES {
            return Err(Error::exhausted(format!(
                "{}: more than {MAX_FILES} files would have to be remembered: lower max_file_age, or clean up with clean_source",
                self.place.url()
            )));
        }
        self.note(&mut notes, new).await?;
        *self.last_look.lock() = Some(began);
        Ok(())
    }

    async fn note(&self, notes: &mut Notes, mut files: Vec<FileVersion>) -> Result<()> {
        let Some(journal) = self.journal.get() else {
            return Ok(());
        };
        while !files.is_empty() {
            let rest = files.split_off(files.len().min(NOTED));
            let entries = files.iter().map(|file| {
                let entry = serde_json::to_vec(file);
                entry
                    .map(Bytes::from)
                    .map_err(|e| Error::internal(e.to_string()))
            });
            let entries = entries.collect::<Result<Vec<_>>>()?;
            if let Err(error) = journal.append(&entries).await {
                notes.unsure = files;
                return Err(error);
            }
            self.known
                .lock()
                .add(std::mem::replace(&mut files, rest), now_ms());
        }
        Ok(())
    }

    /// All sinks have the files before `below`.
    async fn committed(&self, below: i64) -> Result<()> {
        let done = {
            let known = self.known.lock();
            known.range(known.first(), below.clamp(known.first(), known.end()))?
        };
        let unclean = self.clean_up.run(&self.place, &done).await;
        let mut notes = self.notes.lock().await;
        let summary = {
            let mut known = self.known.lock();
            known.drop_before(below);
            let new = below - notes.compacted;
            let is_time = new >= COMPACT_AFTER && new >= known.remembered() as i64 / 8;
            is_time.then(|| known.summary())
        };
        if let (Some(summary), Some(journal)) = (summary, self.journal.get()) {
            journal.compact(below, summary).await?;
            notes.compacted = below;
        }
        unclean
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
