//! One read, several results: a node that runs its input once and hands the rows to several plans, and the leaf that
//! stands for the input in each of them. This is how several INSERTs of a job share the scan of a topic.

use crate::error::Error;
use crate::ipc;
use arrow::array::{Array, BinaryArray, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties,
};
use futures::StreamExt;
use parking_lot::Mutex;
use std::fmt;
use std::sync::{Arc, LazyLock};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Batches that wait for an output: the slowest one sets the pace.
const BATCHES_AHEAD: usize = 2;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("output", DataType::UInt32, false),
        Field::new("batch", DataType::Binary, false),
    ]))
});

fn properties(schema: SchemaRef, partitions: usize) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

type Item = Result<RecordBatch, Arc<DataFusionError>>;

/// Those who wait for the input's rows: an extension of the context that the outputs run in.
#[derive(Debug, Default)]
struct Subscribers {
    /// `None` once the rows flow.
    waiting: Mutex<Option<Vec<mpsc::Sender<Item>>>>,
}

/// Runs its input once and hands each of its rows to all its outputs; yields `[output, batch]`, one row for each batch
/// of an output, which [`split_outputs`] takes apart again.
#[derive(Debug)]
pub struct OutputsExec {
    input: Arc<dyn ExecutionPlan>,
    outputs: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
}

impl OutputsExec {
    /// Each of `outputs` reads `input` through [`SharedInputExec`]s, partition by partition.
    pub fn new(input: Arc<dyn ExecutionPlan>, outputs: Vec<Arc<dyn ExecutionPlan>>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self {
            input,
            outputs,
            properties: properties(Arc::clone(&SCHEMA), partitions),
        }
    }
}

impl DisplayAs for OutputsExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutputsExec: outputs={}", self.outputs.len())
    }
}

impl ExecutionPlan for OutputsExec {
    fn name(&self) -> &str {
        "OutputsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; self.outputs.len() + 1]
    }

    /// The input, then the outputs.
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        std::iter::once(&self.input).chain(&self.outputs).collect()
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
        if children.is_empty() {
            return internal_err!("an OutputsExec has an input");
        }
        let outputs = children.split_off(1);
        match children.pop() {
            Some(input) => Ok(Arc::new(Self::new(input, outputs))),
            None => internal_err!("an OutputsExec has an input"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, Arc::clone(&ctx))?;
        let subscribers = Arc::new(Subscribers {
            waiting: Mutex::new(Some(Vec::new())),
        });
        let config = ctx
            .session_config()
            .clone()
            .with_extension(Arc::clone(&subscribers));
        let ctx = Arc::new(TaskContext::new(
            ctx.task_id(),
            ctx.session_id(),
            config,
            ctx.scalar_functions().clone(),
            ctx.higher_order_functions().clone(),
            ctx.aggregate_functions().clone(),
            ctx.window_functions().clone(),
            ctx.runtime_env(),
        ));
        let mut results = Vec::with_capacity(self.outputs.len());
        for (number, output) in self.outputs.iter().enumerate() {
            let batches = output.execute(partition, Arc::clone(&ctx))?;
            results.push(batches.map(move |batch| pack(number as u32, &batch?)));
        }
        let pump = tokio::spawn(pump(
            rows,
            subscribers.waiting.lock().take().unwrap_or_default(),
        ));
        let pump = AbortOnDropHandle::new(pump);
        let results = futures::stream::select_all(results).map(move |batch| {
            let _ = &pump;
            batch
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&SCHEMA),
            results,
        )))
    }
}

/// Hands every batch to everybody, as fast as the slowest takes them.
async fn pump(mut rows: SendableRecordBatchStream, mut subscribers: Vec<mpsc::Sender<Item>>) {
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(Arc::new);
        let mut gone = Vec::new();
        for (index, subscriber) in subscribers.iter().enumerate() {
            if subscriber.send(batch.clone()).await.is_err() {
                gone.push(index);
            }
        }
        for index in gone.into_iter().rev() {
            subscribers.swap_remove(index);
        }
        if batch.is_err() || subscribers.is_empty() {
            return;
        }
    }
}

fn pack(output: u32, batch: &RecordBatch) -> Result<RecordBatch> {
    let mut encoder = ipc::Encoder::new(&batch.schema())?;
    let mut bytes = Vec::new();
    for chunk in encoder.encode(batch)?.into_iter().chain(encoder.finish()?) {
        bytes.extend_from_slice(&chunk);
    }
    Ok(RecordBatch::try_new(
        Arc::clone(&SCHEMA),
        vec![
            Arc::new(UInt32Array::from(vec![output])),
            Arc::new(BinaryArray::from_vec(vec![&bytes])),
        ],
    )?)
}

/// Takes a batch of an [`OutputsExec`] apart: output numbers with their batches.
///
/// # Errors
/// A batch of something else.
pub fn split_outputs(batch: &RecordBatch) -> Result<Vec<(usize, RecordBatch)>, Error> {
    let wrong = || Error::internal(format!("a task yielded {:?}", batch.schema()));
    let number = batch
        .column(0)
        .as_any()
        .downcast_ref::<UInt32Array>()
        .ok_or_else(wrong)?;
    let bytes = batch
        .column(1)
        .as_any()
        .downcast_ref::<BinaryArray>()
        .ok_or_else(wrong)?;
    let mut found = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let chunk = bytes::Bytes::copy_from_slice(bytes.value(row));
        let output = number.value(row) as usize;
        let batches = ipc::Decoder::default().decode(chunk)?;
        found.extend(batches.into_iter().map(|batch| (output, batch)));
    }
    Ok(found)
}

/// Yields the rows of the [`OutputsExec`] that it runs in.
#[derive(Debug)]
pub struct SharedInputExec {
    properties: Arc<PlanProperties>,
}

impl SharedInputExec {
    /// The input has this schema and so many partitions.
    pub fn new(schema: SchemaRef, partitions: usize) -> Self {
        Self {
            properties: properties(schema, partitions),
        }
    }
}

impl DisplayAs for SharedInputExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedInputExec")
    }
}

impl ExecutionPlan for SharedInputExec {
    fn name(&self) -> &str {
        "SharedInputExec"
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
            internal_err!("a SharedInputExec has no children")
        }
    }

    fn execute(
        &self,
        _partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let outside = || Error::internal("a shared input is read outside of its OutputsExec");
        let subscribers = ctx
            .session_config()
            .get_extension::<Subscribers>()
            .ok_or_else(outside)?;
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        subscribers
            .waiting
            .lock()
            .as_mut()
            .ok_or_else(outside)?
            .push(sender);
        let batches = futures::stream::unfold(receiver, |mut receiver| async {
            let batch = receiver.recv().await?;
            Some((batch.map_err(DataFusionError::Shared), receiver))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            batches,
        )))
    }
}
