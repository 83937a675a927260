//! What the epochs of a streaming job report, and what clients see of it.

use essaim_common::stream::Offsets;
use essaim_proto::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One epoch of a streaming job, with the meaning of Spark's `StreamingQueryProgress`. Times are ms since 1970-01-01
/// UTC, durations ms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochProgress {
    pub epoch: u64,
    pub started_ms: i64,
    pub duration_ms: f64,
    /// Rows read, of all sources.
    pub input_rows: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    pub sources: Vec<SourceProgress>,
    pub queries: Vec<QueryProgress>,
    /// What each step took, ms: `latest_offsets`, `write_offsets`, `tasks`, `process` (merge, emit and sink commit),
    /// `checkpoint` (the time that the epoch waited for the checkpoint of the one before).
    pub durations_ms: BTreeMap<String, f64>,
    /// How often the epoch was started again after an error.
    pub retries: u32,
}

/// What an epoch read of one UNBOUNDED table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceProgress {
    pub table: String,
    pub start: Offsets,
    pub end: Offsets,
    pub latest: Offsets,
    /// Offsets between `end` and `latest`, of all partitions.
    pub lag: u64,
    pub input_rows: u64,
    /// Rows that arrived, by the time since the epoch before began.
    pub input_rows_per_second: f64,
    /// Rows read, by the time that the epoch took.
    pub processed_rows_per_second: f64,
    /// The source's watermark; `None` before the first row with an event time.
    pub watermark_ms: Option<i64>,
    /// Offsets passed over because the source had deleted them.
    pub lost: u64,
}

/// What an epoch did for one INSERT.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueryProgress {
    /// Position in the job, from 0.
    pub index: u32,
    pub sink: String,
    /// 'append', 'update' or 'complete'.
    pub output_mode: String,
    pub output_rows: u64,
    pub late_rows: u64,
    pub watermark_ms: Option<i64>,
    /// Groups, keys and buffered rows kept, and their bytes.
    pub state_rows: u64,
    pub state_bytes: u64,
}

/// What the epochs of a streaming job did together, over its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochTotals {
    /// Epochs that were committed.
    pub epochs: u64,
    pub input_rows: u64,
    pub output_rows: u64,
    pub late_rows: u64,
    pub records_skipped: u64,
    pub records_dead_lettered: u64,
    /// Offsets passed over because a source had deleted them.
    pub lost: u64,
}

impl EpochTotals {
    pub(crate) fn add(&mut self, epoch: &EpochProgress) {
        self.epochs += 1;
        self.input_rows += epoch.input_rows;
        self.records_skipped += epoch.records_skipped;
        self.records_dead_lettered += epoch.records_dead_lettered;
        self.lost += epoch.sources.iter().map(|source| source.lost).sum::<u64>();
        for query in &epoch.queries {
            self.output_rows += query.output_rows;
            self.late_rows += query.late_rows;
        }
    }

    pub(crate) fn to_proto(self) -> v1::EpochTotals {
        v1::EpochTotals {
            epochs: self.epochs,
            input_rows: self.input_rows,
            output_rows: self.output_rows,
            late_rows: self.late_rows,
            records_skipped: self.records_skipped,
            records_dead_lettered: self.records_dead_lettered,
            lost: self.lost,
        }
    }
}

impl EpochProgress {
    /// The epoch as clients see it; without offsets for a list.
    pub(crate) fn to_proto(&self, with_offsets: bool) -> v1::EpochProgress {
        let source = |source: &SourceProgress| source.to_proto(with_offsets);
        v1::EpochProgress {
            epoch: self.epoch,
            started_ms: self.started_ms,
            duration_ms: self.duration_ms,
            input_rows: self.input_rows,
            records_skipped: self.records_skipped,
            records_dead_lettered: self.records_dead_lettered,
            sources: self.sources.iter().map(source).collect(),
            queries: self.queries.iter().map(QueryProgress::to_proto).collect(),
            durations_ms: self.durations_ms.clone().into_iter().collect(),
            retries: self.retries,
        }
    }
}

impl SourceProgress {
    fn to_proto(&self, with_offsets: bool) -> v1::SourceProgress {
        let offsets = |offsets: &Offsets| {
            let shown = with_offsets.then(|| offsets.0.clone());
            shown.unwrap_or_default().into_iter().collect()
        };
        v1::SourceProgress {
            table: self.table.clone(),
            start: offsets(&self.start),
            end: offsets(&self.end),
            latest: offsets(&self.latest),
            lag: self.lag,
            input_rows: self.input_rows,
            input_rows_per_second: self.input_rows_per_second,
            processed_rows_per_second: self.processed_rows_per_second,
            watermark_ms: self.watermark_ms,
            lost: self.lost,
        }
    }
}

impl QueryProgress {
    fn to_proto(&self) -> v1::QueryProgress {
        v1::QueryProgress {
            index: self.index,
            sink: self.sink.clone(),
            output_mode: self.output_mode.clone(),
            output_rows: self.output_rows,
            late_rows: self.late_rows,
            watermark_ms: self.watermark_ms,
            state_rows: self.state_rows,
            state_bytes: self.state_bytes,
        }
    }
}
