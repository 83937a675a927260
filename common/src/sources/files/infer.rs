//! The columns of files, from what is in them, where none are declared.

use super::parquet;
use super::place::Place;
use super::plan::{FileFormat, FilePlan};
use super::text::TextFile;
use crate::error::{Error, Result};
use crate::options::Options;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::reader::infer_json_schema_from_iterator;
use std::sync::Arc;

/// Records that are looked at.
const RECORDS: usize = 1_000;

/// The columns of the files of a place: of the first one in order of their names, or with JSON of the first records.
///
/// # Errors
/// There are no files, or nothing in them; what they hold does not fit together; the store is out of reach.
pub(super) async fn columns(
    place: &Place,
    plan: &FilePlan,
    options: &Options,
) -> Result<SchemaRef> {
    let none = || {
        options.error(format!(
            "{}: there is nothing to take columns from: declare them, or name a file that is there",
            place.url()
        ))
    };
    let files = place.files().await?;
    if plan.format == FileFormat::Parquet {
        let first = files.iter().find(|file| file.size > 0).ok_or_else(none)?;
        let (_, fields) = parquet::footer(&place.storage, first).await?;
        return Ok(Arc::new(Schema::new(fields)));
    }
    let mut plan = plan.clone();
    let csv = match &mut plan.format {
        FileFormat::Csv(csv) => {
            let shape = csv.clone();
            // The header is a record like the others here.
            csv.has_header = false;
            Some(shape)
        }
        _ => None,
    };
    let mut records: Vec<Vec<u8>> = Vec::new();
    for file in files.iter().filter(|file| file.size > 0) {
        let Some(mut text) = TextFile::open(&place.storage, &plan, file).await? else {
            continue;
        };
        while records.len() < RECORDS
            && let Some(record) = text.next().await?
        {
            records.push(text.record(record).to_vec());
        }
        // Files of CSV have the same columns, and each a header.
        if records.len() == RECORDS || (csv.is_some() && !records.is_empty()) {
            break;
        }
    }
    if records.is_empty() {
        return Err(none());
    }
    let inferred = match csv {
        Some(csv) => {
            let mut format = Format::default()
                .with_header(csv.has_header)
                .with_delimiter(csv.delimiter)
                .with_quote(csv.quote);
            if let Some(escape) = csv.escape {
                format = format.with_escape(escape);
            }
            let text = records.join(&b'\n');
            format
                .infer_schema(text.as_slice(), None)
                .map(|(schema, _)| schema)
        }
        None => {
            let values = records.iter().map(|record| {
                serde_json::from_slice::<serde_json::Value>(record)
                    .map_err(|e| ArrowError::JsonError(e.to_string()))
            });
            infer_json_schema_from_iterator(values)
        }
    };
    let schema = inferred.map_err(|e| Error::data(format!("{}: {e}", place.url())))?;
    let fields: Fields = schema.fields().iter().map(known).collect();
    Ok(Arc::new(Schema::new(fields)))
}

/// A column of which only nulls were seen is text.
fn known(field: &FieldRef) -> FieldRef {
    let inner = |field: &FieldRef| known(field);
    let data_type = match field.data_type() {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(inner(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}
