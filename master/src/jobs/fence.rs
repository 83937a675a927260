//! What is known of the state dir: whether it answers, and whether it still belongs to this master.

use crate::events::{EventKind, Events, Severity};
use crate::jobs::model::now_ms;
use essaim_common::{Error, ErrorKind, Result};
use tokio::sync::watch;

/// What is wrong with the state dir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirTrouble {
    /// Milliseconds since 1970-01-01 UTC.
    pub since_ms: i64,
    /// Another master has taken it over. There is no way back from that.
    pub is_lost: bool,
    pub message: String,
}

/// The outcome of the last look.
#[derive(Debug)]
pub(super) struct Fence(watch::Sender<Option<StateDirTrouble>>);

impl Default for Fence {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Fence {
    pub(super) fn learn(&self, outcome: &Result<()>, events: &Events) {
        self.0.send_if_modified(|trouble| {
            if trouble.as_ref().is_some_and(|trouble| trouble.is_lost) {
                return false;
            }
            let Err(error) = outcome else {
                return trouble.take().is_some();
            };
            let is_lost = error.kind() == ErrorKind::Invalid;
            let message = error.to_string();
            if is_lost {
                events.note(EventKind::StateDirLost, Severity::Error, message.clone());
                tracing::error!("{message}: the jobs of this master end");
            }
            let since_ms = match &*trouble {
                Some(before) if !is_lost => before.since_ms,
                _ => now_ms(),
            };
            *trouble = Some(StateDirTrouble {
                since_ms,
                is_lost,
                message,
            });
            true
        });
    }

    pub(super) fn trouble(&self) -> Option<StateDirTrouble> {
        self.0.borrow().clone()
    }

    /// Returns once another master is known to have taken over.
    pub(super) async fn lost(&self) -> Error {
        let mut seen = self.0.subscribe();
        let lost = seen.wait_for(|trouble| trouble.as_ref().is_some_and(|trouble| trouble.is_lost));
        // The sender is ours, so it is there.
        let found = lost.await.ok().and_then(|trouble| trouble.clone());
        found.map_or_else(
            || Error::internal("nobody looks after the state dir"),
            |trouble| Error::invalid(trouble.message),
        )
    }
}
