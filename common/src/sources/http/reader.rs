//! The worker's half of a batch: asks for its URLs one after the other, page by page.

use super::fetch::{Fetcher, Requests};
use super::pages::{PagePlan, Pages, Walk};
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::scan::ScanMetrics;
use crate::sources::feed::plan::RowPlan;
use crate::sources::feed::rows::Rows;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use url::Url;

/// What a worker must know to read any split of a scan. Travels as JSON, secrets included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpPlan {
    pub requests: Requests,
    pub pages: PagePlan,
    pub rows: RowPlan,
    /// Rows wanted of each split, at most.
    pub limit: Option<usize>,
}

/// Reads the splits of one scan.
#[derive(Debug)]
pub struct HttpReader {
    pub schema: SchemaRef,
    pub plan: HttpPlan,
}

/// Some URLs as a split; `label` shows no secret.
///
/// # Errors
/// None: URLs are plain text.
pub fn split_of(urls: &[Url], label: String) -> Result<Split> {
    let texts: Vec<&str> = urls.iter().map(Url::as_str).collect();
    Ok(Split {
        label,
        payload: serde_json::to_vec(&texts).map_err(|e| Error::internal(e.to_string()))?,
        partition: String::new(),
        rows: None,
        bytes: None,
    })
}

impl SplitReader for HttpReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        // Strings and numbers under string keys: it cannot fail, and an empty plan would be refused by the reader.
        serde_json::to_vec(&self.plan).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let limit = self.plan.limit;
        let limit = limit.map_or_else(String::new, |n| format!(", limit={n}"));
        format!("{}{limit}", self.plan.rows.describe(&self.schema))
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let other = |e: &dyn Display| Error::internal(format!("a split of another version: {e}"));
        let urls: Vec<String> = serde_json::from_slice(&split.payload).map_err(|e| other(&e))?;
        let urls = urls
            .iter()
            .map(|url| Url::parse(url).map_err(|e| other(&e)));
        let urls = urls.collect::<Result<_>>()?;
        let plan = self.plan.clone();
        let metrics = ScanMetrics::new(metrics, partition);
        let reading = Reading {
            pages: Arc::new(Pages::new(Fetcher::new(plan.requests), plan.pages)?),
            urls,
            walk: None,
            rows: Rows::new(plan.rows, self.schema(), ctx, metrics)?,
            number: 0,
            ready: VecDeque::new(),
            wanted: plan.limit.unwrap_or(usize::MAX),
        };
        let batches = futures::stream::try_unfold(reading, |mut reading| async move {
            let batch = reading.next().await.map_err(DataFusionError::from)?;
            Ok(batch.map(|batch| (batch, reading)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            batches,
        )))
    }
}

/// The reading of one split.
struct Reading {
    pages: Arc<Pages>,
    urls: VecDeque<Url>,
    /// Of the URL that is read now.
    walk: Option<Walk>,
    rows: Rows,
    /// Records of this URL so far.
    number: i64,
    ready: VecDeque<RecordBatch>,
    wanted: usize,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.wanted > 0 {
            if let Some(batch) = self.ready.pop_front() {
                let batch = batch.slice(0, batch.num_rows().min(self.wanted));
                self.wanted -= batch.num_rows();
                if batch.num_rows() > 0 {
                    return Ok(Some(batch));
                }
                continue;
            }
            let walk = match &mut self.walk {
                Some(walk) => walk,
                none => match self.urls.pop_front() {
                    Some(url) => {
                        self.number = 0;
                        none.insert(Walk::new(Arc::clone(&self.pages), url, None))
                    }
                    None => return Ok(None),
                },
            };
            match walk.next().await {
                Ok(Some(page)) => {
                    self.ready = self.rows.batches(&page.records, self.number)?.into();
                    self.number += page.records.len() as i64;
                }
                Ok(None) => self.walk = None,
                Err(error) => {
                    self.rows.skip(&walk.shown(), error)?;
                    self.walk = None;
                }
            }
        }
        Ok(None)
    }
}
