//! The cut: which part of a physical plan runs on the workers, as tasks over partitions, and what stays above it.
//!
//! A node goes below the cut when each of its output partitions needs only the same partition of its input. The first
//! node that mixes partitions (a final aggregate, a merge, a commit) stays above, on the master, and reads the stage
//! below it through a [`StageInputExec`]. The small side of a join becomes a broadcast of the stage that holds it.

use crate::plan::stage::{Broadcast, Stage, StageInputExec};
use datafusion::catalog::memory::DataSourceExec;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{JoinType, Result};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode, SortMergeJoinExec,
};
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, ExecutionPlanProperties, ReplaceChildrenOptions,
};
use essaim_common::broadcast::BroadcastExec;
use essaim_common::late::LateFilterExec;
use essaim_common::scan::ScanExec;
use essaim_common::sink::SinkWriteExec;
use essaim_common::table::is_stream;
use std::sync::Arc;

/// A plan after the cut.
#[derive(Debug)]
pub struct Cut {
    /// What the master runs; its leaves are stages.
    pub upper: Arc<dyn ExecutionPlan>,
    /// What the workers run, broadcasts of a stage before the stage.
    pub stages: Vec<Arc<Stage>>,
}

/// Cuts a physical plan.
///
/// # Errors
/// Those of rebuilding a node over another input: none for a valid plan.
pub fn cut(plan: Arc<dyn ExecutionPlan>) -> Result<Cut> {
    let mut knife = Knife {
        run: uuid::Uuid::new_v4().simple().to_string(),
        stages: Vec::new(),
        broadcasts: Vec::new(),
    };
    let placed = knife.place(plan)?;
    let upper = knife.above(placed)?;
    Ok(Cut {
        upper,
        stages: knife.stages,
    })
}

/// Where a subtree runs.
enum Placed {
    /// On workers, partition by partition, with what it needs whole.
    Below(Arc<dyn ExecutionPlan>, Vec<Arc<Broadcast>>),
    /// On the master.
    Above(Arc<dyn ExecutionPlan>),
}

struct Knife {
    run: String,
    stages: Vec<Arc<Stage>>,
    broadcasts: Vec<Arc<Broadcast>>,
}

impl Knife {
    fn place(&mut self, plan: Arc<dyn ExecutionPlan>) -> Result<Placed> {
        // A recursive query runs its second input again and again: no stage is read twice.
        if plan.is::<RecursiveQueryExec>() {
            return Ok(Placed::Above(plan));
        }
        let children: Vec<_> = plan.children().into_iter().cloned().collect();
        if children.is_empty() {
            return Ok(if is_distributed_leaf(&plan) {
                Placed::Below(plan, Vec::new())
            } else {
                Placed::Above(plan)
            });
        }
        if let Some(position) = broadcast_side(&plan) {
            return self.place_join(plan, children, position);
        }
        let mut placed = Vec::with_capacity(children.len());
        for child in children {
            placed.push(self.place(child)?);
        }
        let all_below = placed
            .iter()
            .all(|child| matches!(child, Placed::Below(..)));
        if all_below && is_partition_wise(&plan) {
            let mut inputs = Vec::with_capacity(placed.len());
            let mut broadcasts = Vec::new();
            for child in placed {
                if let Placed::Below(input, needed) = child {
                    inputs.push(input);
                    broadcasts.extend(needed);
                }
            }
            return Ok(Placed::Below(rebuild(plan, inputs)?, broadcasts));
        }
        let mut inputs = Vec::with_capacity(placed.len());
        for child in placed {
            inputs.push(self.above(child)?);
        }
        Ok(Placed::Above(rebuild(plan, inputs)?))
    }

    /// A join whose side at `position` is small: if the other side is below the cut, so is the join.
    fn place_join(
        &mut self,
        plan: Arc<dyn ExecutionPlan>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        position: usize,
    ) -> Result<Placed> {
        let mut placed = Vec::with_capacity(2);
        for child in children {
            placed.push(self.place(child)?);
        }
        let large = 1 - position;
        let Some(Placed::Below(large_input, needed)) = placed.get(large) else {
            let mut inputs = Vec::with_capacity(2);
            for child in placed {
                inputs.push(self.above(child)?);
            }
            return Ok(Placed::Above(rebuild(plan, inputs)?));
        };
        let (large_input, mut broadcasts) = (Arc::clone(large_input), needed.clone());
        let mut small = self.above(placed.swap_remove(position))?;
        if small.output_partitioning().partition_count() > 1 {
            small = Arc::new(CoalescePartitionsExec::new(small));
        }
        let key = format!("{}-{}", self.run, self.broadcasts.len());
        let leaf = Arc::new(BroadcastExec::new(key.clone(), small.schema())) as Arc<_>;
        let broadcast = Arc::new(Broadcast { key, plan: small });
        self.broadcasts.push(Arc::clone(&broadcast));
        broadcasts.push(broadcast);
        let mut inputs = vec![leaf, large_input];
        if position == 1 {
            inputs.reverse();
        }
        Ok(Placed::Below(rebuild(plan, inputs)?, broadcasts))
    }

    /// What the master sees of a subtree: itself, or the stage that it becomes.
    fn above(&mut self, placed: Placed) -> Result<Arc<dyn ExecutionPlan>> {
        match placed {
            Placed::Above(plan) => Ok(plan),
            Placed::Below(plan, broadcasts) => {
                let stage = Arc::new(Stage {
                    id: self.stages.len() as u32,
                    plan,
                    broadcasts,
                });
                self.stages.push(Arc::clone(&stage));
                Ok(Arc::new(StageInputExec::new(stage)))
            }
        }
    }
}

/// The same node over other inputs.
pub(crate) fn rebuild(
    plan: Arc<dyn ExecutionPlan>,
    inputs: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.replace_children(
        inputs,
        ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute),
    )
}

/// Whether a leaf reads something that workers can reach.
fn is_distributed_leaf(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<ScanExec>() || file_scan(plan).is_some()
}

/// The files of a DataFusion scan, if it is one.
pub(crate) fn file_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    plan.downcast_ref::<DataSourceExec>()?
        .data_source()
        .downcast_ref::<FileScanConfig>()
}

/// Whether each output partition needs only the same partition of the input (of one input, for a union).
fn is_partition_wise(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<UnnestExec>()
        || plan.is::<LocalLimitExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<UnionExec>()
        || plan.is::<SinkWriteExec>()
        || plan.is::<LateFilterExec>()
        || plan
            .downcast_ref::<AggregateExec>()
            .is_some_and(|aggregate| *aggregate.mode() == AggregateMode::Partial)
        || plan
            .downcast_ref::<SortExec>()
            .is_some_and(SortExec::preserve_partitioning)
}

/// The position of a join's input that every partition of the other needs whole, if the join stays right when only a
/// part of the other input is at hand: then no row of the whole input may be emitted for want of a match. A stream is
/// never whole.
fn broadcast_side(plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let emits_only_right = |join_type: &JoinType| {
        matches!(
            join_type,
            JoinType::Inner
                | JoinType::Right
                | JoinType::RightSemi
                | JoinType::RightAnti
                | JoinType::RightMark
        )
    };
    if plan.children().into_iter().all(is_stream) {
        return None;
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        let collects = *join.partition_mode() == PartitionMode::CollectLeft;
        return (collects && emits_only_right(join.join_type())).then_some(0);
    }
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        return emits_only_right(join.join_type()).then_some(0);
    }
    plan.is::<CrossJoinExec>().then_some(0)
}

/// Why the master should not run what is above the cut by itself, if so: a join, a sort or a window over a large
/// input that no aggregate has reduced.
pub fn needs_exchange(cut: &Cut, threshold: usize) -> Option<String> {
    heavy_below(&cut.upper, threshold)
}

/// The lowest heavy node of a plan that reads a large stage.
fn heavy_below(node: &Arc<dyn ExecutionPlan>, threshold: usize) -> Option<String> {
    node.children()
        .into_iter()
        .find_map(|child| heavy_below(child, threshold))
        .or_else(|| {
            let what = heavy(node)?;
            let (stage, size) = large_input(node, threshold)?;
            Some(format!("{what} over stage {stage}, {size}"))
        })
}

/// A large stage that reaches `node` without passing through an aggregate.
fn large_input(node: &Arc<dyn ExecutionPlan>, threshold: usize) -> Option<(u32, String)> {
    if let Some(input) = node.downcast_ref::<StageInputExec>() {
        return Some((input.stage().id, large(input.stage(), threshold)?));
    }
    if node.is::<AggregateExec>() {
        return None;
    }
    node.children()
        .into_iter()
        .find_map(|child| large_input(child, threshold))
}

fn heavy(node: &Arc<dyn ExecutionPlan>) -> Option<&'static str> {
    if node.is::<HashJoinExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<NestedLoopJoinExec>()
        || node.is::<CrossJoinExec>()
    {
        Some("a join")
    } else if node.is::<WindowAggExec>() || node.is::<BoundedWindowAggExec>() {
        Some("a window function")
    } else if node
        .downcast_ref::<SortExec>()
        .is_some_and(|sort| sort.fetch().is_none())
    {
        Some("a sort")
    } else {
        None
    }
}

/// How large a stage's output is, if it is large or unknown and not reduced by an aggregate or a limit.
fn large(stage: &Stage, threshold: usize) -> Option<String> {
    let reduced = stage
        .plan
        .exists(|node| {
            Ok(node.is::<AggregateExec>()
                || node.is::<LocalLimitExec>()
                || node.is::<SinkWriteExec>()
                || node.fetch().is_some())
        })
        .unwrap_or(false);
    if reduced {
        return None;
    }
    let statistics = datafusion::physical_plan::statistics::StatisticsContext::new()
        .compute(
            stage.plan.as_ref(),
            &datafusion::physical_plan::statistics::StatisticsArgs::default(),
        )
        .ok()?;
    match statistics.total_byte_size.get_value() {
        Some(bytes) if *bytes <= threshold => None,
        Some(bytes) => Some(format!("about {} MiB", bytes >> 20)),
        None => match statistics.num_rows.get_value() {
            // A row of unknown width is taken for 64 bytes.
            Some(rows) if rows.saturating_mul(64) <= threshold => None,
            Some(rows) => Some(format!("about {rows} rows")),
            None => Some("of unknown size".to_owned()),
        },
    }
}
