//! Log lines on their way to standard error. Whoever reads it may stop reading, and the process must go on: lines wait in
//! a queue of bounded length for a thread of their own, and one that finds the queue full is dropped and counted.

use essaim_common::metrics::LOG_LINES_DROPPED;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that wait.
const QUEUE: usize = 8_192;
/// How often it is looked whether lines were dropped.
const PERIOD: Duration = Duration::from_secs(1);

/// What writes the lines, for as long as the process runs.
#[derive(Debug)]
pub(super) struct Lines {
    guard: WorkerGuard,
    _telling: AbortOnDropHandle<()>,
}

impl Lines {
    /// Where lines are to be written. Within the context of a runtime.
    pub(super) fn start() -> (NonBlocking, Self) {
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUE)
            .lossy(true)
            .thread_name("log")
            .finish(std::io::stderr());
        let telling = tokio::spawn(tell(writer.error_counter()));
        let lines = Self {
            guard,
            _telling: AbortOnDropHandle::new(telling),
        };
        (writer, lines)
    }

    /// Writes what still waits, for a second at most.
    pub(super) fn end(self) {
        drop(self.guard);
    }
}

/// Counts the lines that were dropped, and says so as soon as a line has room again.
async fn tell(dropped: ErrorCounter) {
    // As far as metrics know, and as far as the log does; without the lines that were to say so.
    let (mut counted, mut told, mut own) = (0, 0, 0);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = dropped.dropped_lines();
        let lines = now.saturating_sub(own);
        LOG_LINES_DROPPED.add(lines.saturating_sub(counted) as u64);
        counted = counted.max(lines);
        if lines <= told {
            continue;
        }
        tracing::warn!(
            lines = lines - told,
            "log lines were dropped, as nobody read them from standard error: look at what reads it"
        );
        match dropped.dropped_lines() > now {
            true => own += 1,
            false => told = lines,
        }
    }
}
