//! The sink of files: writers stage one file a task, the committer renames them into place. A streaming job stages one
//! file an epoch (`stream.rs`), or lets one file grow (`single.rs`).
//!
//! ```text
//! <location>/part-00000-<run>.parquet                       what readers see
//! <location>/_essaim_staging/<run>/<generation>/<uuid>.…    written, not yet committed
//! <location>/_essaim_staging/<run>/manifest                 what a commit renames and deletes: the moment it is decided
//! <location>/_essaim_commits/<job>_<query>                  the generation that writes and the last epoch committed
//! <location>/_essaim/<job>_<query>/…                        the epochs of a streaming job
//! ```

mod committer;
mod epoch_log;
mod micros;
mod single;
mod stream;
mod writer;

pub use writer::FileWriter;

use crate::check::{Finding, Incoming};
use crate::connector::{PlannedSink, Sink, SinkRun};
use crate::error::{Error, Result};
use crate::object_stores;
use crate::options::{Options, meant};
use crate::secret::redact;
use crate::sql_types::sql_type;
use crate::stream::{OutputMode, StreamSink, no_stream_sink};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use committer::FileCommitter;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::parquet::basic::{Compression, GzipLevel, ZstdLevel};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use single::GrowingFile;
use std::collections::HashSet;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use stream::EpochFiles;

/// A file format that is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    Parquet,
    Csv,
    /// One object a line.
    Json,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Parquet, Self::Csv, Self::Json];

    /// The word after STORED AS.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "PARQUET",
            Self::Csv => "CSV",
            Self::Json => "JSON",
        }
    }
}

/// How rows become bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layout {
    format: Format,
    /// The codec's name as in OPTIONS, lower case; `None` for the format's own habit.
    pub(crate) compression: Option<String>,
    /// CSV: whether the first line names the columns.
    pub(crate) has_header: bool,
    /// CSV: the byte between two fields.
    pub(crate) delimiter: u8,
}

impl Layout {
    /// Takes the options that reading and writing share.
    ///
    /// # Errors
    /// An unknown codec, a delimiter of several bytes.
    pub fn new(format: Format, options: &mut Options) -> Result<Self> {
        // DataFusion's planner takes `compression` for itself, and refuses all codecs of Parquet under that name.
        let compression = match format {
            Format::Parquet if options.text("compression").is_some() => {
                return Err(options.error(
                    "option compression: for PARQUET write 'parquet.compression' in its place",
                ));
            }
            Format::Parquet => options.text("parquet.compression"),
            Format::Csv | Format::Json => options.text("compression"),
        };
        let mut layout = Self {
            format,
            compression: compression.map(|name| name.to_ascii_lowercase()),
            has_header: true,
            delimiter: b',',
        };
        match format {
            Format::Parquet => layout.parquet_compression().map(drop),
            Format::Csv | Format::Json => layout.text_compression().map(drop),
        }
        .map_err(|e| options.error(e))?;
        if format == Format::Csv {
            layout.has_header = options.parsed("has_header")?.unwrap_or(true);
            if let Some(delimiter) = options.text("delimiter") {
                layout.delimiter = match delimiter.as_bytes() {
                    [byte] => *byte,
                    b"\\t" => b'\t',
                    _ => {
                        return Err(options.error(format!(
                            "option delimiter '{delimiter}': write one ASCII character"
                        )));
                    }
                };
            }
        }
        Ok(layout)
    }

    fn parquet_compression(&self) -> Result<Compression> {
        let name = self.compression.as_deref().unwrap_or("zstd");
        match name.split('(').next().unwrap_or_default() {
            "uncompressed" => Ok(Compression::UNCOMPRESSED),
            "snappy" => Ok(Compression::SNAPPY),
            "gzip" => Ok(Compression::GZIP(GzipLevel::default())),
            "lz4" | "lz4_raw" => Ok(Compression::LZ4_RAW),
            // Level 1: what larger levels save is little against the time they take.
            "zstd" => Ok(Compression::ZSTD(ZstdLevel::default())),
            _ => Err(Error::invalid(format!(
                "option parquet.compression '{name}': write 'zstd', 'snappy', 'lz4', 'gzip' or 'uncompressed'"
            ))),
        }
    }

    fn text_compression(&self) -> Result<FileCompressionType> {
        let Some(name) = &self.compression else {
            return Ok(FileCompressionType::UNCOMPRESSED);
        };
        FileCompressionType::from_str(name).map_err(|_| {
            Error::invalid(format!(
                "option compression '{name}': write 'gzip', 'zstd', 'bzip2', 'xz' or 'uncompressed'"
            ))
        })
    }

    /// What file names end with, e.g. `csv.gz`.
    fn extension(&self) -> String {
        let codec = match (self.format, self.compression.as_deref()) {
            (Format::Parquet, _) => "",
            (_, Some("gzip" | "gz")) => ".gz",
            (_, Some("zstd" | "zst")) => ".zst",
            (_, Some("bzip2" | "bz2")) => ".bz2",
            (_, Some("xz")) => ".xz",
            _ => "",
        };
        format!("{}{codec}", self.format.name().to_ascii_lowercase())
    }

    /// Whether its files are CSV or JSON that is compressed.
    pub fn is_compressed_text(&self) -> bool {
        self.format != Format::Parquet
            && self
                .text_compression()
                .is_ok_and(|codec| codec.is_compressed())
    }

    /// Whether a location that does not exist yet names one file rather than a folder.
    pub fn names_file(&self, location: &str) -> bool {
        location.ends_with(&format!(".{}", self.extension()))
    }
}

/// Whether a reader of the folder sees the file: not in a folder of its own (unless `column=value`), and no part of
/// its name hidden.
pub fn is_visible(folder: &Path, file: &Path) -> bool {
    let Some(names) = file.prefix_match(folder) else {
        return false;
    };
    let mut plain = 0;
    for name in names {
        let name = name.as_ref();
        if name.starts_with(['_', '.']) {
            return false;
        }
        plain += usize::from(!name.contains('='));
    }
    plain == 1
}

/// The sink's half of a table of files.
#[derive(Debug)]
pub struct FileSink {
    pub name: String,
    /// A folder, or with `single_file` a file.
    pub location: String,
    pub layout: Layout,
    /// Mode `overwrite`.
    pub overwrite: bool,
    /// All rows go to one file, which is the location itself.
    pub single_file: bool,
}

impl FileSink {
    /// Whether the format can hold the columns.
    fn check(&self, input: &SchemaRef) -> Result<()> {
        let mut names = HashSet::new();
        for field in input.fields() {
            if !names.insert(field.name()) {
                return Err(Error::invalid(format!(
                    "two columns are named {}: name one of them otherwise with AS",
                    field.name()
                )));
            }
            if self.layout.format == Format::Csv && field.data_type().is_nested() {
                return Err(Error::invalid(format!(
                    "CSV cannot hold column {} of type {}: use STORED AS PARQUET or JSON, or take its fields apart",
                    field.name(),
                    sql_type(field.data_type())
                )));
            }
        }
        Ok(())
    }

    /// The store, e.g. `s3://bucket` or `file://`.
    fn base(&self) -> Result<String> {
        let url = object_stores::parse(&self.location)?;
        Ok(format!(
            "{}://{}",
            url.scheme(),
            url.host_str().unwrap_or_default()
        ))
    }
}

/// The file or folder beside a location that may have been meant.
async fn beside(location: &str) -> Option<String> {
    let (store, path) = object_stores::open(location).ok()?;
    let listed = store.list_with_delimiter(Some(&parent(&path))).await.ok()?;
    let files = listed
        .objects
        .iter()
        .filter_map(|file| file.location.filename());
    let folders = listed.common_prefixes.iter().filter_map(Path::filename);
    let names: Vec<&str> = files.chain(folders).collect();
    meant(path.filename()?, names).map(str::to_owned)
}

#[async_trait]
impl Sink for FileSink {
    async fn absent(&self) -> Result<String> {
        let location = self.location.trim_end_matches('/');
        let place = redact(location);
        // A bucket may take long to be listed.
        let beside = match object_stores::local_folder(location)? {
            Some(_) => beside(location).await,
            None => None,
        };
        Ok(match beside {
            Some(near) => format!("there is nothing at {place}: did you mean {near}?"),
            None => format!("there is nothing at {place}"),
        })
    }

    async fn plan(&self, input: &SchemaRef, overwrite: bool, run: &SinkRun) -> Result<PlannedSink> {
        self.check(input)?;
        let (store, path) = object_stores::open(&self.location)?;
        let folder = if self.single_file {
            parent(&path)
        } else {
            path.clone()
        };
        let staging = folder
            .clone()
            .join("_essaim_staging")
            .join(run.name())
            .join(run.generation.to_string());
        let writer = FileWriter {
            base: self.base()?,
            staging: staging.to_string(),
            layout: self.layout.clone(),
        };
        let overwrite = overwrite || self.overwrite;
        let committer = FileCommitter::new(
            store,
            folder,
            staging,
            self.single_file.then_some(path),
            overwrite,
            run.clone(),
            writer.clone(),
            Arc::clone(input),
        );
        Ok(PlannedSink {
            writer: Arc::new(writer),
            committer: Arc::new(committer),
        })
    }

    async fn stream(
        &self,
        input: &SchemaRef,
        mode: OutputMode,
        run: &SinkRun,
    ) -> Result<Arc<dyn StreamSink>> {
        self.check(input)?;
        if mode == OutputMode::Update {
            return Err(no_stream_sink(
                mode,
                "a file cannot replace rows: write 'append' or 'complete', or INSERT into a table with a key",
            ));
        }
        if self.overwrite {
            return Err(Error::invalid(
                "option mode 'overwrite' is for jobs that end: leave it out, and SET essaim.output_mode = 'complete' if each epoch is to replace all rows",
            ));
        }
        if self.single_file && mode == OutputMode::Append {
            let file = GrowingFile::new(&self.location, &self.layout, input, run)?;
            return Ok(Arc::new(file));
        }
        let (store, path) = object_stores::open(&self.location)?;
        let stream = EpochFiles::new(
            store,
            self.base()?,
            path,
            self.single_file,
            mode,
            self.layout.clone(),
            run.clone(),
        );
        Ok(Arc::new(stream))
    }

    fn takes_one_writer(&self) -> bool {
        self.single_file
    }

    async fn findings(&self, _incoming: &Incoming<'_>) -> Result<Vec<Finding>> {
        let Some(place) = object_stores::local_folder(&self.location)? else {
            return Ok(Vec::new());
        };
        let folder = match place.parent() {
            Some(parent) if self.single_file => parent,
            _ => place.as_path(),
        };
        let advice =
            "let the users that master and workers run as write to it, or name another LOCATION";
        Ok(match object_stores::writable(folder) {
            Ok(_) => Vec::new(),
            Err(error) => vec![Finding::error(
                format!("table {}: {error}", self.name),
                advice,
            )],
        })
    }
}

/// The error of a master that another one has followed.
fn superseded(place: impl Display, run: &SinkRun, theirs: u64) -> Error {
    Error::invalid(format!(
        "{place}: job {} is written by generation {theirs}, this is generation {}: a newer start of the job has taken over",
        run.job, run.generation
    ))
}

fn parent(path: &Path) -> Path {
    let mut parts: Vec<_> = path.parts().collect();
    parts.pop();
    Path::from_iter(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_and_hidden_files_are_not_visible() {
        let folder = Path::from("data/out");
        let visible = |file: &str| is_visible(&folder, &Path::from(file));
        assert!(visible("data/out/part-00000.csv"));
        assert!(visible("data/out/day=1/part-00000.csv"));
        assert!(!visible("data/out/_essaim_staging/x/y.csv"));
        assert!(!visible("data/out/.part.csv"));
        assert!(!visible("data/out/sub/part-00000.csv"));
        assert!(!visible("data/other/part-00000.csv"));
    }
}
