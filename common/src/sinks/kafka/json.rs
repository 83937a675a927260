//! Rows to messages: a JSON object for the value, the key columns' text for the key.

use crate::error::{Error, Result};
use crate::sources::kafka::METADATA_COLUMNS;
use crate::sql_types::sql_type;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::json::LineDelimitedWriter;

/// Encodes batches of one schema.
#[derive(Debug)]
pub struct RowEncoder {
    values: Vec<usize>,
    key: Vec<usize>,
    metadata: Vec<usize>,
}

/// One batch as messages.
#[derive(Debug)]
pub struct Messages {
    values: Vec<u8>,
    keys: Keys,
    pub rows: usize,
}

#[derive(Debug)]
enum Keys {
    None,
    /// One column's text; a null is no key.
    Text(ArrayRef),
    /// JSON objects, one a line.
    Objects(Vec<u8>),
}

impl RowEncoder {
    /// An encoder for rows of `schema`, keyed by the columns of these names.
    ///
    /// # Errors
    /// A key column that is not there; a column that JSON cannot hold.
    pub fn new(schema: &SchemaRef, key: &[String]) -> Result<Self> {
        let indices = |metadata: bool| {
            schema
                .fields()
                .iter()
                .enumerate()
                .filter(|(_, field)| METADATA_COLUMNS.contains(&field.name().as_str()) == metadata)
                .map(|(index, _)| index)
                .collect()
        };
        let encoder = Self {
            values: indices(false),
            key: key
                .iter()
                .map(|name| {
                    schema.index_of(name).map_err(|_| {
                        Error::invalid(format!(
                            "option key '{name}': the INSERT has no such column"
                        ))
                    })
                })
                .collect::<Result<_>>()?,
            metadata: indices(true),
        };
        encoder.encode(&RecordBatch::new_empty(schema.clone()))?;
        for field in schema.fields() {
            let alone = arrow::datatypes::Schema::new(vec![field.clone()]);
            lines(&RecordBatch::new_empty(alone.into())).map_err(|_| {
                Error::invalid(format!(
                    "column {} has the type {}, which JSON cannot hold: cast it to VARCHAR",
                    field.name(),
                    sql_type(field.data_type())
                ))
            })?;
        }
        Ok(encoder)
    }

    /// The messages of a batch, in its order.
    ///
    /// # Errors
    /// A value in a metadata column: those belong to Kafka.
    pub fn encode(&self, batch: &RecordBatch) -> Result<Messages> {
        let internal = |e: arrow::error::ArrowError| Error::internal(e.to_string());
        for index in &self.metadata {
            let column = batch.column(*index);
            if column.null_count() < column.len() {
                return Err(Error::invalid(format!(
                    "column {} cannot be written: a key is chosen with the option key, the rest is Kafka's",
                    batch.schema().field(*index).name()
                )));
            }
        }
        let keys = match self.key.as_slice() {
            [] => Keys::None,
            [index] => Keys::Text(cast(batch.column(*index), &DataType::Utf8).map_err(internal)?),
            several => Keys::Objects(lines(&batch.project(several).map_err(internal)?)?),
        };
        Ok(Messages {
            values: lines(&batch.project(&self.values).map_err(internal)?)?,
            keys,
            rows: batch.num_rows(),
        })
    }
}

/// One JSON object a line; nulls are left out, as by Spark's `to_json`. A line break in a text is escaped.
fn lines(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer
        .write(batch)
        .and_then(|()| writer.finish())
        .map_err(|e| Error::invalid(e.to_string()))?;
    Ok(writer.into_inner())
}

impl Messages {
    /// Key and value of each message.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        let mut values = self.values.split(|byte| *byte == b'\n');
        let mut objects = match &self.keys {
            Keys::Objects(lines) => Some(lines.split(|byte| *byte == b'\n')),
            _ => None,
        };
        (0..self.rows).map(move |row| {
            let key = match &self.keys {
                Keys::None => None,
                Keys::Text(column) => {
                    let column = column.as_string::<i32>();
                    (!column.is_null(row)).then(|| column.value(row).as_bytes())
                }
                Keys::Objects(_) => objects.as_mut().and_then(Iterator::next),
            };
            (key, values.next().unwrap_or(b"{}"))
        })
    }
}
