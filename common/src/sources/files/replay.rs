//! The master's half of a replay: files that are there already, played row by row at a rate.
//!
//! A row's number among all rows is its offset: always the same, so there is nothing to note. Where a row begins is
//! found out by reading along, and told to the workers, so that none of them reads a file from its beginning every epoch.

use super::declared::Declared;
use super::file::FileVersion;
use super::parquet;
use super::place::Place;
use super::plan::{Clock, FileFormat, FileSplit, Rows};
use super::text::TextFile;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::journal::Journals;
use crate::stream::{Available, Offsets, StreamOptions, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// The one partition: the number of a row is its offset.
const PARTITION: &str = "rows";
/// Files of one replay, at most: an epoch's splits may name all of them.
const MAX_FILES: usize = 10_000;
/// Rows of which it is remembered where they begin.
const MAX_MARKS: usize = 1_000;

/// Files that are played.
#[derive(Debug)]
pub(super) struct Replay {
    declared: Declared,
    options: StreamOptions,
    place: Place,
    rows_per_second: f64,
    /// Found out once: the files must stay as they are.
    files: Mutex<Arc<[FileVersion]>>,
    /// `None` until somebody asks what is due.
    begun: Mutex<Option<Begun>>,
    /// Where rows begin.
    marks: Mutex<BTreeMap<u64, Mark>>,
    reading: tokio::sync::Mutex<Option<Reading>>,
}

/// When it began, and with which row.
#[derive(Debug, Clone, Copy)]
struct Begun {
    since: Instant,
    clock: Clock,
}

/// Where a row begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The file, by its position among all.
    file: usize,
    /// The row of that file's position `byte`; bytes are those of a file that is not compressed.
    byte: u64,
}

/// How far the master has read along.
#[derive(Debug, Default)]
struct Reading {
    file: usize,
    /// The number of the next row.
    row: u64,
    /// `None` between two files.
    open: Option<TextFile>,
}

impl Replay {
    /// A stream of the rows of the files of `place`.
    pub fn new(
        declared: Declared,
        options: StreamOptions,
        place: Place,
        rows_per_second: f64,
    ) -> Self {
        Self {
            declared,
            options,
            place,
            rows_per_second,
            files: Mutex::new(Arc::from([])),
            begun: Mutex::default(),
            marks: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    async fn find_files(&self) -> Result<Arc<[FileVersion]>> {
        let known = Arc::clone(&self.files.lock());
        if !known.is_empty() {
            return Ok(known);
        }
        let found = self.place.files().await?;
        if found.is_empty() {
            return Err(Error::invalid(format!(
                "{}: there is no file to replay",
                self.place.url()
            )));
        }
        if found.len() > MAX_FILES {
            return Err(Error::invalid(format!(
                "{}: a replay takes {MAX_FILES} files at most, there are {}",
                self.place.url(),
                found.len()
            )));
        }
        let found: Arc<[FileVersion]> = found.into();
        *self.files.lock() = Arc::clone(&found);
        Ok(found)
    }

    /// The clock, which begins to run with row `from`.
    fn begin(&self, from: u64) -> Begun {
        let clock = Clock {
            row: from,
            at_ms: chrono::Utc::now().timestamp_millis(),
            rows_per_second: self.rows_per_second,
        };
        let since = Instant::now();
        *self.begun.lock().get_or_insert(Begun { since, clock })
    }

    /// Reads along up to row `to`. Returns how far there are rows.
    async fn read_to(&self, to: u64) -> Result<u64> {
        let files = self.find_files().await?;
        let mut reading = self.reading.lock().await;
        // After an error it starts over: where it stood is not known.
        let mut at = reading.take().unwrap_or_default();
        while at.row < to
            && let Some(file) = files.get(at.file)
        {
            if self.declared.plan.format == FileFormat::Parquet {
                let (rows, _) = match file.size {
                    0 => (0, Default::default()),
                    _ => parquet::footer(&self.place.storage, file).await?,
                };
                at.row += rows;
                at.file += 1;
                self.mark(at.row, at.file, 0);
                continue;
            }
            self.read_text(&mut at, file, to).await?;
        }
        let there = at.row;
        *reading = Some(at);
        Ok(there.min(to))
    }

    async fn read_text(&self, at: &mut Reading, file: &FileVersion, to: u64) -> Result<()> {
        let (storage, plan) = (&self.place.storage, &self.declared.plan);
        let has_positions = plan.has_positions(file);
        let mut text = match at.open.take() {
            Some(text) => text,
            None if has_positions => TextFile::open_slowly(storage, plan, file, 0),
            None => {
                let text = TextFile::open(storage, plan, file).await?;
                text.ok_or_else(|| storage.gone(file))?
            }
        };
        // Such a file is read to its end at once: there is no place in it to come back to.
        while at.row < to || !has_positions {
            if text.next().await?.is_none() {
                at.file += 1;
                self.mark(at.row, at.file, 0);
                return Ok(());
            }
            at.row += 1;
        }
        self.mark(at.row, at.file, text.position());
        at.open = Some(text);
        Ok(())
    }

    fn mark(&self, row: u64, file: usize, byte: u64) {
        let mut marks = self.marks.lock();
        marks.insert(row, Mark { file, byte });
        if marks.len() > MAX_MARKS {
            marks.pop_first();
        }
    }

    /// The files and the place in them to read rows from.
    fn rows(&self, start: u64, end: u64, clock: Clock) -> FileSplit {
        let files = Arc::clone(&self.files.lock());
        let marks = self.marks.lock();
        let nearest = marks.range(..=start).next_back();
        let (first, from) =
            nearest.map_or((0, Mark { file: 0, byte: 0 }), |(row, mark)| (*row, *mark));
        let until = marks.get(&end);
        // The row before `end` lies in the file of a later mark at the latest.
        let behind = marks.range(end..).next();
        let last = behind.map_or(files.len(), |(_, mark)| (mark.file + 1).min(files.len()));
        let is_one = until.is_some_and(|until| until.file == from.file);
        FileSplit {
            files: files.get(from.file..last).unwrap_or_default().to_vec(),
            rows: Some(Rows {
                start,
                end,
                first,
                byte: from.byte,
                until: until.filter(|_| is_one).map(|until| until.byte),
                clock,
            }),
        }
    }
}

fn row(offsets: &Offsets) -> Result<u64> {
    let found = match offsets.0.iter().next() {
        None => Some(0),
        Some((partition, row)) if partition == PARTITION => u64::try_from(*row).ok(),
        Some(_) => None,
    };
    found.ok_or_else(|| {
        Error::invalid(
            "the position is none of a replay: a job that reads something else needs a new name",
        )
    })
}

fn at(row: u64) -> Offsets {
    Offsets([(PARTITION.to_owned(), i64::try_from(row).unwrap_or(i64::MAX))].into())
}

#[async_trait]
impl StreamSource for Replay {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.declared.schema)
    }

    fn options(&self) -> StreamOptions {
        self.options.clone()
    }

    async fn open(&self, _journals: &dyn Journals) -> Result<()> {
        // What was planned before may be read again before anybody asks what is there.
        self.find_files().await.map(drop)
    }

    async fn start(&self) -> Result<Offsets> {
        Ok(at(0))
    }

    async fn available(&self, from: &Offsets) -> Result<Available> {
        let from = row(from)?;
        let begun = self.begin(from);
        let rows = begun.since.elapsed().as_secs_f64() * self.rows_per_second;
        let due = begun.clock.row.saturating_add(rows as u64);
        let there = self.read_to(due.max(from)).await?;
        Ok(Available {
            start: at(from),
            latest: at(there.max(from)),
            lost: 0,
        })
    }

    fn splits(&self, from: &Offsets, to: &Offsets, _target: usize) -> Result<Vec<Split>> {
        let (start, end) = (row(from)?, row(to)?);
        if start >= end {
            return Ok(Vec::new());
        }
        let split = self.rows(start, end, self.begin(start).clock);
        Ok(vec![Split {
            label: format!("{} rows {start}..{end}", self.place.url()),
            payload: serde_json::to_vec(&split).map_err(|e| Error::internal(e.to_string()))?,
            partition: PARTITION.to_owned(),
            rows: Some(end - start),
            bytes: None,
        }])
    }

    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        self.declared.reader(projection)
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
