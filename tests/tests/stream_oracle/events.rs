//! Events at random, what was sent of them to which partition, and the same rows in PostgreSQL.

use anyhow::Result;
use chrono::{DateTime, FixedOffset, Utc};
use essaim_tests::kafka::{Message, Topic};
use essaim_tests::postgres::Database;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// The columns of an event in Essaim's SQL.
pub const COLUMNS: &str = "id BIGINT, at TIMESTAMP, k VARCHAR, v BIGINT, f DOUBLE";

pub const SECOND: i64 = 1000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// When clocks go forward in Europe in 2026, and when they go back (both at 01:00 UTC), ms.
pub const FORWARD: i64 = 1_774_746_000_000;
pub const BACK: i64 = 1_792_890_000_000;

#[derive(Debug, Clone)]
pub struct Event {
    pub id: i64,
    /// ms since 1970.
    pub at: Option<i64>,
    pub k: Option<String>,
    pub v: Option<i64>,
}

impl Event {
    /// Event `id` at a time, its other values made from the id.
    pub fn new(id: i64, at: i64) -> Self {
        Self {
            id,
            at: Some(at),
            k: Some(format!("k{}", id.rem_euclid(3))),
            v: Some(id),
        }
    }

    fn f(&self) -> f64 {
        (self.id.rem_euclid(97) as f64 - 40.0) / 4.0
    }

    /// The message. Times are written in turn as a number, in UTC, as in Paris, and without a zone.
    fn json(&self) -> String {
        let at = self.at.map(|at| {
            let time = DateTime::<Utc>::from_timestamp_millis(at).unwrap();
            let text = "%Y-%m-%dT%H:%M:%S%.3f";
            match self.id.rem_euclid(4) {
                0 => Value::from(at),
                1 => Value::from(time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()),
                2 => {
                    let hours = if (FORWARD..BACK).contains(&at) { 2 } else { 1 };
                    let paris = FixedOffset::east_opt(hours * 3600).unwrap();
                    Value::from(time.with_timezone(&paris).to_rfc3339())
                }
                _ => Value::from(time.format(text).to_string()),
            }
        });
        json!({"id": self.id, "at": at, "k": self.k, "v": self.v, "f": self.f()}).to_string()
    }

    fn csv(&self) -> String {
        let at = self.at.map(|at| {
            let time = DateTime::<Utc>::from_timestamp_millis(at).unwrap();
            time.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
        });
        let (at, k) = (at.unwrap_or_default(), self.k.clone().unwrap_or_default());
        let v = self.v.map(|v| v.to_string()).unwrap_or_default();
        format!("{},{at},{k},{v},{}", self.id, self.f())
    }
}

/// A topic, and what is in it.
#[derive(Debug)]
pub struct Feed {
    pub topic: Topic,
    /// By partition and offset.
    pub sent: Vec<Vec<Event>>,
}

impl Feed {
    pub async fn create(partitions: i32) -> Result<Self> {
        Ok(Self {
            topic: Topic::create(partitions).await?,
            sent: vec![Vec::new(); usize::try_from(partitions)?],
        })
    }

    /// Declares the topic as an UNBOUNDED table `name` with more options, e.g. `, watermark_delay '1 second'`.
    pub fn declare_as(&self, name: &str, options: &str) -> String {
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE {name} ({COLUMNS}) STORED AS KAFKA LOCATION '{}'
             OPTIONS (format 'json'{options});\n",
            self.topic.location()
        )
    }

    /// Table `events` with the event time `at`.
    pub fn declare(&self, delay_ms: i64, options: &str) -> String {
        let (days, ms) = (delay_ms / DAY, delay_ms % DAY);
        let delay = format!("{days} days {ms} milliseconds");
        let timed = format!(", event_time 'at', watermark_delay '{delay}'{options}");
        self.declare_as("events", &timed)
    }

    /// Appends events to their partitions.
    pub async fn send(&mut self, events: Vec<(usize, Event)>) -> Result<()> {
        let messages: Vec<Message> = events
            .iter()
            .map(|(partition, event)| Message {
                partition: *partition as i32,
                key: None,
                payload: event.json(),
            })
            .collect();
        for (partition, event) in events {
            self.sent[partition].push(event);
        }
        self.topic.send(messages.into_iter()).await?;
        Ok(())
    }

    /// Puts all that was sent into a new table of PostgreSQL.
    pub async fn load(&self, database: &Database, table: &str) -> Result<()> {
        let create = format!(
            "CREATE TABLE {table} (id bigint, at timestamp, k text, v bigint, f double precision)"
        );
        database.execute(&create).await?;
        let rows: Vec<String> = self.sent.iter().flatten().map(Event::csv).collect();
        database.copy(table, rows.into_iter()).await?;
        Ok(())
    }
}

/// What a random stream is like.
#[derive(Debug, Clone)]
pub struct Shape {
    pub partitions: usize,
    pub rows: i64,
    /// The time of the first events and how far they go, ms.
    pub base: i64,
    pub span: i64,
    /// How far behind the latest time of its partition an event may be, ms: more than `delay` makes some late.
    pub disorder: i64,
    pub delay: i64,
    /// Some times are multiples of it: the edges of windows.
    pub edge: i64,
}

/// Events at random, each for a partition, in the order in which they are sent. The first of each partition has a time,
/// and is among the first events.
pub fn random_events(shape: &Shape, seed: u64) -> Vec<(usize, Event)> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut latest: Vec<Option<i64>> = vec![None; shape.partitions];
    // Partitions lag behind one another by up to a quarter of the time.
    let lags: Vec<i64> = (0..shape.partitions)
        .map(|_| random.random_range(0..=shape.span / 4))
        .collect();
    let mut events = Vec::new();
    let mut partition = 0;
    for id in 0..shape.rows {
        // Now and then many rows go to the same partition.
        if random.random_bool(0.7) {
            partition = random.random_range(0..shape.partitions);
        }
        if (id as usize) < shape.partitions {
            partition = id as usize;
        }
        let now = shape.base + shape.span * id / shape.rows - lags[partition];
        let least = latest[partition].map_or(i64::MIN, |latest: i64| latest - shape.disorder);
        let at = match random.random_range(0..10) {
            // As old as may be; on the watermark itself.
            0 => least,
            1 => latest[partition].map_or(now, |latest| latest - shape.delay),
            2 | 3 => now.div_euclid(shape.edge) * shape.edge,
            4 => now.div_euclid(shape.edge) * shape.edge - 1,
            _ => now - random.random_range(0..=shape.disorder),
        };
        let at = at.max(least).max(shape.base - shape.span);
        let is_null = latest[partition].is_some() && random.random_bool(0.03);
        if !is_null {
            latest[partition] = latest[partition].max(Some(at));
        }
        let event = Event {
            id,
            at: (!is_null).then_some(at),
            k: (!random.random_bool(0.1)).then(|| format!("k{}", random.random_range(0..4))),
            v: (!random.random_bool(0.1)).then(|| random.random_range(-50..50)),
        };
        events.push((partition, event));
    }
    events
}

/// Cuts events into chunks at random; the first holds the first event of each partition.
pub fn chunks(
    mut events: Vec<(usize, Event)>,
    shape: &Shape,
    random: &mut SmallRng,
) -> Vec<Vec<(usize, Event)>> {
    let mut chunks = Vec::new();
    let most = (shape.rows as usize / 3).max(2);
    while !events.is_empty() {
        let least = if chunks.is_empty() {
            shape.partitions
        } else {
            1
        };
        let size = random
            .random_range(least..=most.max(least))
            .min(events.len());
        let rest = events.split_off(size);
        chunks.push(std::mem::replace(&mut events, rest));
    }
    chunks
}

/// For each partition an event so much later that all windows of the others close.
pub fn closers(shape: &Shape, longest_ms: i64) -> Vec<(usize, Event)> {
    let at = shape.base + 2 * shape.span + shape.delay + 3 * longest_ms;
    (0..shape.partitions)
        .map(|partition| (partition, Event::new(-1 - partition as i64, at)))
        .collect()
}
