//! The worker's half of files as a stream: the rows of a split's files, one file after the other.

use super::csv::CsvDecoder;
use super::file::{FileVersion, Storage};
use super::parquet::{ParquetFile, Wanted};
use super::plan::{FILE, FileFormat, FilePlan, FileSplit, MODIFIED, OnError, Rows, is_metadata};
use super::text::TextFile;
use crate::bad_records::{BadRecords, MAX_BAD_RECORDS};
use crate::connector::{Split, SplitReader};
use crate::error::{Error, ErrorKind, Result};
use crate::scan::ScanMetrics;
use crate::sources::kafka::decode::{Decoded, JsonDecoder, Slices};
use arrow::array::{
    ArrayRef, RecordBatch, RecordBatchOptions, StringViewBuilder, TimestampMillisecondArray,
};
use arrow::datatypes::{Fields, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use std::collections::VecDeque;
use std::sync::Arc;

/// A batch is cut at so many bytes of records, however few they are.
const BATCH_BYTES: usize = 4 << 20;

/// Reads the files of one table.
#[derive(Debug)]
pub(super) struct FileReader {
    pub schema: SchemaRef,
    pub plan: FilePlan,
}

impl FileReader {
    /// Reads back what [`SplitReader::encode`] wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn decode(encoded: &[u8], schema: SchemaRef) -> Result<Self> {
        let plan = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a scan of files of another version: {e}")))?;
        Ok(Self { schema, plan })
    }
}

impl SplitReader for FileReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        // Texts and numbers under string keys: it cannot fail, and an empty plan would be refused by the reader.
        serde_json::to_vec(&self.plan).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let names: Vec<&str> = self
            .schema
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        let format = match &self.plan.format {
            FileFormat::Parquet => "parquet",
            FileFormat::Csv(_) => "csv",
            FileFormat::Json {
                multi_line: true, ..
            } => "json, multi_line",
            FileFormat::Json { .. } => "json",
        };
        format!(
            "store={}, format={format}, on_error={:?}, fields=[{}]",
            self.plan.base,
            self.plan.on_error,
            names.join(", ")
        )
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let split: FileSplit = serde_json::from_slice(&split.payload)
            .map_err(|e| Error::internal(format!("a split of another version: {e}")))?;
        let declared: Fields = self
            .schema
            .fields()
            .iter()
            .filter(|field| !is_metadata(field))
            .cloned()
            .collect();
        let declared: SchemaRef = Arc::new(Schema::new(declared));
        let batch_size = ctx.session_config().batch_size();
        let decoder = match &self.plan.format {
            FileFormat::Parquet => Decoder::None,
            FileFormat::Json { unit, .. } => {
                let decoder = JsonDecoder::new(Arc::clone(&declared), *unit, batch_size)?;
                Decoder::Json(Box::new(decoder))
            }
            FileFormat::Csv(csv) => {
                Decoder::Csv(CsvDecoder::new(csv.clone(), Arc::clone(&declared)))
            }
        };
        let scan = Scan {
            storage: Storage::of_base(&self.plan.base)?,
            plan: self.plan.clone(),
            schema: Arc::clone(&self.schema),
            declared,
            decoder,
            batch_size,
            metrics: ScanMetrics::new(metrics, partition),
            bad_records: ctx.session_config().get_extension(),
            row: split.rows.map_or(0, |rows| rows.first),
            rows: split.rows,
            entry: split.rows,
            files: split.files.into(),
            open: None,
            records: Slices::default(),
        };
        let batches = futures::stream::try_unfold(scan, |mut scan| async move {
            let batch = scan.next().await.map_err(DataFusionError::from)?;
            Ok(batch.map(|batch| (batch, scan)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            batches,
        )))
    }
}

enum Decoder {
    /// The file format has rows itself.
    None,
    Json(Box<JsonDecoder>),
    Csv(CsvDecoder),
}

/// The file that is read just now.
struct Open {
    file: FileVersion,
    content: Content,
    /// The number of its next row: in the file, or in the replay.
    row: u64,
    /// Where it turned out to be broken, behind records that have yet to be handed on.
    broken: Option<Error>,
}

enum Content {
    Text(Box<TextFile>),
    Parquet(Box<ParquetFile>),
}

/// The reading of one split.
struct Scan {
    storage: Storage,
    plan: FilePlan,
    schema: SchemaRef,
    /// The columns that come from the files.
    declared: SchemaRef,
    decoder: Decoder,
    batch_size: usize,
    metrics: ScanMetrics,
    bad_records: Option<Arc<BadRecords>>,
    /// The number of the next file's first row.
    row: u64,
    rows: Option<Rows>,
    /// The same until the first file is opened.
    entry: Option<Rows>,
    files: VecDeque<FileVersion>,
    open: Option<Open>,
    records: Slices,
}

impl Scan {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.open_next().await? {
                    Some(open) => open,
                    None => return Ok(None),
                },
            };
            let batch = match &mut open.content {
                Content::Parquet(parquet) => match parquet.next().await {
                    Ok(Some(rows)) => {
                        self.metrics.rows_in.add(rows.num_rows());
                        let first = open.row;
                        open.row += rows.num_rows() as u64;
                        let numbers: Vec<u64> = (first..open.row).collect();
                        Some(self.complete(&open.file, rows.columns(), &numbers)?)
                    }
                    Ok(None) => None,
                    Err(error) => {
                        self.pass_over(&open.file, open.row, error)?;
                        None
                    }
                },
                Content::Text(_) => self.text(&mut open).await?,
            };
            match batch {
                Some(batch) => {
                    self.open = Some(open);
                    if batch.num_rows() > 0 {
                        return Ok(Some(batch));
                    }
                }
                None if self.rows.is_some() => self.row = self.row.max(open.row),
                None => {}
            }
        }
    }

    /// Opens the next file that has something to read.
    async fn open_next(&mut self) -> Result<Option<Open>> {
        loop {
            if self.rows.is_some_and(|rows| self.row >= rows.end) {
                return Ok(None);
            }
            let Some(file) = self.files.pop_front() else {
                return Ok(None);
            };
            match self.open(&file).await {
                Ok(Some(open)) => return Ok(Some(open)),
                Ok(None) => {}
                Err(error) => self.pass_over(&file, 0, error)?,
            }
        }
    }

    /// Opens a file; `None` if there is nothing in it to read.
    async fn open(&mut self, file: &FileVersion) -> Result<Option<Open>> {
        let content = match &self.plan.format {
            FileFormat::Parquet => {
                // A file without any bytes is a file without rows, whatever the format.
                let is_empty = file.size == 0;
                if (is_empty || self.plan.ignore_missing_files)
                    && self.storage.get(file, Some(0..0)).await?.is_none()
                {
                    return self.missing(file);
                }
                if is_empty {
                    return Ok(None);
                }
                let (skip, most) = match self.rows {
                    Some(rows) => (
                        rows.start.saturating_sub(self.row),
                        rows.end - rows.start.max(self.row),
                    ),
                    None => (0, u64::MAX),
                };
                let wanted = Wanted {
                    schema: Arc::clone(&self.declared),
                    batch_size: self.batch_size,
                    skip,
                    most,
                };
                let bytes_in = self.metrics.bytes_in.clone();
                let (parquet, rows) =
                    ParquetFile::open(&self.storage, file, wanted, bytes_in).await?;
                if skip >= rows && rows > 0 {
                    self.row += rows;
                    return Ok(None);
                }
                let open = Open {
                    file: file.clone(),
                    content: Content::Parquet(Box::new(parquet)),
                    row: self.row + skip,
                    broken: None,
                };
                return Ok(Some(open));
            }
            FileFormat::Json { .. } | FileFormat::Csv(_) => {
                // Only the first file is entered in its middle.
                let entry = self.entry.take().filter(|rows| rows.byte > 0);
                let (storage, plan) = (&self.storage, &self.plan);
                match entry {
                    Some(rows) => {
                        let range = rows.byte..rows.until.unwrap_or(file.size);
                        TextFile::open_range(storage, plan, file, range).await?
                    }
                    None => TextFile::open(storage, plan, file).await?,
                }
            }
        };
        let Some(text) = content else {
            return self.missing(file);
        };
        Ok(Some(Open {
            file: file.clone(),
            content: Content::Text(Box::new(text)),
            row: if self.rows.is_some() { self.row } else { 0 },
            broken: None,
        }))
    }

    fn missing(&self, file: &FileVersion) -> Result<Option<Open>> {
        if !self.plan.ignore_missing_files {
            return Err(self.storage.gone(file));
        }
        tracing::warn!(
            file = self.storage.url(&file.path),
            "the file is gone: passed over"
        );
        Ok(None)
    }

    /// Goes on behind a file that is broken, if the table allows for it.
    fn pass_over(&self, file: &FileVersion, row: u64, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Data {
            return Err(error);
        }
        if !self.plan.ignore_corrupt_files {
            return Err(
                error.with_hint("set ignore_corrupt_files 'true' to go on without what is broken")
            );
        }
        self.note(file, row, &error.to_string());
        self.metrics.records_skipped.add(1);
        Ok(())
    }

    fn note(&self, file: &FileVersion, row: u64, reason: &str) {
        if let Some(noted) = &self.bad_records {
            let row = i64::try_from(row).unwrap_or(i64::MAX);
            noted.note(&self.storage.url(&file.path), 0, row, reason);
        }
    }

    /// The next records of a text as rows; `None` at its end.
    async fn text(&mut self, open: &mut Open) -> Result<Option<RecordBatch>> {
        if let Some(error) = open.broken.take() {
            self.pass_over(&open.file, open.row, error)?;
            return Ok(None);
        }
        let Content::Text(text) = &mut open.content else {
            return Ok(None);
        };
        self.records.clear();
        let (start, end) = self
            .rows
            .map_or((0, u64::MAX), |rows| (rows.start, rows.end));
        let mut first = open.row;
        while self.records.len() < self.batch_size
            && self.records.bytes() < BATCH_BYTES
            && open.row < end
        {
            match text.next().await {
                Ok(Some(record)) => {
                    open.row += 1;
                    if open.row <= start {
                        first = open.row;
                        continue;
                    }
                    self.records.push(Some(text.record(record)));
                }
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::Data => {
                    open.broken = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if self.records.len() == 0 && open.broken.is_none() {
            return Ok(None);
        }
        self.metrics.rows_in.add(self.records.len());
        self.metrics.bytes_in.add(self.records.bytes());
        let decoded = match &mut self.decoder {
            Decoder::Json(decoder) => decoder.decode(&self.records)?,
            Decoder::Csv(decoder) => decoder.decode(&self.records)?,
            Decoder::None => return Err(Error::internal("a text without a decoder")),
        };
        self.treat(&open.file, first, &decoded)?;
        let mut bad = decoded.bad.iter().map(|(index, _)| *index).peekable();
        let good = (0..self.records.len()).filter(|index| bad.next_if_eq(index).is_none());
        let numbers: Vec<u64> = good.map(|index| first + index as u64).collect();
        self.complete(&open.file, decoded.rows.columns(), &numbers)
            .map(Some)
    }

    /// Counts the bad records, or ends with the first one.
    fn treat(&self, file: &FileVersion, first: u64, decoded: &Decoded) -> Result<()> {
        let bad = &decoded.bad;
        for (index, reason) in bad.iter().take(MAX_BAD_RECORDS) {
            self.note(file, first + *index as u64 + 1, reason);
        }
        match (self.plan.on_error, bad.first()) {
            (OnError::Fail, Some((index, reason))) => Err(Error::data(format!(
                "{} record {}: it does not decode: {reason}; correct the columns, or set on_error 'skip'",
                self.storage.url(&file.path),
                first + *index as u64 + 1,
            ))),
            _ => {
                self.metrics.records_skipped.add(bad.len());
                Ok(())
            }
        }
    }

    /// Adds the columns that the source fills in itself. `numbers` are those of the rows.
    fn complete(
        &self,
        file: &FileVersion,
        declared: &[ArrayRef],
        numbers: &[u64],
    ) -> Result<RecordBatch> {
        let rows = numbers.len();
        let mut declared = declared.iter();
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|field| -> Result<ArrayRef> {
                if !is_metadata(field) {
                    return declared.next().map(Arc::clone).ok_or_else(|| {
                        Error::internal(format!("column {} was not decoded", field.name()))
                    });
                }
                Ok(match field.name().as_str() {
                    FILE => {
                        let url = self.storage.url(&file.path);
                        let mut builder =
                            StringViewBuilder::with_capacity(rows).with_deduplicate_strings();
                        for _ in 0..rows {
                            builder.append_value(&url);
                        }
                        Arc::new(builder.finish())
                    }
                    MODIFIED => {
                        Arc::new(TimestampMillisecondArray::from_value(file.modified, rows))
                    }
                    _ => {
                        let clock = self.rows.map(|rows| rows.clock);
                        let due = numbers
                            .iter()
                            .map(|row| clock.map(|clock| clock.due_ms(*row)));
                        Arc::new(due.collect::<TimestampMillisecondArray>())
                    }
                })
            });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Error::data(format!("{}: {e}", self.storage.url(&file.path))))
    }
}
