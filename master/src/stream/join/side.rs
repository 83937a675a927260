//! One side of a join of two streams: its rows that may still find a match, by the columns that are joined on.
//!
//! The rows of a key are numbered as they come. A second state holds, for each key, which numbers it has: reading the
//! rows of some keys costs what those rows cost, and a new row changes no old one.

use crate::stream::context::{EpochContext, Watermarks};
use crate::stream::feed::millis;
use crate::stream::state::{Delta, Stored};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions,
    UInt32Array, UInt64Array,
};
use arrow::compute::{concat, concat_batches, filter_record_batch, take, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, UInt64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Result;
use datafusion::physical_expr::PhysicalExpr;
use std::collections::HashMap;
use std::sync::Arc;

/// The expiry of a row that matches none of other epochs: a NULL stands where its key or its time should be.
const AT_ONCE: i64 = i64::MIN;

/// How a side keeps its rows.
#[derive(Debug)]
pub(super) struct Side {
    /// The id of its state.
    op: String,
    /// The id of the state with the numbers of each key.
    numbers_op: String,
    /// The columns of the side, any of which may be NULL.
    pub(super) schema: SchemaRef,
    /// Keys and a number, then the columns of the side, then whether the row has matched if `is_preserved`.
    stored: SchemaRef,
    /// Keys, then the first number and the one after the last.
    numbers: SchemaRef,
    on: Vec<Arc<dyn PhysicalExpr>>,
    time: usize,
    /// How much older than the watermark its rows may be, ms.
    delay_ms: i64,
    /// For how long a row waits: it is freed when the watermark reaches its time and this, ms.
    wait_ms: i64,
    /// Whether a row without a match comes out with NULLs when it is freed.
    pub(super) is_preserved: bool,
    are_nulls_equal: bool,
}

/// What makes a [`Side`].
#[derive(Debug)]
pub(super) struct SideOptions {
    pub op: String,
    pub on: Vec<Arc<dyn PhysicalExpr>>,
    pub time: usize,
    pub delay_ms: i64,
    pub wait_ms: i64,
    pub is_preserved: bool,
    pub are_nulls_equal: bool,
}

/// The rows of a side that came with the epoch.
#[derive(Debug)]
pub(super) struct Arrived {
    pub rows: RecordBatch,
    keys: Vec<ArrayRef>,
    expires_ms: Int64Array,
}

/// The rows of a side that came before the epoch, and where the new ones go.
#[derive(Debug)]
pub(super) struct Known {
    /// As they are stored.
    stored: Stored,
    /// Only the columns of the side.
    pub rows: RecordBatch,
    /// The new rows that are kept, by position.
    kept: UInt32Array,
    /// Their numbers.
    kept_numbers: UInt64Array,
    numbers: Delta,
}

/// What the state of one key holds.
#[derive(Debug)]
struct Entry {
    /// Where its key stands.
    position: u32,
    first: u64,
    /// The number after the last of the epochs before.
    old_end: u64,
    end: u64,
    expires_ms: i64,
    is_wanted: bool,
    first_found: Option<u64>,
}

impl Side {
    /// A side whose rows have `schema`.
    ///
    /// # Errors
    /// Keys that `schema` does not have.
    pub(super) fn new(schema: &Schema, options: SideOptions) -> Result<Self> {
        let nullable = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
        let columns: Vec<_> = schema.fields().iter().map(nullable).collect();
        let key = |(position, on): (usize, &Arc<dyn PhysicalExpr>)| {
            let name = format!("key {position}");
            Ok(Field::new(name, on.data_type(schema)?, true))
        };
        let keys = options.on.iter().enumerate().map(key);
        let keys: Vec<_> = keys.collect::<Result<_>>()?;
        let number = |name: &str| Field::new(name, DataType::UInt64, false);
        let matched = options
            .is_preserved
            .then(|| Field::new("has matched", DataType::Boolean, false));
        let stored = [keys.clone(), vec![number("number")], columns.clone()].concat();
        let stored: Vec<_> = stored.into_iter().chain(matched).collect();
        let numbers = [keys, vec![number("first"), number("end")]].concat();
        Ok(Self {
            numbers_op: format!("{}/numbers", options.op),
            op: options.op,
            schema: Arc::new(Schema::new(columns)),
            stored: Arc::new(Schema::new(stored)),
            numbers: Arc::new(Schema::new(numbers)),
            on: options.on,
            time: options.time,
            delay_ms: options.delay_ms,
            wait_ms: options.wait_ms,
            is_preserved: options.is_preserved,
            are_nulls_equal: options.are_nulls_equal,
        })
    }

    /// The rows that are not too late.
    ///
    /// # Errors
    /// Keys that cannot be computed.
    pub(super) fn arrived(&self, batches: &[RecordBatch], marks: Watermarks) -> Result<Arrived> {
        let batches = batches
            .iter()
            .map(|batch| self.relabelled(batch.columns(), batch.num_rows()))
            .collect::<Result<Vec<_>>>()?;
        let rows = concat_batches(&self.schema, &batches)?;
        let expiries = self.expiries(&rows)?;
        let times = millis(rows.column(self.time))?;
        let oldest = marks.before.saturating_sub(self.delay_ms);
        let is_wanted = times.iter().zip(&expiries).map(|(time, expires_ms)| {
            let is_late = time.is_some_and(|time| time < oldest);
            !is_late && (self.is_preserved || *expires_ms != AT_ONCE)
        });
        let is_wanted = is_wanted.map(Some).collect::<BooleanArray>();
        let rows = filter_record_batch(&rows, &is_wanted)?;
        Ok(Arrived {
            keys: self.keys_of(&rows)?,
            expires_ms: self.expiries(&rows)?.into(),
            rows,
        })
    }

    fn keys_of(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let keys = self.on.iter();
        keys.map(|on| on.evaluate(rows)?.into_array(rows.num_rows()))
            .collect()
    }

    /// When the rows are freed, ms.
    fn expiries(&self, rows: &RecordBatch) -> Result<Vec<i64>> {
        let times = millis(rows.column(self.time))?;
        let keys = if self.are_nulls_equal {
            Vec::new()
        } else {
            self.keys_of(rows)?
        };
        let expiry = |(position, time): (usize, Option<i64>)| match time {
            Some(time) if keys.iter().all(|key| key.is_valid(position)) => time
                .saturating_add(self.wait_ms)
                .clamp(AT_ONCE + 1, i64::MAX - 1),
            _ => AT_ONCE,
        };
        Ok(times.iter().enumerate().map(expiry).collect())
    }

    /// The rows of the epochs before that may match those of the other side that `others` brought.
    ///
    /// # Errors
    /// Those of the state.
    pub(super) fn known(
        &self,
        epoch: &EpochContext,
        arrived: &Arrived,
        others: &Arrived,
        marks: Watermarks,
    ) -> Result<Known> {
        let key_columns = self.on.len();
        let kept = positions(&arrived.expires_ms, |expires_ms| expires_ms > marks.now);
        let wanted = positions(&others.expires_ms, |expires_ms| expires_ms != AT_ONCE);
        let touched = others.keys.iter().zip(&arrived.keys);
        let touched = touched.map(|(theirs, ours)| {
            let (theirs, ours) = (take(theirs, &wanted, None)?, take(ours, &kept, None)?);
            Ok(concat(&[&theirs, &ours])?)
        });
        let touched: Vec<ArrayRef> = touched.collect::<Result<_>>()?;
        let touched_rows = wanted.len() + kept.len();

        let state = epoch.state(&self.numbers_op, &self.numbers, key_columns)?;
        let numbered = state.read().get(&touched, touched_rows, marks.before)?;
        let keys = numbered.rows.columns().iter().zip(&touched);
        let keys = keys.map(|(numbered, touched)| Ok(concat(&[numbered, touched])?));
        let keys: Vec<ArrayRef> = keys.collect::<Result<_>>()?;
        let types = keys
            .iter()
            .map(|key| SortField::new(key.data_type().clone()));
        let converter = RowConverter::new(types.collect())?;
        let encoded = converter.convert_columns(&keys)?;

        let column = |at: usize| numbered.rows.column(key_columns + at);
        let (firsts, ends) = (
            column(0).as_primitive::<UInt64Type>().values(),
            column(1).as_primitive::<UInt64Type>().values(),
        );
        let mut entries = Vec::with_capacity(numbered.rows.num_rows());
        let mut by_key = HashMap::with_capacity(touched_rows);
        for (position, (first, end)) in (0..).zip(firsts.iter().zip(ends)) {
            by_key.insert(encoded.row(position as usize).data(), entries.len());
            entries.push(Entry {
                position,
                first: *first,
                old_end: *end,
                end: *end,
                expires_ms: numbered.expires_ms.value(position as usize),
                is_wanted: false,
                first_found: None,
            });
        }
        let after_numbered = entries.len()..entries.len() + touched_rows;
        let mut kept_numbers = Vec::with_capacity(kept.len());
        for (touch, position) in after_numbered.enumerate() {
            let key = encoded.row(position).data();
            let Some(row) = touch.checked_sub(wanted.len()) else {
                if let Some(known) = by_key.get(key) {
                    entries[*known].is_wanted = true;
                }
                continue;
            };
            let entry = *by_key.entry(key).or_insert_with(|| {
                entries.push(Entry {
                    position: position as u32,
                    first: 0,
                    old_end: 0,
                    end: 0,
                    expires_ms: AT_ONCE,
                    is_wanted: false,
                    first_found: None,
                });
                entries.len() - 1
            });
            let entry = &mut entries[entry];
            kept_numbers.push(entry.end);
            entry.end += 1;
            let expires_ms = arrived.expires_ms.value(kept.value(row) as usize);
            entry.expires_ms = entry.expires_ms.max(expires_ms);
        }

        let stored = self.read(epoch, &keys, &entries, marks)?;
        let found = converter.convert_columns(&stored.rows.columns()[..key_columns])?;
        let numbers = stored.rows.column(key_columns).as_primitive::<UInt64Type>();
        for (row, number) in found.iter().zip(numbers.values()) {
            if let Some(entry) = by_key.get(row.data()) {
                entries[*entry].first_found.get_or_insert(*number);
            }
        }
        let columns = &stored.rows.columns()[key_columns + 1..];
        let columns = &columns[..self.schema.fields().len()];
        Ok(Known {
            rows: self.relabelled(columns, stored.rows.num_rows())?,
            stored,
            kept,
            kept_numbers: kept_numbers.into(),
            numbers: self.numbers_delta(&keys, &entries, marks)?,
        })
    }

    /// The rows of the keys that are wanted, first those that came first.
    fn read(
        &self,
        epoch: &EpochContext,
        keys: &[ArrayRef],
        entries: &[Entry],
        marks: Watermarks,
    ) -> Result<Stored> {
        let mut positions = Vec::new();
        let mut numbers = Vec::new();
        for entry in entries.iter().filter(|entry| entry.is_wanted) {
            for number in entry.first..entry.old_end {
                positions.push(entry.position);
                numbers.push(number);
            }
        }
        let positions = UInt32Array::from(positions);
        let rows = positions.len();
        let mut wanted = taken(keys, &positions)?;
        wanted.push(Arc::new(UInt64Array::from(numbers)));
        let state = epoch.state(&self.op, &self.stored, self.on.len() + 1)?;
        let stored = state.read().get(&wanted, rows, marks.before)?;
        Ok(stored)
    }

    /// The keys whose numbers are not what they were.
    fn numbers_delta(
        &self,
        keys: &[ArrayRef],
        entries: &[Entry],
        marks: Watermarks,
    ) -> Result<Delta> {
        let mut positions = Vec::new();
        let mut firsts = Vec::new();
        let mut ends = Vec::new();
        let mut expiries = Vec::new();
        for entry in entries {
            // Those before it have been freed.
            let first = match entry.first_found {
                Some(found) => found,
                None if entry.is_wanted => entry.old_end,
                None => entry.first,
            };
            let has_changed = first > entry.first || entry.end > entry.old_end;
            if has_changed && entry.expires_ms > marks.now {
                positions.push(entry.position);
                firsts.push(first);
                ends.push(entry.end);
                expiries.push(entry.expires_ms);
            }
        }
        let mut columns = taken(keys, &UInt32Array::from(positions))?;
        columns.push(Arc::new(UInt64Array::from(firsts)));
        columns.push(Arc::new(UInt64Array::from(ends)));
        let mut delta = Delta::new(&self.numbers, self.on.len())?;
        delta.upserts = RecordBatch::try_new(Arc::clone(&self.numbers), columns)?;
        delta.expires_ms = expiries.into();
        delta.expire_before = expire_before(marks);
        Ok(delta)
    }

    /// Puts down what the epoch changes. `matched` tells which rows have matched in it: the known ones, then those
    /// that arrived. Returns the rows that are freed and never matched, if the side is preserved.
    ///
    /// # Errors
    /// Those of the state.
    pub(super) fn close(
        &self,
        epoch: &EpochContext,
        arrived: &Arrived,
        known: Known,
        matched: &[bool],
        marks: Watermarks,
    ) -> Result<Vec<RecordBatch>> {
        let key_columns = self.on.len();
        let mut columns = taken(&arrived.keys, &known.kept)?;
        columns.push(Arc::new(known.kept_numbers.clone()));
        columns.extend(taken(arrived.rows.columns(), &known.kept)?);
        let expiries = take(&arrived.expires_ms, &known.kept, None)?;
        let mut expiries = expiries.as_primitive::<Int64Type>().clone();
        let mut alone = Vec::new();
        let mut changed = RecordBatch::new_empty(Arc::clone(&self.stored));
        if self.is_preserved {
            let (old, new) = matched.split_at(known.rows.num_rows());
            let flags = known
                .kept
                .values()
                .iter()
                .map(|row| Some(new[*row as usize]));
            columns.push(Arc::new(flags.collect::<BooleanArray>()));

            // Rows that match for the first time.
            let had = known
                .stored
                .rows
                .column(key_columns + 1 + self.schema.fields().len());
            let first = old.iter().zip(had.as_boolean().iter());
            let first = first.map(|(has, had)| Some(*has && had == Some(false)));
            let first = first.collect::<BooleanArray>();
            let first_matched = filter_record_batch(&known.stored.rows, &first)?;
            let stays = |row: usize| known.stored.expires_ms.value(row) > marks.now;
            let staying = (0..first.len()).filter(|row| first.value(*row) && stays(*row));
            let staying = UInt32Array::from_iter_values(staying.map(|row| row as u32));
            let staying_rows = take_record_batch(&known.stored.rows, &staying)?;
            let staying_expiries = take(&known.stored.expires_ms, &staying, None)?;
            changed = self.marked(&staying_rows)?;
            expiries = concat(&[&expiries, &staying_expiries])?
                .as_primitive::<Int64Type>()
                .clone();

            let state = epoch.state(&self.op, &self.stored, key_columns + 1)?;
            let except = &first_matched.columns()[..=key_columns];
            let freed = state
                .read()
                .expired(marks.now, except, first_matched.num_rows())?;
            for stored in freed {
                alone.push(self.unmatched(&stored.rows)?);
            }
            let going = (0..arrived.rows.num_rows())
                .filter(|row| !new[*row] && arrived.expires_ms.value(*row) <= marks.now);
            let going = UInt32Array::from_iter_values(going.map(|row| row as u32));
            alone.push(take_record_batch(&arrived.rows, &going)?);
        }
        let mut delta = Delta::new(&self.stored, key_columns + 1)?;
        let added = RecordBatch::try_new(Arc::clone(&self.stored), columns)?;
        delta.upserts = concat_batches(&self.stored, [&added, &changed])?;
        delta.expires_ms = expiries;
        delta.expire_before = expire_before(marks);
        epoch.put_pending(&self.op, delta)?;
        epoch.put_pending(&self.numbers_op, known.numbers)?;
        alone.retain(|rows| rows.num_rows() > 0);
        Ok(alone)
    }

    /// Stored rows as rows that have matched.
    fn marked(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = rows.columns().to_vec();
        columns.pop();
        columns.push(Arc::new(BooleanArray::from(vec![true; rows.num_rows()])));
        Ok(RecordBatch::try_new(Arc::clone(&self.stored), columns)?)
    }

    /// The columns of the side, of those stored rows that have not matched.
    fn unmatched(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let first = self.on.len() + 1;
        let width = self.schema.fields().len();
        let had = rows.column(first + width).as_boolean();
        let rows = filter_record_batch(rows, &arrow::compute::not(had)?)?;
        self.relabelled(&rows.columns()[first..first + width], rows.num_rows())
    }

    fn relabelled(&self, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::clone(&self.schema);
        Ok(RecordBatch::try_new_with_options(
            schema,
            columns.to_vec(),
            &options,
        )?)
    }
}

fn expire_before(marks: Watermarks) -> Option<i64> {
    (marks.now > i64::MIN).then_some(marks.now)
}

/// The positions of the expiries that `is_wanted` picks.
fn positions(expires_ms: &Int64Array, is_wanted: impl Fn(i64) -> bool) -> UInt32Array {
    let all = (0..).zip(expires_ms.values());
    let wanted = all.filter(|(_, expires_ms)| is_wanted(**expires_ms));
    UInt32Array::from_iter_values(wanted.map(|(position, _)| position))
}

fn taken(columns: &[ArrayRef], positions: &UInt32Array) -> Result<Vec<ArrayRef>> {
    let columns = columns.iter();
    columns
        .map(|column| Ok(take(column, positions, None)?))
        .collect()
}
