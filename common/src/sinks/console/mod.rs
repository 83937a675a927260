//! `STORED AS CONSOLE`: prints a result as a table to the standard output of the process that commits, the master.

use crate::connector::{
    Begin, Connector, ConnectorTable, Part, PlannedSink, Sink, SinkCommitter, SinkRun, SinkWriter,
    TableSpec,
};
use crate::error::{Error, Result};
use crate::stream::{OutputMode, StreamSink};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::sync::Arc;

/// Spark's defaults.
const NUM_ROWS: usize = 20;
const TRUNCATE: usize = 20;

/// The largest payload of one writer, in bytes of cells: a console is no place for more.
const MAX_BYTES: usize = 1 << 20;

/// Above and below an epoch's number, as long as Spark's.
const RULE: &str = "-------------------------------------------";

/// The connector.
#[derive(Debug)]
pub struct Console;

#[async_trait]
impl Connector for Console {
    fn name(&self) -> &'static str {
        "CONSOLE"
    }

    async fn table(&self, mut spec: TableSpec) -> Result<ConnectorTable> {
        let num_rows = spec.options.parsed("num_rows")?.unwrap_or(NUM_ROWS);
        let truncate = match spec.options.text("truncate").as_deref() {
            None | Some("true") => Some(TRUNCATE),
            Some("false") => None,
            Some(number) => Some(number.parse().map_err(|_| {
                spec.options.error(format!(
                    "option truncate '{number}': write 'true', 'false' or a number of characters"
                ))
            })?),
        };
        spec.options.finish()?;
        Ok(ConnectorTable {
            schema: spec.schema,
            source: None,
            sink: Some(Arc::new(ConsoleSink {
                name: spec.name,
                shown: Shown { num_rows, truncate },
            })),
        })
    }

    fn writer(&self, encoded: &[u8]) -> Result<Arc<dyn SinkWriter>> {
        let shown: Shown = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a console writer of another version: {e}")))?;
        Ok(Arc::new(shown))
    }
}

#[derive(Debug)]
struct ConsoleSink {
    name: String,
    shown: Shown,
}

#[async_trait]
impl Sink for ConsoleSink {
    async fn plan(
        &self,
        input: &SchemaRef,
        _overwrite: bool,
        _run: &SinkRun,
    ) -> Result<PlannedSink> {
        Ok(PlannedSink {
            writer: Arc::new(self.shown),
            committer: Arc::new(Printer {
                name: self.name.clone(),
                columns: column_names(input),
                num_rows: self.shown.num_rows,
            }),
        })
    }

    async fn stream(
        &self,
        input: &SchemaRef,
        _mode: OutputMode,
        _run: &SinkRun,
    ) -> Result<Arc<dyn StreamSink>> {
        Ok(Arc::new(EpochPrinter {
            name: self.name.clone(),
            columns: column_names(input),
            shown: self.shown,
        }))
    }
}

fn column_names(schema: &SchemaRef) -> Vec<String> {
    let names = schema.fields().iter().map(|field| field.name().clone());
    names.collect()
}

/// What is shown of a result. As a writer it keeps the first rows, as text, and counts the others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Shown {
    /// Rows printed at most.
    num_rows: usize,
    /// Characters of a cell printed at most.
    truncate: Option<usize>,
}

#[async_trait]
impl SinkWriter for Shown {
    fn encode(&self) -> Vec<u8> {
        serde_json::json!({"num_rows": self.num_rows, "truncate": self.truncate})
            .to_string()
            .into_bytes()
    }

    fn describe(&self) -> String {
        format!("num_rows={}", self.num_rows)
    }

    async fn write(
        &self,
        _partition: usize,
        rows: SendableRecordBatchStream,
        _ctx: &Arc<TaskContext>,
    ) -> Result<Part> {
        self.keep(rows).await
    }
}

impl Shown {
    async fn keep(self, mut rows: SendableRecordBatchStream) -> Result<Part> {
        let mut count = 0;
        let mut bytes = 0;
        let mut kept: Vec<Vec<String>> = Vec::new();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            count += batch.num_rows() as u64;
            let wanted = self.num_rows.saturating_sub(kept.len());
            for row in cells(&batch.slice(0, wanted.min(batch.num_rows())), self.truncate)? {
                bytes += row.iter().map(String::len).sum::<usize>();
                if bytes <= MAX_BYTES {
                    kept.push(row);
                }
            }
        }
        Ok(Part {
            rows: count,
            payload: serde_json::to_string(&kept)
                .map_err(|e| Error::internal(format!("rows for the console: {e}")))?,
        })
    }
}

/// The cells of a batch as text, row by row.
fn cells(batch: &RecordBatch, truncate: Option<usize>) -> Result<Vec<Vec<String>>> {
    let wrong = |e: arrow::error::ArrowError| Error::data(format!("rows for the console: {e}"));
    let options = FormatOptions::default().with_null("NULL");
    let columns = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<Vec<_>, _>>()
        .map_err(wrong)?;
    (0..batch.num_rows())
        .map(|row| {
            columns
                .iter()
                .map(|column| {
                    let text = column.value(row).try_to_string().map_err(wrong)?;
                    Ok(match truncate {
                        Some(limit) if text.chars().count() > limit => shorten(&text, limit),
                        _ => text,
                    })
                })
                .collect()
        })
        .collect()
}

/// The first characters, the last three of them dots where there is room, as Spark does.
fn shorten(text: &str, limit: usize) -> String {
    let dots = if limit >= 4 { "..." } else { "" };
    let mut short: String = text.chars().take(limit - dots.len()).collect();
    short.push_str(dots);
    short
}

#[derive(Debug)]
struct Printer {
    name: String,
    columns: Vec<String>,
    num_rows: usize,
}

impl Printer {
    fn format(&self, parts: &[Part]) -> Result<String> {
        let wrong =
            |e: &dyn std::fmt::Display| Error::internal(format!("rows for the console: {e}"));
        let total: u64 = parts.iter().map(|part| part.rows).sum();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for part in parts {
            let more: Vec<Vec<String>> =
                serde_json::from_str(&part.payload).map_err(|e| wrong(&e))?;
            rows.extend(more);
        }
        rows.truncate(self.num_rows);
        let fields: Vec<Field> = self
            .columns
            .iter()
            .map(|name| Field::new(name, DataType::Utf8, false))
            .collect();
        let columns = (0..fields.len())
            .map(|column| {
                let cells = rows.iter().map(|row| row.get(column).map(String::as_str));
                Arc::new(StringArray::from_iter_values(cells.flatten())) as ArrayRef
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch =
            RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
                .map_err(|e| wrong(&e))?;
        let table = pretty_format_batches(&[batch]).map_err(|e| wrong(&e))?;
        let note = if (rows.len() as u64) < total {
            format!("only showing {} of {total} rows\n", rows.len())
        } else {
            String::new()
        };
        Ok(format!("{}\n{table}\n{note}", self.name))
    }
}

#[async_trait]
impl SinkCommitter for Printer {
    async fn begin(&self) -> Result<Begin> {
        Ok(Begin::Fresh)
    }

    async fn commit(&self, parts: Vec<Part>) -> Result<()> {
        print(self.format(&parts)?).await
    }

    async fn abort(&self) {}
}

async fn print(text: String) -> Result<()> {
    // A pipe that nobody reads must not hold up the runtime.
    tokio::task::spawn_blocking(move || std::io::stdout().lock().write_all(text.as_bytes()))
        .await
        .map_err(|e| Error::internal(format!("printing a result: {e}")))?
        .map_err(|e| Error::unavailable(format!("printing a result: {e}")))
}

/// Prints each epoch of a streaming job. What is printed is not remembered: after a restart the last epoch may come
/// again.
#[derive(Debug)]
struct EpochPrinter {
    name: String,
    columns: Vec<String>,
    shown: Shown,
}

impl EpochPrinter {
    /// How many rows there were, and the text to print.
    async fn table(&self, epoch: u64, rows: SendableRecordBatchStream) -> Result<(u64, String)> {
        let part = self.shown.keep(rows).await?;
        let printer = Printer {
            name: format!("{RULE}\nEpoch: {epoch} ({})\n{RULE}", self.name),
            columns: self.columns.clone(),
            num_rows: self.shown.num_rows,
        };
        Ok((part.rows, printer.format(&[part])?))
    }
}

#[async_trait]
impl StreamSink for EpochPrinter {
    async fn begin(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    async fn commit(&self, epoch: u64, rows: SendableRecordBatchStream) -> Result<u64> {
        let (count, text) = self.table(epoch, rows).await?;
        print(text).await?;
        Ok(count)
    }

    fn describe(&self) -> String {
        format!(
            "num_rows={}, at least once: prints each epoch",
            self.shown.num_rows
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Int64Array;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    #[test]
    fn the_first_rows_are_shown_and_the_others_counted() {
        let batch = RecordBatch::try_from_iter([
            (
                "id",
                Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef,
            ),
            (
                "content",
                Arc::new(StringArray::from(vec!["short", "a text that is too long"])) as ArrayRef,
            ),
        ])
        .unwrap();
        let rows = cells(&batch, Some(10)).unwrap();
        let part = Part {
            rows: 5,
            payload: serde_json::to_string(&rows).unwrap(),
        };
        let printer = Printer {
            name: "out".to_owned(),
            columns: vec!["id".to_owned(), "content".to_owned()],
            num_rows: 20,
        };
        assert_eq!(
            printer.format(&[part]).unwrap(),
            "out\n\
             +------+------------+\n\
             | id   | content    |\n\
             +------+------------+\n\
             | 1    | short      |\n\
             | NULL | a text ... |\n\
             +------+------------+\n\
             only showing 2 of 5 rows\n"
        );
    }

    #[tokio::test]
    async fn an_epoch_is_shown_under_its_number() {
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        let schema = batch.schema();
        let sink = EpochPrinter {
            name: "out".to_owned(),
            columns: column_names(&schema),
            shown: Shown {
                num_rows: 2,
                truncate: None,
            },
        };
        let rows = futures::stream::iter([Ok(batch)]);
        let rows = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
        let (count, text) = sink.table(3, rows).await.unwrap();
        assert_eq!(count, 3);
        assert_eq!(
            text,
            "-------------------------------------------\n\
             Epoch: 3 (out)\n\
             -------------------------------------------\n\
             +----+\n\
             | id |\n\
             +----+\n\
             | 1  |\n\
             | 2  |\n\
             +----+\n\
             only showing 2 of 3 rows\n"
        );
        assert_eq!(sink.begin().await.unwrap(), None);
    }
}
