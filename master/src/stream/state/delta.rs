//! What an epoch changes in a state, and its form in a checkpoint.

use super::layout::{batch, broken};
use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use essaim_common::ipc::{Decoder, Encoder};
use essaim_common::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// In the metadata of an encoded schema: how many of its columns are keys.
const KEYS: &str = "essaim.state.keys";
/// In the metadata of encoded rows of a snapshot: how many there are.
pub(super) const ROWS: &str = "essaim.state.rows";
/// In the metadata of an encoded delta.
const EXPIRE_BEFORE: &str = "essaim.state.expire_before";
/// The last column of encoded rows: when they expire, ms.
const EXPIRES: &str = "essaim.state.expires";

/// Changes of one state, applied in this order: what expires goes, `deletes` go, `upserts` come in.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// How many of the columns of `upserts` are the key; they come first.
    pub key_columns: usize,
    /// New entries and new values of old ones, each key once.
    pub upserts: RecordBatch,
    /// When each of `upserts` expires, ms; [`i64::MAX`] for never.
    pub expires_ms: Int64Array,
    /// Key columns of entries to delete; one that is not there is no error.
    pub deletes: RecordBatch,
    /// Entries that expire at this time or before are deleted, ms.
    pub expire_before: Option<i64>,
}

impl Delta {
    /// No change, for a state of these columns, the first `key_columns` of them the key.
    ///
    /// # Errors
    /// Fewer columns than key columns.
    pub fn new(schema: &SchemaRef, key_columns: usize) -> Result<Self> {
        let keys: Vec<_> = (0..key_columns).collect();
        let keys = schema.project(&keys).map_err(broken)?;
        Ok(Self {
            key_columns,
            upserts: RecordBatch::new_empty(Arc::clone(schema)),
            expires_ms: Int64Array::from(Vec::<i64>::new()),
            deletes: RecordBatch::new_empty(Arc::new(keys)),
            expire_before: None,
        })
    }

    /// Whether it is sure to change nothing.
    pub fn is_empty(&self) -> bool {
        self.upserts.num_rows() == 0 && self.deletes.num_rows() == 0 && self.expire_before.is_none()
    }

    /// Two Arrow IPC streams, entries with their expiry and keys to delete; before them the length of the first, 8
    /// bytes, little endian.
    ///
    /// # Errors
    /// A type that Arrow IPC does not know.
    pub fn encode(&self) -> Result<Bytes> {
        let expire_before = self.expire_before.map(|ms| (EXPIRE_BEFORE, ms));
        let schema = encoded_schema(self.upserts.schema_ref(), self.key_columns, expire_before);
        let upserts = stream(&with_expiry(&schema, &self.upserts, &self.expires_ms)?)?;
        let deletes = stream(&self.deletes)?;
        let mut bytes = Vec::with_capacity(8 + upserts.len() + deletes.len());
        bytes.extend((upserts.len() as u64).to_le_bytes());
        bytes.extend(upserts);
        bytes.extend(deletes);
        Ok(bytes.into())
    }

    /// What [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Bytes that are none.
    pub fn decode(mut bytes: Bytes) -> Result<Self> {
        let length = bytes
            .first_chunk::<8>()
            .and_then(|length| usize::try_from(u64::from_le_bytes(*length)).ok())
            .filter(|length| *length <= bytes.len() - 8)
            .ok_or_else(|| Error::internal("the changes of a state are cut off"))?;
        drop(bytes.split_to(8));
        let upserts = unstream(bytes.split_to(length))?;
        let deletes = unstream(bytes)?;
        let (schema, key_columns) = decoded_schema(upserts.schema_ref())?;
        let mut delta = Self::new(&schema, key_columns)?;
        delta.expire_before = number_in(upserts.schema_ref(), EXPIRE_BEFORE);
        (delta.upserts, delta.expires_ms) = without_expiry(&schema, &upserts)?;
        delta.deletes = batch(
            delta.deletes.schema_ref(),
            deletes.columns().to_vec(),
            deletes.num_rows(),
        )?;
        Ok(delta)
    }
}

/// One batch as an Arrow IPC stream.
fn stream(rows: &RecordBatch) -> Result<Vec<u8>> {
    let mut encoder = Encoder::new(rows.schema_ref())?;
    let mut chunks = encoder.encode(rows)?;
    chunks.extend(encoder.finish()?);
    Ok(chunks.concat())
}

/// What [`stream`] wrote.
fn unstream(bytes: Bytes) -> Result<RecordBatch> {
    Decoder::default()
        .decode(bytes)?
        .pop()
        .ok_or_else(|| Error::internal("the changes of a state are cut off"))
}

/// The schema of encoded rows: the state's, a column for the expiry, and what a reader must know in the metadata.
pub(super) fn encoded_schema(
    schema: &Schema,
    key_columns: usize,
    number: Option<(&str, i64)>,
) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(EXPIRES, DataType::Int64, false)));
    let metadata: HashMap<_, _> = [(KEYS.to_owned(), key_columns.to_string())]
        .into_iter()
        .chain(number.map(|(name, number)| (name.to_owned(), number.to_string())))
        .collect();
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// The schema of a state and its number of key columns, from that of encoded rows.
pub(super) fn decoded_schema(encoded: &Schema) -> Result<(SchemaRef, usize)> {
    let fields = encoded.fields();
    let keys = number_in(encoded, KEYS).and_then(|keys| usize::try_from(keys).ok());
    match (fields.split_last(), keys) {
        (Some((expires, columns)), Some(keys))
            if *expires.data_type() == DataType::Int64 && keys <= columns.len() =>
        {
            Ok((Arc::new(Schema::new(columns.to_vec())), keys))
        }
        _ => Err(Error::internal("a file of a state holds something else")),
    }
}

pub(super) fn number_in(schema: &Schema, name: &str) -> Option<i64> {
    schema.metadata().get(name)?.parse().ok()
}

/// Rows with the column for their expiry.
pub(super) fn with_expiry(
    schema: &SchemaRef,
    rows: &RecordBatch,
    expires_ms: &Int64Array,
) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(expires_ms.clone()));
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(broken)
}

/// What [`with_expiry`] put together; `schema` is the state's.
pub(super) fn without_expiry(
    schema: &SchemaRef,
    rows: &RecordBatch,
) -> Result<(RecordBatch, Int64Array)> {
    let (expires, columns) = rows
        .columns()
        .split_last()
        .ok_or_else(|| Error::internal("a file of a state holds something else"))?;
    let expires = expires.as_primitive_opt::<Int64Type>().cloned();
    let expires = expires
        .filter(|expires| expires.null_count() == 0)
        .ok_or_else(|| Error::internal("a file of a state lacks the time of expiry"))?;
    Ok((batch(schema, columns.to_vec(), rows.num_rows())?, expires))
}
