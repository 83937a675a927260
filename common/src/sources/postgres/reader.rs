//! The worker's half of the source: one `COPY (SELECT …) TO STDOUT` for each split.

use super::client::{COPY, Client, Database, STATEMENT, sql_error};
use super::decode::Decoder;
use super::ranges::Range;
use super::snapshot::adopt;
use super::source::ReadColumn;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, ErrorKind, Result, of_cast};
use crate::scan::ScanMetrics;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::SchemaRef;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Batches that wait for the operators above while the next one is decoded.
const BATCHES_AHEAD: usize = 2;

/// Reads any split of one scan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reader {
    pub database: Database,
    /// The master's snapshot.
    pub snapshot: String,
    /// For people.
    pub relation: String,
    pub columns: Vec<ReadColumn>,
    /// What the server filters by, as SQL.
    pub filter: Option<String>,
    pub limit: Option<usize>,
    /// Travels beside.
    #[serde(skip, default = "crate::scan::no_columns")]
    pub schema: SchemaRef,
}

impl Reader {
    /// Reads back what `encode` wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn decode(encoded: &[u8], schema: SchemaRef) -> Result<Self> {
        let reader: Self = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a Postgres reader of another version: {e}")))?;
        Ok(Self { schema, ..reader })
    }

    fn select(&self, from: &str, predicate: Option<&str>) -> String {
        let list: Vec<String> = self.columns.iter().map(ReadColumn::sql).collect();
        let mut sql = format!("SELECT {} FROM {from}", list.join(", "));
        let terms: Vec<String> = [predicate, self.filter.as_deref()]
            .into_iter()
            .flatten()
            .map(|term| format!("({term})"))
            .collect();
        if !terms.is_empty() {
            sql.push_str(" WHERE ");
            sql.push_str(&terms.join(" AND "));
        }
        if let Some(limit) = self.limit {
            sql.push_str(&format!(" LIMIT {limit}"));
        }
        sql
    }
}

impl SplitReader for Reader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        // Names, numbers and texts: JSON has a form for all of them.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let mut text = format!("sql=[{}]", self.select(&self.relation, None));
        let notes: Vec<String> = self.columns.iter().filter_map(ReadColumn::note).collect();
        if !notes.is_empty() {
            text.push_str(&format!(", notes=[{}]", notes.join(", ")));
        }
        text
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let range: Range = serde_json::from_slice(&split.payload)
            .map_err(|e| Error::internal(format!("a Postgres split of another version: {e}")))?;
        let counts = ScanMetrics::new(metrics, partition);
        let mut stream = RecordBatchReceiverStream::builder(self.schema(), BATCHES_AHEAD);
        let batches = stream.tx();
        let scan = Scan {
            reader: self.clone(),
            label: split.label.clone(),
            batch_size: ctx.session_config().batch_size().max(1),
            counts,
            batches,
        };
        let ctx = Arc::clone(ctx);
        // The task ends with the stream: dropped, it closes the connection, and the server ends the COPY.
        stream.spawn(async move { Ok(scan.run(range, &ctx).await?) });
        Ok(stream.build())
    }
}

/// One split being read.
struct Scan {
    reader: Reader,
    label: String,
    batch_size: usize,
    counts: ScanMetrics,
    batches: tokio::sync::mpsc::Sender<datafusion::common::Result<RecordBatch>>,
}

impl Scan {
    async fn run(self, range: Range, ctx: &TaskContext) -> Result<()> {
        let adopt = adopt(&self.reader.snapshot);
        let mut client = self
            .reader
            .database
            .start(ctx, &adopt)
            .await
            .map_err(lost_snapshot)?;
        let select = self.reader.select(&range.from, range.predicate.as_deref());
        let wanted = self
            .copy(&mut client, &select)
            .await
            .map_err(|e| e.context(format!("{} ({})", self.reader.relation, self.label)))?;
        if wanted {
            // The snapshot is let go at once: kept open it would hold back the server's VACUUM.
            client.run("COMMIT", STATEMENT).await?;
            client.keep(ctx);
        }
        Ok(())
    }

    /// Copies all rows; false if nobody wants them any more.
    async fn copy(&self, client: &mut Client, select: &str) -> Result<bool> {
        let place = client.place().to_owned();
        let columns: Vec<_> = self
            .reader
            .columns
            .iter()
            .map(|column| (column.name.clone(), column.comes_as().clone()))
            .collect();
        let mut decoder = Decoder::new(&columns, self.batch_size);
        let copy = format!("COPY ({select}) TO STDOUT (FORMAT binary)");
        let rows = client.connection().copy_out_raw(&copy);
        let mut rows = Client::within(&place, COPY, rows).await?;
        let mut bytes = 0;
        loop {
            // A deadline costs as much as a short row: only waits that happen get one.
            let chunk = match rows.next().now_or_never() {
                Some(chunk) => chunk,
                None => match tokio::time::timeout(COPY, rows.next()).await {
                    Ok(chunk) => chunk,
                    Err(_) => {
                        return Err(Error::unavailable(format!(
                            "{place} has sent nothing for {} s",
                            COPY.as_secs()
                        )));
                    }
                },
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|e| sql_error(&e, &place))?;
            bytes += chunk.len();
            decoder.decode(&chunk)?;
            if decoder.rows() >= self.batch_size {
                self.counts.bytes_in.add(std::mem::take(&mut bytes));
                if !self.emit(&mut decoder).await? {
                    return Ok(false);
                }
            }
        }
        if !decoder.is_complete() {
            return Err(Error::unavailable(format!(
                "{place} ended the COPY before its end"
            )));
        }
        self.counts.bytes_in.add(bytes);
        if decoder.rows() > 0 {
            return self.emit(&mut decoder).await;
        }
        Ok(true)
    }

    /// Hands the decoded rows on; false if nobody wants them any more.
    async fn emit(&self, decoder: &mut Decoder) -> Result<bool> {
        let rows = decoder.rows();
        let schema = &self.reader.schema;
        let columns = decoder
            .take()?
            .into_iter()
            .zip(schema.fields())
            .map(|(column, field)| {
                if column.data_type() == field.data_type() {
                    return Ok(column);
                }
                let options = CastOptions {
                    safe: false,
                    ..CastOptions::default()
                };
                cast_with_options(&column, field.data_type(), &options).map_err(|e| {
                    of_cast(&e, field.data_type()).context(format!("column {}", field.name()))
                })
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
            .map_err(|e| Error::data(e.to_string()))?;
        self.counts.rows_in.add(rows);
        // One message of the server holds one row, so that more than a batch can only come through a proxy.
        for start in (0..rows).step_by(self.batch_size) {
            let piece = batch.slice(start, self.batch_size.min(rows - start));
            if self.batches.send(Ok(piece)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A snapshot that is not there any more is not a mistake in the job.
fn lost_snapshot(error: Error) -> Error {
    if error.kind() == ErrorKind::Unavailable {
        return error;
    }
    if error.to_string().contains("snapshot") {
        return Error::unavailable(format!(
            "the job's snapshot is gone, because the master's connection to the database broke: {error}"
        ));
    }
    error
}
