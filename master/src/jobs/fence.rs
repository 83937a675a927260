//! What is known of the state dir: whether it answers, and whether it still belongs to this master.

use crate::events::{EventKind, Events, Severity};
use crate::jobs::model::now_ms;
use essaim_common::{ErrorKind, Result};
use parking_lot::Mutex;

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
#[derive(Debug, Default)]
pub(super) struct Fence(Mutex<Option<StateDirTrouble>>);

impl Fence {
    pub(super) fn learn(&self, outcome: &Result<()>, events: &Events) {
        let mut trouble = self.0.lock();
        if trouble.as_ref().is_some_and(|trouble| trouble.is_lost) {
            return;
        }
        let Err(error) = outcome else {
            *trouble = None;
            return;
        };
        let is_lost = error.kind() == ErrorKind::Invalid;
        let message = error.to_string();
        if is_lost {
            events.note(EventKind::StateDirLost, Severity::Error, message.clone());
            tracing::error!("{message}");
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
    }

    pub(super) fn trouble(&self) -> Option<StateDirTrouble> {
        self.0.lock().clone()
    }
}
