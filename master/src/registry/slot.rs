//! The right to run a task on a worker.

use crate::registry::{Registry, RunningTask, TaskClient};
use crate::shares::Lane;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The right to run one task on one worker; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    pub(super) registry: Arc<Registry>,
    /// Unique in this master.
    pub(super) number: u64,
    pub(super) job: String,
    pub(super) worker: String,
    pub(super) address: String,
    pub(super) lane: Lane,
    pub(super) start: f64,
    pub(super) client: TaskClient,
    pub(super) lost: CancellationToken,
}

impl Slot {
    /// The worker's id.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// The worker's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client of the worker's tasks.
    pub fn client(&self) -> TaskClient {
        self.client.clone()
    }

    /// Tells what runs here.
    pub fn runs(&self, task: RunningTask) {
        let mut state = self.registry.state.lock();
        if !self.lost.is_cancelled()
            && let Some(member) = state.members.get_mut(&self.worker)
        {
            member.tasks.insert(self.number, task);
        }
    }

    /// Returns once the worker is given up.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether it is: its worker may have registered anew since.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let registry = Arc::clone(&self.registry);
        let mut state = registry.state.lock();
        // A worker that was given up and came back under the same id never counted this slot.
        if let (Some(lanes), false) = (state.lanes.get_mut(&self.worker), self.lost.is_cancelled())
        {
            *lanes.count(self.lane) -= 1;
        }
        if let (Some(member), false) = (
            state.members.get_mut(&self.worker),
            self.lost.is_cancelled(),
        ) {
            member.tasks.remove(&self.number);
        }
        state.shares.give_back(&self.job, self.start);
        let unwanted = registry.dispatch(&mut state);
        drop(state);
        drop(unwanted);
    }
}
