//! The first records of a task that did not decode, with their coordinates: an extension of the task's session that
//! sources write and the worker passes on.

use essaim_proto::v1;
use parking_lot::Mutex;

/// Records that a task tells of; the others are only counted.
pub const MAX_BAD_RECORDS: usize = 10;
/// The longest reason, in bytes.
const MAX_REASON: usize = 1_000;

/// What sources have noted so far.
#[derive(Debug, Default)]
pub struct BadRecords(Mutex<Vec<v1::BadRecord>>);

impl BadRecords {
    /// Notes a record, unless there are enough.
    pub fn note(&self, topic: &str, partition: i32, offset: i64, reason: &str) {
        let mut noted = self.0.lock();
        if noted.len() < MAX_BAD_RECORDS {
            let end = reason.floor_char_boundary(MAX_REASON);
            noted.push(v1::BadRecord {
                topic: topic.to_owned(),
                partition,
                offset,
                reason: reason[..end].to_owned(),
            });
        }
    }

    /// All that were noted; at most [`MAX_BAD_RECORDS`].
    pub fn noted(&self) -> Vec<v1::BadRecord> {
        self.0.lock().clone()
    }
}
