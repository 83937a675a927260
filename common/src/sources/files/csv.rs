//! Records of CSV to Arrow, a batch at once; a bad record is found and set apart, as in JSON.

use crate::error::Result;
use crate::sources::kafka::decode::{Decoded, Failure, Slices};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a file of CSV is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CsvFormat {
    /// The first record names the columns.
    pub has_header: bool,
    pub delimiter: u8,
    pub quote: u8,
    pub escape: Option<u8>,
    /// The file's columns.
    pub columns: usize,
    /// Which of them are wanted, in the order of what comes out.
    pub wanted: Vec<usize>,
}

/// Decodes records into the wanted columns.
#[derive(Debug)]
pub(super) struct CsvDecoder {
    format: CsvFormat,
    /// All columns of the file; those that are not wanted have a type that is never looked at.
    file: SchemaRef,
    /// What comes out.
    schema: SchemaRef,
}

fn text(error: &ArrowError) -> String {
    match error {
        ArrowError::CsvError(message) | ArrowError::ParseError(message) => message.clone(),
        other => other.to_string(),
    }
}

impl CsvDecoder {
    /// A decoder into `schema`, whose fields are the wanted ones of `format`.
    pub fn new(format: CsvFormat, schema: SchemaRef) -> Self {
        let mut fields: Vec<Field> = (0..format.columns)
            .map(|index| Field::new(format!("column_{index}"), DataType::Utf8, true))
            .collect();
        for (index, field) in format.wanted.iter().zip(schema.fields()) {
            if let Some(place) = fields.get_mut(*index) {
                *place = Field::clone(field);
            }
        }
        Self {
            format,
            file: Arc::new(Schema::new(fields)),
            schema,
        }
    }

    /// Decodes one batch of records.
    ///
    /// # Errors
    /// None of the records': those are in the answer.
    pub fn decode(&self, records: &Slices) -> Result<Decoded> {
        Decoded::without_bad(&self.schema, records.len(), |start, end| {
            self.attempt(records, start, end)
        })
    }

    fn attempt(&self, records: &Slices, start: usize, end: usize) -> Result<RecordBatch, Failure> {
        let mut builder = ReaderBuilder::new(Arc::clone(&self.file))
            .with_header(false)
            .with_delimiter(self.format.delimiter)
            .with_quote(self.format.quote)
            .with_batch_size(end - start + 1)
            .with_projection(self.format.wanted.clone());
        if let Some(escape) = self.format.escape {
            builder = builder.with_escape(escape);
        }
        let mut decoder = builder.build_decoder();
        for index in start..end {
            let before = decoder.capacity();
            let at = |e| Failure::At(index, without_line(&text(&e)));
            decoder
                .decode(records.get(index).unwrap_or_default())
                .map_err(at)?;
            decoder.decode(b"\n").map_err(at)?;
            if before - decoder.capacity() != 1 {
                let reason = "it is not one record: a quote is not closed".to_owned();
                return Err(Failure::At(index, reason));
            }
        }
        let decoded = decoder
            .flush()
            .map_err(|e| Failure::Somewhere(without_line(&text(&e))))?
            .ok_or_else(|| Failure::Somewhere("no row came out".to_owned()))?;
        // The decoder's columns are the wanted ones, under the names and types asked for.
        RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            decoded.columns().to_vec(),
            &RecordBatchOptions::new().with_row_count(Some(decoded.num_rows())),
        )
        .map_err(|e| Failure::Somewhere(text(&e)))
    }
}

/// The decoder counts lines of what it was given, which is not the file, and repeats the whole record.
fn without_line(reason: &str) -> String {
    let reason = reason.split(" at line ").next().unwrap_or(reason);
    let Some((before, after)) = reason.split_once(" for line ") else {
        return reason.to_owned();
    };
    format!(
        "{before}{}",
        after.trim_start_matches(|c: char| c.is_ascii_digit())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    fn decoder(wanted: Vec<usize>, fields: Vec<Field>) -> CsvDecoder {
        let format = CsvFormat {
            has_header: true,
            delimiter: b',',
            quote: b'"',
            escape: None,
            columns: 3,
            wanted,
        };
        CsvDecoder::new(format, Arc::new(Schema::new(fields)))
    }

    fn records(lines: &[&str]) -> Slices {
        let mut slices = Slices::default();
        for line in lines {
            slices.push(Some(line.as_bytes()));
        }
        slices
    }

    #[test]
    fn bad_records_are_set_apart_and_the_others_are_rows() {
        let fields = vec![
            Field::new("name", DataType::Utf8, true),
            Field::new("year", DataType::Int64, true),
        ];
        let decoded = decoder(vec![0, 2], fields)
            .decode(&records(&[
                "Fiesta,x,2017",
                "Focus,y,twenty",
                "Kuga,2019",
                "\"a\nb\",,",
                "Puma,z,2020,more",
                "\"Ka,z,2011",
                "Galaxy,,2001",
            ]))
            .unwrap();
        let bad: Vec<usize> = decoded.bad.iter().map(|(index, _)| *index).collect();
        assert_eq!(bad, [1, 2, 4, 5]);
        assert!(decoded.bad[0].1.contains("twenty"), "{:?}", decoded.bad);
        let years = decoded.rows.column(1).as_primitive::<Int64Type>();
        assert_eq!(
            years.iter().collect::<Vec<_>>(),
            [Some(2017), None, Some(2001)]
        );
        assert_eq!(decoded.rows.column(0).as_string::<i32>().value(1), "a\nb");
    }

    #[test]
    fn rows_are_counted_without_any_column() {
        let decoded = decoder(vec![], vec![])
            .decode(&records(&["a,b,c", "d,e", "f,g,h"]))
            .unwrap();
        assert_eq!((decoded.rows.num_rows(), decoded.bad.len()), (2, 1));
    }
}
