//! The producer: known rows at an even rate while it runs, each in the topic once.

use crate::rows::message;
use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Messages a second.
const RATE: f64 = 2_000.0;
/// How long a broker may be away.
const FLUSH: Duration = Duration::from_secs(90);

enum Command {
    /// Send, with late rows behind this watermark.
    Run(Option<i64>),
    /// Stop sending, and say how many messages are in the topic when all are.
    Pause(oneshot::Sender<Result<u64>>),
}

/// A thread that sends. It ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    commands: SyncSender<Command>,
}

impl Load {
    /// Starts the thread, which waits for [`Self::run`].
    pub fn start(seed: u64, brokers: &str, topic: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            // Sent again after a broker's death, a message is not there twice.
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("reconnect.backoff.max.ms", "500")
            .set("linger.ms", "5");
        let producer: BaseProducer<Failures> = config.create_with_context(Failures::default())?;
        let (commands, received) = sync_channel(1);
        let topic = topic.to_owned();
        std::thread::spawn(move || send(&producer, seed, &topic, &received));
        Ok(Self { commands })
    }

    /// Sends from now on. Late rows are behind `watermark`, ms, if there is one.
    pub fn run(&self, watermark: Option<i64>) -> Result<()> {
        self.commands
            .send(Command::Run(watermark))
            .context("the producer's thread has ended")
    }

    /// Sends no more; returns how many messages are in the topic.
    pub async fn pause(&self) -> Result<u64> {
        let (sender, sent) = oneshot::channel();
        self.commands
            .send(Command::Pause(sender))
            .context("the producer's thread has ended")?;
        sent.await.context("the producer's thread has ended")?
    }
}

/// Counts what was not delivered.
#[derive(Debug, Default)]
struct Failures(AtomicU64);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn send(producer: &BaseProducer<Failures>, seed: u64, topic: &str, commands: &Receiver<Command>) {
    let mut sent = 0;
    'paused: while let Ok(command) = commands.recv() {
        let watermark = match command {
            Command::Run(watermark) => watermark,
            Command::Pause(answer) => {
                let _ = answer.send(flushed(producer, sent));
                continue;
            }
        };
        let (started, first) = (Instant::now(), sent);
        loop {
            match commands.try_recv() {
                Ok(Command::Pause(answer)) => {
                    let _ = answer.send(flushed(producer, sent));
                    continue 'paused;
                }
                Ok(Command::Run(_)) | Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            let due = first + (started.elapsed().as_secs_f64() * RATE) as u64;
            while sent < due {
                let message = message(seed, sent, watermark);
                let record = BaseRecord::<(), _>::to(topic)
                    .partition(message.partition)
                    .payload(&message.payload);
                match producer.send(record) {
                    Ok(()) => sent += 1,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => break,
                    Err((error, _)) => {
                        eprintln!("message {sent} is not sent: {error}");
                        return;
                    }
                }
            }
            producer.poll(Duration::from_millis(10));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn flushed(producer: &BaseProducer<Failures>, sent: u64) -> Result<u64> {
    producer.flush(FLUSH).context("the producer's messages")?;
    let failed = producer.context().0.load(Ordering::Relaxed);
    if let Some((code, reason)) = producer.client().fatal_error() {
        bail!("the producer broke: {code}: {reason}");
    }
    ensure!(
        failed == 0,
        "{failed} of {sent} messages were not delivered"
    );
    Ok(sent)
}
