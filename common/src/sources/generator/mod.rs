//! `STORED AS GENERATOR`: numbered rows that the workers make themselves, at once or so many a second, for trying and
//! for load.
//!
//! A row is its number, its time and its seed, and all three follow from the declaration. What else a row should hold
//! is a SELECT over them, with the functions of [`crate::functions::random`]; the planner checks it like any other SQL.

mod rows;
mod stream;

use crate::connector::{
    Connector, ConnectorTable, PlannedScan, ScanRequest, Source, SplitReader, TableSpec,
};
use crate::error::Result;
use crate::options::Options;
use crate::scan::project_schema;
use crate::stream::{StreamOptions, StreamSource};
use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use rows::{Range, RowReader, Rows};
use std::sync::Arc;
use stream::RowStream;

/// The connector.
#[derive(Debug)]
pub struct Generator;

#[async_trait]
impl Connector for Generator {
    fn name(&self) -> &'static str {
        "GENERATOR"
    }

    async fn table(&self, spec: TableSpec) -> Result<ConnectorTable> {
        let mut options = spec.options;
        if spec.schema.is_some() {
            return Err(options.error(
                "a generator's columns are value BIGINT, timestamp TIMESTAMP and seed BIGINT: leave the columns out, \
                 and make others of these in a SELECT or a VIEW",
            ));
        }
        let number_of_rows = match spec.unbounded {
            false => Some(options.required("number_of_rows")?),
            true => options.text("number_of_rows"),
        };
        let number_of_rows = number_of_rows
            .map(|text| count(&options, "number_of_rows", &text))
            .transpose()?;
        let rows_per_second = match options.text("rows_per_second") {
            Some(text) => count(&options, "rows_per_second", &text)?,
            None => 1,
        };
        if rows_per_second == 0 {
            return Err(options.error("option rows_per_second '0': write at least 1"));
        }
        let start_us = match options.text("start_time") {
            Some(text) => Some(time(&options, &text)?),
            None => None,
        };
        let seed = options.parsed::<i64>("seed")?.unwrap_or(0);
        let streaming =
            StreamOptions::take_with(&mut options, Some(&rows::schema()), Some(rows::TIMESTAMP))?;
        let rows = Rows::new(rows_per_second, seed);
        if let Some(last) = number_of_rows.filter(|rows| *rows > 0)
            && rows.time(start_us.unwrap_or(0), last - 1).is_none()
        {
            return Err(options.error(format!(
                "row {} would come after the year 294000: raise rows_per_second",
                last - 1
            )));
        }
        options.finish()?;
        let source = Numbers {
            table: spec.name,
            rows,
            number_of_rows,
            start_us,
            streaming: spec.unbounded.then_some(streaming),
        };
        Ok(ConnectorTable {
            schema: Some(rows::schema()),
            source: Some(Arc::new(source)),
            sink: None,
        })
    }

    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        Ok(Arc::new(RowReader::decode(encoded, schema)?))
    }
}

fn count(options: &Options, name: &str, text: &str) -> Result<i64> {
    let number = text.parse::<i64>().ok().filter(|number| *number >= 0);
    number.ok_or_else(|| options.error(format!("option {name} '{text}' is no number of rows")))
}

/// Microseconds since 1970, UTC.
fn time(options: &Options, text: &str) -> Result<i64> {
    let time = string_to_timestamp_nanos(text).map_err(|_| {
        options.error(format!(
            "option start_time '{text}': write a time such as '2026-01-31T12:00:00Z'"
        ))
    })?;
    Ok(time.div_euclid(1000))
}

/// The master's half.
#[derive(Debug)]
struct Numbers {
    /// The table's name.
    table: String,
    rows: Rows,
    /// `None` for a stream without an end.
    number_of_rows: Option<i64>,
    /// The time of row 0, µs since 1970, if it was given.
    start_us: Option<i64>,
    /// How it is read continuously, if it was declared so.
    streaming: Option<StreamOptions>,
}

#[async_trait]
impl Source for Numbers {
    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let all = self.number_of_rows.unwrap_or(0);
        let end = match request.limit {
            Some(limit) => all.min(i64::try_from(limit).unwrap_or(i64::MAX)),
            None => all,
        };
        let range = Range {
            start: 0,
            end,
            start_us: self.start_us.unwrap_or(0),
        };
        Ok(PlannedScan {
            reader: Arc::new(RowReader::new(
                self.rows,
                project_schema(&rows::schema(), request.projection)?,
            )),
            splits: range.cut(request.target_splits, "")?,
        })
    }

    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        let options = self.streaming.clone()?;
        Some(Arc::new(RowStream {
            table: self.table.clone(),
            rows: self.rows,
            number_of_rows: self.number_of_rows,
            start_us: self.start_us,
            options,
        }))
    }
}

#[cfg(test)]
mod tests;
