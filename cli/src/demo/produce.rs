//! `essaim demo produce`: toots into a topic of a broker that is there, at a steady rate, until it is stopped.

use super::ACCOUNTS;
use super::kafka::{Deliveries, TOPIC};
use super::toots::Author;
use crate::serve::Signals;
use anyhow::{Context, Result, ensure};
use chrono::Utc;
use indicatif::HumanCount;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use std::io::Write;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// How often it is looked how many toots are due.
const TURN: Duration = Duration::from_millis(10);
/// What was missed for longer than this is not made up for: a broker that comes back is not flooded.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How often it is said how many were sent.
const REPORT: Duration = Duration::from_secs(10);
/// How long the last ones may take at the end: less than a container's stop timeout.
const FLUSH: Duration = Duration::from_secs(8);

#[derive(Debug, clap::Args)]
pub struct ProduceArgs {
    /// The brokers.
    #[arg(long, value_name = "HOST:PORT,…")]
    bootstrap_server: String,
    /// The topic; it must be there.
    #[arg(long, value_name = "TOPIC", default_value = TOPIC)]
    topic: String,
    /// Toots a second.
    #[arg(long, value_name = "N", default_value = "1000")]
    throughput: NonZeroU32,
}

/// Sends toots until SIGTERM or SIGINT, and says at the end how many the brokers have.
///
/// # Errors
/// A toot that the brokers did not take.
pub async fn produce(args: ProduceArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    let deliveries = Deliveries::default();
    let producer: ThreadedProducer<Deliveries> = ClientConfig::new()
        .set("bootstrap.servers", &args.bootstrap_server)
        // What is sent again after a broken connection is not there twice.
        .set("enable.idempotence", "true")
        .set("compression.type", "zstd")
        .set("linger.ms", "5")
        .create_with_context(deliveries.clone())
        .with_context(|| format!("no producer for {}", args.bootstrap_server))?;
    let mut author = Author::new(ACCOUNTS);
    let mut sent: u64 = 0;
    let mut turns = tokio::time::interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_turn = Instant::now();
    let mut last_report = last_turn;
    // Toots that are due; a part of one stays for the next turn.
    let mut due = 0.0;
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = signals.next() => break,
        }
        due += last_turn.elapsed().min(CATCH_UP).as_secs_f64() * f64::from(args.throughput.get());
        last_turn = Instant::now();
        while due >= 1.0 {
            let toot = author.write(Utc::now().timestamp_millis());
            let value = toot.json()?;
            let key = toot.account_id.to_string();
            let record = BaseRecord::to(&args.topic)
                .key(&key)
                .payload(&value)
                .timestamp(toot.created_ms);
            match producer.send(record) {
                Ok(()) => sent += 1,
                // The brokers are away or slow: they are asked for no more than there is room for.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    due = 0.0;
                    break;
                }
                Err((error, _)) => return Err(error).context("a toot cannot be sent"),
            }
            due -= 1.0;
        }
        deliveries.all_taken()?;
        if last_report.elapsed() >= REPORT {
            last_report = Instant::now();
            say(&format!("{} toots so far", HumanCount(deliveries.done())))?;
        }
    }
    // It blocks, but there is nothing else to do any more.
    let flushed = producer.flush(FLUSH);
    deliveries.all_taken()?;
    flushed.with_context(|| {
        format!(
            "{} of {sent} toots are not acknowledged: whether the topic {} has them is not known",
            sent - deliveries.done(),
            args.topic
        )
    })?;
    ensure!(
        deliveries.done() == sent,
        "{sent} toots were sent but {} acknowledged",
        deliveries.done()
    );
    // Digits alone: scripts add them up.
    say(&format!("{sent} toots sent"))
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
