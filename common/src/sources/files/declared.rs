//! The options of tables of files that we read ourselves: those that are UNBOUNDED, multi-line JSON, compressed texts.

use super::clean::CleanUp;
use super::csv::CsvFormat;
use super::documents::Documents;
use super::infer;
use super::place::Place;
use super::plan::{FILE, FileFormat, FilePlan, MODIFIED, OnError, REPLAYED_AT, metadata_fields};
use super::reader::FileReader;
use super::replay::Replay;
use super::source::Continuous;
use super::watch::Watch;
use crate::connector::{ConnectorTable, SplitReader, TableSpec};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::scan::project_schema;
use crate::sinks::files::{FileSink, Format, Layout};
use crate::sources::kafka::decode::JsonDecoder;
use crate::sources::kafka::timestamps::EpochUnit;
use crate::sql_types::sql_type;
use crate::stream::StreamOptions;
use arrow::datatypes::{Field, Schema, SchemaRef};
use std::sync::Arc;
use std::time::Duration;

/// Files that one epoch takes, unless the table says otherwise.
const FILES_PER_TRIGGER: u64 = 1_000;
/// How often a folder is looked at, ms, unless the table says otherwise.
const INTERVAL_MS: u64 = 1_000;
/// How long a file is remembered, ms, unless the table says otherwise: Spark's week.
const MAX_AGE_MS: i64 = 7 * 86_400_000;
/// Rows that a replay may hand out in a second.
const FASTEST: f64 = 10_000_000.0;

/// A table's columns, and how its files are read.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    /// The columns of the files, then those that the source fills in.
    pub schema: SchemaRef,
    /// How many columns of `schema` are the files'.
    pub columns: usize,
    pub plan: FilePlan,
}

impl Declared {
    /// What reads the columns of `projection`.
    ///
    /// # Errors
    /// Columns that are not there.
    pub fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        let mut plan = self.plan.clone();
        if let FileFormat::Csv(csv) = &mut plan.format {
            csv.columns = self.columns;
            let is_of_file = |index: &&usize| **index < self.columns;
            csv.wanted = projection.iter().filter(is_of_file).copied().collect();
        }
        Ok(Arc::new(FileReader {
            schema: project_schema(&self.schema, projection)?,
            plan,
        }))
    }

    fn new(
        columns: SchemaRef,
        metadata: &[&str],
        plan: FilePlan,
        options: &Options,
    ) -> Result<Self> {
        for field in columns.fields() {
            if metadata.contains(&field.name().as_str()) {
                return Err(options.error(format!(
                    "column {} is filled in by the table itself: leave it out",
                    field.name()
                )));
            }
            if matches!(plan.format, FileFormat::Csv(_)) && field.data_type().is_nested() {
                return Err(options.error(format!(
                    "column {} has the type {}, which CSV cannot hold",
                    field.name(),
                    sql_type(field.data_type())
                )));
            }
        }
        if let FileFormat::Json { unit, .. } = &plan.format {
            JsonDecoder::new(Arc::clone(&columns), *unit, 1).map_err(|e| options.error(e))?;
        }
        let count = columns.fields().len();
        let mut fields: Vec<Arc<Field>> = columns.fields().iter().cloned().collect();
        fields.extend(metadata_fields(metadata).into_iter().map(Arc::new));
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            columns: count,
            plan,
        })
    }
}

/// Makes a table of files that we read ourselves. `sink` is what writes it, if anything does.
///
/// # Errors
/// An option that is wrong, missing or unknown; a store that is out of reach, where it has to be asked.
pub(super) async fn table(
    format: Format,
    mut spec: TableSpec,
    sink: Option<Arc<FileSink>>,
) -> Result<ConnectorTable> {
    let options = &mut spec.options;
    if sink.is_some() {
        // They are the sink's, which has taken them.
        options.text("mode");
        options.text("single_file");
    }
    let recursive = options.one_of("recursive_file_lookup", &[("false", false), ("true", true)])?;
    let place = Place::new(spec.location.expose(), recursive, options)?;
    let plan = plan(format, &place, options)?;
    let rate = rate(options)?;
    if !spec.unbounded {
        if rate.is_some() {
            return Err(options.error(
                "rows_per_second plays files as a stream: write CREATE UNBOUNDED EXTERNAL TABLE, or leave it out",
            ));
        }
        let columns = match spec.schema {
            Some(columns) => columns,
            None => infer::columns(&place, &plan, options).await?,
        };
        let declared = Declared::new(columns, &[], plan, options)?;
        spec.options.finish()?;
        return Ok(ConnectorTable {
            schema: Some(Arc::clone(&declared.schema)),
            source: Some(Arc::new(Documents { declared, place })),
            sink: sink.map(|sink| sink as _),
        });
    }
    let (stream, schema) = match rate {
        Some(rate) => {
            let columns = match spec.schema {
                Some(columns) => columns,
                None => infer::columns(&place, &plan, options).await?,
            };
            let metadata = [FILE, MODIFIED, REPLAYED_AT];
            let declared = Declared::new(columns, &metadata, plan, options)?;
            let streaming = streaming(options, &declared.schema)?;
            spec.options.finish()?;
            let schema = Arc::clone(&declared.schema);
            let replay = Replay::new(declared, streaming, place.clone(), rate);
            (Arc::new(replay) as _, schema)
        }
        None => {
            let Some(columns) = spec.schema else {
                return Err(options.error(
                    "an UNBOUNDED table of files needs its columns declared: the files to come are not there to take them from",
                ));
            };
            let declared = Declared::new(columns, &[FILE, MODIFIED], plan, options)?;
            let mut streaming = streaming(options, &declared.schema)?;
            let files: Option<u64> = options.parsed("max_files_per_trigger")?;
            if files == Some(0) {
                return Err(options.error(
                    "option max_files_per_trigger '0': nothing would ever be read; write at least 1",
                ));
            }
            streaming.max_offsets_per_trigger = Some(files.unwrap_or(FILES_PER_TRIGGER));
            let interval = options.timeout_ms("monitor_interval", INTERVAL_MS)?;
            let max_age = options.duration_ms("max_file_age")?.unwrap_or(MAX_AGE_MS);
            let clean_up = CleanUp::new(options, &place)?;
            spec.options.finish()?;
            if !spec.location.expose().ends_with('/') && place.file().await?.is_some() {
                return Err(Error::invalid(format!(
                    "{} is a file: name the folder that files come to, or add rows_per_second '…' to play the file as a stream",
                    place.url()
                )));
            }
            let schema = Arc::clone(&declared.schema);
            let interval = Duration::from_millis(interval);
            let watch = Watch::new(
                declared,
                streaming,
                place.clone(),
                interval,
                max_age,
                clean_up,
            );
            (Arc::new(watch) as _, schema)
        }
    };
    Ok(ConnectorTable {
        schema: Some(schema),
        source: Some(Arc::new(Continuous { stream, place })),
        sink: None,
    })
}

/// Whether a table of these options is read by us rather than by DataFusion although it is not UNBOUNDED.
///
/// # Errors
/// A value that is wrong.
pub(super) fn is_multi_line(format: Format, options: &Options) -> Result<bool> {
    if format != Format::Json {
        return Ok(false);
    }
    options
        .clone()
        .one_of("multi_line", &[("false", false), ("true", true)])
}

fn streaming(options: &mut Options, schema: &SchemaRef) -> Result<StreamOptions> {
    let streaming = StreamOptions::take(options, Some(schema))?;
    if streaming.max_offsets_per_trigger.is_some() {
        return Err(
            options.error("max_offsets_per_trigger is for topics: write max_files_per_trigger")
        );
    }
    Ok(streaming)
}

fn rate(options: &mut Options) -> Result<Option<f64>> {
    let rate: Option<f64> = options.parsed("rows_per_second")?;
    match rate {
        Some(rate) if !(rate > 0.0 && rate <= FASTEST) => Err(options.error(format!(
            "option rows_per_second '{rate}': write a number above 0, up to {FASTEST}"
        ))),
        rate => Ok(rate),
    }
}

fn plan(format: Format, place: &Place, options: &mut Options) -> Result<FilePlan> {
    let layout = Layout::new(format, options)?;
    let yes_or_no = [("false", false), ("true", true)];
    let on_error = options.one_of(
        "on_error",
        &[("fail", OnError::Fail), ("skip", OnError::Skip)],
    )?;
    let format = match format {
        Format::Parquet => {
            if on_error == OnError::Skip {
                return Err(options.error(
                    "on_error 'skip' is for records of CSV and JSON: a Parquet file is read whole or, with ignore_corrupt_files 'true', as far as it goes",
                ));
            }
            FileFormat::Parquet
        }
        Format::Json => FileFormat::Json {
            unit: EpochUnit::take(options)?,
            multi_line: options.one_of("multi_line", &yes_or_no)?,
        },
        Format::Csv => FileFormat::Csv(CsvFormat {
            has_header: layout.has_header,
            delimiter: layout.delimiter,
            quote: byte(options, "quote")?.unwrap_or(b'"'),
            escape: byte(options, "escape")?,
            columns: 0,
            wanted: Vec::new(),
        }),
    };
    Ok(FilePlan {
        base: place.storage.base.clone(),
        format,
        compression: layout.compression,
        on_error,
        ignore_missing_files: options.one_of("ignore_missing_files", &yes_or_no)?,
        ignore_corrupt_files: options.one_of("ignore_corrupt_files", &yes_or_no)?,
    })
}

fn byte(options: &mut Options, name: &'static str) -> Result<Option<u8>> {
    match options.text(name).as_deref().map(str::as_bytes) {
        None => Ok(None),
        Some([byte]) => Ok(Some(*byte)),
        Some(_) => Err(options.error(format!("option {name}: write one ASCII character"))),
    }
}
