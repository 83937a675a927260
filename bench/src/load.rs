//! A producer that keeps to a rate whatever becomes of what it sends.

use crate::messages::{key_of, write_event};
use crate::topic::{PARTITIONS, config, send};
use anyhow::{Context, Result, anyhow};
use rdkafka::producer::{DefaultProducerContext, Producer, ThreadedProducer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// How often it looks what is due.
const TICK: Duration = Duration::from_millis(1);
const FLUSH: Duration = Duration::from_secs(60);

/// A producer at work on a thread of its own. Its time of an event is when it is due.
///
/// Message `n` is due `n / rate` after the start, and is sent then or, if the producer is held up, as soon as it can be:
/// what is measured from `due` on leaves nothing out. It goes to the partition `key % 8`.
#[derive(Debug)]
pub struct Load {
    start: Instant,
    rate: u64,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The partition to which message `number` goes.
pub fn partition_of(number: u64) -> usize {
    (key_of(number) % PARTITIONS as u64) as usize
}

impl Load {
    /// Sends `messages` messages to a topic of [`PARTITIONS`] partitions, `rate` a second.
    ///
    /// # Errors
    /// There is no producer, or no thread.
    pub fn start(topic: &str, rate: u64, messages: u64) -> Result<Self> {
        // librdkafka's defaults but for what keeps order: batches wait for 5 ms, the broker's answer for its disk.
        let producer: ThreadedProducer<DefaultProducerContext> = config()
            .set("enable.idempotence", "true")
            .set("queue.buffering.max.messages", "1000000")
            .create()?;
        let (start, start_ms) = (Instant::now(), unix_ms()?);
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let work = {
            let (topic, sent, stop) = (topic.to_owned(), Arc::clone(&sent), Arc::clone(&stop));
            move || {
                let mut payload = String::new();
                for number in 0..messages {
                    let due = due(rate, number);
                    while start.elapsed() < due && !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(TICK);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    write_event(number, start_ms + due.as_millis() as i64, &mut payload);
                    send(&producer, &topic, partition_of(number) as i32, &payload)?;
                    sent.store(number + 1, Ordering::Relaxed);
                }
                producer.flush(FLUSH).context("flushing the producer")
            }
        };
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(work)?;
        Ok(Self {
            start,
            rate,
            sent,
            stop,
            thread: Some(thread),
        })
    }

    /// How many messages have been handed to the producer.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// When message `number` is due.
    pub fn due(&self, number: u64) -> Instant {
        self.start + due(self.rate, number)
    }

    /// Waits until everything is sent and stored.
    ///
    /// # Errors
    /// Something was not.
    pub async fn finish(mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        tokio::task::spawn_blocking(move || {
            thread
                .join()
                .map_err(|_| anyhow!("the producer panicked"))?
        })
        .await?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // After `finish` there is nothing to stop; otherwise the bench has failed, and nobody asks for the outcome.
        if self.thread.is_some() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn due(rate: u64, number: u64) -> Duration {
    Duration::from_nanos((u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64)
}

/// Now, ms since 1970-01-01 UTC.
fn unix_ms() -> Result<i64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(since.as_millis() as i64)
}
