//! Where bad records go under `on_error = 'dead_letter'`: whole, with their place and the reason.

mod table;
mod topic;

use super::client::Connection;
use crate::error::Result;
use crate::secret::Secret;
use rdkafka::message::OwnedHeaders;
use serde::{Deserialize, Serialize};
use table::DeadLetterTable;
use topic::DeadLetterTopic;

/// Where bad records go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeadLetterTarget {
    /// A topic of the same brokers; `None` stands for `<topic>_dead_letter` of each record's own topic.
    Topic(Option<String>),
    /// A table in Postgres, made when it is absent.
    Table { location: Secret, table: String },
}

/// A record that did not decode.
#[derive(Debug)]
pub struct BadRecord<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Option<&'a OwnedHeaders>,
    pub reason: &'a str,
}

/// The way out for bad records of one split. Connects with the first of them.
pub enum DeadLetters<'a> {
    Topic(DeadLetterTopic<'a>),
    Table(DeadLetterTable<'a>),
}

impl<'a> DeadLetters<'a> {
    /// Bad records are going to `target`.
    pub fn new(target: &'a DeadLetterTarget, connection: &'a Connection) -> Self {
        match target {
            DeadLetterTarget::Topic(topic) => {
                Self::Topic(DeadLetterTopic::new(topic.as_deref(), connection))
            }
            DeadLetterTarget::Table { location, table } => {
                Self::Table(DeadLetterTable::new(location, table, connection.timeout()))
            }
        }
    }

    /// Puts records aside, and returns when they are safe. Blocks: not for an async thread.
    ///
    /// # Errors
    /// The target cannot be written: a job that may not lose bad records fails.
    pub fn put(&mut self, records: &[BadRecord<'_>]) -> Result<()> {
        match self {
            Self::Topic(topic) => topic.put(records),
            Self::Table(table) => table.put(records),
        }
    }
}
