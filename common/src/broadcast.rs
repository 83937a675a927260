//! An input that every task of a stage needs whole: computed once, handed to each worker, read from memory.

use crate::error::Error;
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
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An input that nobody has used for so long is dropped: its master has died or lost sight of this worker.
const UNUSED: Duration = Duration::from_secs(3600);

/// The inputs that a worker holds, by key. An extension of the session's configuration on workers.
#[derive(Debug, Default)]
pub struct Broadcasts {
    inputs: Mutex<HashMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    batches: Arc<[RecordBatch]>,
    used: Instant,
}

impl Broadcasts {
    /// Keeps an input until it is dropped by key.
    pub fn put(&self, key: String, batches: Vec<RecordBatch>) {
        let mut inputs = self.inputs.lock();
        inputs.retain(|_, held| held.used.elapsed() < UNUSED);
        let held = Held {
            batches: batches.into(),
            used: Instant::now(),
        };
        inputs.insert(key, held);
    }

    /// The input of a key.
    pub fn get(&self, key: &str) -> Option<Arc<[RecordBatch]>> {
        let mut inputs = self.inputs.lock();
        let held = inputs.get_mut(key)?;
        held.used = Instant::now();
        Some(Arc::clone(&held.batches))
    }

    /// How many inputs are held, and their bytes in memory.
    pub fn size(&self) -> (usize, usize) {
        let inputs = self.inputs.lock();
        let batches = inputs.values().flat_map(|held| held.batches.iter());
        let bytes = batches.map(RecordBatch::get_array_memory_size).sum();
        (inputs.len(), bytes)
    }

    /// Lets go of an input.
    pub fn drop_key(&self, key: &str) {
        self.inputs.lock().remove(key);
    }
}

/// Yields a broadcast input, in one partition.
#[derive(Debug)]
pub struct BroadcastExec {
    key: String,
    properties: Arc<PlanProperties>,
}

impl BroadcastExec {
    /// Yields the input of `key`, which has `schema`.
    pub fn new(key: String, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            key,
            properties: Arc::new(properties),
        }
    }

    /// The key under which workers hold the input.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl DisplayAs for BroadcastExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BroadcastExec: {}", self.key)
    }
}

impl ExecutionPlan for BroadcastExec {
    fn name(&self) -> &str {
        "BroadcastExec"
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
            internal_err!("a BroadcastExec has no children")
        }
    }

    fn execute(
        &self,
        _partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let input = ctx
            .session_config()
            .get_extension::<Broadcasts>()
            .and_then(|broadcasts| broadcasts.get(&self.key))
            .ok_or_else(|| {
                Error::unavailable(format!("this worker does not hold broadcast {}", self.key))
            })?;
        let batches: Vec<_> = input.iter().cloned().map(Ok).collect();
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::stream::iter(batches),
        )))
    }
}
