//! The master's half of an UNBOUNDED generator: an offset is a row's number, and the clock says how many are due.
//!
//! When a job began is in the name of the table's only partition. So it is in the checkpoint wherever a position is, and each
//! row has the same number and the same time whichever master, worker or attempt makes it.

use super::rows::{self, Range, RowReader, Rows};
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::scan::project_schema;
use crate::stream::{Available, Offsets, StreamOptions, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat, Utc};
use std::sync::Arc;

/// Between the table and the time in the name of the partition.
const SINCE: &str = " since ";
/// Rows of an epoch below which they are not cut: fewer are made sooner than a task is sent.
const LEAST_ROWS: i64 = 1_000;

/// The rows of one table, read continuously.
#[derive(Debug)]
pub struct RowStream {
    /// The table's name.
    pub table: String,
    pub rows: Rows,
    /// `None` if there is no end.
    pub number_of_rows: Option<i64>,
    /// The time of row 0, µs since 1970; `None` for that at which the job began.
    pub start_us: Option<i64>,
    pub options: StreamOptions,
}

#[async_trait]
impl StreamSource for RowStream {
    fn schema(&self) -> SchemaRef {
        rows::schema()
    }

    fn options(&self) -> StreamOptions {
        self.options.clone()
    }

    async fn start(&self) -> Result<Offsets> {
        Ok(self.position(Utc::now(), 0))
    }

    async fn available(&self, from: &Offsets) -> Result<Available> {
        self.available_at(from, Utc::now())
    }

    fn splits(&self, from: &Offsets, to: &Offsets, target: usize) -> Result<Vec<Split>> {
        let ((began, start), (_, end)) = (self.parse(from)?, self.parse(to)?);
        if end <= start {
            return Ok(Vec::new());
        }
        let range = Range {
            start,
            end,
            start_us: self.start_us.unwrap_or(began.timestamp_micros()),
        };
        let most = (end - start).div_euclid(LEAST_ROWS).max(1);
        let pieces = target.min(usize::try_from(most).unwrap_or(usize::MAX));
        range.cut(pieces, &self.partition(began))
    }

    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        let schema = project_schema(&rows::schema(), projection)?;
        Ok(Arc::new(RowReader::new(self.rows, schema)))
    }
}

impl RowStream {
    /// The rows that are due by the clock, and never fewer than have been read: the clock may have been set back.
    pub fn available_at(&self, from: &Offsets, now: DateTime<Utc>) -> Result<Available> {
        let (began, at) = self.parse(from)?;
        let after = now
            .timestamp_micros()
            .saturating_sub(began.timestamp_micros());
        let due = self.rows.due(after);
        let due = self.number_of_rows.map_or(due, |most| due.min(most));
        Ok(Available {
            start: from.clone(),
            latest: self.position(began, due.max(at)),
            lost: 0,
        })
    }

    /// The partition of a job that began then. The table is in its name, because the event times of an epoch are told
    /// apart by partitions alone.
    fn partition(&self, began: DateTime<Utc>) -> String {
        let began = began.to_rfc3339_opts(SecondsFormat::Micros, true);
        format!("{}{SINCE}{began}", self.table)
    }

    /// The next row to read of a job that began then.
    fn position(&self, began: DateTime<Utc>, row: i64) -> Offsets {
        Offsets([(self.partition(began), row)].into())
    }

    fn parse(&self, offsets: &Offsets) -> Result<(DateTime<Utc>, i64)> {
        let mut all = offsets.0.iter();
        let parsed = match (all.next(), all.next()) {
            (Some((partition, row)), None) => partition
                .strip_prefix(&self.table)
                .and_then(|rest| rest.strip_prefix(SINCE))
                .and_then(|began| DateTime::parse_from_rfc3339(began).ok())
                .map(|began| (began.to_utc(), *row)),
            _ => None,
        };
        parsed.ok_or_else(|| {
            Error::invalid(format!(
                "the position {:?} is of another source than the generator {}: a job that reads other tables needs a new name",
                offsets.0, self.table
            ))
        })
    }
}
