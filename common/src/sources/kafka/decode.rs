//! JSON records to Arrow, a whole batch at once; a bad record is found and set apart, never its batch.

pub use super::records::Slices;
use super::refused::{column_of, explained, is_explained, missing};
use super::timestamps::{EpochUnit, convert, decoded_field, text};
use crate::error::{Error, Result};
use crate::sql_types::sql_type;
use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use std::ops::Range;
use std::sync::Arc;

/// The rows of a batch's good records, and why the others are bad.
#[derive(Debug)]
pub struct Decoded {
    /// One row for each good record, in their order.
    pub rows: RecordBatch,
    /// Index and reason of each bad record, in their order.
    pub bad: Vec<(usize, String)>,
}

impl Decoded {
    /// Decodes so many records by `attempt`, which takes a range of them: whatever fails is tried again in pieces, until
    /// what is bad stands alone.
    ///
    /// # Errors
    /// Pieces that do not fit together, which would be a mistake of ours.
    pub(crate) fn without_bad(
        schema: &SchemaRef,
        records: usize,
        mut attempt: impl FnMut(usize, usize) -> Result<RecordBatch, Failure>,
    ) -> Result<Self> {
        let mut bad = Vec::new();
        let mut pieces = Vec::with_capacity(1);
        // Ranges yet to be decoded, the first one on top.
        let mut ranges = vec![(0, records)];
        while let Some((start, end)) = ranges.pop() {
            if start == end {
                continue;
            }
            match attempt(start, end) {
                Ok(rows) => pieces.push(rows),
                Err(Failure::At(index, reason)) => {
                    bad.push((index, reason));
                    ranges.push((index + 1, end));
                    ranges.push((start, index));
                }
                Err(Failure::Somewhere(reason)) if end - start == 1 => bad.push((start, reason)),
                Err(Failure::Somewhere(_)) => {
                    let middle = start + (end - start) / 2;
                    ranges.push((middle, end));
                    ranges.push((start, middle));
                }
            }
        }
        bad.sort_unstable_by_key(|(index, _)| *index);
        let rows = match pieces.len() {
            1 => pieces.swap_remove(0),
            _ => concat_batches(schema, &pieces).map_err(|e| Error::internal(text(&e)))?,
        };
        Ok(Self { rows, bad })
    }
}

/// Decodes records into the given columns. Fields of other names are passed over.
pub struct JsonDecoder {
    schema: SchemaRef,
    decoded: SchemaRef,
    unit: EpochUnit,
    batch_size: usize,
    /// Reused from batch to batch; dropped when a bad record has left it in the middle of a value.
    decoder: Option<Decoder>,
}

/// Why a range of records did not decode.
pub(crate) enum Failure {
    /// This record is not one JSON object.
    At(usize, String),
    /// Some record's value does not fit its column.
    Somewhere(String),
}

impl std::fmt::Debug for JsonDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JsonDecoder({})", self.schema)
    }
}

impl JsonDecoder {
    /// A decoder into `schema`, of batches of at most `batch_size` records.
    ///
    /// # Errors
    /// A type that JSON cannot hold; the message names the column.
    pub fn new(schema: SchemaRef, unit: EpochUnit, batch_size: usize) -> Result<Self> {
        for field in schema.fields() {
            let alone = Schema::new(vec![decoded_field(field)]);
            ReaderBuilder::new(alone.into())
                .build_decoder()
                .map_err(|_| {
                    Error::invalid(format!(
                        "column {} has the type {}, which JSON cannot hold: declare VARCHAR and cast it",
                        field.name(),
                        sql_type(field.data_type())
                    ))
                })?;
        }
        // What NOT NULL asks for is looked at here: the decoder does not name the column.
        let nullable = |field| decoded_field(field).as_ref().clone().with_nullable(true);
        let decoded: Vec<Field> = schema.fields().iter().map(nullable).collect();
        Ok(Self {
            schema,
            decoded: Schema::new(decoded).into(),
            unit,
            batch_size,
            decoder: None,
        })
    }

    /// Decodes one batch of records; a null one is a row of nulls.
    ///
    /// # Errors
    /// None of the records': those are in the answer.
    pub fn decode(&mut self, records: &Slices) -> Result<Decoded> {
        let schema = Arc::clone(&self.schema);
        Decoded::without_bad(&schema, records.len(), |start, end| {
            self.attempt(records, start, end)
        })
    }

    fn attempt(
        &mut self,
        records: &Slices,
        start: usize,
        end: usize,
    ) -> Result<RecordBatch, Failure> {
        let somewhere = |e| Failure::Somewhere(text(&e));
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => coerced(ReaderBuilder::new(self.decoded.clone()))
                .with_batch_size(self.batch_size)
                .build_decoder()
                .map_err(somewhere)?,
        };
        for index in start..end {
            let record = records.get(index).unwrap_or(b"{}");
            let read = decoder
                .decode(record)
                .map_err(|e| Failure::At(index, explained(&self.schema, &text(&e))))?;
            // The decoder takes any sequence of values: each record must add exactly one, whole.
            if decoder.has_partial_record() {
                return Err(Failure::At(index, "the JSON ends too early".to_owned()));
            }
            let values = decoder.len() - (index - start);
            if values == 0 {
                return Err(Failure::At(index, "the message is empty".to_owned()));
            }
            if values > 1 || read < record.len() {
                return Err(Failure::At(
                    index,
                    "the message holds more than one JSON value".to_owned(),
                ));
            }
        }
        let decoded = decoder
            .flush()
            .map_err(|e| Failure::Somewhere(self.refused(records, start..end, &text(&e))))?
            .ok_or_else(|| Failure::Somewhere("no row came out".to_owned()))?;
        self.decoder = Some(decoder);
        let columns = decoded
            .columns()
            .iter()
            .zip(self.schema.fields())
            .map(|(column, field)| {
                convert(column, field.data_type(), self.unit).map_err(|e| {
                    Failure::Somewhere(format!("column {}: {}", field.name(), text(&e)))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (column, field) in columns.iter().zip(self.schema.fields()) {
            if !field.is_nullable() && column.null_count() > 0 {
                return Err(Failure::Somewhere(missing(field, records.get(start))));
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(decoded.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(somewhere)
    }

    /// Why the records of a range did not become rows. Only that of a single one is ever shown.
    fn refused(&self, records: &Slices, range: Range<usize>, said: &str) -> String {
        let reason = explained(&self.schema, said);
        if range.len() > 1 || is_explained(&reason) {
            return reason;
        }
        let record = records.get(range.start).unwrap_or(b"{}");
        column_of(&self.schema, record, coerced).unwrap_or(reason)
    }
}

/// A number or a boolean in a text's place is its text, as in Spark.
fn coerced(builder: ReaderBuilder) -> ReaderBuilder {
    builder.with_coerce_primitive(true)
}
