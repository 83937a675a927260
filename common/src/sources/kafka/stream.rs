//! The master's half of an UNBOUNDED table: what lies behind a position, asked of the brokers for every epoch.

use super::offsets::{EARLIEST, LATEST, OffsetPlanner, OffsetRange, OffsetSpec, Partition, cut};
use super::reader::{KafkaReader, ReaderPlan, split_of};
use crate::connector::{Split, SplitReader};
use crate::error::{Error, Result};
use crate::scan::project_schema;
use crate::stream::{Available, Offsets, StreamOptions, StreamSource};
use crate::trace;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest wait for one answer about offsets, ms: the engine asks again after an error, and must learn of it soon.
pub const ASK_TIMEOUT_MS: u64 = 10_000;
/// How old the list of partitions may be.
const METADATA_MAX_AGE: Duration = Duration::from_secs(5);
/// How old the first offsets may be. They only grow, so an old one is never wrong, and a task that comes upon a deleted
/// offset finds out by itself: once a second keeps the question out of most epochs.
const EARLIEST_MAX_AGE: Duration = Duration::from_secs(1);
/// Offsets below which a partition's part of an epoch is not cut: a piece that begins in the middle of a partition pays
/// for a seek.
const LEAST_OFFSETS: u64 = 50_000;

/// The topics of one table, read continuously.
#[derive(Debug)]
pub struct KafkaStream {
    parts: Arc<Parts>,
    schema: SchemaRef,
    reader: ReaderPlan,
    options: StreamOptions,
}

/// What the thread that asks the brokers needs.
#[derive(Debug)]
struct Parts {
    starting: OffsetSpec,
    planner: Arc<OffsetPlanner>,
    fail_on_data_loss: bool,
    known: Mutex<Known>,
}

/// What the brokers said last.
#[derive(Debug, Default)]
struct Known {
    /// Shared, so that nobody waits for a lock while the brokers are asked.
    partitions: Option<(Instant, Arc<[Partition]>)>,
    earliest: Option<(Instant, BTreeMap<Partition, i64>)>,
}

impl KafkaStream {
    /// A stream over the topics of `planner`.
    pub fn new(
        schema: SchemaRef,
        starting: OffsetSpec,
        planner: Arc<OffsetPlanner>,
        reader: ReaderPlan,
        options: StreamOptions,
    ) -> Self {
        let parts = Parts {
            starting,
            planner,
            fail_on_data_loss: reader.fail_on_data_loss,
            known: Mutex::default(),
        };
        Self {
            parts: Arc::new(parts),
            schema,
            reader,
            options,
        }
    }

    /// librdkafka's calls block, each with a deadline of its own.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Parts) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let parts = Arc::clone(&self.parts);
        trace::spawn_blocking(move || question(&parts))
            .await
            .map_err(|e| Error::internal(format!("a question about offsets broke down: {e}")))?
    }
}

#[async_trait]
impl StreamSource for KafkaStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn options(&self) -> StreamOptions {
        self.options.clone()
    }

    async fn start(&self) -> Result<Offsets> {
        self.ask(|parts| {
            let start = parts
                .planner
                .start(&parts.starting, parts.fail_on_data_loss)?;
            let named = start.iter().map(|(partition, at)| (name(partition), *at));
            Ok(Offsets(named.collect()))
        })
        .await
    }

    async fn available(&self, from: &Offsets) -> Result<Available> {
        let from = parse(from, self.parts.planner.topics())?;
        self.ask(move |parts| parts.available(&from)).await
    }

    fn splits(&self, from: &Offsets, to: &Offsets, target: usize) -> Result<Vec<Split>> {
        let topics = self.parts.planner.topics();
        let (from, to) = (parse(from, topics)?, parse(to, topics)?);
        if let Some(partition) = to.keys().find(|partition| !from.contains_key(*partition)) {
            return Err(Error::internal(format!(
                "{} has an end but no start",
                name(partition)
            )));
        }
        let ranges: Vec<OffsetRange> = from
            .into_iter()
            .filter_map(|(partition, start)| {
                let end = *to.get(&partition).filter(|end| **end > start)?;
                let (topic, partition) = partition;
                Some(OffsetRange {
                    topic,
                    partition,
                    start,
                    end,
                })
            })
            .collect();
        cut(&ranges, target, LEAST_OFFSETS)
            .iter()
            .map(split_of)
            .collect()
    }

    fn reader(&self, projection: &[usize]) -> Result<Arc<dyn SplitReader>> {
        Ok(Arc::new(KafkaReader {
            schema: project_schema(&self.schema, projection)?,
            plan: self.reader.clone(),
        }))
    }
}

impl Parts {
    fn available(&self, from: &BTreeMap<Partition, i64>) -> Result<Available> {
        let partitions = self.partitions()?;
        let latest = self.planner.lookup(&partitions, LATEST)?;
        let mut earliest = self.earliest(&partitions, false)?;
        // What was remembered may be of a topic that has been deleted and made anew.
        let is_short = |(partition, latest): (&Partition, &i64)| {
            from.get(partition).is_some_and(|at| at > latest)
                || earliest.get(partition).is_some_and(|first| first > latest)
        };
        if partitions.iter().zip(&latest).any(is_short) {
            earliest = self.earliest(&partitions, true)?;
        }
        self.check_gone(from, &partitions)?;
        let mut found = Available::default();
        for (partition, latest) in partitions.iter().zip(latest) {
            let first = earliest.get(partition).copied().unwrap_or(0).min(latest);
            let start = match from.get(partition).copied() {
                // A new partition is read whole.
                None => first,
                Some(at) if at < first => {
                    self.passed_over(partition, at, first, latest)?;
                    found.lost += u64::try_from(first - at).unwrap_or(0);
                    first
                }
                Some(at) if at > latest => {
                    self.passed_over(partition, at, first, latest)?;
                    first
                }
                Some(at) => at,
            };
            found.start.0.insert(name(partition), start);
            found.latest.0.insert(name(partition), latest);
        }
        Ok(found)
    }

    /// All partitions there are, as of [`METADATA_MAX_AGE`] ago at most.
    fn partitions(&self) -> Result<Arc<[Partition]>> {
        let known = self.known.lock().partitions.clone();
        if let Some((asked, partitions)) = known
            && asked.elapsed() < METADATA_MAX_AGE
        {
            return Ok(partitions);
        }
        let partitions: Arc<[Partition]> = self.planner.partitions()?.into();
        self.known.lock().partitions = Some((Instant::now(), Arc::clone(&partitions)));
        Ok(partitions)
    }

    /// The first offset of each partition, as of [`EARLIEST_MAX_AGE`] ago at most, or as of now.
    fn earliest(&self, partitions: &[Partition], now: bool) -> Result<BTreeMap<Partition, i64>> {
        let known = self.known.lock().earliest.clone();
        if let Some((asked, earliest)) = known
            && !now
            && asked.elapsed() < EARLIEST_MAX_AGE
            && partitions.iter().all(|p| earliest.contains_key(p))
        {
            return Ok(earliest);
        }
        let offsets = self.planner.lookup(partitions, EARLIEST)?;
        let earliest: BTreeMap<Partition, i64> = partitions.iter().cloned().zip(offsets).collect();
        self.known.lock().earliest = Some((Instant::now(), earliest.clone()));
        Ok(earliest)
    }

    /// Partitions never go away, unless their topic does.
    fn check_gone(&self, from: &BTreeMap<Partition, i64>, partitions: &[Partition]) -> Result<()> {
        let there: BTreeSet<&Partition> = partitions.iter().collect();
        let gone = from.keys().find(|partition| !there.contains(partition));
        match gone {
            Some(partition) if self.fail_on_data_loss => Err(Error::data(format!(
                "{} is gone: its topic was deleted and made anew with fewer partitions; \
                 run the job under a new name, or set fail_on_data_loss 'false' to go on without",
                name(partition)
            ))),
            Some(partition) => {
                tracing::warn!(partition = name(partition), "the partition is gone");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The next offset to read is not there: an error, unless the table allows for it.
    fn passed_over(&self, partition: &Partition, at: i64, first: i64, latest: i64) -> Result<()> {
        let partition = name(partition);
        if !self.fail_on_data_loss {
            tracing::warn!(
                partition,
                at,
                first,
                latest,
                "the offset is gone: reading goes on at the first one that is there"
            );
            return Ok(());
        }
        let what = match at < first {
            true => {
                "deleted by retention or by hand before they were read: raise the topic's retention"
            }
            false => {
                "the topic was deleted and made anew, or truncated: run the job under a new name to read it from its beginning"
            }
        };
        Err(Error::data(format!(
            "{partition} offset {at}: the next record to read is gone, the partition has {first} to {latest} now ({what}); \
             set fail_on_data_loss 'false' to go on at {first}"
        )))
    }
}

/// The partition as [`Offsets`] name it.
fn name((topic, partition): &Partition) -> String {
    format!("{topic}[{partition}]")
}

/// Positions by partition, all of the given topics.
fn parse(offsets: &Offsets, topics: &[String]) -> Result<BTreeMap<Partition, i64>> {
    let parse = |(name, offset): (&String, &i64)| {
        let (topic, rest) = name.rsplit_once('[')?;
        let partition = rest.strip_suffix(']')?.parse().ok()?;
        let known = topics.iter().any(|known| known == topic);
        known.then(|| ((topic.to_owned(), partition), *offset))
    };
    offsets
        .0
        .iter()
        .map(|position| {
            parse(position).ok_or_else(|| {
                Error::invalid(format!(
                    "the position {} is of another topic than {}: a job that reads other topics needs a new name",
                    position.0,
                    topics.join(", ")
                ))
            })
        })
        .collect()
}
