//! Tells sources that keep a journal what they may forget: what lies in commits that are written.

use crate::stream::SharedCheckpoint;
use essaim_common::stream::{Offsets, StreamSource};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// How long the end of a job waits for sources to clean up.
const PATIENCE: Duration = Duration::from_secs(10);

type Positions = BTreeMap<String, Offsets>;

/// Runs beside the epochs, as far behind them as it happens to be: only the last positions count.
#[derive(Debug)]
pub struct Forgetter {
    committed: watch::Sender<Positions>,
    task: AbortOnDropHandle<()>,
}

impl Forgetter {
    /// For the given sources by table. `None` if there are none: then nobody need wait for commits to be written.
    pub fn new(
        sources: BTreeMap<String, Arc<dyn StreamSource>>,
        checkpoint: SharedCheckpoint,
    ) -> Option<Self> {
        if sources.is_empty() {
            return None;
        }
        let (committed, mut positions) = watch::channel(Positions::new());
        let work = async move {
            while positions.changed().await.is_ok() {
                let committed = positions.borrow_and_update().clone();
                // What cannot be written is tried again by the next epoch; what it holds is forgotten after that.
                if checkpoint.lock().await.flush().await.is_ok() {
                    forget(&sources, &committed).await;
                }
            }
        };
        let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
        Some(Self { committed, task })
    }

    /// An epoch has been handed to the checkpoint, with where the next one reads on.
    pub fn committed(&self, positions: &Positions) {
        self.committed.send_replace(positions.clone());
    }

    /// Waits for the last clean-up of a job that ends.
    pub async fn finish(self) {
        let Self { committed, task } = self;
        drop(committed);
        if tokio::time::timeout(PATIENCE, task).await.is_err() {
            tracing::warn!(
                "a source was not done with cleaning up within {PATIENCE:?}: the next start of the job goes on with it"
            );
        }
    }
}

async fn forget(sources: &BTreeMap<String, Arc<dyn StreamSource>>, committed: &Positions) {
    for (table, source) in sources {
        let Some(offsets) = committed.get(table) else {
            continue;
        };
        if let Err(error) = source.committed(offsets).await {
            tracing::warn!(table, %error, "a source could not clean up what has been read");
        }
    }
}
