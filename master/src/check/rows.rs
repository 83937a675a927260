//! What planning knows of the rows that an INSERT brings: columns that are always NULL, and what tells rows apart.

use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};
use datafusion::scalar::ScalarValue;
use essaim_common::functions::event_time::EventTime;

/// The columns of a plan, by index, that are NULL in every row.
pub fn always_null(plan: &LogicalPlan) -> Vec<usize> {
    let LogicalPlan::Projection(projection) = plan else {
        return Vec::new();
    };
    let columns = projection.expr.iter().enumerate();
    columns
        .filter(|(_, expr)| is_null(expr))
        .map(|(index, _)| index)
        .collect()
}

fn is_null(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.is_null() || *value == ScalarValue::Null,
        Expr::Alias(alias) => is_null(&alias.expr),
        Expr::Cast(cast) => is_null(&cast.expr),
        Expr::TryCast(cast) => is_null(&cast.expr),
        _ => false,
    }
}

/// For each thing that a plan's rows are grouped by, the columns that carry it; `None` if they are not grouped.
pub fn groups(plan: &LogicalPlan) -> Option<Vec<Vec<usize>>> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => {
            let sets = aggregate
                .group_expr
                .iter()
                .any(|expr| matches!(expr, Expr::GroupingSet(_)));
            // The end of a session follows from its start.
            let groups = aggregate.group_expr.iter().enumerate();
            let groups = groups.filter(|(_, expr)| !is_session_end(expr));
            (!sets).then(|| groups.map(|(index, _)| vec![index]).collect())
        }
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let columns = 0..input.schema().fields().len();
            Some(columns.map(|index| vec![index]).collect())
        }
        LogicalPlan::Distinct(Distinct::On(on)) => {
            let carriers = on.on_expr.iter().map(|key| {
                let selected = on.select_expr.iter().enumerate();
                let same = selected.filter(|(_, expr)| bare(expr) == bare(key));
                same.map(|(index, _)| index).collect()
            });
            Some(carriers.collect())
        }
        LogicalPlan::Projection(projection) => {
            let below = groups(&projection.input)?;
            let carried: Vec<Option<usize>> = projection
                .expr
                .iter()
                .map(|expr| {
                    let Expr::Column(column) = bare(expr) else {
                        return None;
                    };
                    projection.input.schema().maybe_index_of_column(column)
                })
                .collect();
            let above = |group: Vec<usize>| {
                let columns = carried.iter().enumerate();
                let kept = columns.filter(|(_, below)| below.is_some_and(|b| group.contains(&b)));
                kept.map(|(index, _)| index).collect()
            };
            Some(below.into_iter().map(above).collect())
        }
        LogicalPlan::SubqueryAlias(alias) => groups(&alias.input),
        LogicalPlan::Filter(filter) => groups(&filter.input),
        LogicalPlan::Sort(sort) => groups(&sort.input),
        LogicalPlan::Limit(limit) => groups(&limit.input),
        _ => None,
    }
}

fn is_session_end(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => {
            EventTime::named(call.func.name()) == Some(EventTime::SessionEnd)
        }
        Expr::Alias(alias) => is_session_end(&alias.expr),
        _ => false,
    }
}

/// An expression without what keeps different values different: a name, a cast, the start or end of a window.
fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => bare(&alias.expr),
        Expr::Cast(cast) => bare(&cast.expr),
        Expr::ScalarFunction(call) if EventTime::named(call.func.name()).is_some() => {
            call.args.first().map_or(expr, bare)
        }
        _ => expr,
    }
}
