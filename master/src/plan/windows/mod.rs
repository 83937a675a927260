//! Windows of event time: from `GROUP BY window(...)` to a plan.
//!
//! [`rewrite`] turns the SQL into scalar functions that yield the pane (or the time, for sessions) to group by.
//! [`WindowAnalyzer`] sees to it that they stand nowhere else, and that nothing reaches through the aggregate.
//! [`expand`] and [`session`] put the nodes between the partial and the final aggregate that make windows of panes, and
//! sessions of times. A streaming job runs the same plan.

pub mod expand;
pub mod rewrite;
pub mod session;
#[cfg(test)]
mod tests;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, ScalarUDF};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use essaim_common::Error;
use essaim_common::functions::event_time::EventTime;
pub use essaim_common::windows::expand::WindowExpandExec;
use std::sync::Arc;

/// Refuses windows that do not stand by themselves in GROUP BY. Puts a projection on the aggregate that no filter gets
/// through: what a filter would compare below is the start of the pane, not that of the window.
#[derive(Debug)]
pub struct WindowAnalyzer;

impl AnalyzerRule for WindowAnalyzer {
    fn name(&self) -> &str {
        "essaim_windows"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            check(&plan)?;
            match &plan {
                LogicalPlan::Aggregate(aggregate) if aggregate.group_expr.iter().any(is_window) => {
                    Ok(Transformed::yes(shield(aggregate)?))
                }
                _ => Ok(Transformed::no(plan)),
            }
        })
        .data()
    }
}

fn check(plan: &LogicalPlan) -> Result<()> {
    let grouped: &[Expr] = match plan {
        LogicalPlan::Aggregate(aggregate) => &aggregate.group_expr,
        _ => &[],
    };
    plan.apply_expressions(|expr| {
        if grouped.contains(expr) && is_window(expr) {
            return Ok(TreeNodeRecursion::Continue);
        }
        if expr.exists(|part| Ok(is_window(part)))? {
            return Err(Error::invalid(
                "a window stands where it cannot: window(...) is an item of GROUP BY by itself, and window_start and window_end cannot be inside an aggregate function or, in GROUP BY, inside another expression",
            )
            .into());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether an expression is the call that stands for a window.
fn is_window(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => {
            EventTime::named(call.func.name()).is_some_and(EventTime::is_group)
        }
        _ => false,
    }
}

fn shield(aggregate: &Aggregate) -> Result<LogicalPlan> {
    let start = Arc::new(ScalarUDF::new_from_impl(EventTime::WindowStart));
    let columns = aggregate.schema.columns();
    let shielded = columns.into_iter().enumerate().map(|(index, column)| {
        let is_window = aggregate.group_expr.get(index).is_some_and(is_window);
        let Column { relation, name, .. } = column.clone();
        let column = Expr::Column(column);
        if is_window {
            let args = vec![column];
            Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&start), args))
                .alias_qualified(relation, name)
        } else {
            column
        }
    });
    LogicalPlanBuilder::from(LogicalPlan::Aggregate(aggregate.clone()))
        .project(shielded.collect::<Vec<_>>())?
        .build()
}

/// The group columns of an aggregate over rows that are calls of `function`: their positions, and the calls.
fn grouped_by(aggregate: &AggregateExec, function: EventTime) -> Vec<(usize, &ScalarFunctionExpr)> {
    let calls = aggregate.group_expr().expr().iter().enumerate();
    calls
        .filter_map(|(index, (expr, _))| {
            let call = expr.downcast_ref::<ScalarFunctionExpr>()?;
            (call.fun().name() == function.as_str()).then_some((index, call))
        })
        .collect()
}
