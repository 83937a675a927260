//! Session windows in the physical plan: grouped by key and time below, by key and session above.

use super::grouped_by;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use essaim_common::functions::event_time::EventTime;
use essaim_common::windows::session::{SessionColumns, SessionMergeExec};
use std::sync::Arc;

/// The node that makes sessions of the groups of an aggregate, if it is grouped by sessions.
pub fn merge(
    aggregate: &AggregateExec,
    plan: &Arc<dyn ExecutionPlan>,
) -> Option<Arc<dyn ExecutionPlan>> {
    let start = grouped_by(aggregate, EventTime::Session).first()?.0;
    let end = grouped_by(aggregate, EventTime::SessionEnd).first()?.0;
    let columns = aggregate.group_expr().num_group_exprs();
    let columns = SessionColumns {
        start,
        end,
        keys: (0..columns).filter(|c| *c != start && *c != end).collect(),
    };
    Some(Arc::new(SessionMergeExec::new(columns, Arc::clone(plan))))
}
