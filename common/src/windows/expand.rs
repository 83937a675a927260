//! Repeats partial aggregates by pane for each window that holds the pane.

use crate::error::Error;
use crate::functions::window::WindowSpec;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties,
};
use futures::StreamExt;
use std::fmt;
use std::sync::Arc;

/// Rows in, for each of them as many rows out as there are windows that hold its pane. Rows without a time are dropped.
#[derive(Debug)]
pub struct WindowExpandExec {
    column: usize,
    window: WindowSpec,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl WindowExpandExec {
    /// Turns the pane's start in `column` (an index) into the start of each window.
    pub fn new(column: usize, window: WindowSpec, input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            column,
            window,
            input,
            properties: Arc::new(properties),
        }
    }

    /// The column with the start, by its index.
    pub fn column(&self) -> usize {
        self.column
    }

    /// The windows.
    pub fn window(&self) -> WindowSpec {
        self.window
    }
}

/// The rows of a batch, each once for each window of its pane; `column` becomes the window's start.
///
/// # Errors
/// A window that starts outside the range of times.
pub fn expand(batch: &RecordBatch, column: usize, window: WindowSpec) -> Result<RecordBatch> {
    let panes = batch.column(column);
    let scale = window.scale(panes.data_type())?;
    let numbers = cast(panes, &DataType::Int64)?;
    let numbers = numbers.as_primitive::<Int64Type>();
    let rows = batch.num_rows().saturating_mul(window.max_windows());
    let (mut starts, mut indices) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for (index, pane) in numbers.iter().enumerate() {
        let Some(pane) = pane.and_then(|pane| scale.ms(pane)) else {
            continue;
        };
        for (start, _) in window.windows(pane) {
            let start = scale
                .from_ms(start)
                .ok_or_else(|| Error::data(format!("a window of {pane} ms is out of range")))?;
            starts.push(start);
            indices.push(index as u32);
        }
    }
    let indices = UInt32Array::from(indices);
    let starts: ArrayRef = cast(&Int64Array::from(starts), panes.data_type())?;
    let columns = batch.columns().iter().enumerate().map(|(index, values)| {
        if index == column {
            Ok(Arc::clone(&starts))
        } else {
            take(values, &indices, None)
        }
    });
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

impl DisplayAs for WindowExpandExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowExpandExec: @{}, {}", self.column, self.window)
    }
}

impl ExecutionPlan for WindowExpandExec {
    fn name(&self) -> &str {
        "WindowExpandExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
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
            (Some(input), true) => Ok(Arc::new(Self::new(self.column, self.window, input))),
            _ => internal_err!("a WindowExpandExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&ctx))?;
        let (column, window) = (self.column, self.window);
        // A batch of many overlapping windows is expanded in pieces, so that what comes out is no larger than others.
        let rows = (ctx.session_config().batch_size() / window.max_windows()).max(1);
        let expanded = input.flat_map(move |batch| {
            let (batch, length) = match batch {
                Ok(batch) => {
                    let length = batch.num_rows();
                    (Ok(batch), length)
                }
                Err(error) => (Err(Some(error)), 1),
            };
            let mut batch = batch;
            futures::stream::iter((0..length).step_by(rows)).map(move |from| match &mut batch {
                Ok(batch) => {
                    let piece = batch.slice(from, rows.min(batch.num_rows() - from));
                    expand(&piece, column, window)
                }
                Err(error) => match error.take() {
                    Some(error) => Err(error),
                    None => internal_err!("an error is passed on once"),
                },
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            expanded,
        )))
    }
}
