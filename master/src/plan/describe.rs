//! `DESCRIBE`: the columns of a table, with their types by the names that SQL has for them.

use datafusion::common::Result;
use datafusion::logical_expr::{DescribeTable, Expr, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::prelude::col;
use essaim_common::sql_types::sql_type;

/// The rows of a DESCRIBE, in place of DataFusion's, which name Arrow's types.
///
/// # Errors
/// A plan that cannot be made, which would be a mistake of ours.
pub(super) fn rows(table: DescribeTable) -> Result<LogicalPlan> {
    let fields = table.schema.fields();
    if fields.is_empty() {
        return Ok(LogicalPlan::DescribeTable(table));
    }
    let rows = fields.iter().map(|field| {
        let is_nullable = match field.is_nullable() {
            true => "YES",
            false => "NO",
        };
        vec![
            lit(field.name().as_str()),
            lit(sql_type(field.data_type())),
            lit(is_nullable),
        ]
    });
    let names = ["column_name", "data_type", "is_nullable"];
    let names = (1..)
        .zip(names)
        .map(|(index, name)| -> Expr { col(format!("column{index}")).alias(name) });
    LogicalPlanBuilder::values(rows.collect())?
        .project(names.collect::<Vec<_>>())?
        .build()
}
