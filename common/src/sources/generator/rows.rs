//! The worker's half: the rows of a range, column by column.

use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::functions::random::{STEP, mixed};
use crate::scan::ScanMetrics;
use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, LazyLock};

const US_PER_SECOND: i64 = 1_000_000;

/// The column of the rows' times, by its index in [`schema`].
pub const TIMESTAMP: usize = 1;

/// All columns: `value BIGINT, timestamp TIMESTAMP (µs), seed BIGINT`, none ever null.
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        Arc::new(Schema::new(vec![
            Field::new("value", DataType::Int64, false),
            Field::new("timestamp", time, false),
            Field::new("seed", DataType::Int64, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// What the rows of one table have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// At least 1.
    rows_per_second: i64,
    seed: i64,
}

impl Rows {
    /// Rows that come so many a second, at least 1.
    pub fn new(rows_per_second: i64, seed: i64) -> Self {
        Self {
            rows_per_second: rows_per_second.max(1),
            seed,
        }
    }

    /// The time of row `value` if row 0 comes at `start_us`, both µs since 1970, rounded down; `None` if there is no
    /// such time.
    pub fn time(&self, start_us: i64, value: i64) -> Option<i64> {
        let after =
            i128::from(value) * i128::from(US_PER_SECOND) / i128::from(self.rows_per_second);
        i64::try_from(i128::from(start_us) + after).ok()
    }

    /// How many rows have come `after_us` µs after row 0; none before.
    pub fn due(&self, after_us: i64) -> i64 {
        if after_us < 0 {
            return 0;
        }
        let due =
            i128::from(after_us) * i128::from(self.rows_per_second) / i128::from(US_PER_SECOND);
        i64::try_from(due + 1).unwrap_or(i64::MAX)
    }

    /// The times of a range that [`Self::time`] has times for. It divides once, and adds up from there.
    pub fn times(&self, range: &Range) -> TimestampMicrosecondArray {
        let rate = self.rows_per_second;
        let (step, step_rest) = (US_PER_SECOND / rate, US_PER_SECOND % rate);
        let mut time = self.time(range.start_us, range.start).unwrap_or(i64::MAX);
        let mut rest =
            (i128::from(range.start) * i128::from(US_PER_SECOND) % i128::from(rate)) as i64;
        TimestampMicrosecondArray::from_iter_values((range.start..range.end).map(|_| {
            let now = time;
            time = time.saturating_add(step);
            rest += step_rest;
            if rest >= rate {
                rest -= rate;
                time = time.saturating_add(1);
            }
            now
        }))
    }

    /// SplitMix64's numbers, from the table's seed on: no two rows have one seed.
    pub fn seeds(&self, range: &Range) -> Int64Array {
        let first = mixed(self.seed as u64);
        Int64Array::from_iter_values(
            (range.start..range.end)
                .map(|value| mixed(first.wrapping_add((value as u64).wrapping_mul(STEP))) as i64),
        )
    }
}

/// Rows `start..end`. What a split carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub start: i64,
    pub end: i64,
    /// The time of row 0, µs since 1970.
    pub start_us: i64,
}

impl Range {
    /// Splits of about equal size, `pieces` of them or one a row, of a partition of the source.
    pub fn cut(&self, pieces: usize, partition: &str) -> Result<Vec<Split>> {
        let count = self.end - self.start;
        let pieces = i64::try_from(pieces)
            .unwrap_or(i64::MAX)
            .clamp(1, count.max(1));
        let at = |piece: i64| {
            let before = i128::from(count) * i128::from(piece) / i128::from(pieces);
            self.start + before as i64
        };
        let split = |piece: i64| {
            let (start, end) = (at(piece), at(piece + 1));
            let part = Self {
                start,
                end,
                ..*self
            };
            let rows = u64::try_from(end - start).unwrap_or(0);
            Ok(Split {
                label: format!("{start}..{end}"),
                payload: serde_json::to_vec(&part).map_err(|e| Error::internal(e.to_string()))?,
                partition: partition.to_owned(),
                rows: Some(rows),
                bytes: Some(rows.saturating_mul(8)),
            })
        };
        (0..pieces).map(split).collect()
    }

    /// The same rows in pieces of at most so many.
    fn batches(self, rows: usize) -> impl Iterator<Item = Self> {
        let rows = rows.max(1);
        (self.start..self.end).step_by(rows).map(move |start| Self {
            start,
            end: self.end.min(start.saturating_add(rows as i64)),
            ..self
        })
    }
}

/// Makes the wanted columns of any range.
#[derive(Debug)]
pub struct RowReader {
    rows: Rows,
    /// The wanted columns, by their names.
    schema: SchemaRef,
}

impl RowReader {
    /// A reader that yields `schema`, a projection of [`schema`].
    pub fn new(rows: Rows, schema: SchemaRef) -> Self {
        Self { rows, schema }
    }

    /// What [`SplitReader::encode`] wrote.
    pub fn decode(encoded: &[u8], schema: SchemaRef) -> Result<Self> {
        let rows = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a generator of another version: {e}")))?;
        Ok(Self { rows, schema })
    }
}

impl SplitReader for RowReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        // Two numbers: there is nothing that could fail.
        serde_json::to_vec(&self.rows).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let Rows {
            rows_per_second,
            seed,
        } = self.rows;
        let names: Vec<_> = self
            .schema
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        format!(
            "rows_per_second={rows_per_second}, seed={seed}, columns=[{}]",
            names.join(", ")
        )
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let range: Range = serde_json::from_slice(&split.payload)
            .map_err(|e| Error::internal(format!("a split of another version: {e}")))?;
        let counts = ScanMetrics::new(metrics, partition);
        let (rows, schema) = (self.rows, self.schema());
        let batches = range
            .batches(ctx.session_config().batch_size())
            .map(move |range| {
                let columns = schema.fields().iter().map(|field| -> ArrayRef {
                    match field.name().as_str() {
                        "timestamp" => Arc::new(rows.times(&range)),
                        "seed" => Arc::new(rows.seeds(&range)),
                        _ => Arc::new(Int64Array::from_iter_values(range.start..range.end)),
                    }
                });
                let columns: Vec<_> = columns.collect();
                let count = (range.end - range.start) as usize;
                counts.rows_in.add(count);
                counts.bytes_in.add(count * 8 * columns.len());
                let options = RecordBatchOptions::new().with_row_count(Some(count));
                Ok(RecordBatch::try_new_with_options(
                    Arc::clone(&schema),
                    columns,
                    &options,
                )?)
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::stream::iter(batches),
        )))
    }
}
