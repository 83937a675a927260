//! What the sinks must hold, computed from what is in the topic.

use crate::rows::{Content, DELAY_MS, FIRST_MS, PARTITIONS, WINDOW_MS};
use crate::topic::Reading;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// A group: rows and sum of amounts.
pub type Sums = (i64, i64);

/// What a closed window must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    pub events: i64,
    pub total: i64,
    pub first_id: i64,
    pub last_id: i64,
}

/// How often each id is there.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    by_id: Vec<u8>,
    pub rows: u64,
}

impl Counts {
    pub fn add(&mut self, id: u64) {
        let id = id as usize;
        if self.by_id.len() <= id {
            self.by_id.resize(id + 1, 0);
        }
        self.by_id[id] = self.by_id[id].saturating_add(1);
        self.rows += 1;
    }

    /// Id, how often it is here, how often there, where these differ.
    pub fn differences(&self, there: &Self) -> Vec<(u64, u8, u8)> {
        let ids = self.by_id.len().max(there.by_id.len());
        let of = |counts: &Self, id| counts.by_id.get(id).copied().unwrap_or(0);
        (0..ids)
            .map(|id| (id as u64, of(self, id), of(there, id)))
            .filter(|(_, here, there)| here != there)
            .collect()
    }
}

/// What has been produced, and so what each sink must hold.
#[derive(Debug)]
pub struct Oracle {
    seed: u64,
    topic: Reading,
    /// All rows, and those that the copy's filter lets pass.
    pub all: Counts,
    pub copied: Counts,
    /// By window's start and kind.
    pub windows: BTreeMap<(i64, u64), Sums>,
    /// By window's start; those that have not closed are among them.
    by_window: BTreeMap<i64, Closed>,
    /// By partition and offset: the malformed.
    pub dead: BTreeMap<(i32, i64), Vec<u8>>,
    /// By partition.
    latest: BTreeMap<i32, i64>,
    /// Rows of which it is certain that they came too late for their windows.
    pub late: u64,
    /// The watermark when all sinks were last found to be complete.
    settled: Option<i64>,
    /// By id: where it is in the topic, first.
    places: BTreeMap<u64, (i32, i64)>,
    pub messages: u64,
}

impl Oracle {
    pub fn new(seed: u64, brokers: &str, topic: &str) -> Self {
        Self {
            seed,
            topic: Reading::new(brokers, topic, PARTITIONS),
            all: Counts::default(),
            copied: Counts::default(),
            windows: BTreeMap::new(),
            by_window: BTreeMap::new(),
            dead: BTreeMap::new(),
            latest: BTreeMap::new(),
            late: 0,
            settled: None,
            places: BTreeMap::new(),
            messages: 0,
        }
    }

    /// Takes in what has been produced since the last time. Blocks.
    pub fn learn(&mut self) -> Result<()> {
        self.places.clear();
        let mut found = Vec::new();
        self.topic.read(|partition, offset, payload| {
            found.push((partition, offset, payload.to_vec()));
            Ok(())
        })?;
        for (partition, offset, payload) in found {
            self.take(partition, offset, payload)?;
        }
        Ok(())
    }

    fn take(&mut self, partition: i32, offset: i64, payload: Vec<u8>) -> Result<()> {
        self.messages += 1;
        let Ok(Value::Object(row)) = serde_json::from_slice(&payload) else {
            self.dead.insert((partition, offset), payload);
            return Ok(());
        };
        let number = |name: &str| row.get(name).and_then(Value::as_i64);
        let (Some(id), Some(at), Some(amount)) = (number("id"), number("at"), number("amount"))
        else {
            self.dead.insert((partition, offset), payload);
            return Ok(());
        };
        let id = u64::try_from(id)?;
        let content = Content::of(self.seed, id);
        ensure!(content.amount == amount, "row {id} is not as it was sent");
        self.places.entry(id).or_insert((partition, offset));
        self.all.add(id);
        if content.is_copied() {
            self.copied.add(id);
        }
        let start = at - at.rem_euclid(WINDOW_MS);
        // A row is late for sure if its window had closed before it was sent. All others are in time for sure: see rows.rs.
        if self.settled.is_some_and(|w| start + WINDOW_MS <= w) {
            self.late += 1;
            return Ok(());
        }
        let latest = self.latest.entry(partition).or_insert(at);
        ensure!(at >= *latest - DELAY_MS, "row {id} may be late");
        *latest = at.max(*latest);
        let (events, total) = self.windows.entry((start, content.kind)).or_default();
        *events += 1;
        *total += amount;
        let id = id as i64;
        let window = self.by_window.entry(start).or_insert(Closed {
            first_id: id,
            last_id: id,
            ..Closed::default()
        });
        window.events += 1;
        window.total += amount;
        window.first_id = window.first_id.min(id);
        window.last_id = window.last_id.max(id);
        Ok(())
    }

    /// The watermark once all of this has been read, ms.
    pub fn watermark(&self) -> Option<i64> {
        let all = self.latest.len() == PARTITIONS as usize;
        let least = self.latest.values().min()?;
        all.then_some(least - DELAY_MS)
    }

    /// The windows that have closed once all of this has been read.
    pub fn closed(&self) -> BTreeMap<i64, Closed> {
        let watermark = self.watermark().unwrap_or(FIRST_MS);
        self.by_window
            .range(..=watermark - WINDOW_MS)
            .map(|(start, window)| (*start, *window))
            .collect()
    }

    /// All sinks hold all of this: rows of windows that have closed are late from now on.
    pub fn settle(&mut self) {
        self.settled = self.watermark();
    }

    /// Up to which time rows that are sent now are late.
    pub fn settled(&self) -> Option<i64> {
        self.settled
    }

    /// Rows in windows.
    pub fn in_windows(&self) -> i64 {
        self.windows.values().map(|(events, _)| events).sum()
    }

    /// Where a row that was produced since the last round is in the topic.
    pub fn place(&self, id: u64) -> Option<(i32, i64)> {
        self.places.get(&id).copied()
    }
}
