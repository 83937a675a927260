//! What travels to the workers: how the files of a table are read, and which of them a split is made of.

use super::csv::CsvFormat;
use super::file::FileVersion;
use crate::connector::METADATA_KEY;
use crate::sources::kafka::timestamps::EpochUnit;
use arrow::datatypes::{DataType, Field, TimeUnit};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The file that a row comes from, as a URL.
pub(super) const FILE: &str = "_file";
/// When that file was written last.
pub(super) const MODIFIED: &str = "_modified";
/// When a row of a replay was due.
pub(super) const REPLAYED_AT: &str = "_replayed_at";

/// The columns that follow the declared ones.
pub(super) fn metadata_fields(names: &[&str]) -> Vec<Field> {
    let mark = HashMap::from([(METADATA_KEY.to_owned(), "true".to_owned())]);
    let field = |name: &&str| {
        let data_type = match *name {
            FILE => DataType::Utf8View,
            _ => DataType::Timestamp(TimeUnit::Millisecond, None),
        };
        Field::new(*name, data_type, true).with_metadata(mark.clone())
    };
    names.iter().map(field).collect()
}

/// Whether a source of files fills the column in itself.
pub(super) fn is_metadata(field: &Field) -> bool {
    field.metadata().contains_key(METADATA_KEY)
}

/// How a file is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FileFormat {
    Parquet,
    Json {
        /// What a number in a timestamp's place counts.
        unit: EpochUnit,
        /// A file is a document, or several, not a record a line.
        multi_line: bool,
    },
    Csv(CsvFormat),
}

/// What becomes of a record that does not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum OnError {
    Fail,
    Skip,
}

/// What a worker must know to read any file of a table. Travels as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePlan {
    /// The store, `s3://bucket` or `file://`.
    pub base: String,
    pub format: FileFormat,
    /// The codec's name; `None` if each file's name tells.
    pub compression: Option<String>,
    pub on_error: OnError,
    /// Whether a file that is gone before it was read is passed over.
    pub ignore_missing_files: bool,
    /// Whether what is left of a file is passed over from where it is broken.
    pub ignore_corrupt_files: bool,
}

/// What a split is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FileSplit {
    pub files: Vec<FileVersion>,
    /// Of a replay: which of the files' rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,
}

/// Some rows of a replay, which numbers the rows of all its files in one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Rows {
    pub start: u64,
    pub end: u64,
    /// The number of the row at `byte` of the split's first file.
    pub first: u64,
    pub byte: u64,
    /// Where row `end` begins, if that is known and lies in the split's only file.
    pub until: Option<u64>,
    pub clock: Clock,
}

/// Which row is due when.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Clock {
    /// This row is due at this time, ms since the epoch.
    pub row: u64,
    pub at_ms: i64,
    pub rows_per_second: f64,
}

impl Clock {
    /// When a row is due, ms since the epoch.
    pub fn due_ms(&self, row: u64) -> i64 {
        let rows = row as f64 - self.row as f64;
        self.at_ms + (rows / self.rows_per_second * 1000.0) as i64
    }
}
