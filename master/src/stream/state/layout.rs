//! How the columns of a state become bytes and columns again.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use essaim_common::{Error, Result};
use std::sync::Arc;

/// Key columns and value columns, in this order in every batch that goes in or comes out.
#[derive(Debug)]
pub(super) struct Layout {
    schema: SchemaRef,
    keys: RowCodec,
    values: RowCodec,
}

impl Layout {
    /// The first `keys` columns of `schema` are the key.
    ///
    /// # Errors
    /// A column of a type that cannot be kept.
    pub(super) fn new(schema: SchemaRef, keys: usize) -> Result<Self> {
        if keys > schema.fields().len() {
            return Err(Error::internal(format!(
                "a state of {} columns cannot have {keys} key columns",
                schema.fields().len()
            )));
        }
        let (key_fields, value_fields) = schema.fields().split_at(keys);
        Ok(Self {
            keys: RowCodec::new(key_fields)?,
            values: RowCodec::new(value_fields)?,
            schema,
        })
    }

    /// All columns, keys first.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many of the columns are keys.
    pub(super) fn key_columns(&self) -> usize {
        self.keys.fields.len()
    }

    /// Whether rows of `schema`, with `keys` key columns, are rows of this state. Nullability does not matter.
    ///
    /// # Errors
    /// Other columns; kind `Invalid`, as the job has been changed.
    pub(super) fn check(&self, schema: &Schema, keys: usize) -> Result<()> {
        let columns = |schema: &Schema| {
            let column = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
            let (keys, values) = schema.fields().split_at(keys.min(schema.fields().len()));
            let list =
                |fields: &[Arc<Field>]| fields.iter().map(column).collect::<Vec<_>>().join(", ");
            format!("[{}] -> [{}]", list(keys), list(values))
        };
        let same = keys == self.key_columns()
            && schema.fields().len() == self.schema.fields().len()
            && schema
                .fields()
                .iter()
                .zip(self.schema.fields())
                .all(|(a, b)| a.name() == b.name() && a.data_type().equals_datatype(b.data_type()));
        if same {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "state of other columns: there is {}, and {} is wanted. The query has been changed: run it under another \
             job name, or put back the query that the state is of",
            columns(&self.schema),
            columns(schema)
        )))
    }

    /// The bytes of key columns.
    ///
    /// # Errors
    /// Columns of other types.
    pub(super) fn encode_keys(&self, columns: &[ArrayRef], rows: usize) -> Result<Encoded> {
        self.keys.encode(columns, rows)
    }

    /// The bytes of value columns.
    ///
    /// # Errors
    /// Columns of other types.
    pub(super) fn encode_values(&self, columns: &[ArrayRef], rows: usize) -> Result<Encoded> {
        self.values.encode(columns, rows)
    }

    /// A batch of the rows with these keys and values.
    ///
    /// # Errors
    /// Bytes that another layout wrote.
    pub(super) fn decode<'a>(
        &self,
        rows: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + Clone,
    ) -> Result<RecordBatch> {
        let count = rows.len();
        let mut columns = self.keys.decode(rows.clone().map(|(key, _)| key))?;
        columns.extend(self.values.decode(rows.map(|(_, value)| value))?);
        batch(&self.schema, columns, count)
    }
}

/// A batch, also of no columns.
pub(super) fn batch(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(broken)
}

pub(super) fn broken(error: ArrowError) -> Error {
    Error::internal(format!("a state does not hold what it should: {error}"))
}

/// Rows as bytes; without columns, every row is empty.
#[derive(Debug)]
pub(super) struct Encoded {
    rows: Option<Rows>,
    len: usize,
}

impl Encoded {
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len).map(|i| match &self.rows {
            Some(rows) => rows.row(i).data(),
            None => &[],
        })
    }
}

/// Some columns as one byte string a row, in the row format of arrow-row.
#[derive(Debug)]
struct RowCodec {
    fields: Fields,
    /// The types that the row format gives back: those of `fields`, without dictionaries and runs.
    flat: Vec<DataType>,
    /// Absent if there are no columns.
    converter: Option<RowConverter>,
}

impl RowCodec {
    fn new(fields: &[Arc<Field>]) -> Result<Self> {
        let flat: Vec<_> = fields.iter().map(|field| flat(field.data_type())).collect();
        for (field, flat) in fields.iter().zip(&flat) {
            let (kept, sort) = (field.data_type(), SortField::new(flat.clone()));
            let casts = flat == kept || (can_cast_types(kept, flat) && can_cast_types(flat, kept));
            if !casts || !RowConverter::supports_fields(&[sort]) {
                return Err(Error::invalid(format!(
                    "a streaming job cannot keep column {} of type {kept} in its state: cast it to another type",
                    field.name()
                )));
            }
        }
        let converter = match flat.is_empty() {
            true => None,
            false => {
                let sort = flat.iter().cloned().map(SortField::new).collect();
                Some(RowConverter::new(sort).map_err(broken)?)
            }
        };
        Ok(Self {
            fields: fields.into(),
            flat,
            converter,
        })
    }

    fn encode(&self, columns: &[ArrayRef], rows: usize) -> Result<Encoded> {
        if columns.len() != self.fields.len() {
            return Err(Error::internal(format!(
                "a state of {} columns was given {}",
                self.fields.len(),
                columns.len()
            )));
        }
        let encoded = match &self.converter {
            None => None,
            Some(converter) => {
                let columns = columns
                    .iter()
                    .zip(&self.flat)
                    .map(|(column, flat)| to(column, flat))
                    .collect::<Result<Vec<_>>>()?;
                Some(converter.convert_columns(&columns).map_err(broken)?)
            }
        };
        Ok(Encoded {
            rows: encoded,
            len: rows,
        })
    }

    fn decode<'a>(&self, rows: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let Some(converter) = &self.converter else {
            return Ok(Vec::new());
        };
        let parser = converter.parser();
        let columns = converter
            .convert_rows(rows.map(|row| parser.parse(row)))
            .map_err(broken)?;
        columns
            .iter()
            .zip(&self.fields)
            .map(|(column, field)| to(column, field.data_type()))
            .collect()
    }
}

fn to(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if column.data_type() == data_type {
        return Ok(Arc::clone(column));
    }
    cast(column, data_type).map_err(broken)
}

/// The type with the values of dictionaries and runs in their place: the row format does not give those back.
fn flat(data_type: &DataType) -> DataType {
    let inner = |field: &Arc<Field>| {
        let flat = flat(field.data_type());
        Arc::new(field.as_ref().clone().with_data_type(flat))
    };
    match data_type {
        DataType::Dictionary(_, values) => flat(values),
        DataType::RunEndEncoded(_, values) => flat(values.data_type()),
        DataType::List(field) => DataType::List(inner(field)),
        DataType::LargeList(field) => DataType::LargeList(inner(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(inner(field), *size),
        DataType::Map(field, sorted) => DataType::Map(inner(field), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    }
}
