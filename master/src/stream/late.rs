//! What makes a row of a streaming INSERT too late, and the filter below the cut that drops and counts such rows.

use crate::plan::cut::rebuild;
use crate::stream::join::event_times;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::union::UnionExec;
use essaim_common::Result;
use essaim_common::functions::window::WindowSpec;
use essaim_common::late::{LateFilterExec, Until};
use std::sync::Arc;

/// Which column of an aggregate's input, or of a stage's output, tells the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LateColumn {
    /// That which this group column is made of.
    Group(usize),
    Named(String),
    /// The first event time that the stage's rows carry.
    Carried,
}

/// What keeps a row in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Late {
    /// Every row is in time.
    #[default]
    Never,
    /// Until the last window that holds the row has closed.
    Window(WindowSpec),
    /// So many ms behind the watermark.
    Allowance(i64),
}

impl Late {
    /// The event time before which every row is too late, [`i64::MIN`] if none is.
    pub fn before(&self, watermark: i64) -> i64 {
        if watermark == i64::MIN {
            return i64::MIN;
        }
        match self {
            Self::Never => i64::MIN,
            Self::Window(spec) => spec.first_open(watermark),
            Self::Allowance(ms) => watermark.saturating_sub(*ms),
        }
    }

    /// Puts the filter below the partial aggregate of a stage, or on top of it.
    ///
    /// # Errors
    /// None for a plan that the cut made.
    pub fn filter(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        query: u32,
        column: &LateColumn,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let until = match self {
            Self::Never => return Ok(Arc::clone(plan)),
            Self::Window(spec) => Until::Window(*spec),
            Self::Allowance(ms) => Until::Allowance(*ms),
        };
        if plan.is::<UnionExec>() {
            let inputs = plan
                .children()
                .into_iter()
                .map(|child| self.filter(child, query, column))
                .collect::<Result<_>>()?;
            return Ok(rebuild(Arc::clone(plan), inputs)?);
        }
        if *column == LateColumn::Carried {
            return Ok(match event_times(plan).first() {
                Some(column) => {
                    let input = Arc::clone(plan);
                    Arc::new(LateFilterExec::new(input, query, *column, until))
                }
                None => Arc::clone(plan),
            });
        }
        let Some(column) = plan
            .downcast_ref::<AggregateExec>()
            .filter(|aggregate| *aggregate.mode() == AggregateMode::Partial)
            .and_then(|aggregate| match column {
                LateColumn::Group(group) => time_column(aggregate, *group),
                LateColumn::Named(name) => aggregate.input().schema().index_of(name).ok(),
                LateColumn::Carried => None,
            })
        else {
            // The operator above the cut drops what is too late.
            return Ok(Arc::clone(plan));
        };
        let inputs = plan
            .children()
            .into_iter()
            .map(|input| {
                let filter = LateFilterExec::new(Arc::clone(input), query, column, until);
                Arc::new(filter) as Arc<dyn ExecutionPlan>
            })
            .collect();
        Ok(rebuild(Arc::clone(plan), inputs)?)
    }
}

/// The column of an aggregate's input that tells the time of a row: what the window function is given; or the start of
/// the pane, computed further below, which is in time as long as its rows are.
fn time_column(aggregate: &AggregateExec, group: usize) -> Option<usize> {
    let (expr, _) = aggregate.group_expr().expr().get(group)?;
    let column = |expr: &Arc<dyn PhysicalExpr>| expr.downcast_ref::<Column>().map(Column::index);
    column(expr).or_else(|| {
        let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
        column(function.args().first()?)
    })
}
