//! What the upper half of a plan knows of the epoch that it runs in: an extension of its context.

use std::collections::BTreeMap;

/// The watermarks of an INSERT, ms since the epoch; [`i64::MIN`] while there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// What the epoch before left: rows too late for it have been dropped below the cut.
    pub before: i64,
    /// With the rows of this epoch: what it closes is final.
    pub now: i64,
}

/// One epoch, as the stateful operators above the cut see it. They read state as the last epoch left it, and put their
/// changes down here; the changes are applied once the sinks have committed.
#[derive(Debug)]
pub struct EpochContext {
    pub epoch: u64,
    /// Wall-clock time at which the epoch was planned, ms; the same when the epoch is run again.
    pub time_ms: i64,
    /// By the INSERT's position in the job.
    pub watermarks: BTreeMap<u32, Watermarks>,
}
