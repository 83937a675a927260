//! The leaves of what the master runs in an epoch: what the tasks sent, and what tables held when they were last read.

use crate::scheduler::Spool;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use essaim_common::Error;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Names an input of a job's upper halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputId {
    /// What the tasks of an epoch sent for one output of their stage: the INSERT and the position in it.
    Tasks(u32, usize),
    /// A table's rows, or what a query makes of them without any stream: the INSERT and the position in it.
    Static(u32, usize),
}

/// Rows of an input.
#[derive(Debug)]
pub(crate) enum Input {
    /// One spool a task. Read once.
    Spools(Vec<Spool>),
    /// In memory.
    Batches(Arc<[RecordBatch]>),
}

/// The inputs of one epoch: an extension of the context that its upper halves run in.
#[derive(Debug, Default)]
pub struct Inputs(Mutex<HashMap<InputId, Input>>);

impl Inputs {
    /// Adds an input. One that is not added is empty.
    pub(crate) fn put(&self, id: InputId, input: Input) {
        self.0.lock().insert(id, input);
    }

    fn take(&self, id: InputId) -> Option<Input> {
        let mut inputs = self.0.lock();
        match inputs.get(&id) {
            Some(Input::Batches(batches)) => Some(Input::Batches(Arc::clone(batches))),
            _ => inputs.remove(&id),
        }
    }
}

/// Yields an input, in one partition.
#[derive(Debug)]
pub struct InputExec {
    id: InputId,
    properties: Arc<PlanProperties>,
}

impl InputExec {
    /// Yields the input of `id`, which has `schema`.
    pub fn new(id: InputId, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            id,
            properties: Arc::new(properties),
        }
    }

    /// Which input it is.
    pub fn id(&self) -> InputId {
        self.id
    }
}

impl DisplayAs for InputExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            InputId::Tasks(_, position) => write!(f, "InputExec: stage {position}"),
            InputId::Static(_, position) => write!(f, "InputExec: static {position}"),
        }
    }
}

impl ExecutionPlan for InputExec {
    fn name(&self) -> &str {
        "InputExec"
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
            internal_err!("an InputExec has no children")
        }
    }

    fn execute(
        &self,
        _partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let inputs = ctx
            .session_config()
            .get_extension::<Inputs>()
            .ok_or_else(|| Error::internal("an input is read outside of an epoch"))?;
        let batches = match inputs.take(self.id) {
            Some(Input::Spools(spools)) => {
                futures::stream::iter(spools).flat_map(Spool::read).boxed()
            }
            Some(Input::Batches(batches)) => {
                let batches: Vec<_> = batches.iter().cloned().map(Ok).collect();
                futures::stream::iter(batches).boxed()
            }
            None => futures::stream::empty().boxed(),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.properties.equivalence_properties().schema().clone(),
            batches,
        )))
    }
}
