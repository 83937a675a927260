//! Drops and counts the rows of an event stream that come too late for the watermark.

use crate::functions::window::{Scale, WindowSpec};
use crate::stream::EpochParams;
use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, Scalar};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::cmp::gt_eq;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{
    Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use std::fmt;
use std::sync::Arc;

/// What keeps a row in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The last window that holds its time has not closed: its end is after the watermark.
    Window(WindowSpec),
    /// Its time and so many ms are not before the watermark.
    Allowance(i64),
}

impl Until {
    /// The first time that is not late, ms.
    fn first(self, watermark: i64) -> i64 {
        match self {
            Self::Window(window) => window.first_open(watermark),
            Self::Allowance(ms) => watermark.saturating_sub(ms),
        }
    }
}

/// Passes the rows on that are in time for the watermark that the epoch before left ([`EpochParams`], an extension of
/// the session's configuration). Without a watermark every row is. Rows without a time are not late: they pass, and
/// the query filters them out itself if it groups by a window.
#[derive(Debug)]
pub struct LateFilterExec {
    query: u32,
    column: usize,
    until: Until,
    input: Arc<dyn ExecutionPlan>,
    late: Count,
    metrics: ExecutionPlanMetricsSet,
}

impl LateFilterExec {
    /// Filters for the INSERT at position `query` of the job, by the timestamps in `column` (an index).
    pub fn new(input: Arc<dyn ExecutionPlan>, query: u32, column: usize, until: Until) -> Self {
        let metrics = ExecutionPlanMetricsSet::new();
        Self {
            query,
            column,
            until,
            input,
            late: MetricBuilder::new(&metrics).global_counter("late_rows"),
            metrics,
        }
    }

    /// The INSERT's position in the job.
    pub fn query(&self) -> u32 {
        self.query
    }

    /// The column with the event time, by its index.
    pub fn column(&self) -> usize {
        self.column
    }

    /// What keeps a row in time.
    pub fn until(&self) -> Until {
        self.until
    }

    /// The rows dropped so far, in all partitions.
    pub fn late_rows(&self) -> usize {
        self.late.value()
    }

    /// The first time of the column's type that is not late.
    fn bound(&self, watermark: i64) -> Result<ArrayRef> {
        let schema = self.schema();
        let data_type = schema.field(self.column).data_type();
        let bound = Scale::of(data_type)?.bound(self.until.first(watermark));
        let DataType::Timestamp(unit, zone) = data_type else {
            return internal_err!("{data_type} is no timestamp");
        };
        ScalarValue::Int64(Some(bound))
            .cast_to(&DataType::Timestamp(*unit, zone.clone()))?
            .to_array()
    }
}

/// The rows of a batch whose time is at least `bound`, or NULL.
fn in_time(batch: &RecordBatch, column: usize, bound: &ArrayRef) -> Result<RecordBatch> {
    let kept = gt_eq(batch.column(column), &Scalar::new(bound))?;
    let kept = match kept.nulls() {
        None => kept,
        Some(nulls) => {
            let absent = !nulls.inner();
            BooleanArray::new(&(kept.values() & nulls.inner()) | &absent, None)
        }
    };
    if kept.false_count() == 0 {
        return Ok(batch.clone());
    }
    Ok(filter_record_batch(batch, &kept)?)
}

impl DisplayAs for LateFilterExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LateFilterExec: @{}, ", self.column)?;
        match self.until {
            Until::Window(window) => write!(f, "window={window}"),
            Until::Allowance(ms) => write!(f, "allowance={ms}ms"),
        }
    }
}

impl ExecutionPlan for LateFilterExec {
    fn name(&self) -> &str {
        "LateFilterExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(
                input,
                self.query,
                self.column,
                self.until,
            ))),
            _ => internal_err!("a LateFilterExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&ctx))?;
        let params = ctx.session_config().get_extension::<EpochParams>();
        let Some(watermark) = params.and_then(|p| p.watermarks.get(&self.query).copied()) else {
            return Ok(input);
        };
        let bound = self.bound(watermark)?;
        let (column, late) = (self.column, self.late.clone());
        let kept = input.map(move |batch| {
            let batch = batch?;
            let kept = in_time(&batch, column, &bound)?;
            late.add(batch.num_rows() - kept.num_rows());
            Ok(kept)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), kept)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
