//! Consumers that a worker keeps connected between splits, each reading one partition at a time.

use super::client::{Connection, Context, IsolationLevel};
use crate::error::Result;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::collections::VecDeque;

/// Idle consumers that a process keeps; each holds a few threads and a connection to each broker it has read from.
const MAX_IDLE: usize = 16;

type Key = (Connection, IsolationLevel);

/// The idle consumers of a process, the longest idle first.
#[derive(Default)]
pub struct ConsumerPool {
    idle: Mutex<VecDeque<(Key, BaseConsumer<Context>)>>,
}

impl std::fmt::Debug for ConsumerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConsumerPool")
    }
}

impl ConsumerPool {
    /// A consumer without an assignment. Blocks for no longer than its making takes; makes no connection.
    ///
    /// # Errors
    /// A setting that librdkafka refuses.
    pub fn take(&self, key: &Key) -> Result<BaseConsumer<Context>> {
        let found = {
            let mut idle = self.idle.lock();
            let index = idle.iter().rposition(|(known, _)| known == key);
            index.and_then(|index| idle.remove(index))
        };
        match found {
            Some((_, consumer)) => Ok(consumer),
            None => key.0.reading_client(key.1),
        }
    }

    /// Gives one back. Blocks while a surplus one closes: not for an async thread.
    pub fn put(&self, key: Key, consumer: BaseConsumer<Context>) {
        if consumer.unassign().is_err() {
            return;
        }
        let surplus = {
            let mut idle = self.idle.lock();
            idle.push_back((key, consumer));
            if idle.len() > MAX_IDLE {
                idle.pop_front()
            } else {
                None
            }
        };
        drop(surplus);
    }
}
