//! The stream sink of files: each epoch is one file, staged, decided in the log, then moved to where readers see it.

use super::epoch_log::{Entry, EntryFile, EpochLog};
use super::{FileWriter, Layout, parent};
use crate::connector::SinkRun;
use crate::error::{Error, ErrorKind, Result};
use crate::object_stores::failed;
use crate::stream::{OutputMode, StreamSink};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use tokio::sync::Mutex;

/// With so many entries of its own the log is compacted.
const COMPACT_AFTER: usize = 100;

/// Writes epochs as files of a folder (append), or as one file that each epoch replaces (complete).
#[derive(Debug)]
pub(super) struct EpochFiles {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    /// The one file of the complete mode.
    target: Option<Path>,
    log: EpochLog,
    writer: FileWriter,
    run: SinkRun,
    /// `None` before `begin`.
    state: Mutex<Option<State>>,
}

/// How far it is.
#[derive(Debug)]
struct State {
    last: Option<u64>,
    /// Not yet compacted, by epoch.
    entries: Vec<Entry>,
}

impl EpochFiles {
    /// `location` is a folder, or with `single_file` a file; `base` its store, as in [`FileWriter`].
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        base: String,
        location: Path,
        single_file: bool,
        mode: OutputMode,
        layout: Layout,
        run: SinkRun,
    ) -> Self {
        let query = query_name(&run);
        let folder = if single_file {
            parent(&location)
        } else {
            location.clone()
        };
        let target = match mode {
            _ if single_file => Some(location),
            OutputMode::Complete => {
                let name = format!("part-{query}.{}", layout.extension());
                Some(folder.clone().join(name))
            }
            OutputMode::Append | OutputMode::Update => None,
        };
        let log = EpochLog::new(
            Arc::clone(&store),
            folder.clone().join("_essaim").join(query),
            run.clone(),
            base.starts_with("file:"),
        );
        let writer = FileWriter {
            base,
            staging: log.staging().to_string(),
            layout,
        };
        Self {
            store,
            folder,
            target,
            log,
            writer,
            run,
            state: Mutex::new(None),
        }
    }

    /// Where readers find the rows of an epoch. The generation is no part of it: an epoch that is written again takes
    /// its own place.
    fn path(&self, epoch: u64) -> Path {
        self.target.clone().unwrap_or_else(|| {
            let query = query_name(&self.run);
            let extension = self.writer.layout.extension();
            let name = format!("part-{epoch:010}-{query}.{extension}");
            self.folder.clone().join(name)
        })
    }

    /// Stages the rows of an epoch and says what a commit would be.
    async fn stage(&self, epoch: u64, mut rows: SendableRecordBatchStream) -> Result<Entry> {
        let part = self.writer.stage(&mut rows).await?;
        let file = if part.payload.is_empty() && self.target.is_none() {
            None
        } else {
            let name = match part.payload.as_str() {
                // No rows replace all rows.
                "" => self.writer.write_empty(&rows.schema()).await?,
                name => name.to_owned(),
            };
            let staged = self.log.staging().join(name.as_str());
            self.log.sync(&staged).await?;
            let found = self.store.head(&staged).await;
            Some(EntryFile {
                bytes: found.map_err(|e| failed(&staged, &e))?.size,
                staged: staged.into(),
                path: self.path(epoch).into(),
                rows: part.rows,
            })
        };
        Ok(Entry {
            epoch,
            generation: self.run.generation,
            replaces: self.target.is_some(),
            file,
        })
    }

    /// Moves the file of a committed epoch into place; from wherever an earlier attempt stopped.
    async fn finish(&self, entry: &Entry) -> Result<()> {
        let Some(file) = &entry.file else {
            return Ok(());
        };
        let (from, to) = (
            Path::from(file.staged.as_str()),
            Path::from(file.path.as_str()),
        );
        match self.store.rename(&from, &to).await {
            Ok(()) => self.log.sync(&to).await,
            // Moved before, unless it is not there either.
            Err(object_store::Error::NotFound { .. }) => match self.store.head(&to).await {
                Ok(_) => Ok(()),
                Err(object_store::Error::NotFound { .. }) => Err(Error::data(format!(
                    "{to}: the file of committed epoch {} is gone: put it back, or let the job begin anew under another name",
                    entry.epoch
                ))),
                Err(error) => Err(failed(&to, &error)),
            },
            Err(error) => Err(failed(&to, &error)),
        }
    }
}

#[async_trait]
impl StreamSink for EpochFiles {
    async fn begin(&self) -> Result<Option<u64>> {
        let mut state = self.state.lock().await;
        *state = None;
        self.log.fence().await?;
        let found = self.log.find().await?;
        // A master goes on to another epoch only when it has moved the files of the one before.
        if let Some(entry) = found.valid.last() {
            self.finish(entry).await?;
        }
        self.log.claim(&found).await?;
        for entry in &found.void {
            // Nobody's epoch: should a late master have moved its file nevertheless, it goes.
            if self.target.is_none() && Some(entry.epoch) > found.last {
                self.log.delete(&self.path(entry.epoch)).await?;
            }
        }
        self.log.clear(&found).await?;
        let last = found.last;
        *state = Some(State {
            last,
            entries: found.valid,
        });
        Ok(last)
    }

    async fn commit(&self, epoch: u64, rows: SendableRecordBatchStream) -> Result<u64> {
        let mut state = self.state.lock().await;
        let Some(state) = state.as_mut() else {
            return Err(Error::internal(format!(
                "{}: an epoch is committed before the sink has begun",
                self.folder
            )));
        };
        if Some(epoch) <= state.last {
            let entry = state.entries.iter().find(|entry| entry.epoch == epoch);
            return Ok(entry.map_or(0, Entry::rows));
        }
        let staged = match self.stage(epoch, rows).await {
            Ok(staged) => staged,
            // A successor clears away what lower generations stage: then that is the reason.
            Err(error) => {
                return Err(match self.log.check_fence().await {
                    Err(superseded) if superseded.kind() == ErrorKind::Invalid => superseded,
                    _ => error,
                });
            }
        };
        self.log.check_fence().await?;
        let entry = self.log.decide(staged).await?;
        // Only now a successor that did not see the decision can be seen.
        self.log.check_fence().await?;
        self.finish(&entry).await?;
        let rows = entry.rows();
        state.last = Some(epoch);
        state.entries.push(entry);
        if state.entries.len() > COMPACT_AFTER
            && let Err(error) = self.log.compact(&mut state.entries).await
        {
            // Nothing is lost: it is tried again after the next epoch.
            tracing::warn!(folder = %self.folder, %error, "the epochs of a file sink were not compacted");
        }
        Ok(rows)
    }

    fn describe(&self) -> String {
        let place = self.target.as_ref().unwrap_or(&self.folder);
        let epochs = match self.target {
            Some(_) => "one file, replaced by each epoch",
            None => "one file an epoch",
        };
        format!(
            "{} exactly once, {epochs}: {}/{place}",
            self.writer.layout.format.name(),
            self.writer.base
        )
    }
}

/// What the job's starts and epochs have in common: `<job>_<query>`.
fn query_name(run: &SinkRun) -> String {
    let name = run.name();
    match name.rsplit_once('_') {
        Some((query, _epoch)) => query.to_owned(),
        None => name,
    }
}
