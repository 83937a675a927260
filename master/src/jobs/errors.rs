//! What went wrong in a job, with the coordinates of the record that it is about.

use crate::events::shortened;
use crate::jobs::model::now_ms;
use essaim_proto::v1;
use serde::{Deserialize, Serialize};

/// The longest message that is kept, in characters.
const MAX_MESSAGE: usize = 2_000;

/// An error of a job, whether or not the job got over it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: i64,
    pub message: String,
    /// The table, topic, partition and offset of the record that it is about.
    pub table: Option<String>,
    pub topic: Option<String>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
}

impl JobError {
    /// An error that has happened now; a long message is cut.
    pub fn now(message: impl Into<String>) -> Self {
        Self {
            at_ms: now_ms(),
            message: shortened(message.into(), MAX_MESSAGE),
            ..Self::default()
        }
    }

    /// A record that a task could not decode.
    pub(crate) fn of_record(record: v1::BadRecord, table: Option<String>) -> Self {
        Self {
            table,
            topic: Some(record.topic),
            partition: Some(record.partition),
            offset: Some(record.offset),
            ..Self::now(format!("the record does not decode: {}", record.reason))
        }
    }

    pub(crate) fn to_proto(&self) -> v1::JobError {
        v1::JobError {
            at_ms: self.at_ms,
            message: self.message.clone(),
            table: self.table.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}
