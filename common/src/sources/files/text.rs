//! A file of JSON or CSV, read record by record.

use super::file::{FileVersion, Pieces, Storage, compression_of};
use super::plan::{FileFormat, FilePlan};
use super::records::{Cut, Splitter};
use crate::error::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use std::ops::Range;

/// What is asked for at a time where a file is read slowly: no answer of a store waits for long to be read on.
const BLOCK_BYTES: u64 = 1 << 20;

/// An open file.
pub(super) struct TextFile {
    url: String,
    pieces: Pieces,
    splitter: Splitter,
    /// The header is still to be read.
    header: bool,
    ended: bool,
}

impl std::fmt::Debug for TextFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextFile({} at {})", self.url, self.position())
    }
}

impl FilePlan {
    /// What ends a record of its files.
    fn cut(&self) -> Cut {
        match &self.format {
            FileFormat::Csv(csv) => Cut::Csv {
                delimiter: csv.delimiter,
                quote: csv.quote,
                escape: csv.escape,
            },
            FileFormat::Json {
                multi_line: true, ..
            } => Cut::Values,
            FileFormat::Json { .. } | FileFormat::Parquet => Cut::Lines,
        }
    }

    /// Whether the records of a file can be read from any of them on.
    pub fn has_positions(&self, file: &FileVersion) -> bool {
        let is_compressed = compression_of(self.compression.as_deref(), &file.path).is_compressed();
        match self.format {
            FileFormat::Parquet
            | FileFormat::Json {
                multi_line: true, ..
            } => false,
            FileFormat::Json { .. } | FileFormat::Csv(_) => !is_compressed,
        }
    }
}

impl TextFile {
    /// Opens a file at its beginning. `None` if it is gone.
    ///
    /// # Errors
    /// It has changed; the store is out of reach.
    pub async fn open(
        storage: &Storage,
        plan: &FilePlan,
        file: &FileVersion,
    ) -> Result<Option<Self>> {
        let compression = compression_of(plan.compression.as_deref(), &file.path);
        let pieces = storage.content(file, compression).await?;
        Ok(pieces.map(|pieces| Self::new(storage, plan, file, pieces, 0)))
    }

    /// Opens what lies between two positions of a file that has them.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_range(
        storage: &Storage,
        plan: &FilePlan,
        file: &FileVersion,
        range: Range<u64>,
    ) -> Result<Option<Self>> {
        let start = range.start;
        let pieces = storage.raw(file, Some(range)).await?;
        Ok(pieces.map(|pieces| Self::new(storage, plan, file, pieces, start)))
    }

    /// Opens a file that has positions, from one of them on, to be read slowly: a block at a time is asked for.
    pub fn open_slowly(storage: &Storage, plan: &FilePlan, file: &FileVersion, start: u64) -> Self {
        let (from, of) = (storage.clone(), file.clone());
        let blocks = futures::stream::try_unfold(start, move |at| {
            let (storage, file) = (from.clone(), of.clone());
            async move {
                if at >= file.size {
                    return Ok(None);
                }
                let end = file.size.min(at + BLOCK_BYTES);
                match storage.raw(&file, Some(at..end)).await? {
                    Some(block) => Ok(Some((block, end))),
                    None => Err(storage.gone(&file)),
                }
            }
        });
        Self::new(storage, plan, file, blocks.try_flatten().boxed(), start)
    }

    fn new(
        storage: &Storage,
        plan: &FilePlan,
        file: &FileVersion,
        pieces: Pieces,
        start: u64,
    ) -> Self {
        Self {
            url: storage.url(&file.path),
            pieces,
            splitter: Splitter::new(plan.cut(), start),
            header: start == 0 && matches!(&plan.format, FileFormat::Csv(csv) if csv.has_header),
            ended: false,
        }
    }

    /// Finds the next record; [`Self::record`] shows it. `None` at the end.
    ///
    /// # Errors
    /// What the file holds is broken (`Data`); the store is out of reach.
    pub async fn next(&mut self) -> Result<Option<Range<usize>>> {
        loop {
            if let Some(range) = self.splitter.next() {
                if std::mem::take(&mut self.header) {
                    continue;
                }
                return Ok(Some(range));
            }
            if self.ended {
                if self.splitter.is_open() {
                    let reason = "the array is not closed: the file has been cut off";
                    return Err(Error::data(format!("{}: {reason}", self.url)));
                }
                return Ok(None);
            }
            match self.pieces.next().await {
                Some(piece) => {
                    let fed = self.splitter.feed(&piece?);
                    fed.map_err(|e| e.context(&self.url))?;
                }
                None => {
                    self.ended = true;
                    self.splitter.end();
                }
            }
        }
    }

    /// The bytes of a record that was found last.
    pub fn record(&self, range: Range<usize>) -> &[u8] {
        self.splitter.record(range)
    }

    /// Where the next record begins.
    pub fn position(&self) -> u64 {
        self.splitter.position()
    }
}
