//! What the sinks hold, and how that differs from what they must.

use crate::oracle::{Closed, Counts, Oracle};
use crate::rows::Content;
use crate::topic::Reading;
use anyhow::{Context, Result, ensure};
use essaim_tests::postgres::{PrivateServer, rows};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How many differences of a sink are told.
const TOLD: usize = 20;
const HEADER: &str = "id,kind,amount";

/// The sinks, as far as they have been read.
#[derive(Debug)]
pub struct Sinks {
    seed: u64,
    copy: Reading,
    copied: Counts,
    csv: PathBuf,
    /// Bytes of the file that have been read, and their rows.
    csv_read: usize,
    csv_rows: Counts,
}

/// How far the sinks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Rows in the updated windows.
    pub in_windows: i64,
    /// Windows that were appended.
    pub closed: i64,
    pub dead: i64,
    pub copied: i64,
    pub csv: i64,
}

impl Reached {
    /// What all sinks hold when they are complete.
    pub fn goal(oracle: &Oracle) -> Self {
        Self {
            in_windows: oracle.in_windows(),
            closed: oracle.closed().len() as i64,
            dead: oracle.dead.len() as i64,
            copied: oracle.copied.rows as i64,
            csv: oracle.all.rows as i64,
        }
    }

    /// Whether each sink holds as much as in `goal`, or more.
    pub fn is_at(&self, goal: &Self) -> bool {
        self.in_windows >= goal.in_windows
            && self.closed >= goal.closed
            && self.dead >= goal.dead
            && self.copied >= goal.copied
            && self.csv >= goal.csv
    }
}

impl Sinks {
    pub fn new(seed: u64, copy: Reading, csv: &Path) -> Self {
        Self {
            seed,
            copy,
            copied: Counts::default(),
            csv: csv.to_owned(),
            csv_read: 0,
            csv_rows: Counts::default(),
        }
    }

    /// Reads on, and says how far the sinks are.
    ///
    /// # Errors
    /// A server does not answer; a row is not as it was sent.
    pub async fn reached(&mut self, postgres: &PrivateServer) -> Result<Reached> {
        let mut connection = postgres.connect().await?;
        let sql = "SELECT coalesce((SELECT sum(events) FROM per_window), 0)::bigint,
                          (SELECT count(*) FROM closed), (SELECT count(*) FROM dead_letters)";
        let found = rows(&mut connection, sql).await?;
        let [in_windows, closed, dead] = integers(found.first().context("no row")?)?[..] else {
            anyhow::bail!("{found:?}");
        };
        tokio::task::block_in_place(|| {
            self.read_copy()?;
            self.read_csv()
        })?;
        Ok(Reached {
            in_windows,
            closed,
            dead,
            copied: self.copied.rows as i64,
            csv: self.csv_rows.rows as i64,
        })
    }

    fn read_copy(&mut self) -> Result<()> {
        let (seed, copied) = (self.seed, &mut self.copied);
        self.copy.read(|partition, offset, payload| {
            let place = || format!("copied[{partition}] {offset}");
            let row: Value = serde_json::from_slice(payload).with_context(place)?;
            let id = row["id"].as_u64().with_context(place)?;
            let Content { kind, amount } = Content::of(seed, id);
            let right = row["kind"] == format!("kind {kind}") && row["amount"] == amount;
            ensure!(right, "{}: {row} is not as it was sent", place());
            copied.add(id);
            Ok(())
        })
    }

    /// How many bytes of the file are committed: the file beside it says so.
    fn committed(&self) -> Result<usize> {
        let beside = self.csv.with_file_name(".rows.csv.essaim.json");
        let text = std::fs::read(&beside).with_context(|| beside.display().to_string())?;
        let beside: Value = serde_json::from_slice(&text)?;
        let length = beside["length"].as_u64().context("no length")?;
        Ok(usize::try_from(length)?)
    }

    /// Only what is committed: of an epoch that is being written, rows may be cut off again.
    fn read_csv(&mut self) -> Result<()> {
        let committed = self.committed()?;
        let mut text = std::fs::read(&self.csv).with_context(|| self.csv.display().to_string())?;
        ensure!(
            text.len() >= committed,
            "{} has {} bytes, but {committed} are committed",
            self.csv.display(),
            text.len()
        );
        text.truncate(committed);
        if self.csv_read == 0 && !text.is_empty() {
            ensure!(
                text.starts_with(format!("{HEADER}\n").as_bytes()),
                "{} does not begin with its header",
                self.csv.display()
            );
            self.csv_read = HEADER.len() + 1;
        }
        let fresh = text.get(self.csv_read..).with_context(|| {
            format!(
                "{} has {} bytes, but had {}",
                self.csv.display(),
                text.len(),
                self.csv_read
            )
        })?;
        for line in fresh.split_inclusive(|byte| *byte == b'\n') {
            let line_text = std::str::from_utf8(line)?
                .strip_suffix('\n')
                .context("it ends in the middle of a line")?;
            let place = || {
                format!(
                    "{} at byte {}: {line_text:?}",
                    self.csv.display(),
                    self.csv_read
                )
            };
            let mut values = line_text.split(',');
            let id = values
                .next()
                .and_then(|id| id.parse().ok())
                .with_context(place)?;
            let Content { kind, amount } = Content::of(self.seed, id);
            let right = line_text == format!("{id},kind {kind},{amount}");
            ensure!(right, "{}: torn, or not as it was sent", place());
            self.csv_rows.add(id);
            self.csv_read += line.len();
        }
        Ok(())
    }

    /// Compares everything. `from_scratch` reads topic and file again from their beginnings.
    ///
    /// # Errors
    /// The first differences of each sink.
    pub async fn verify(
        &mut self,
        oracle: &Oracle,
        postgres: &PrivateServer,
        from_scratch: bool,
    ) -> Result<()> {
        if from_scratch {
            self.copy.rewind();
            self.copied = Counts::default();
            (self.csv_read, self.csv_rows) = (0, Counts::default());
        }
        self.reached(postgres).await?;
        let length = std::fs::metadata(&self.csv)?.len();
        let mut wrong = Vec::new();
        if length != self.csv_read as u64 {
            wrong.push(format!(
                "the file has {length} bytes, but {} are committed",
                self.csv_read
            ));
        }
        let copy = oracle.copied.differences(&self.copied);
        wrong.extend(self.ids("the copy in Kafka", oracle, copy));
        let csv = oracle.all.differences(&self.csv_rows);
        wrong.extend(self.ids("the CSV file", oracle, csv));
        wrong.extend(windows(oracle, postgres).await?);
        wrong.extend(closed(oracle, postgres).await?);
        wrong.extend(dead(oracle, postgres).await?);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    fn ids(&self, sink: &str, oracle: &Oracle, differences: Vec<(u64, u8, u8)>) -> Vec<String> {
        let count = differences.len();
        let first = differences.into_iter().take(TOLD).map(|(id, wanted, found)| {
            let place = match oracle.place(id) {
                Some((partition, offset)) => format!("events[{partition}] {offset}"),
                None => "an earlier round".to_owned(),
            };
            format!("{sink}: id {id} ({place}) is there {found} times, not {wanted} ({count} such ids)")
        });
        first.collect()
    }
}

/// A window's start as ms since 1970-01-01 UTC.
const START: &str = "(extract(epoch FROM window_start) * 1000)::bigint";

async fn windows(oracle: &Oracle, postgres: &PrivateServer) -> Result<Vec<String>> {
    let sql =
        format!("SELECT {START}, substr(kind, 6)::bigint, events, total::bigint FROM per_window");
    let mut found = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows(&mut postgres.connect().await?, &sql).await? {
        if let [start, kind, events, total] = integers(&row)?[..] {
            let key = (start, u64::try_from(kind)?);
            if found.insert(key, (events, total)).is_some() {
                wrong.push(format!("per_window: {key:?} is there twice"));
            }
        }
    }
    wrong.extend(differences("per_window", &oracle.windows, &found));
    Ok(wrong)
}

async fn closed(oracle: &Oracle, postgres: &PrivateServer) -> Result<Vec<String>> {
    let sql = format!("SELECT {START}, events, total::bigint, first_id, last_id FROM closed");
    let mut found = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows(&mut postgres.connect().await?, &sql).await? {
        if let [start, events, total, first_id, last_id] = integers(&row)?[..] {
            let window = Closed {
                events,
                total,
                first_id,
                last_id,
            };
            if let Some(other) = found.insert(start, window) {
                wrong.push(format!(
                    "closed: {start} is there twice: {window:?} {other:?}"
                ));
            }
        }
    }
    wrong.extend(differences("closed", &oracle.closed(), &found));
    Ok(wrong)
}

async fn dead(oracle: &Oracle, postgres: &PrivateServer) -> Result<Vec<String>> {
    let sql = "SELECT partition, \"offset\", encode(value, 'escape') FROM dead_letters";
    let mut found = BTreeMap::new();
    for row in rows(&mut postgres.connect().await?, sql).await? {
        if let [Some(partition), Some(offset), value] = &row[..] {
            let value = value.clone().unwrap_or_default();
            found.insert((partition.parse()?, offset.parse()?), value.into_bytes());
        }
    }
    Ok(differences("dead_letters", &oracle.dead, &found))
}

fn differences<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    table: &str,
    wanted: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Vec<String> {
    let keys = wanted
        .keys()
        .chain(found.keys().filter(|key| !wanted.contains_key(key)));
    let wrong = keys.filter(|key| wanted.get(key) != found.get(key));
    let told = wrong.take(TOLD).map(|key| {
        let (found, wanted) = (found.get(key), wanted.get(key));
        format!("{table}: {key:?} is {found:?}, not {wanted:?}")
    });
    told.collect()
}

fn integers(row: &[Option<String>]) -> Result<Vec<i64>> {
    let values = row.iter().map(|value| {
        let value = value.as_deref().context("a null")?;
        value.parse().with_context(|| format!("{value:?}"))
    });
    values.collect()
}
