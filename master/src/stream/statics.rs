//! The tables that streams are joined with: read again every epoch, or as often as `essaim.table_refresh` says.

use crate::Shared;
use crate::plan::stage::Broadcast;
use crate::scheduler::{Stages, Statics};
use crate::stream::input::{Input, InputId, Inputs};
use crate::stream::plan::Static;
use crate::stream::read::{Job, collect};
use crate::stream::setup::StaticInsert;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use essaim_common::scan::ScanExec;
use essaim_common::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the tables held when they were last read.
#[derive(Debug, Default)]
pub struct Held {
    pub broadcasts: Statics,
    /// By the key that a broadcast was planned with: the one that is held for it now.
    pub keys: HashMap<String, Arc<Broadcast>>,
    upper: HashMap<InputId, Arc<[RecordBatch]>>,
}

impl Held {
    /// Adds the inputs of the upper halves.
    pub fn fill(&self, inputs: &Inputs) {
        for (id, batches) in &self.upper {
            inputs.put(*id, Input::Batches(Arc::clone(batches)));
        }
    }
}

/// Reads the tables.
#[derive(Debug)]
pub struct Tables {
    /// The INSERTs as they are planned again, each with what it reads besides streams, as it was first planned.
    pub(super) inserts: Vec<StaticInsert>,
    pub(super) refresh: Duration,
    pub(super) held: Option<(Instant, Arc<Held>)>,
    /// Whether an INSERT was planned otherwise than at first.
    pub(super) outdated: bool,
}

impl Tables {
    /// What the tables hold, read now unless that is not due yet.
    ///
    /// # Errors
    /// A table is out of reach or larger than the limit for a broadcast.
    pub async fn held(&mut self, shared: &Arc<Shared>, job: &Arc<Job>) -> Result<Arc<Held>> {
        let fresh = |since: &Instant| {
            self.inserts.is_empty() || (!self.refresh.is_zero() && since.elapsed() < self.refresh)
        };
        if let Some((since, held)) = &self.held
            && fresh(since)
        {
            return Ok(Arc::clone(held));
        }
        let mut held = Held::default();
        for (statement, planned) in &self.inserts {
            // A new plan sees the tables as they are: sources of batch queries are cut into splits when planned.
            job.planner.release().await;
            let again = statement.plan(&job.planner).await?;
            // The planner looks at how large the tables are, and a server that analyses its tables changes its mind.
            if !is_alike(planned, &again.statics) {
                self.outdated = true;
                return Err(Error::unavailable(
                    "the tables that a stream is joined with have changed: the job is planned anew",
                ));
            }
            let stages = Stages::new(
                Arc::clone(&job.handle),
                statement.index as usize,
                Arc::clone(&shared.registry),
                job.planner.settings(),
                job.planner.changed_settings().clone(),
            );
            let state = job.planner.state();
            let config = state.config().clone().with_extension(Arc::clone(&stages));
            let ctx = Arc::new(TaskContext::from(&state).with_session_config(config));
            let mut broadcasts = Vec::new();
            for (before, now) in planned.iter().zip(again.statics) {
                match (before, now) {
                    (Static::Broadcast(before), Static::Broadcast(now)) => {
                        held.keys.insert(before.key.clone(), Arc::clone(&now));
                        broadcasts.push(now);
                    }
                    (Static::Upper(id, _), Static::Upper(_, plan)) => {
                        held.upper.insert(*id, collect(&plan, &ctx).await?.into());
                    }
                    // They are alike.
                    _ => {}
                }
            }
            let made = stages.statics(&broadcasts, &ctx).await?;
            held.broadcasts.extend(made);
            stages.stop();
        }
        if let Some((_, old)) = self.held.take() {
            Stages::forget(&shared.registry, &old.broadcasts);
        }
        let held = Arc::new(held);
        self.held = Some((Instant::now(), Arc::clone(&held)));
        Ok(held)
    }
}

/// Whether both read the same in the same order, so that what is read for the one does for the other.
fn is_alike(planned: &[Static], again: &[Static]) -> bool {
    planned.len() == again.len() && planned.iter().zip(again).all(|(a, b)| shape(a) == shape(b))
}

/// What is read and how, without the splits, which are others every time.
fn shape(read: &Static) -> (bool, SchemaRef, Vec<String>) {
    let (is_broadcast, plan) = match read {
        Static::Broadcast(broadcast) => (true, &broadcast.plan),
        Static::Upper(_, plan) => (false, plan),
    };
    let mut nodes = Vec::new();
    name_nodes(plan, &mut nodes);
    (is_broadcast, plan.schema(), nodes)
}

fn name_nodes(plan: &Arc<dyn ExecutionPlan>, nodes: &mut Vec<String>) {
    let table = plan.downcast_ref::<ScanExec>().map(ScanExec::table);
    nodes.push(format!("{} {}", plan.name(), table.unwrap_or_default()));
    for child in plan.children() {
        name_nodes(child, nodes);
    }
}
