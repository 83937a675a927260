//! The master's half: from the table's options to offset ranges to splits.

use super::check;
use super::offsets::{OffsetPlanner, OffsetRange, OffsetSpec, cut};
use super::reader::{KafkaReader, ReaderPlan, split_of};
use super::stream::KafkaStream;
use crate::check::Finding;
use crate::connector::{PlannedScan, ScanRequest, Source};
use crate::error::{Error, Result};
use crate::scan::project_schema;
use crate::stream::StreamSource;
use crate::trace;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use std::sync::Arc;

/// Offsets below which a partition is not cut: a reader fetches ahead a few MiB that the next one fetches again.
const LEAST_OFFSETS: u64 = 10_000;

/// The topics of one table.
#[derive(Debug)]
pub struct KafkaSource {
    pub schema: SchemaRef,
    pub starting: OffsetSpec,
    pub ending: OffsetSpec,
    pub reader: ReaderPlan,
    pub planner: Arc<OffsetPlanner>,
    pub stream: Arc<KafkaStream>,
}

impl KafkaSource {
    /// The offsets between two specifications, as they are now.
    ///
    /// # Errors
    /// As [`OffsetPlanner::plan`].
    pub async fn offsets(
        &self,
        starting: &OffsetSpec,
        ending: &OffsetSpec,
    ) -> Result<Vec<OffsetRange>> {
        let planner = Arc::clone(&self.planner);
        let (starting, ending) = (starting.clone(), ending.clone());
        let fail_on_data_loss = self.reader.fail_on_data_loss;
        // librdkafka's calls block, each with a deadline of its own.
        trace::spawn_blocking(move || planner.plan(&starting, &ending, fail_on_data_loss))
            .await
            .map_err(|e| Error::internal(format!("the planning of offsets broke down: {e}")))?
    }

    /// A scan of ranges that are planned already.
    ///
    /// # Errors
    /// A projection of columns that are not there.
    pub fn scan(
        &self,
        ranges: &[OffsetRange],
        projection: &[usize],
        limit: Option<usize>,
        target_splits: usize,
    ) -> Result<PlannedScan> {
        // With a limit a partition's first records will do: more pieces would each read as many.
        let target_splits = if limit.is_some() { 1 } else { target_splits };
        let splits = cut(ranges, target_splits, LEAST_OFFSETS)
            .iter()
            .map(split_of)
            .collect::<Result<_>>()?;
        let plan = ReaderPlan {
            limit,
            ..self.reader.clone()
        };
        Ok(PlannedScan {
            reader: Arc::new(KafkaReader {
                schema: project_schema(&self.schema, projection)?,
                plan,
            }),
            splits,
        })
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let ranges = self.offsets(&self.starting, &self.ending).await?;
        self.scan(
            &ranges,
            request.projection,
            request.limit,
            request.target_splits,
        )
    }

    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        Some(Arc::clone(&self.stream) as _)
    }

    async fn findings(&self, unbounded: bool) -> Result<Vec<Finding>> {
        check::source(self, unbounded).await
    }
}
