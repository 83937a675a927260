//! The state of one stateful operator: a value and an expiry for each key, read by key and changed once an epoch.

mod delta;
mod layout;
mod snapshot;
mod table;

pub use delta::Delta;
pub use snapshot::{Restore, Snapshot, Stored};

use arrow::array::{ArrayRef, UInt32Array};
use arrow::datatypes::{Schema, SchemaRef};
use essaim_common::{Error, Result};
use layout::{Encoded, Layout};
use std::collections::HashSet;
use std::sync::Arc;
use table::Table;

/// Keys with a value and an expiry each. What goes in and comes out are columns; inside, rows are bytes.
#[derive(Debug)]
pub struct KeyedState {
    layout: Arc<Layout>,
    table: Table,
}

impl KeyedState {
    /// An empty state. The first `key_columns` columns of `schema` are the key, the others the value; either may be
    /// none.
    ///
    /// # Errors
    /// A column of a type that cannot be kept.
    pub fn new(schema: SchemaRef, key_columns: usize) -> Result<Self> {
        let layout = Arc::new(Layout::new(schema, key_columns)?);
        Ok(Self::of(layout, Table::with_capacity(0)))
    }

    fn of(layout: Arc<Layout>, table: Table) -> Self {
        Self { layout, table }
    }

    /// Key columns, then value columns.
    pub fn schema(&self) -> &SchemaRef {
        self.layout.schema()
    }

    /// How many entries there are.
    pub fn rows(&self) -> usize {
        self.table.rows()
    }

    /// What they take in memory, with what keeps them together.
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// Whether a state with these columns is this one.
    ///
    /// # Errors
    /// It is not (kind `Invalid`): the query has been changed.
    pub fn check(&self, schema: &Schema, key_columns: usize) -> Result<()> {
        self.layout.check(schema, key_columns)
    }

    /// The entries of those keys that are there and expire after `after_ms`, each once, in the order in which they were
    /// asked for. It costs what the keys cost, whatever else is there.
    ///
    /// # Errors
    /// Key columns of other types.
    pub fn get(&self, keys: &[ArrayRef], rows: usize, after_ms: i64) -> Result<Stored> {
        let keys = self.layout.encode_keys(keys, rows)?;
        let mut seen = HashSet::with_capacity(rows);
        let entries: Vec<_> = keys
            .iter()
            .filter(|key| seen.insert(*key))
            .filter_map(|key| self.table.get(key))
            .filter(|entry| entry.expires_ms() > after_ms)
            .collect();
        Stored::of(&self.layout, &entries)
    }

    /// The positions of the keys that are not there, or expire at `until_ms` or before: of each the first.
    ///
    /// # Errors
    /// Key columns of other types.
    pub fn missing(&self, keys: &[ArrayRef], rows: usize, until_ms: i64) -> Result<UInt32Array> {
        let keys = self.layout.encode_keys(keys, rows)?;
        let mut seen = HashSet::with_capacity(rows);
        let there = |key| {
            let entry = self.table.get(key);
            entry.is_some_and(|entry| entry.expires_ms() > until_ms)
        };
        let missing = (0..)
            .zip(keys.iter())
            .filter(|(_, key)| seen.insert(*key) && !there(key))
            .map(|(position, _)| position);
        Ok(UInt32Array::from_iter_values(missing))
    }

    /// The entries that expire at `until_ms` or before, but for those of the keys `except`: first those that expire
    /// first, in batches of at most 8192 rows. It costs what they cost, whatever else is there.
    ///
    /// # Errors
    /// Key columns of other types.
    pub fn expired(&self, until_ms: i64, except: &[ArrayRef], rows: usize) -> Result<Vec<Stored>> {
        let except = self.layout.encode_keys(except, rows)?;
        let except: HashSet<_> = except.iter().collect();
        let expired = self.table.expired(until_ms);
        let expired = expired.filter(|entry| !except.contains(entry.key()));
        snapshot::batches(&self.layout, expired)
    }

    /// A state of its own that is like this one now, and shares with it what neither changes.
    pub fn fork(&self) -> Self {
        Self::of(Arc::clone(&self.layout), self.table.clone())
    }

    /// The state as it is now, to be read while this one changes.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(Arc::clone(&self.layout), &self.table)
    }

    /// Changes the state: all of `delta`, or nothing after an error.
    ///
    /// # Errors
    /// A delta of other columns (kind `Invalid`).
    pub fn apply(&mut self, delta: &Delta) -> Result<()> {
        let (deletes, keys, values) = self.encode(delta)?;
        if let Some(until_ms) = delta.expire_before {
            self.table.remove_expired(until_ms);
        }
        for key in deletes.iter() {
            self.table.remove(key);
        }
        let expires_ms = delta.expires_ms.values();
        for ((key, value), expires_ms) in keys.iter().zip(values.iter()).zip(expires_ms) {
            self.table.put(key, value, *expires_ms);
        }
        Ok(())
    }

    /// The bytes of a delta's deletes, and of the keys and the values of its upserts.
    fn encode(&self, delta: &Delta) -> Result<(Encoded, Encoded, Encoded)> {
        let upserts = &delta.upserts;
        self.check(upserts.schema_ref(), delta.key_columns)?;
        if delta.expires_ms.len() != upserts.num_rows() {
            return Err(Error::internal(format!(
                "a delta has {} rows and {} expiries",
                upserts.num_rows(),
                delta.expires_ms.len()
            )));
        }
        let deletes = self
            .layout
            .encode_keys(delta.deletes.columns(), delta.deletes.num_rows())?;
        let (keys, values) = upserts.columns().split_at(delta.key_columns);
        Ok((
            deletes,
            self.layout.encode_keys(keys, upserts.num_rows())?,
            self.layout.encode_values(values, upserts.num_rows())?,
        ))
    }
}

#[cfg(test)]
mod tests;
