//! The journal of a stream whose source has no positions to read again from: what came, numbered and kept.
//!
//! A request to an HTTP server cannot be made a second time with the same answer, and a folder does not say in which
//! order its files came. Such a source writes down what it has found before it offers it: the number of an entry is
//! its offset, and an epoch that runs again reads the same entries.

use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt::Debug;
use std::sync::Arc;

/// The largest entry, in bytes.
pub const MAX_ENTRY_BYTES: usize = 4 << 20;

/// What an earlier start of the job left of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journaled {
    /// What [`Journal::compact`] was given last; `None` if it was never called.
    pub summary: Option<Bytes>,
    /// The number of the first entry of `entries`.
    pub first: i64,
    /// All entries from there on, in order.
    pub entries: Vec<Bytes>,
}

impl Journaled {
    /// The number of the next entry.
    pub fn end(&self) -> i64 {
        self.first + self.entries.len() as i64
    }
}

/// The journal of one table of one streaming job, for one generation of it.
#[async_trait]
pub trait Journal: Debug + Send + Sync {
    /// Adds entries: all are kept when this returns, or none. Returns the number of the one that comes next. After an
    /// error call it again with the same entries before any others: they are never there twice.
    ///
    /// # Errors
    /// The state dir is out of reach (`Unavailable`); a newer generation of the job has begun, or an entry is larger
    /// than [`MAX_ENTRY_BYTES`] (`Invalid`).
    async fn append(&self, entries: &[Bytes]) -> Result<i64>;

    /// Forgets the entries before `below`, and keeps `summary` in their stead: what the source must know of them. The
    /// next start finds the summary and the entries from `below` on, or, after a failure here, what the call before left.
    ///
    /// # Errors
    /// As `append`.
    async fn compact(&self, below: i64, summary: Bytes) -> Result<()>;
}

/// Opens the journal of a table: [`crate::stream::StreamSource::open`] is given it.
#[async_trait]
pub trait Journals: Send + Sync {
    /// The journal and what is in it. Once for each start of the job.
    ///
    /// # Errors
    /// The state dir is out of reach; what it holds is broken.
    async fn open(&self) -> Result<(Arc<dyn Journal>, Journaled)>;
}

/// Refuses an entry that no journal takes.
///
/// # Errors
/// It is larger than [`MAX_ENTRY_BYTES`].
pub fn check_entry(entry: &Bytes) -> Result<()> {
    if entry.len() > MAX_ENTRY_BYTES {
        return Err(Error::invalid(format!(
            "a record of {} bytes is larger than a source without positions may keep ({MAX_ENTRY_BYTES} bytes)",
            entry.len()
        )));
    }
    Ok(())
}
