//! The tables that streams are joined with: read again every epoch, or as often as `essaim.table_refresh` says.

use crate::Shared;
use crate::plan::stage::Broadcast;
use crate::scheduler::{Stages, Statics};
use crate::stream::input::{Input, InputId, Inputs};
use crate::stream::plan::Static;
use crate::stream::read::{Job, collect};
use crate::stream::setup::StaticInsert;
use arrow::array::RecordBatch;
use datafusion::execution::TaskContext;
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
            if again.statics.len() != planned.len() {
                return Err(Error::internal(
                    "an INSERT was planned otherwise than before",
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
                    _ => {
                        return Err(Error::internal(
                            "an INSERT was planned otherwise than before",
                        ));
                    }
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
