//! The worker's half of the source: one `find` for each split.

use super::client::{Connected, Database, SCAN};
use super::decode::{Conflict, Decoder};
use super::split::Range;
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::scan::ScanMetrics;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use mongodb::bson::{Bson, Document, RawDocument};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Batches that wait for the operators above while the next one is decoded.
const BATCHES_AHEAD: usize = 2;

/// What becomes of a document that does not fit the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It ends the query.
    Fail,
    /// It is dropped and counted.
    Skip,
}

/// Reads any split of one scan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reader {
    pub database: Database,
    pub collection: String,
    /// What the server leaves out, as MongoDB's extended JSON; each is a query of its own.
    pub filters: Vec<serde_json::Value>,
    pub on_error: OnError,
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
            .map_err(|e| Error::internal(format!("a MongoDB reader of another version: {e}")))?;
        Ok(Self { schema, ..reader })
    }

    fn query(&self, range: &Range) -> Result<Document> {
        let mut terms: Vec<Document> = range.query()?.into_iter().collect();
        for filter in &self.filters {
            match Bson::try_from(filter.clone()) {
                Ok(Bson::Document(filter)) => terms.push(filter),
                _ => return Err(Error::internal("a MongoDB filter of another version")),
            }
        }
        Ok(match terms.len() {
            0 => Document::new(),
            1 => terms.swap_remove(0),
            _ => mongodb::bson::doc! { "$and": terms },
        })
    }

    /// The columns that the server sends, and `_id` for errors.
    fn projection(&self) -> Document {
        let mut projection = mongodb::bson::doc! { "_id": 1 };
        for field in self.schema.fields() {
            projection.insert(field.name().clone(), 1);
        }
        projection
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
        let names: Vec<&str> = self
            .schema
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        let mut text = format!(
            "collection={}, fields=[{}]",
            self.collection,
            names.join(", ")
        );
        if !self.filters.is_empty() {
            let shown: Vec<String> = self.filters.iter().map(relaxed).collect();
            text.push_str(&format!(", filter=[{}]", shown.join(", ")));
        }
        if let Some(limit) = self.limit {
            text.push_str(&format!(", limit={limit}"));
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
            .map_err(|e| Error::internal(format!("a MongoDB split of another version: {e}")))?;
        let mut stream = RecordBatchReceiverStream::builder(self.schema(), BATCHES_AHEAD);
        let scan = Scan {
            reader: self.clone(),
            batch_size: ctx.session_config().batch_size().max(1),
            counts: ScanMetrics::new(metrics, partition),
            batches: stream.tx(),
        };
        let ctx = Arc::clone(ctx);
        // The task ends with the stream; the driver closes the cursor when it is dropped.
        stream.spawn(async move { Ok(scan.run(&range, &ctx).await?) });
        Ok(stream.build())
    }
}

/// A filter as people write it: numbers as numbers.
fn relaxed(filter: &serde_json::Value) -> String {
    match Bson::try_from(filter.clone()) {
        Ok(filter) => filter.into_relaxed_extjson().to_string(),
        Err(_) => filter.to_string(),
    }
}

/// One split being read.
struct Scan {
    reader: Reader,
    batch_size: usize,
    counts: ScanMetrics,
    batches: tokio::sync::mpsc::Sender<datafusion::common::Result<RecordBatch>>,
}

impl Scan {
    async fn run(self, range: &Range, ctx: &TaskContext) -> Result<()> {
        let connected = self.reader.database.open_warm(ctx).await?;
        let place = format!("collection {}", self.reader.collection);
        self.find(&connected, range)
            .await
            .map_err(|e| e.context(place))
    }

    async fn find(&self, connected: &Connected, range: &Range) -> Result<()> {
        let collection = connected.raw(&self.reader.collection);
        let mut find = collection
            .find(self.reader.query(range)?)
            .projection(self.reader.projection())
            .batch_size(u32::try_from(self.batch_size).unwrap_or(u32::MAX));
        let wanted = self.reader.limit.unwrap_or(usize::MAX);
        // Of a server's limit those that are skipped would be a part; and a limit of 0 would mean none.
        if let (Some(limit @ 1..), OnError::Fail) = (self.reader.limit, self.reader.on_error) {
            find = find.limit(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        let mut cursor = connected.within(SCAN, find).await?;
        let mut decoder = Decoder::new(self.reader.schema());
        let mut rows = 0;
        while rows < wanted && connected.within(SCAN, cursor.advance()).await? {
            let document = cursor.current();
            self.counts.rows_in.add(1);
            self.counts.bytes_in.add(document.as_bytes().len());
            match (decoder.push(document), self.reader.on_error) {
                (Ok(()), _) => rows += 1,
                (Err(conflict), OnError::Fail) => return Err(refused(document, &conflict)),
                (Err(_), OnError::Skip) => self.counts.records_skipped.add(1),
            }
            if decoder.rows() == self.batch_size
                && self.batches.send(Ok(decoder.finish()?)).await.is_err()
            {
                // Nobody wants them any more.
                return Ok(());
            }
        }
        if decoder.rows() > 0 {
            // Whether it is still wanted makes no difference now.
            let _ = self.batches.send(Ok(decoder.finish()?)).await;
        }
        Ok(())
    }
}

fn refused(document: &RawDocument, conflict: &Conflict) -> Error {
    let id = document.get("_id").ok().flatten();
    let id = id.and_then(|id| Bson::try_from(id).ok());
    let id = id.map_or_else(
        || "missing".to_owned(),
        |id| id.into_relaxed_extjson().to_string(),
    );
    Error::data(format!(
        "the document with _id {id}, field {}: {}. Declare the column with a type that holds it (VARCHAR holds all), or set \
         on_error 'skip'",
        conflict.path, conflict.reason
    ))
}
