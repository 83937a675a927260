//! The master's half of an UNBOUNDED generator: an offset is a row's number, and the clock says how many are due.
//!
//! When a job began is in the name of its only partition. So it is in the checkpoint wherever a position is, and each
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

/// The name of the partition, less the time.
const SINCE: &str = "since ";
/// Rows of an epoch below which they are not cut: fewer are made sooner than a task is sent.
const LEAST_ROWS: i64 = 1_000;

/// The rows of one table, read continuously.
#[derive(Debug)]
pub struct RowStream {
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
        Ok(position(Utc::now(), 0))
    }

    async fn available(&self, from: &Offsets) -> Result<Available> {
        self.available_at(from, Utc::now())
    }

    fn splits(&self, from: &Offsets, to: &Offsets, target: usize) -> Result<Vec<Split>> {
        let ((began, start), (_, end)) = (parse(from)?, parse(to)?);
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
        range.cut(pieces, &name(began))
    }

    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        let schema = project_schema(&rows::schema(), projection)?;
        Ok(Arc::new(RowReader::new(self.rows, schema)))
    }
}

impl RowStream {
    /// The rows that are due by the clock, and never fewer than have been read: the clock may have been set back.
    pub fn available_at(&self, from: &Offsets, now: DateTime<Utc>) -> Result<Available> {
        let (began, at) = parse(from)?;
        let after = now
            .timestamp_micros()
            .saturating_sub(began.timestamp_micros());
        let due = self.rows.due(after);
        let due = self.number_of_rows.map_or(due, |most| due.min(most));
        Ok(Available {
            start: from.clone(),
            latest: position(began, due.max(at)),
            lost: 0,
        })
    }
}

fn name(began: DateTime<Utc>) -> String {
    format!(
        "{SINCE}{}",
        began.to_rfc3339_opts(SecondsFormat::Micros, true)
    )
}

/// The next row to read of a job that began then.
fn position(began: DateTime<Utc>, row: i64) -> Offsets {
    Offsets([(name(began), row)].into())
}

fn parse(offsets: &Offsets) -> Result<(DateTime<Utc>, i64)> {
    let mut all = offsets.0.iter();
    let parsed = match (all.next(), all.next()) {
        (Some((name, row)), None) => name.strip_prefix(SINCE).and_then(|began| {
            let began = DateTime::parse_from_rfc3339(began).ok()?;
            Some((began.to_utc(), *row))
        }),
        _ => None,
    };
    parsed.ok_or_else(|| {
        Error::invalid(format!(
            "the position {offsets:?} is of another source than a generator: a job that reads other tables needs a new name"
        ))
    })
}
