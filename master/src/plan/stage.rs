//! A stage: the part of a plan below the cut, one task for each of its partitions; and the leaf that stands for it above.

use crate::plan::cut::{file_scan, rebuild};
use crate::scheduler::Stages;
use datafusion::catalog::memory::DataSourceExec;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties,
};
use essaim_common::Error;
use essaim_common::broadcast::BroadcastExec;
use essaim_common::scan::ScanExec;
use std::fmt;
use std::sync::Arc;

/// What workers run, one task a partition.
#[derive(Debug)]
pub struct Stage {
    /// Position in the query.
    pub id: u32,
    /// The plan; task `i` is its partition `i`.
    pub plan: Arc<dyn ExecutionPlan>,
    /// Inputs that every task needs whole.
    pub broadcasts: Vec<Arc<Broadcast>>,
}

/// An input that is computed above the cut and sent to every worker of a stage.
#[derive(Debug)]
pub struct Broadcast {
    /// Unique, also among epochs and attempts of a job.
    pub key: String,
    /// What computes it, in one partition.
    pub plan: Arc<dyn ExecutionPlan>,
}

impl Stage {
    /// How many tasks the stage has.
    pub fn tasks(&self) -> usize {
        self.plan.output_partitioning().partition_count()
    }

    /// The plan of task `partition` alone: one partition, which is what its worker is sent.
    ///
    /// # Errors
    /// None for a plan that the cut made.
    pub fn task_plan(&self, partition: usize) -> Result<Arc<dyn ExecutionPlan>> {
        only(&self.plan, partition)
    }

    /// The table that a partition of a source belongs to, e.g. `toots[3]`.
    pub fn table_of(&self, partition: &str) -> Option<String> {
        fn find(plan: &Arc<dyn ExecutionPlan>, partition: &str) -> Option<String> {
            if let Some(scan) = plan.downcast_ref::<ScanExec>() {
                let mut splits = scan.partitions().iter().flat_map(|group| group.iter());
                let reads = splits.any(|split| split.partition == partition);
                return reads.then(|| scan.table().to_owned());
            }
            let mut children = plan.children().into_iter();
            children.find_map(|child| find(child, partition))
        }
        find(&self.plan, partition)
    }

    /// What task `partition` reads, for people.
    pub fn task_label(&self, partition: usize) -> String {
        let mut label = String::new();
        describe(&self.plan, partition, &mut label);
        label
    }
}

/// `plan` with nothing but what its partition `partition` needs, as its only partition.
fn only(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        let splits = scan.partitions().get(partition).cloned();
        return Ok(Arc::new(scan.with_partitions(splits.into_iter().collect())));
    }
    if let Some(files) = file_scan(plan) {
        let group = files.file_groups.get(partition).cloned();
        let files = FileScanConfigBuilder::from(files.clone())
            .with_file_groups(vec![group.unwrap_or_default()])
            .build();
        return Ok(DataSourceExec::from_data_source(files));
    }
    if plan.is::<BroadcastExec>() {
        return Ok(Arc::clone(plan));
    }
    if plan.is::<UnionExec>() {
        // A partition of a union is one of one input: the other inputs stay away.
        let mut local = partition;
        for child in plan.children() {
            let count = child.output_partitioning().partition_count();
            if local < count {
                return only(child, local);
            }
            local -= count;
        }
        return internal_err!("a union has no partition {partition}");
    }
    let inputs = plan
        .children()
        .into_iter()
        .map(|child| only(child, partition))
        .collect::<Result<_>>()?;
    rebuild(Arc::clone(plan), inputs)
}

fn describe(plan: &Arc<dyn ExecutionPlan>, partition: usize, label: &mut String) {
    let mut add = |text: &str| {
        if !label.is_empty() {
            label.push_str(", ");
        }
        label.push_str(text);
    };
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        for split in scan
            .partitions()
            .get(partition)
            .into_iter()
            .flat_map(|s| s.iter())
        {
            add(&format!("{} {}", scan.table(), split.label));
        }
        return;
    }
    if let Some(files) = file_scan(plan) {
        for file in files
            .file_groups
            .get(partition)
            .into_iter()
            .flat_map(FileGroup::iter)
        {
            add(file.object_meta.location.as_ref());
        }
        return;
    }
    let mut offset = 0;
    for child in plan.children() {
        if plan.is::<UnionExec>() {
            let count = child.output_partitioning().partition_count();
            if let Some(local) = partition.checked_sub(offset).filter(|local| *local < count) {
                describe(child, local, label);
            }
            offset += count;
        } else {
            describe(child, partition, label);
        }
    }
}

/// Stands above the cut for a stage: yields what its tasks sent, partition by partition.
#[derive(Debug)]
pub struct StageInputExec {
    stage: Arc<Stage>,
    properties: Arc<PlanProperties>,
}

impl StageInputExec {
    /// Reads `stage`, whose order within a partition is kept.
    pub fn new(stage: Arc<Stage>) -> Self {
        let properties = PlanProperties::new(
            stage.plan.properties().equivalence_properties().clone(),
            Partitioning::UnknownPartitioning(stage.tasks()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            stage,
            properties: Arc::new(properties),
        }
    }

    /// The stage.
    pub fn stage(&self) -> &Arc<Stage> {
        &self.stage
    }
}

impl DisplayAs for StageInputExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "StageInputExec: stage={}, tasks={}",
            self.stage.id,
            self.stage.tasks()
        )
    }
}

impl ExecutionPlan for StageInputExec {
    fn name(&self) -> &str {
        "StageInputExec"
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
            internal_err!("a StageInputExec has no children")
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let stages = ctx
            .session_config()
            .get_extension::<Stages>()
            .ok_or_else(|| Error::internal("a stage is read outside of a query"))?;
        Ok(stages.output(&self.stage, partition, &ctx))
    }

    fn partition_statistics(&self, _partition: Option<usize>) -> Result<Arc<Statistics>> {
        Ok(Arc::new(Statistics::new_unknown(&self.schema())))
    }
}
