//! EXPLAIN: which way a query takes and why, its stages, their splits, and what was pushed down.

use crate::plan::{Execution, Planner, Query, exchange};
use crate::stream;
use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::displayable;
use datafusion_distributed::display_plan_ascii;
use essaim_common::Result;
use std::fmt::Write;
use std::sync::Arc;

/// Splits of a stage that EXPLAIN shows without VERBOSE.
const SPLITS_SHOWN: usize = 8;

/// A query that yields the explanation of another: `[plan_type, plan]`.
pub(crate) async fn explain(planner: &Planner, query: Query, verbose: bool) -> Result<Query> {
    let mut rows: Vec<(String, String)> = vec![(
        "logical_plan".to_owned(),
        query.logical.display_indent().to_string(),
    )];
    let tree = |plan: &dyn ExecutionPlan| displayable(plan).indent(verbose).to_string();
    match &query.execution {
        Execution::Master(plan) => {
            rows.push((
                "execution".to_owned(),
                "master: there is nothing to distribute".to_owned(),
            ));
            rows.push(("master".to_owned(), tree(plan.as_ref())));
        }
        Execution::Tasks(cut) => {
            let workers = planner.registry.workers();
            let slots: usize = workers.iter().map(|worker| worker.slots).sum();
            rows.push((
                "execution".to_owned(),
                format!(
                    "tasks: cut where partitions first meet. Each task goes to whichever of {slots} slots on {} workers is free next",
                    workers.len()
                ),
            ));
            rows.push(("master".to_owned(), tree(cut.upper.as_ref())));
            for stage in &cut.stages {
                let mut text = tree(stage.plan.as_ref());
                for broadcast in &stage.broadcasts {
                    let _ = write!(
                        text,
                        "sent whole to every worker as {}:\n{}",
                        broadcast.key,
                        tree(broadcast.plan.as_ref())
                    );
                }
                let shown = if verbose {
                    stage.tasks()
                } else {
                    stage.tasks().min(SPLITS_SHOWN)
                };
                for task in 0..shown {
                    let _ = writeln!(text, "task {task}: {}", stage.task_label(task));
                }
                if shown < stage.tasks() {
                    let _ = writeln!(
                        text,
                        "and {} more (EXPLAIN VERBOSE shows all)",
                        stage.tasks() - shown
                    );
                }
                rows.push((
                    format!("stage {} ({} tasks)", stage.id, stage.tasks()),
                    text,
                ));
            }
        }
        Execution::Stream(plan) => rows.extend(stream::explain(planner, &query.logical, plan)?),
        Execution::Exchange { reason, .. } => {
            rows.push((
                "execution".to_owned(),
                format!("exchange: {reason}. Retried as a whole"),
            ));
            let workers = planner.registry.open_workers();
            let addresses = workers.into_iter().map(|(_, address)| address).collect();
            let (plan, _) = exchange::plan(planner, addresses, planner.registry.peers(), &query.logical).await?;
            rows.push((
                "exchange".to_owned(),
                display_plan_ascii(plan.as_ref(), false),
            ));
        }
    }
    let schema = Arc::new(Schema::new(vec![
        Field::new("plan_type", DataType::Utf8, false),
        Field::new("plan", DataType::Utf8, false),
    ]));
    let (kinds, plans): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(StringArray::from(kinds)),
            Arc::new(StringArray::from(plans)),
        ],
    )
    .map_err(datafusion::error::DataFusionError::from)?;
    let plan = MemorySourceConfig::try_new_exec(&[vec![batch]], schema, None)?;
    Ok(Query {
        logical: query.logical,
        execution: Execution::Master(plan),
        sink: None,
    })
}
