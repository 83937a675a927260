//! A state as it was at one moment: written while the state goes on changing, and read back.

use super::KeyedState;
use super::delta::{ROWS, decoded_schema, encoded_schema, number_in, with_expiry, without_expiry};
use super::layout::Layout;
use super::table::{Bucket, Entry, Table};
use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use essaim_common::ipc::{Decoder, Encoder};
use essaim_common::{Error, Result};
use std::sync::Arc;

/// Rows of a batch that leaves a state, at most.
pub(super) const BATCH_ROWS: usize = 8192;
/// Bytes of keys and values of a batch that leaves a state, about: values may be large.
const BATCH_BYTES: usize = 16 << 20;

/// Entries of a state.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Key columns, then value columns.
    pub rows: RecordBatch,
    /// When each expires, ms; [`i64::MAX`] for never.
    pub expires_ms: Int64Array,
}

impl Stored {
    pub(super) fn of(layout: &Layout, entries: &[&Entry]) -> Result<Self> {
        let rows = layout.decode(entries.iter().map(|entry| (entry.key(), entry.value())))?;
        let expires_ms = entries.iter().map(|entry| entry.expires_ms());
        Ok(Self {
            rows,
            expires_ms: Int64Array::from_iter_values(expires_ms),
        })
    }
}

/// Entries as batches of at most 8192 rows.
pub(super) fn batches<'a>(
    layout: &Layout,
    entries: impl Iterator<Item = &'a Entry>,
) -> Result<Vec<Stored>> {
    let mut entries = entries.peekable();
    let mut batches = Vec::new();
    while entries.peek().is_some() {
        batches.push(Stored::of(layout, &next(&mut entries))?);
    }
    Ok(batches)
}

/// As many entries as make up a batch.
fn next<'a>(entries: &mut impl Iterator<Item = &'a Entry>) -> Vec<&'a Entry> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    while taken.len() < BATCH_ROWS && bytes < BATCH_BYTES {
        let Some(entry) = entries.next() else { break };
        bytes += entry.len();
        taken.push(entry);
    }
    taken
}

/// All entries of a state at one moment. It shares them with the state; what changes meanwhile is copied first.
#[derive(Debug, Clone)]
pub struct Snapshot {
    layout: Arc<Layout>,
    buckets: Vec<Bucket>,
    rows: usize,
}

impl Snapshot {
    pub(super) fn new(layout: Arc<Layout>, table: &Table) -> Self {
        Self {
            layout,
            buckets: table.buckets().to_vec(),
            rows: table.rows(),
        }
    }

    /// How many entries there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Key columns, then value columns.
    pub fn schema(&self) -> &SchemaRef {
        self.layout.schema()
    }

    /// All entries, in batches of at most 8192 rows.
    pub fn batches(self) -> impl Iterator<Item = Result<Stored>> + Send + 'static {
        let (mut bucket, mut offset) = (0, 0);
        std::iter::from_fn(move || {
            let rest = self.buckets.get(bucket..)?;
            let mut entries = rest.iter().flat_map(|bucket| bucket.iter()).skip(offset);
            let taken = next(&mut entries);
            if taken.is_empty() {
                return None;
            }
            let stored = Stored::of(&self.layout, &taken);
            offset += taken.len();
            while let Some(full) = self.buckets.get(bucket).map(|bucket| bucket.len())
                && full <= offset
            {
                offset -= full;
                bucket += 1;
            }
            Some(stored)
        })
    }

    /// The snapshot as an Arrow IPC stream, in chunks of at most [`essaim_proto::CHUNK_BYTES`], for [`Restore`]. It
    /// says which columns it has, so that it can be read without the query.
    ///
    /// # Errors
    /// A type that Arrow IPC does not know.
    pub fn encode(self) -> Result<impl Iterator<Item = Result<Bytes>> + Send + 'static> {
        let rows = (ROWS, self.rows as i64);
        let schema = encoded_schema(self.schema(), self.layout.key_columns(), Some(rows));
        let mut encoder = Some(Encoder::new(&schema)?);
        let mut batches = self.batches();
        let mut step = move || match (batches.next(), &mut encoder) {
            (Some(stored), Some(encoder)) => {
                let stored = stored?;
                encoder.encode(&with_expiry(&schema, &stored.rows, &stored.expires_ms)?)
            }
            (None, Some(_)) => encoder.take().map_or(Ok(Vec::new()), Encoder::finish),
            (_, None) => Ok(Vec::new()),
        };
        let mut failed = false;
        let chunks = std::iter::from_fn(move || {
            let chunks = if failed { Ok(Vec::new()) } else { step() };
            failed |= chunks.is_err();
            match chunks {
                Ok(chunks) if chunks.is_empty() => None,
                Ok(chunks) => Some(chunks.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => Some(vec![Err(error)]),
            }
        });
        Ok(chunks.flatten())
    }
}

/// Reads a snapshot back from its chunks, which may end anywhere.
#[derive(Debug, Default)]
pub struct Restore {
    decoder: Decoder,
    into: Option<Filling>,
}

#[derive(Debug)]
struct Filling {
    schema: SchemaRef,
    layout: Arc<Layout>,
    table: Table,
    /// What becomes the index by expiry, which is made faster at once.
    expiries: Vec<(i64, u64)>,
    /// How many rows the snapshot has, by what it says itself.
    rows: usize,
}

impl Restore {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Bytes that are no snapshot.
    pub fn push(&mut self, chunk: Bytes) -> Result<()> {
        for batch in self.decoder.decode(chunk)? {
            self.filling()?.take(&batch)?;
        }
        Ok(())
    }

    /// The state, once all chunks have been pushed.
    ///
    /// # Errors
    /// The snapshot is cut off.
    pub fn finish(mut self) -> Result<KeyedState> {
        let filling = self.filling()?;
        let (read, rows) = (filling.table.rows(), filling.rows);
        if read != rows {
            return Err(Error::internal(format!(
                "a snapshot is cut off: it holds {read} of {rows} rows"
            )));
        }
        filling.table.index(std::mem::take(&mut filling.expiries));
        let table = std::mem::replace(&mut filling.table, Table::with_capacity(0));
        Ok(KeyedState::of(Arc::clone(&filling.layout), table))
    }

    fn filling(&mut self) -> Result<&mut Filling> {
        let filling = match self.into.take() {
            Some(filling) => filling,
            None => {
                let encoded = self.decoder.schema();
                let encoded = encoded
                    .ok_or_else(|| Error::internal("a snapshot is cut off in its schema"))?;
                let (schema, keys) = decoded_schema(&encoded)?;
                let rows = number_in(&encoded, ROWS).and_then(|rows| usize::try_from(rows).ok());
                let rows = rows.ok_or_else(|| Error::internal("a snapshot lacks its row count"))?;
                Filling {
                    layout: Arc::new(Layout::new(Arc::clone(&schema), keys)?),
                    schema,
                    table: Table::with_capacity(rows),
                    expiries: Vec::new(),
                    rows,
                }
            }
        };
        Ok(self.into.insert(filling))
    }
}

impl Filling {
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let (rows, expires_ms) = without_expiry(&self.schema, batch)?;
        let (keys, values) = rows.columns().split_at(self.layout.key_columns());
        let keys = self.layout.encode_keys(keys, rows.num_rows())?;
        let values = self.layout.encode_values(values, rows.num_rows())?;
        let entries = keys.iter().zip(values.iter()).zip(expires_ms.values());
        let entries = entries.map(|((key, value), expires_ms)| (key, value, *expires_ms));
        self.expiries.extend(self.table.fill(entries));
        Ok(())
    }
}
