//! STUB
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::*;
use essaim_common::functions::window::WindowSpec;
use std::sync::Arc;
#[derive(Debug)]
pub enum Expiry {
    Window { column: usize, spec: WindowSpec },
    Ttl(i64),
    Never,
}
#[derive(Debug, Clone, Copy)]
pub enum Emit {
    First,
    Closed,
    Changed,
    All,
}
#[derive(Debug)]
pub struct StateAggregateExec {
    input: Arc<dyn ExecutionPlan>,
    emit: Emit,
}
impl StateAggregateExec {
    pub fn try_new(
        _op: String,
        _query: u32,
        _t: &AggregateExec,
        input: Arc<dyn ExecutionPlan>,
        _e: Expiry,
        emit: Emit,
        _d: i64,
    ) -> essaim_common::Result<Self> {
        Ok(Self { input, emit })
    }
    pub fn meaning(&self) -> String {
        String::new()
    }
}
impl DisplayAs for StateAggregateExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.emit)
    }
}
impl ExecutionPlan for StateAggregateExec {
    fn name(&self) -> &str {
        "StateAggregateExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
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
        _c: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn execute(&self, p: usize, ctx: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(p, ctx)
    }
}
