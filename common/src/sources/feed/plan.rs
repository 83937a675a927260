//! What a declaration says of the rows: their columns, and what becomes of records that are none.

use crate::connector::{METADATA_KEY, TableSpec};
use crate::error::Result;
use crate::sources::kafka::decode::JsonDecoder;
use crate::sources::kafka::timestamps::EpochUnit;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// The column of the format raw.
pub const DATA: &str = "data";

/// How a record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// A JSON object, by the declared columns.
    Json,
    /// As it stands, into the column [`DATA`].
    Raw,
}

/// What becomes of a record that is no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnError {
    Fail,
    Skip,
}

/// A column that tells how a record came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metadata {
    Origin,
    Id,
    Status,
    At,
}

impl Metadata {
    fn data_type(self) -> DataType {
        match self {
            Self::Origin | Self::Id => DataType::Utf8View,
            Self::Status => DataType::Int32,
            Self::At => DataType::Timestamp(TimeUnit::Millisecond, None),
        }
    }
}

/// What a worker must know to make rows of records. Travels as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowPlan {
    pub format: Format,
    pub timestamp_unit: EpochUnit,
    pub on_error: OnError,
    /// The metadata columns by name. All other columns are declared ones.
    pub metadata: Vec<(String, Metadata)>,
}

impl RowPlan {
    /// Takes `format`, `timestamp_unit` and `on_error`. Returns all columns too: the declared ones, then `metadata`.
    ///
    /// # Errors
    /// A wrong value, no columns, a column of a type that JSON cannot hold or of a name that is taken.
    pub fn take(spec: &mut TableSpec, metadata: &[(&str, Metadata)]) -> Result<(Self, SchemaRef)> {
        let options = &mut spec.options;
        let format = options.one_of("format", &[("json", Format::Json), ("raw", Format::Raw)])?;
        let timestamp_unit = EpochUnit::take(options)?;
        let on_error = options.one_of(
            "on_error",
            &[
                ("fail", Some(OnError::Fail)),
                ("skip", Some(OnError::Skip)),
                ("dead_letter", None),
            ],
        )?;
        let on_error = on_error.ok_or_else(|| {
            options.error(
                "on_error 'dead_letter' puts records aside by their offset in a topic, which these have not: write 'fail' or 'skip', or take the records into a topic with format 'raw' and read that with on_error 'dead_letter'",
            )
        })?;
        let mut fields: Vec<Arc<Field>> = match (format, &spec.schema) {
            (Format::Raw, None) => vec![Arc::new(Field::new(DATA, DataType::Utf8View, true))],
            (Format::Raw, Some(_)) => {
                return Err(options
                    .error("format 'raw' has the column data, VARCHAR: leave the columns out"));
            }
            (Format::Json, None) => {
                return Err(options.error(
                    "no columns are declared, and a server does not tell them: write CREATE EXTERNAL TABLE name (id BIGINT, text VARCHAR, …), or format 'raw' for one column data with the record as it stands",
                ));
            }
            (Format::Json, Some(declared)) => {
                let mut names = declared.fields().iter().map(|field| field.name());
                if let Some(taken) = names.find(|name| metadata.iter().any(|(m, _)| m == name)) {
                    return Err(options.error(format!(
                        "column {taken} is filled in by the table itself: leave it out"
                    )));
                }
                // Finds a type that JSON cannot hold now rather than on a worker.
                JsonDecoder::new(Arc::clone(declared), timestamp_unit, 1)
                    .map_err(|e| options.error(e))?;
                declared.fields().iter().cloned().collect()
            }
        };
        let mark = HashMap::from([(METADATA_KEY.to_owned(), "true".to_owned())]);
        fields.extend(metadata.iter().map(|(name, kind)| {
            Arc::new(Field::new(*name, kind.data_type(), true).with_metadata(mark.clone()))
        }));
        let metadata = metadata
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), *kind));
        let plan = Self {
            format,
            timestamp_unit,
            on_error,
            metadata: metadata.collect(),
        };
        Ok((plan, Arc::new(Schema::new(fields))))
    }

    /// What a metadata column holds; `None` for any other column.
    pub fn metadata(&self, column: &str) -> Option<Metadata> {
        let mut all = self.metadata.iter();
        all.find(|(name, _)| name == column).map(|(_, kind)| *kind)
    }

    /// For EXPLAIN.
    pub fn describe(&self, schema: &Schema) -> String {
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        format!(
            "format={:?}, on_error={:?}, fields=[{}]",
            self.format,
            self.on_error,
            names.join(", ")
        )
    }
}
