//! The rule that makes windows of panes: where windows overlap, partial aggregates go into each window of their pane.

use super::grouped_by;
use crate::plan::windows::session::merge;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, internal_err};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use essaim_common::Error;
use essaim_common::functions::event_time::EventTime;
use essaim_common::functions::window::{WINDOW_KEY, WindowSpec};
use essaim_common::windows::expand::WindowExpandExec;
use std::sync::Arc;

/// Puts a [`WindowExpandExec`] or a `SessionMergeExec` on each partial aggregate over windows. It comes before the other
/// rules, which then see that no limit and no filter passes from the final aggregate to the partial one.
#[derive(Debug)]
pub struct ExpandWindows;

impl PhysicalOptimizerRule for ExpandWindows {
    fn name(&self) -> &str {
        "essaim_expand_windows"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some(aggregate) = plan.downcast_ref::<AggregateExec>() else {
                return Ok(Transformed::no(plan));
            };
            let above = match above(aggregate, &plan)? {
                Some(above) => above,
                None => return Ok(Transformed::no(plan)),
            };
            if *aggregate.mode() != AggregateMode::Partial {
                return internal_err!("an aggregate over windows in one step");
            }
            Ok(Transformed::yes(above))
        })
        .data()
    }
}

/// The node above an aggregate over rows that makes windows of its groups, if it needs one.
fn above(
    aggregate: &AggregateExec,
    plan: &Arc<dyn ExecutionPlan>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(merge) = merge(aggregate, plan) {
        return Ok(Some(merge));
    }
    for (column, _) in grouped_by(aggregate, EventTime::Window) {
        let schema = plan.schema();
        let Some(text) = schema.field(column).metadata().get(WINDOW_KEY) else {
            return Err(Error::internal("a window's column does not tell its window").into());
        };
        let window: WindowSpec = text.parse()?;
        if !window.is_tumbling() {
            let input = Arc::clone(plan);
            return Ok(Some(Arc::new(WindowExpandExec::new(column, window, input))));
        }
    }
    Ok(None)
}
