//! The sink writer: fills a staging table of its own, in one transaction, so that a dead attempt leaves nothing.

use super::encode::{HEAD, TAIL, encode};
use crate::connector::{Part, SinkWriter};
use crate::error::{Error, Result};
use crate::sources::postgres::client::{COPY, Client, Database, STATEMENT, quote};
use crate::sources::postgres::types::Kind;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes that are sent at a time.
const CHUNK: usize = 256 * 1024;

/// Writes any partition of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Writer {
    pub database: Database,
    /// The schema of the target, in which the staging tables lie too.
    pub schema: String,
    /// For people.
    pub target: String,
    /// The names of this generation's staging tables begin with it.
    pub prefix: String,
    /// The target's columns, in the order of the input's.
    pub columns: Vec<(String, Kind)>,
}

impl Writer {
    /// Reads back what `encode` wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn decode(encoded: &[u8]) -> Result<Self> {
        serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a Postgres writer of another version: {e}")))
    }

    /// Begins the transaction, creates the staging table and opens the COPY.
    async fn open(&self, table: &str, ctx: &TaskContext) -> Result<Client> {
        let begin = format!(
            "BEGIN; CREATE UNLOGGED TABLE {table} ({})",
            staged_columns(&self.columns)
        );
        self.database.start(ctx, &begin).await
    }
}

/// The columns of a staging table: one of a type that has no binary form here is staged as text and cast by the commit.
pub fn staged_columns(columns: &[(String, Kind)]) -> String {
    let columns: Vec<String> = columns
        .iter()
        .map(|(name, kind)| match kind {
            Kind::Other { .. } => format!("{} text", quote(name)),
            kind => format!("{} {}", quote(name), kind.sql()),
        })
        .collect();
    columns.join(", ")
}

/// The next batch that has rows.
///
/// # Errors
/// Those of `rows`.
pub async fn next_rows(rows: &mut SendableRecordBatchStream) -> Result<Option<RecordBatch>> {
    while let Some(batch) = rows.next().await.transpose()? {
        if batch.num_rows() > 0 {
            return Ok(Some(batch));
        }
    }
    Ok(None)
}

/// Sends `first` and the rest by a binary COPY, as fast as the server takes them; returns how many rows there were.
/// `target` is for people. After an error the connection is of no more use.
///
/// # Errors
/// Those of `rows`; of a value that does not fit, and of the server.
pub async fn copy(
    client: &mut Client,
    statement: &str,
    target: &str,
    columns: &[(String, Kind)],
    first: &RecordBatch,
    rows: &mut SendableRecordBatchStream,
) -> Result<u64> {
    let place = client.place().to_owned();
    // What the rows' own stream says has nothing to do with the target.
    let refused = |error: Error| error.context(target);
    let copy = client.connection().copy_in_raw(statement);
    let mut copy = Client::within(&place, COPY, copy).await.map_err(refused)?;
    let mut buffer = HEAD.to_vec();
    let mut next = Some(first.clone());
    let mut count = 0;
    while let Some(batch) = next {
        count += batch.num_rows() as u64;
        encode(&batch, columns, &mut buffer).map_err(refused)?;
        if buffer.len() >= CHUNK {
            for chunk in buffer.chunks(CHUNK) {
                let sent = Client::within(&place, COPY, copy.send(chunk)).await;
                sent.map_err(refused)?;
            }
            buffer.clear();
        }
        next = next_rows(rows).await?;
    }
    buffer.extend_from_slice(&TAIL);
    let sent = Client::within(&place, COPY, copy.send(buffer.as_slice())).await;
    sent.map_err(refused)?;
    let copied = Client::within(&place, COPY, copy.finish()).await;
    let copied = copied.map_err(refused)?;
    if copied != count {
        return Err(Error::internal(format!(
            "{place} took {copied} of {count} rows"
        )));
    }
    Ok(count)
}

#[async_trait]
impl SinkWriter for Writer {
    fn encode(&self) -> Vec<u8> {
        // Names and types: JSON has a form for all of them.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn describe(&self) -> String {
        format!("target={}, staged by binary COPY", self.target)
    }

    async fn write(
        &self,
        _partition: usize,
        mut rows: SendableRecordBatchStream,
        ctx: &Arc<TaskContext>,
    ) -> Result<Part> {
        // Nothing is staged for a partition without rows, and no connection waits for the first of them.
        let Some(first) = next_rows(&mut rows).await? else {
            return Ok(Part {
                rows: 0,
                payload: String::new(),
            });
        };
        let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let name = format!("{}{random}", self.prefix);
        let table = format!("{}.{}", quote(&self.schema), quote(&name));
        // Dropped on an error, or with this future, the connection closes and the server rolls all of it back.
        let mut client = self.open(&table, ctx).await?;
        let statement = format!("COPY {table} FROM STDIN (FORMAT binary)");
        let count = copy(
            &mut client,
            &statement,
            &self.target,
            &self.columns,
            &first,
            &mut rows,
        )
        .await?;
        client.run("COMMIT", STATEMENT).await?;
        client.keep(ctx);
        Ok(Part {
            rows: count,
            payload: name,
        })
    }
}
