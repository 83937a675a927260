//! Finds the sessions among partial aggregates by time: intervals of one key that overlap are one session.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::{cast, concat_batches, take_arrays};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, Partitioning, PlanProperties,
};
use futures::TryStreamExt;
use std::fmt;
use std::sync::Arc;

/// Which columns of a partial aggregate make its sessions, by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionColumns {
    /// The start of an interval, which becomes the session's.
    pub start: usize,
    /// The end of an interval (exclusive), which becomes the session's.
    pub end: usize,
    /// The other columns that are grouped by.
    pub keys: Vec<usize>,
}

/// Gives each row the bounds of the session that it belongs to: rows of the same key whose intervals [start, end)
/// overlap, be it by way of others, are one session. A row is an event with its gap, or a session found before. Rows
/// come out in the order of their starts within a key; those without a time are dropped.
///
/// # Errors
/// Key columns that do not compare.
pub fn assign_sessions(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    columns: &SessionColumns,
) -> Result<RecordBatch> {
    let rows = concat_batches(schema, batches)?;
    let times = |column: usize| cast(rows.column(column), &DataType::Int64);
    let (starts, ends) = (times(columns.start)?, times(columns.end)?);
    let (starts, ends) = (
        starts.as_primitive::<Int64Type>(),
        ends.as_primitive::<Int64Type>(),
    );
    let fields = columns.keys.iter().map(|key| {
        let data_type = schema.field(*key).data_type();
        SortField::new(data_type.clone())
    });
    let keys: Vec<ArrayRef> = columns
        .keys
        .iter()
        .map(|key| Arc::clone(rows.column(*key)))
        .collect();
    let keys = if keys.is_empty() {
        None
    } else {
        Some(RowConverter::new(fields.collect())?.convert_columns(&keys)?)
    };
    let key = |row: u32| keys.as_ref().map(|keys| keys.row(row as usize));
    let mut order: Vec<u32> = (0..rows.num_rows() as u32)
        .filter(|row| starts.is_valid(*row as usize) && ends.is_valid(*row as usize))
        .collect();
    order.sort_unstable_by(|a, b| {
        let start = |row: u32| starts.value(row as usize);
        key(*a)
            .cmp(&key(*b))
            .then_with(|| start(*a).cmp(&start(*b)))
    });
    let (mut session_starts, mut session_ends) = (
        Vec::with_capacity(order.len()),
        Vec::with_capacity(order.len()),
    );
    let mut rest = order.as_slice();
    while let Some(&first) = rest.first() {
        let start = starts.value(first as usize);
        let mut end = ends.value(first as usize);
        let mut count = 1;
        for &row in &rest[1..] {
            if key(row) != key(first) || starts.value(row as usize) >= end {
                break;
            }
            end = end.max(ends.value(row as usize));
            count += 1;
        }
        session_starts.extend(std::iter::repeat_n(start, count));
        session_ends.extend(std::iter::repeat_n(end, count));
        rest = &rest[count..];
    }
    let mut values = take_arrays(
        rows.columns(),
        &arrow::array::UInt32Array::from(order),
        None,
    )?;
    for (column, times) in [(columns.start, session_starts), (columns.end, session_ends)] {
        values[column] = cast(&Int64Array::from(times), schema.field(column).data_type())?;
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), values)?)
}

/// [`assign_sessions`] of a whole partition. All rows of a key are in one partition.
#[derive(Debug)]
pub struct SessionMergeExec {
    columns: SessionColumns,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SessionMergeExec {
    /// Finds the sessions of `input`.
    pub fn new(columns: SessionColumns, input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self {
            columns,
            input,
            properties: Arc::new(properties),
        }
    }

    /// The columns that make the sessions.
    pub fn columns(&self) -> &SessionColumns {
        &self.columns
    }
}

impl DisplayAs for SessionMergeExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SessionColumns { start, end, keys } = &self.columns;
        write!(f, "SessionMergeExec: @{start}..@{end}, keys={keys:?}")
    }
}

impl ExecutionPlan for SessionMergeExec {
    fn name(&self) -> &str {
        "SessionMergeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let schema = self.input.schema();
        let keys = self.columns.keys.iter().map(|key| {
            Arc::new(Column::new(schema.field(*key).name(), *key)) as Arc<dyn PhysicalExpr>
        });
        InputDistributionRequirements::new(vec![if self.columns.keys.is_empty() {
            Distribution::SinglePartition
        } else {
            Distribution::KeyPartitioned(keys.collect())
        }])
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
            (Some(input), true) => Ok(Arc::new(Self::new(self.columns.clone(), input))),
            _ => internal_err!("a SessionMergeExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let mut input = self.input.execute(partition, Arc::clone(&ctx))?;
        let (schema, columns) = (self.schema(), self.columns.clone());
        let batch_size = ctx.session_config().batch_size();
        let consumer = MemoryConsumer::new(format!("SessionMergeExec[{partition}]"));
        let memory = consumer.register(ctx.memory_pool());
        let merged = async move {
            let mut batches = Vec::new();
            while let Some(batch) = input.try_next().await? {
                // The rows once more in their new order, beside the rows as they came.
                memory.try_grow(2 * batch.get_array_memory_size())?;
                batches.push(batch);
            }
            let rows = assign_sessions(&schema, &batches, &columns)?;
            drop(batches);
            let pieces = (0..rows.num_rows()).step_by(batch_size).map(move |from| {
                // Held until the last row is out.
                let _held = &memory;
                Ok(rows.slice(from, batch_size.min(rows.num_rows() - from)))
            });
            Ok::<_, datafusion::error::DataFusionError>(futures::stream::iter(pieces))
        };
        let merged = futures::stream::once(merged).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            merged,
        )))
    }
}
