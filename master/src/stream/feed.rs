//! What stateful operators share: gathering an input, feeding batches to a plan, telling time.

use crate::stream::context::EpochContext;
use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimeUnit};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
    Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use essaim_common::Error;
use futures::TryStreamExt;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// The epoch that a plan runs in.
///
/// # Errors
/// It runs in none.
pub(super) fn epoch_of(ctx: &TaskContext) -> Result<Arc<EpochContext>> {
    let epoch = ctx.session_config().get_extension::<EpochContext>();
    Ok(epoch.ok_or_else(|| Error::internal("a stateful operator runs outside of an epoch"))?)
}

/// All rows of all partitions, those of the first partition first. `memory` grows by twice their size, for what is
/// made of them.
///
/// # Errors
/// Those of the input; too little memory.
pub(super) async fn gather(
    input: &Arc<dyn ExecutionPlan>,
    ctx: &Arc<TaskContext>,
    memory: &MemoryReservation,
) -> Result<Vec<RecordBatch>> {
    let partitions = (0..input.output_partitioning().partition_count())
        .map(|partition| input.execute(partition, Arc::clone(ctx)))
        .collect::<Result<Vec<_>>>()?;
    let partitions = partitions.into_iter().map(|mut rows| async move {
        let mut batches = Vec::new();
        while let Some(batch) = rows.try_next().await? {
            if batch.num_rows() > 0 {
                memory.try_grow(2 * batch.get_array_memory_size())?;
                batches.push(batch);
            }
        }
        Ok::<_, datafusion::error::DataFusionError>(batches)
    });
    let batches = futures::future::try_join_all(partitions).await?;
    Ok(batches.into_iter().flatten().collect())
}

/// A column of times as ms since 1970: timestamps, or numbers of ms.
///
/// # Errors
/// Another type.
pub(super) fn millis(column: &ArrayRef) -> Result<Int64Array> {
    let times = match column.data_type() {
        // The zone has to stay: without it, a time would become that of the clocks there.
        DataType::Timestamp(_, zone) => cast(
            column,
            &DataType::Timestamp(TimeUnit::Millisecond, zone.clone()),
        )?,
        DataType::Int64 => Arc::clone(column),
        other => {
            return internal_err!("a state cannot expire by a column of type {other}");
        }
    };
    let times = cast(&times, &DataType::Int64)?;
    Ok(times.as_primitive::<Int64Type>().clone())
}

/// A leaf that yields what it was made with, once.
pub(super) struct FeedExec {
    rows: Mutex<Option<SendableRecordBatchStream>>,
    properties: Arc<PlanProperties>,
}

impl FeedExec {
    /// Rows of `schema`, for the plans that are built over it; it yields nothing itself.
    pub(super) fn template(schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            rows: Mutex::new(None),
            properties: Arc::new(properties),
        }
    }

    /// Runs `plan`, whose only input is this template, over `rows`. Nothing is planned anew.
    ///
    /// # Errors
    /// Those of the plan.
    pub(super) fn run(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        rows: SendableRecordBatchStream,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
        let plan = Arc::clone(plan).replace_children(vec![self.leaf(Some(rows))], keep)?;
        plan.execute(0, ctx)
    }

    /// A leaf like this template that yields `rows`, once.
    pub(super) fn leaf(&self, rows: Option<SendableRecordBatchStream>) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self {
            rows: Mutex::new(rows),
            properties: Arc::clone(&self.properties),
        })
    }
}

impl fmt::Debug for FeedExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedExec")
    }
}

impl DisplayAs for FeedExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedExec")
    }
}

impl ExecutionPlan for FeedExec {
    fn name(&self) -> &str {
        "FeedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() {
            Ok(self)
        } else {
            internal_err!("a FeedExec has no children")
        }
    }

    fn execute(
        &self,
        _partition: usize,
        _ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        match self.rows.lock().take() {
            Some(rows) => Ok(rows),
            None => internal_err!("a FeedExec has nothing to yield"),
        }
    }
}
