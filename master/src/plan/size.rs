//! How large a query may be. A text of a few lines can name more than a master has memory for: views that use each view twice.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use essaim_common::{Error, Result};

/// The most nodes of a logical plan, each view and CTE counted as often as it is used.
const MAX_NODES: usize = 10_000;

/// Refuses a plan that optimizing would take too long and too much memory for.
///
/// # Errors
/// It has too many nodes.
pub fn check(plan: &LogicalPlan) -> Result<()> {
    let mut nodes = 0;
    plan.apply_with_subqueries(|_| {
        nodes += 1;
        Ok(match nodes > MAX_NODES {
            true => TreeNodeRecursion::Stop,
            false => TreeNodeRecursion::Continue,
        })
    })?;
    if nodes > MAX_NODES {
        return Err(Error::invalid(format!(
            "the query has more than {MAX_NODES} steps, views and CTEs counted as often as they are used: write what is used more than once into a table first"
        )));
    }
    Ok(())
}
