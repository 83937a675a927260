//! The sink writer: fills a staging collection of its own.

use super::encode;
use super::target::{Chunk, bytes};
use crate::connector::{Part, SinkWriter};
use crate::error::{Error, Result};
use crate::sinks::postgres::writer::next_rows;
use crate::sources::mongodb::client::{Connected, Database, SCAN};
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use mongodb::bson::doc;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The field of a staged document that holds the row; its `_id` is the row's number.
pub const ROW: &str = "row";

/// Writes any partition of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Writer {
    pub database: Database,
    /// The target, for people.
    pub collection: String,
    /// The names of this generation's staging collections begin with it.
    pub prefix: String,
}

impl Writer {
    /// Reads back what `encode` wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn decode(encoded: &[u8]) -> Result<Self> {
        serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("a MongoDB writer of another version: {e}")))
    }

    async fn send(&self, connected: &Connected, staging: &str, chunk: Chunk) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let collection = connected.collection(staging);
        let insert = collection.insert_many(chunk.documents()).ordered(false);
        connected
            .within(SCAN, insert)
            .await
            .map_err(|e| e.context(format!("collection {}", self.collection)))?;
        Ok(())
    }
}

#[async_trait]
impl SinkWriter for Writer {
    fn encode(&self) -> Vec<u8> {
        // Names only: JSON has a form for all of them.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn describe(&self) -> String {
        format!("collection={}, staged", self.collection)
    }

    async fn write(
        &self,
        _partition: usize,
        mut rows: SendableRecordBatchStream,
        ctx: &Arc<TaskContext>,
    ) -> Result<Part> {
        let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let staging = format!("{}{random}", self.prefix);
        let mut connected = None;
        let mut chunk = Chunk::default();
        let mut number = 0i64;
        // Nothing is staged for a partition without rows, and no connection waits for the first of them.
        while let Some(batch) = next_rows(&mut rows).await? {
            let connected = match &connected {
                Some(connected) => connected,
                None => connected.insert(self.database.open_warm(ctx).await?),
            };
            for row in encode::documents(&batch)? {
                let document = doc! { "_id": number, ROW: row };
                let size = bytes(&document)?.len();
                if chunk.is_full(size) {
                    self.send(connected, &staging, std::mem::take(&mut chunk))
                        .await?;
                }
                chunk.push(document, size);
                number += 1;
            }
        }
        let Some(connected) = connected else {
            return Ok(Part {
                rows: 0,
                payload: String::new(),
            });
        };
        self.send(&connected, &staging, chunk).await?;
        Ok(Part {
            rows: u64::try_from(number).unwrap_or_default(),
            payload: staging,
        })
    }
}
