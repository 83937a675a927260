//! The other way to run a query: one plan of datafusion-distributed, whose workers exchange rows among themselves.
//!
//! It is for what cannot be cut into independent tasks. The library has no task retry, so an attempt fails as a whole.

use crate::plan::Planner;
use datafusion::common::{DataFusionError, Result as DataFusionResult, exec_err};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedExt, DistributedLeafExec,
    ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse, SessionStateBuilderExt, WorkerResolver,
};
use essaim_common::Result;
use essaim_common::codec::EssaimCodec;
use essaim_common::connector::Split;
use essaim_common::net::Peers;
use essaim_common::scan::ScanExec;
use std::sync::Arc;
use url::Url;

/// The addresses of an exchange's workers.
struct Members(Vec<String>);

impl WorkerResolver for Members {
    fn get_urls(&self) -> DataFusionResult<Vec<Url>> {
        self.0
            .iter()
            .map(|address| Url::parse(address).map_err(|e| DataFusionError::External(Box::new(e))))
            .collect()
    }
}

/// A distributed plan for the workers at these addresses, and the session it runs in.
///
/// # Errors
/// As planning without an exchange.
pub async fn plan(
    planner: &Planner,
    workers: Vec<String>,
    peers: &Peers,
    logical: &LogicalPlan,
) -> Result<(Arc<dyn ExecutionPlan>, SessionState)> {
    let state = SessionStateBuilder::new_from_existing(planner.state())
        .with_distributed_worker_resolver(Members(workers))
        .with_distributed_channel_resolver(peers.clone())
        .with_distributed_user_codec(EssaimCodec)
        .with_distributed_option_extension(planner.settings())
        .with_distributed_desired_task_count_handler(desired_tasks)
        .with_distributed_scale_up_leaf_node_handler(spread)
        .with_distributed_planner()
        .build();
    let physical = state
        .query_planner()
        .create_physical_plan(logical, &state)
        .await?;
    Ok((physical, state))
}

/// As many tasks as there are splits; the planner caps them at the workers.
fn desired_tasks(
    event: DesiredTaskCountEvent<'_>,
) -> Option<DataFusionResult<DesiredTaskCountEventResponse>> {
    let scan = event.plan.downcast_ref::<ScanExec>()?;
    Some(Ok(DesiredTaskCountEventResponse::desired(
        scan.partitions().len(),
    )))
}

/// Deals the splits out: each task's variant has its own, in as many partitions as the others.
fn spread(event: ScaleUpLeafNodeEvent) -> Option<DataFusionResult<ScaleUpLeafNodeEventResponse>> {
    let scan = event.plan.downcast_ref::<ScanExec>()?;
    Some(variants(scan, event.plan, event.task_count))
}

fn variants(
    scan: &ScanExec,
    plan: &Arc<dyn ExecutionPlan>,
    tasks: usize,
) -> DataFusionResult<ScaleUpLeafNodeEventResponse> {
    if tasks == 0 {
        return exec_err!("a stage without tasks");
    }
    let splits: Vec<Split> = scan
        .partitions()
        .iter()
        .flat_map(|group| group.iter().cloned())
        .collect();
    let partitions = splits
        .len()
        .div_ceil(tasks)
        .clamp(1, plan.output_partitioning().partition_count().max(1));
    let variants = (0..tasks).map(|task| {
        let mut groups: Vec<Vec<Split>> = vec![Vec::new(); partitions];
        let own = splits.iter().skip(task).step_by(tasks).enumerate();
        for (position, split) in own {
            groups[position % partitions].push(split.clone());
        }
        let groups = groups.into_iter().map(Arc::from).collect();
        Arc::new(scan.with_partitions(groups)) as Arc<dyn ExecutionPlan>
    });
    let leaf = DistributedLeafExec::try_new(Arc::clone(plan), variants)?;
    Ok(ScaleUpLeafNodeEventResponse::new(Arc::new(leaf)))
}
