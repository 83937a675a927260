//! Session windows over epochs: which sessions of a key are open, so that an event can join them.

use crate::stream::context::EpochContext;
use crate::stream::state::{Delta, KeyedState};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{cast, concat, take};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, internal_err};
use essaim_common::windows::session::{SessionColumns, assign_sessions};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// The open sessions of each key: a state of its own beside that of the aggregates, which is kept by key and session.
pub(super) struct Sessions {
    /// Its id in the job.
    pub(super) op: String,
    columns: SessionColumns,
    /// The columns of the aggregates' state.
    partial: SchemaRef,
    /// Keys, then a list of the starts and one of the ends of their sessions.
    schema: SchemaRef,
    state: Arc<RwLock<KeyedState>>,
}

impl Sessions {
    /// The sessions of aggregate `op`, whose state has the columns `partial`.
    ///
    /// # Errors
    /// The state that is there has other columns, as the query has been changed.
    pub(super) fn open(
        epoch: &EpochContext,
        op: &str,
        partial: &SchemaRef,
        columns: &SessionColumns,
    ) -> Result<Self> {
        let op = format!("{op}/sessions");
        let keys = columns
            .keys
            .iter()
            .map(|key| Arc::clone(&partial.fields()[*key]));
        let lists = ["starts", "ends"].map(|name| Arc::new(Field::new(name, list_type(), false)));
        let fields: Vec<FieldRef> = keys.chain(lists).collect();
        let schema = Arc::new(Schema::new(fields));
        let state = epoch.state(&op, &schema, columns.keys.len())?;
        Ok(Self {
            op,
            columns: columns.clone(),
            partial: Arc::clone(partial),
            schema,
            state,
        })
    }

    /// The group columns of the sessions that are known of the keys of `new`.
    ///
    /// # Errors
    /// Key columns of other types.
    pub(super) fn known(&self, new: &[RecordBatch], gone: i64) -> Result<Vec<ArrayRef>> {
        let keys = self.columns.keys.iter().map(|key| {
            let pieces: Vec<_> = new
                .iter()
                .map(|batch| batch.column(*key).as_ref())
                .collect();
            Ok(concat(&pieces)?)
        });
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let rows = keys.first().map_or(1, |column| column.len());
        let found = self.state.read().get(&keys, rows, gone)?.rows;
        let count = self.columns.keys.len();
        let (starts, ends) = (
            found.column(count).as_list::<i32>(),
            found.column(count + 1).as_list::<i32>(),
        );
        let mut row_of = Vec::new();
        for row in 0..found.num_rows() {
            let sessions = starts.value_length(row) as usize;
            row_of.extend(std::iter::repeat_n(row as u32, sessions));
        }
        let row_of = UInt32Array::from(row_of);
        let mut groups: Vec<Option<ArrayRef>> = vec![None; count + 2];
        for (position, key) in self.columns.keys.iter().enumerate() {
            groups[*key] = Some(take(found.column(position), &row_of, None)?);
        }
        for (column, times) in [(self.columns.start, starts), (self.columns.end, ends)] {
            let data_type = self.partial.field(column).data_type();
            groups[column] = Some(cast(&flat(times)?, data_type)?);
        }
        match groups.into_iter().collect() {
            Some(groups) => Ok(groups),
            None => internal_err!("sessions are grouped by other columns than the first ones"),
        }
    }

    /// Old sessions and new events as sessions of now.
    ///
    /// # Errors
    /// Key columns that do not compare.
    pub(super) fn assign(&self, old: RecordBatch, new: Vec<RecordBatch>) -> Result<RecordBatch> {
        let batches: Vec<_> = std::iter::once(old).chain(new).collect();
        assign_sessions(&self.partial, &batches, &self.columns)
    }

    /// How the open sessions change when the aggregates' state changes by `delta`, in which all sessions of a key come
    /// together.
    ///
    /// # Errors
    /// Key columns that do not compare.
    pub(super) fn delta(&self, delta: &Delta) -> Result<Delta> {
        let count = self.columns.keys.len();
        let mut changed = Delta::new(&self.schema, count)?;
        changed.expire_before = delta.expire_before;
        let rows = &delta.upserts;
        let millis = |column: usize| cast(rows.column(column), &DataType::Int64);
        let (starts, ends) = (millis(self.columns.start)?, millis(self.columns.end)?);
        let (starts, ends) = (
            starts.as_primitive::<Int64Type>(),
            ends.as_primitive::<Int64Type>(),
        );
        let keys: Vec<ArrayRef> = self
            .columns
            .keys
            .iter()
            .map(|key| Arc::clone(rows.column(*key)))
            .collect();
        let fields = keys
            .iter()
            .map(|key| SortField::new(key.data_type().clone()));
        let encoded = if keys.is_empty() {
            None
        } else {
            Some(RowConverter::new(fields.collect())?.convert_columns(&keys)?)
        };
        let mut sessions_of: HashMap<Option<arrow::row::Row<'_>>, Vec<usize>> = HashMap::new();
        for row in 0..rows.num_rows() {
            let key = encoded.as_ref().map(|encoded| encoded.row(row));
            sessions_of.entry(key).or_default().push(row);
        }
        let mut first = Vec::with_capacity(sessions_of.len());
        let (mut lengths, mut order) = (Vec::new(), Vec::new());
        let mut expires = Vec::new();
        for sessions in sessions_of.into_values() {
            first.push(sessions[0] as u32);
            lengths.push(sessions.len());
            let last = sessions
                .iter()
                .map(|row| delta.expires_ms.value(*row))
                .max();
            expires.push(last.unwrap_or(i64::MAX));
            order.extend(sessions.into_iter().map(|row| row as u32));
        }
        let (first, order) = (UInt32Array::from(first), UInt32Array::from(order));
        let mut columns = keys
            .iter()
            .map(|key| Ok(take(key, &first, None)?))
            .collect::<Result<Vec<_>>>()?;
        for times in [starts, ends] {
            let times = take(times, &order, None)?;
            let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
            columns.push(Arc::new(ListArray::new(item(), offsets, times, None)));
        }
        if !first.is_empty() {
            changed.upserts = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
            changed.expires_ms = Int64Array::from(expires);
        }
        Ok(changed)
    }
}

fn item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Int64, true))
}

fn list_type() -> DataType {
    DataType::List(item())
}

/// All values of a column of lists.
fn flat(lists: &ListArray) -> Result<ArrayRef> {
    let values: Vec<ArrayRef> = (0..lists.len()).map(|row| lists.value(row)).collect();
    if values.is_empty() {
        return Ok(Arc::new(Int64Array::from(Vec::<i64>::new())));
    }
    let values: Vec<_> = values.iter().map(AsRef::as_ref).collect();
    Ok(concat(&values)?)
}
