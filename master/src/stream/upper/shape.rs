//! What a streaming query is made of: its windows, its sessions, its DISTINCTs, and the output mode that goes with them.

use super::only_child;
use crate::plan::stage::StageInputExec;
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use essaim_common::functions::window::{SESSION_KEY, WINDOW_KEY, WindowSpec, session_gap};
use essaim_common::stream::OutputMode;
use essaim_common::windows::session::{SessionColumns, SessionMergeExec};
use essaim_common::{Error, Result};
use std::sync::Arc;

/// The window that an aggregate groups by, with its position among the group columns.
pub(super) fn window_of(aggregate: &AggregateExec) -> Result<Option<(usize, WindowSpec)>> {
    let schema = aggregate.schema();
    let groups = aggregate.group_expr().expr().len();
    for (column, field) in schema.fields().iter().take(groups).enumerate() {
        if let Some(text) = field.metadata().get(WINDOW_KEY) {
            return Ok(Some((column, text.parse()?)));
        }
    }
    Ok(None)
}

/// The sessions that an aggregate groups by.
pub(super) struct Session {
    pub(super) columns: SessionColumns,
    /// What yields the events.
    pub(super) events: Arc<dyn ExecutionPlan>,
    pub(super) gap_ms: i64,
}

pub(super) fn session_of(aggregate: &AggregateExec) -> Result<Option<Session>> {
    let mut node = aggregate.input();
    while node.is::<RepartitionExec>() || node.is::<CoalescePartitionsExec>() {
        node = only_child(node)?;
    }
    let Some(merge) = node.downcast_ref::<SessionMergeExec>() else {
        return Ok(None);
    };
    let events = only_child(node)?;
    let columns = merge.columns().clone();
    let gap_ms = gap_of(events, columns.end)
        .ok_or_else(|| Error::internal("session_window() has no gap in its plan"))?;
    Ok(Some(Session {
        columns,
        events: Arc::clone(events),
        gap_ms,
    }))
}

/// The gap in the partial aggregate at or below a node, ms; `column` is the group column with the end of an event.
pub(super) fn gap_of(node: &Arc<dyn ExecutionPlan>, column: usize) -> Option<i64> {
    if let Some(leaf) = node.downcast_ref::<StageInputExec>() {
        return gap_of(&leaf.stage().plan, column);
    }
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        let (expr, _) = aggregate.group_expr().expr().get(column)?;
        let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
        let gap = function.args().get(1)?.downcast_ref::<Literal>()?;
        return session_gap(gap.value()).ok();
    }
    node.children()
        .into_iter()
        .find_map(|child| gap_of(child, column))
}

/// Whether an aggregate only tells which groups there are, or the first row of each: SELECT DISTINCT [ON].
pub(super) fn is_dedup(aggregate: &AggregateExec, distinct_on: bool) -> bool {
    let functions = aggregate.aggr_expr();
    let windowed = groups_by(aggregate, WINDOW_KEY) || groups_by(aggregate, SESSION_KEY);
    !windowed
        && !aggregate.group_expr().expr().is_empty()
        && (functions.is_empty() || distinct_on)
        && functions
            .iter()
            .all(|function| function.fun().name() == "first_value")
}

/// Whether one of an aggregate's group columns says so in its metadata.
pub(super) fn groups_by(aggregate: &AggregateExec, key: &str) -> bool {
    let groups = aggregate.group_expr().expr().len();
    let schema = aggregate.schema();
    let mut fields = schema.fields().iter().take(groups);
    fields.any(|field| field.metadata().contains_key(key))
}

/// What a query is made of, as far as its output mode depends on it.
pub(super) struct Shape {
    pub(super) aggregates: bool,
    pub(super) windowed: bool,
    pub(super) sessions: bool,
}

impl Shape {
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>, distinct_on: bool) -> Self {
        let mut found = Vec::new();
        collect(plan, &mut found);
        let counted = || {
            found
                .iter()
                .filter(|aggregate| !is_dedup(aggregate, distinct_on))
        };
        Self {
            aggregates: counted().count() > 0,
            windowed: counted()
                .next()
                .is_some_and(|aggregate| groups_by(aggregate, WINDOW_KEY)),
            sessions: counted()
                .next()
                .is_some_and(|aggregate| groups_by(aggregate, SESSION_KEY)),
        }
    }

    pub(super) fn mode(
        &self,
        wanted: Option<OutputMode>,
        prefers_update: bool,
        is_timed: bool,
    ) -> Result<OutputMode> {
        let closes = (self.windowed || self.sessions) && is_timed;
        match wanted {
            None if self.sessions && closes => Ok(OutputMode::Append),
            None if !self.aggregates => Ok(OutputMode::Append),
            None if prefers_update => Ok(OutputMode::Update),
            None if closes => Ok(OutputMode::Append),
            None => Err(Error::invalid(
                "the groups never become final, so there is nothing to append: write to a table with mode 'upsert' and a key, SET essaim.output_mode = 'update' or 'complete', or GROUP BY window(…) over the event_time of an UNBOUNDED table",
            )),
            Some(OutputMode::Append) if self.aggregates && !closes => Err(Error::invalid(
                "output mode 'append' writes groups when they are final, and these never are: GROUP BY window(…) over a column that is the event_time of its table, or SET essaim.output_mode = 'update' or 'complete'",
            )),
            Some(OutputMode::Complete) if !self.aggregates => Err(Error::invalid(
                "output mode 'complete' would keep every row of the stream: SET essaim.output_mode = 'append'",
            )),
            Some(mode) => Ok(mode),
        }
    }
}

/// The upper halves of the aggregates over streams, outermost first.
pub(super) fn collect<'a>(plan: &'a Arc<dyn ExecutionPlan>, found: &mut Vec<&'a AggregateExec>) {
    if !essaim_common::table::is_stream(plan) {
        return;
    }
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>()
        && *aggregate.mode() != AggregateMode::Partial
    {
        found.push(aggregate);
    }
    for child in plan.children() {
        collect(child, found);
    }
}
