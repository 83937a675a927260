//! A Parquet file, read by the columns that are wanted and brought to the table's types.

use super::file::{FileVersion, Storage};
use crate::error::{Error, Result, of_cast};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::CastOptions;
use arrow::datatypes::{Fields, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::common::nested_struct::cast_column;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream};
use datafusion::parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use datafusion::physical_plan::metrics::Count;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use std::ops::Range;
use std::sync::Arc;

/// The footer is asked for with so many bytes before it, which hold the metadata of most files.
const FOOTER_BYTES: usize = 64 << 10;

/// Reads ranges of a file for the decoder.
#[derive(Debug)]
struct Ranges {
    storage: Storage,
    file: FileVersion,
    bytes_in: Count,
}

impl AsyncFileReader for Ranges {
    fn get_bytes(
        &mut self,
        range: Range<u64>,
    ) -> BoxFuture<'_, datafusion::parquet::errors::Result<Bytes>> {
        async move {
            let url = self.storage.url(&self.file.path);
            let bytes = async {
                match self.storage.get(&self.file, Some(range)).await? {
                    Some(got) => got
                        .bytes()
                        .await
                        .map_err(|e| crate::object_stores::failed(&url, &e)),
                    None => Err(self.storage.gone(&self.file)),
                }
            };
            let bytes = bytes.await.map_err(|e| ParquetError::External(e.into()))?;
            self.bytes_in.add(bytes.len());
            Ok(bytes)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, datafusion::parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let size = self.file.size;
            let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(FOOTER_BYTES));
            reader.load_and_finish(self, size).await.map(Arc::new)
        }
        .boxed()
    }
}

/// An open file.
pub(super) struct ParquetFile {
    url: String,
    rows: ParquetRecordBatchStream<Ranges>,
    schema: SchemaRef,
}

/// What to read of a file.
pub(super) struct Wanted {
    /// The columns, in their order.
    pub schema: SchemaRef,
    pub batch_size: usize,
    /// Rows of the file to pass over.
    pub skip: u64,
    /// Rows to read at most.
    pub most: u64,
}

fn failed(url: &str, error: &ParquetError) -> Error {
    if let ParquetError::External(inner) = error
        && let Some(own) = inner.downcast_ref::<Error>()
    {
        return own.clone();
    }
    Error::data(format!("{url}: it is no whole Parquet file: {error}"))
}

/// Opens the file's metadata. The file must be there.
async fn builder(
    storage: &Storage,
    file: &FileVersion,
    bytes_in: Count,
) -> Result<ParquetRecordBatchStreamBuilder<Ranges>> {
    let ranges = Ranges {
        storage: storage.clone(),
        file: file.clone(),
        bytes_in,
    };
    ParquetRecordBatchStreamBuilder::new(ranges)
        .await
        .map_err(|e| failed(&storage.url(&file.path), &e))
}

/// The rows of a file, and its columns.
///
/// # Errors
/// It is no Parquet file, is gone or has changed; the store is out of reach.
pub(super) async fn footer(storage: &Storage, file: &FileVersion) -> Result<(u64, Fields)> {
    let builder = builder(storage, file, Count::new()).await?;
    let rows = builder.metadata().file_metadata().num_rows();
    Ok((
        u64::try_from(rows).unwrap_or(0),
        builder.schema().fields().clone(),
    ))
}

impl ParquetFile {
    /// Opens a file that is there. Returns how many rows it has besides.
    ///
    /// # Errors
    /// As [`footer`].
    pub async fn open(
        storage: &Storage,
        file: &FileVersion,
        wanted: Wanted,
        bytes_in: Count,
    ) -> Result<(Self, u64)> {
        let url = storage.url(&file.path);
        let builder = builder(storage, file, bytes_in).await?;
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        let names = wanted.schema.fields().iter().map(|field| field.name());
        let present = builder.schema();
        let roots: Vec<usize> = names
            .filter_map(|name| present.index_of(name).ok())
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let stream = builder
            .with_projection(mask)
            .with_batch_size(wanted.batch_size)
            .with_offset(usize::try_from(wanted.skip).unwrap_or(usize::MAX))
            .with_limit(usize::try_from(wanted.most).unwrap_or(usize::MAX))
            .build()
            .map_err(|e| failed(&url, &e))?;
        let open = Self {
            url,
            rows: stream,
            schema: wanted.schema,
        };
        Ok((open, rows))
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// What the file holds is broken, or does not fit the columns (`Data`); the store is out of reach.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        match self.rows.next().await {
            Some(Ok(batch)) => self.fit(&batch).map(Some),
            Some(Err(error)) => Err(failed(&self.url, &error)),
            None => Ok(None),
        }
    }

    /// The columns by name, in the table's types; one that the file does not have is all null.
    fn fit(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let columns = self.schema.fields().iter().map(|field| {
            let data_type = field.data_type();
            let Some(column) = batch.column_by_name(field.name()) else {
                return Ok(new_null_array(data_type, batch.num_rows()));
            };
            if column.data_type() == data_type {
                return Ok(Arc::clone(column));
            }
            cast_column(column, data_type, &options).map_err(|e| {
                let e = match e.find_root() {
                    DataFusionError::ArrowError(e, _) => of_cast(e, data_type),
                    _ => Error::from(e),
                };
                let name = field.name();
                Error::data(format!("{}: column {name}: {e}", self.url))
            })
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let schema: &Arc<Schema> = &self.schema;
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
            .map_err(|e| Error::data(format!("{}: {e}", self.url)))
    }
}
