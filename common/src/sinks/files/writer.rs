//! The sink writer of files: one staged file for the rows of one task attempt, none if there are no rows.

use super::micros;
use super::{Format, Layout};
use crate::connector::{Part, SinkWriter};
use crate::error::{Error, Result};
use crate::object_stores;
use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json;
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::parquet::arrow::AsyncArrowWriter;
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::properties::WriterProperties;
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

/// A row group is closed at this size in memory, in bytes, however few rows it has.
const ROW_GROUP_BYTES: usize = 64 << 20;

type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Writes one file of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileWriter {
    /// The store, e.g. `s3://bucket` or `file://`.
    pub(super) base: String,
    /// The run's staging folder in the store.
    pub(super) staging: String,
    pub(super) layout: Layout,
}

impl FileWriter {
    /// Reads back what [`SinkWriter::encode`] wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn decode(encoded: &[u8]) -> Result<Self> {
        serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a file writer of another version: {e}")))
    }

    /// Stages a file of `schema` with no rows; returns its name.
    ///
    /// # Errors
    /// The store's.
    pub async fn write_empty(&self, schema: &SchemaRef) -> Result<String> {
        let (path, name) = self.file()?;
        Encoder::new(self, schema, path)?.finish(schema).await?;
        Ok(name)
    }

    fn file(&self) -> Result<(Path, String)> {
        let name = format!("{}.{}", Uuid::new_v4().simple(), self.layout.extension());
        Ok((Path::from(self.staging.as_str()).join(name.as_str()), name))
    }

    /// Stages the rows as one file, and says its name; none if there are no rows.
    pub(super) async fn stage(&self, rows: &mut SendableRecordBatchStream) -> Result<Part> {
        let (path, name) = self.file()?;
        match self.write_file(&path, rows).await {
            Ok(0) => Ok(Part {
                rows: 0,
                payload: String::new(),
            }),
            Ok(rows) => Ok(Part {
                rows,
                payload: name,
            }),
            Err(error) => {
                // What stays behind is invisible, and goes when the run is committed or aborted.
                let store = object_stores::store(&self.base)?;
                let _ = store.delete(&path).await;
                Err(error.context(format!("file {path}")))
            }
        }
    }

    async fn write_file(&self, path: &Path, rows: &mut SendableRecordBatchStream) -> Result<u64> {
        let mut encoder: Option<Encoder> = None;
        let mut count = 0;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            count += batch.num_rows() as u64;
            let mut open = match encoder.take() {
                Some(open) => open,
                None => Encoder::new(self, &rows.schema(), path.clone())?,
            };
            open.write(&batch).await?;
            encoder = Some(open);
        }
        if let Some(encoder) = encoder {
            encoder.finish(&rows.schema()).await?;
        }
        Ok(count)
    }
}

#[async_trait]
impl SinkWriter for FileWriter {
    fn encode(&self) -> Vec<u8> {
        // A struct of texts and numbers always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn describe(&self) -> String {
        format!("format={}", self.layout.extension())
    }

    async fn write(
        &self,
        _partition: usize,
        mut rows: SendableRecordBatchStream,
        _ctx: &Arc<TaskContext>,
    ) -> Result<Part> {
        self.stage(&mut rows).await
    }
}

/// An open file of one of the formats.
enum Encoder {
    Parquet {
        writer: Box<AsyncArrowWriter<Output>>,
        schema: SchemaRef,
    },
    Text {
        output: Output,
        layout: Layout,
        path: Path,
        /// CSV: the header is still to be written.
        header: bool,
    },
}

fn parquet_error(error: ParquetError) -> Error {
    match error {
        ParquetError::External(_) => Error::unavailable(format!("writing Parquet: {error}")),
        _ => Error::data(format!("writing Parquet: {error}")),
    }
}

impl Encoder {
    fn new(writer: &FileWriter, schema: &SchemaRef, path: Path) -> Result<Self> {
        let store = object_stores::store(&writer.base)?;
        let buffer = BufWriter::new(store, path.clone());
        let layout = &writer.layout;
        if layout.format == Format::Parquet {
            let properties = WriterProperties::builder()
                .set_compression(layout.parquet_compression()?)
                .build();
            let output: Output = Box::new(buffer);
            // Metadata of where a column came from is of no use in a file.
            let schema = Arc::new(Schema::new(micros::fields(schema.fields())));
            let writer = AsyncArrowWriter::try_new(output, Arc::clone(&schema), Some(properties))
                .map_err(parquet_error)?;
            let writer = Box::new(writer);
            return Ok(Self::Parquet { writer, schema });
        }
        Ok(Self::Text {
            output: layout.text_compression()?.convert_async_writer(buffer)?,
            layout: layout.clone(),
            path,
            header: layout.has_header,
        })
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Self::Parquet { writer, schema } => {
                let batch = micros::batch(batch, schema)
                    .map_err(|e| Error::data(format!("writing Parquet: {e}")))?;
                writer.write(&batch).await.map_err(parquet_error)?;
                if writer.in_progress_size() > ROW_GROUP_BYTES {
                    writer.flush().await.map_err(parquet_error)?;
                }
                Ok(())
            }
            Self::Text {
                output,
                layout,
                path,
                header,
            } => {
                let text = encode_text(batch, layout, *header)
                    .map_err(|e| Error::data(format!("writing {}: {e}", layout.format.name())))?;
                *header = false;
                output
                    .write_all(&text)
                    .await
                    .map_err(|e| Error::unavailable(format!("writing {path}: {e}")))
            }
        }
    }

    async fn finish(mut self, schema: &SchemaRef) -> Result<()> {
        if let Self::Text {
            header: true,
            layout,
            ..
        } = &self
            && layout.format == Format::Csv
        {
            self.write(&RecordBatch::new_empty(Arc::clone(schema)))
                .await?;
        }
        match self {
            Self::Parquet { writer, .. } => writer.close().await.map(drop).map_err(parquet_error),
            Self::Text {
                mut output, path, ..
            } => output
                .shutdown()
                .await
                .map_err(|e| Error::unavailable(format!("writing {path}: {e}"))),
        }
    }
}

pub(super) fn encode_text(
    batch: &RecordBatch,
    layout: &Layout,
    header: bool,
) -> Result<Vec<u8>, ArrowError> {
    let mut text = Vec::new();
    if layout.format == Format::Csv {
        csv::WriterBuilder::new()
            .with_header(header)
            .with_delimiter(layout.delimiter)
            .build(&mut text)
            .write(batch)?;
    } else {
        // Nulls are written, so that a reader without declared columns finds every column.
        let mut writer = json::WriterBuilder::new()
            .with_explicit_nulls(true)
            .build::<_, json::writer::LineDelimited>(&mut text);
        writer.write(batch)?;
        writer.finish()?;
    }
    Ok(text)
}
