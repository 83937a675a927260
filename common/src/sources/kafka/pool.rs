//! Consumers that a worker keeps connected between splits, each reading one partition at a time.
//!
//! A batch job's consumer goes back without an assignment, for whichever partition comes next. A streaming job's stays
//! where it stopped and fetches on: the next epoch's split begins there, and finds its records here already.

use super::client::{Connection, Context, IsolationLevel};
use super::offsets::OffsetRange;
use crate::error::Result;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedMessage;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// Idle consumers that a process keeps; each holds a few threads, a connection to each broker it has read from, and in
/// a streaming job up to 4 MiB of fetched records.
const MAX_IDLE: usize = 32;
/// How long one is kept that nobody asks for.
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);
/// Records that are rather read and thrown away than sought past: another worker had them. A seek waits until the
/// fetch under way has ended.
const MAX_SKIP: i64 = 20_000;

/// Which splits a consumer can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub connection: Connection,
    pub isolation: IsolationLevel,
    /// Whether it stays where it stopped.
    pub continuous: bool,
}

/// A consumer and where it stands.
pub struct Reading {
    pub consumer: BaseConsumer<Context>,
    /// The partition that it is assigned, and the offset that it has read up to.
    pub at: Option<(String, i32, i64)>,
    /// A record behind that offset which has been taken from the consumer already.
    pub ahead: Option<OwnedMessage>,
}

impl Reading {
    /// Whether it comes to the range's start by itself, and soon.
    pub fn leads_to(&self, range: &OffsetRange) -> bool {
        self.at.as_ref().is_some_and(|(topic, partition, at)| {
            (topic, *partition) == (&range.topic, range.partition)
                && (0..=MAX_SKIP).contains(&(range.start - at))
        })
    }

    fn reads(&self, range: &OffsetRange) -> bool {
        self.at.as_ref().is_some_and(|(topic, partition, _)| {
            (topic, *partition) == (&range.topic, range.partition)
        })
    }
}

struct Idle {
    key: Key,
    reading: Reading,
    since: Instant,
}

/// The idle consumers of a process, the longest idle first.
#[derive(Default)]
pub struct ConsumerPool {
    idle: Arc<Mutex<VecDeque<Idle>>>,
    /// Closes consumers that have been idle for too long; there while there are any.
    sweeper: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl std::fmt::Debug for ConsumerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConsumerPool")
    }
}

impl ConsumerPool {
    /// A consumer for a range, if possible one that leads to it. Blocks for no longer than its making takes; makes no
    /// connection.
    ///
    /// # Errors
    /// A setting that librdkafka refuses.
    pub fn take(&self, key: &Key, range: &OffsetRange) -> Result<Reading> {
        let found = {
            let mut idle = self.idle.lock();
            let full = idle.len() >= MAX_IDLE;
            let find = |good: &dyn Fn(&Reading) -> bool| {
                idle.iter()
                    .rposition(|idle| &idle.key == key && good(&idle.reading))
            };
            // One of another partition would have to be called off its own: only if there are too many.
            let index = find(&|reading| reading.leads_to(range))
                .or_else(|| find(&|reading| reading.reads(range)))
                .or_else(|| find(&|reading| full || reading.at.is_none()));
            index.and_then(|index| idle.remove(index))
        };
        match found {
            Some(idle) => Ok(idle.reading),
            None => Ok(Reading {
                consumer: key
                    .connection
                    .reading_client(key.isolation, key.continuous)?,
                at: None,
                ahead: None,
            }),
        }
    }

    /// Gives one back. Blocks while a surplus one closes: not for an async thread.
    pub fn put(&self, key: Key, mut reading: Reading) {
        if !key.continuous {
            (reading.at, reading.ahead) = (None, None);
            if reading.consumer.unassign().is_err() {
                return;
            }
        }
        let surplus = {
            let mut idle = self.idle.lock();
            idle.push_back(Idle {
                key,
                reading,
                since: Instant::now(),
            });
            if idle.len() > MAX_IDLE {
                idle.pop_front()
            } else {
                None
            }
        };
        drop(surplus);
        self.sweep();
    }

    /// Sees to it that somebody looks after the idle ones.
    fn sweep(&self) {
        let mut sweeper = self.sweeper.lock();
        let runs = sweeper.as_ref().is_some_and(|task| !task.is_finished());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !runs {
            let idle = Arc::clone(&self.idle);
            *sweeper = Some(AbortOnDropHandle::new(runtime.spawn(sweep(idle))));
        }
    }
}

/// Closes what has been idle for too long, and ends when nothing is idle.
async fn sweep(idle: Arc<Mutex<VecDeque<Idle>>>) {
    loop {
        tokio::time::sleep(MAX_IDLE_TIME / 4).await;
        let old: Vec<Idle> = {
            let mut idle = idle.lock();
            if idle.is_empty() {
                return;
            }
            let old = idle.partition_point(|idle| idle.since.elapsed() >= MAX_IDLE_TIME);
            idle.drain(..old).collect()
        };
        // Closing waits for the consumer's threads.
        if !old.is_empty()
            && tokio::task::spawn_blocking(move || drop(old))
                .await
                .is_err()
        {
            return;
        }
    }
}
