//! Which offsets a scan reads: the options that say so, and the ranges that they mean at this moment.

use super::client::{Connection, Context, IsolationLevel};
use crate::error::{Error, Result};
use crate::options::Options;
use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::Instant;

/// By topic and partition, as in Spark's JSON.
type PerPartition = BTreeMap<String, BTreeMap<i32, i64>>;

/// In Spark's JSON, the first offset.
pub(super) const EARLIEST: i64 = -2;
/// In Spark's JSON, the offset after the last one.
pub(super) const LATEST: i64 = -1;

/// One end of what is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffsetSpec {
    Earliest,
    Latest,
    /// `{"topic":{"0":23,"1":-2}}`; partitions not named are read from the first offset, or to the last one.
    PerPartition(PerPartition),
    /// The first record at or after this time, ms since the epoch.
    Timestamp(i64),
}

impl OffsetSpec {
    /// The options `starting_offsets` and `starting_timestamp`.
    ///
    /// # Errors
    /// Another text, or both of them.
    pub fn starting(options: &mut Options) -> Result<Self> {
        let offsets = options.text("starting_offsets");
        let timestamp = options.text("starting_timestamp");
        Self::parse(options, "starting", offsets, timestamp, Self::Earliest)
    }

    /// The options `ending_offsets` and `ending_timestamp`.
    ///
    /// # Errors
    /// Another text, both of them, or an end at the earliest offset.
    pub fn ending(options: &mut Options) -> Result<Self> {
        let offsets = options.text("ending_offsets");
        let timestamp = options.text("ending_timestamp");
        let spec = Self::parse(options, "ending", offsets, timestamp, Self::Latest)?;
        let at_earliest = match &spec {
            Self::Earliest => true,
            Self::PerPartition(topics) => topics
                .values()
                .flat_map(|partitions| partitions.values())
                .any(|offset| *offset == EARLIEST),
            _ => false,
        };
        if at_earliest {
            return Err(options.error(
                "option ending_offsets cannot be the earliest offset: nothing would be read; write 'latest' or offsets",
            ));
        }
        Ok(spec)
    }

    fn parse(
        options: &Options,
        which: &str,
        offsets: Option<String>,
        timestamp: Option<String>,
        default: Self,
    ) -> Result<Self> {
        match (offsets, timestamp) {
            (None, None) => Ok(default),
            (Some(_), Some(_)) => Err(options.error(format!(
                "options {which}_offsets and {which}_timestamp exclude each other: leave one out"
            ))),
            (Some(text), None) => match text.to_ascii_lowercase().as_str() {
                "earliest" => Ok(Self::Earliest),
                "latest" => Ok(Self::Latest),
                _ => serde_json::from_str::<PerPartition>(&text)
                    .ok()
                    .filter(|topics| {
                        topics.values().flatten().all(|(partition, offset)| *partition >= 0 && *offset >= EARLIEST)
                    })
                    .map(Self::PerPartition)
                    .ok_or_else(|| {
                        options.error(format!(
                            "option {which}_offsets '{text}': write 'earliest', 'latest' or JSON such as {{\"topic\":{{\"0\":23,\"1\":-2}}}} (-2 is the earliest offset, -1 the latest)"
                        ))
                    }),
            },
            (None, Some(text)) => text
                .trim()
                .parse::<i64>()
                .ok()
                .or_else(|| {
                    string_to_timestamp_nanos(text.trim())
                        .ok()
                        .map(|nanos| nanos.div_euclid(1_000_000))
                })
                .filter(|ms| *ms >= 0)
                .map(Self::Timestamp)
                .ok_or_else(|| {
                    options.error(format!(
                        "option {which}_timestamp '{text}': write milliseconds since 1970 or a time such as '2026-01-31T12:00:00Z'"
                    ))
                }),
        }
    }
}

/// The offsets `start` to `end`, exclusive, of one partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OffsetRange {
    pub topic: String,
    pub partition: i32,
    pub start: i64,
    pub end: i64,
}

/// A topic and the number of a partition of it.
pub type Partition = (String, i32);

/// The partitions of a table, and the first and the last offset of each.
struct Found<'a> {
    partitions: &'a [Partition],
    low: &'a [i64],
    high: &'a [i64],
    fail_on_data_loss: bool,
}

/// Asks the brokers for offsets. Kept between plans: a streaming job asks once per epoch.
pub struct OffsetPlanner {
    connection: Connection,
    topics: Vec<String>,
    client: BaseConsumer<Context>,
}

impl std::fmt::Debug for OffsetPlanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OffsetPlanner({:?} {:?})", self.connection, self.topics)
    }
}

impl OffsetPlanner {
    /// A planner for some topics. Makes no connection yet.
    ///
    /// # Errors
    /// A setting that librdkafka refuses.
    pub fn new(
        connection: Connection,
        topics: Vec<String>,
        isolation: IsolationLevel,
    ) -> Result<Self> {
        let client = connection.metadata_client(isolation)?;
        Ok(Self {
            connection,
            topics,
            client,
        })
    }

    /// What `starting` to `ending` means now, one range for each partition that has one, in order of topic and
    /// partition. Blocks for two or three round trips, each with a deadline: not for an async thread.
    ///
    /// # Errors
    /// An unknown topic or partition; brokers out of reach; with `fail_on_data_loss`, offsets that no longer exist.
    pub fn plan(
        &self,
        starting: &OffsetSpec,
        ending: &OffsetSpec,
        fail_on_data_loss: bool,
    ) -> Result<Vec<OffsetRange>> {
        let partitions = self.partitions()?;
        for spec in [starting, ending] {
            check_named(spec, &partitions)?;
        }
        // In read_committed the broker answers with the last stable offset: what is still open is not read.
        let low = self.lookup(&partitions, EARLIEST)?;
        let high = self.lookup(&partitions, LATEST)?;
        let found = Found {
            partitions: &partitions,
            low: &low,
            high: &high,
            fail_on_data_loss,
        };
        let starts = self.resolve(starting, "starting", &found, EARLIEST)?;
        let ends = self.resolve(ending, "ending", &found, LATEST)?;
        let ranges = partitions
            .iter()
            .zip(starts.into_iter().zip(ends))
            .filter(|(_, (start, end))| start < end)
            .map(|((topic, partition), (start, end))| OffsetRange {
                topic: topic.clone(),
                partition: *partition,
                start,
                end,
            });
        Ok(ranges.collect())
    }

    /// What `starting` means now, for every partition. Blocks like [`Self::plan`].
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn start(
        &self,
        starting: &OffsetSpec,
        fail_on_data_loss: bool,
    ) -> Result<Vec<(Partition, i64)>> {
        let partitions = self.partitions()?;
        check_named(starting, &partitions)?;
        let low = self.lookup(&partitions, EARLIEST)?;
        let high = self.lookup(&partitions, LATEST)?;
        let found = Found {
            partitions: &partitions,
            low: &low,
            high: &high,
            fail_on_data_loss,
        };
        let starts = self.resolve(starting, "starting", &found, EARLIEST)?;
        Ok(partitions.into_iter().zip(starts).collect())
    }

    /// The topics that are asked about.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// All partitions there are, in order of topic and number. Blocks for a round trip for each topic.
    ///
    /// # Errors
    /// A topic that is not there; brokers out of reach.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        let mut found = Vec::new();
        for topic in &self.topics {
            let metadata = self.connection.topic(&self.client, topic)?;
            let of_topic = metadata
                .topics()
                .iter()
                .find(|found| found.name() == topic)
                .filter(|found| found.error().is_none() && !found.partitions().is_empty())
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "the brokers {} have no topic {topic}: create it or correct LOCATION",
                        self.connection.brokers
                    ))
                })?;
            let mut ids: Vec<i32> = of_topic.partitions().iter().map(|p| p.id()).collect();
            ids.sort_unstable();
            found.extend(ids.into_iter().map(|id| (topic.clone(), id)));
        }
        Ok(found)
    }

    /// The offsets that a specification means, within what there is.
    fn resolve(
        &self,
        spec: &OffsetSpec,
        name: &str,
        found: &Found<'_>,
        unnamed: i64,
    ) -> Result<Vec<i64>> {
        let mut offsets = match spec {
            OffsetSpec::Earliest => found.low.to_vec(),
            OffsetSpec::Latest => found.high.to_vec(),
            OffsetSpec::Timestamp(ms) => self.lookup(found.partitions, *ms)?,
            OffsetSpec::PerPartition(topics) => found
                .partitions
                .iter()
                .enumerate()
                .map(|(index, (topic, partition))| {
                    let named = topics.get(topic).and_then(|p| p.get(partition));
                    match named.copied().unwrap_or(unnamed) {
                        EARLIEST => found.low[index],
                        LATEST => found.high[index],
                        offset => offset,
                    }
                })
                .collect(),
        };
        for (index, offset) in offsets.iter_mut().enumerate() {
            let (low, high) = (found.low[index], found.high[index]);
            if found.fail_on_data_loss && (*offset < low || *offset > high) {
                let (topic, partition) = &found.partitions[index];
                return Err(Error::data(format!(
                    "{topic}[{partition}]: the {name} offset {offset} does not exist, the partition has {low} to {high}: \
                     change {name}_offsets, or set fail_on_data_loss 'false' to read what is there"
                )));
            }
            *offset = (*offset).clamp(low, high);
        }
        Ok(offsets)
    }

    /// The offset of the first record at or after `time` in each partition: one request a broker (ListOffsets, where
    /// -2 stands for the first and -1 for the last offset).
    ///
    /// # Errors
    /// A partition that is not there; brokers out of reach.
    pub(super) fn lookup(&self, partitions: &[Partition], time: i64) -> Result<Vec<i64>> {
        let deadline = Instant::now() + self.connection.timeout();
        let times = || -> Result<TopicPartitionList> {
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for (topic, partition) in partitions {
                let offset = match time {
                    EARLIEST => Offset::Beginning,
                    LATEST => Offset::End,
                    time => Offset::Offset(time),
                };
                list.add_partition_offset(topic, *partition, offset)
                    .map_err(|e| self.connection.failed(format!("topic {topic}"), &e))?;
            }
            Ok(list)
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.client.offsets_for_times(times()?, left);
            let list = match answer {
                Ok(list) => list,
                Err(error) => {
                    return Err(self
                        .connection
                        .failed(format!("offsets of {}", self.topics.join(", ")), &error));
                }
            };
            let mut offsets = Vec::with_capacity(partitions.len());
            let mut failure = None;
            for (topic, partition) in partitions {
                let element = list.find_partition(topic, *partition);
                match element.as_ref().map(|e| (e.error(), e.offset())) {
                    Some((Ok(()), Offset::Offset(offset))) => offsets.push(Some(offset)),
                    // No record is as late as that: the end.
                    Some((Ok(()), Offset::End)) => offsets.push(None),
                    Some((Err(error), _)) => failure = Some((topic, *partition, error)),
                    _ => {
                        return Err(Error::unavailable(format!(
                            "{topic}[{partition}]: the brokers {} name no offset",
                            self.connection.brokers
                        )));
                    }
                }
            }
            if let Some((topic, partition, error)) = failure {
                // A leader that is being elected answers with an error for a moment.
                if left.is_zero() {
                    return Err(self
                        .connection
                        .failed(format!("offsets of {topic}[{partition}]"), &error));
                }
                std::thread::sleep(left.min(std::time::Duration::from_millis(100)));
                continue;
            }
            if offsets.iter().all(Option::is_some) {
                return Ok(offsets.into_iter().flatten().collect());
            }
            if time == LATEST {
                return Err(Error::unavailable(format!(
                    "the brokers {} name no last offset of {}",
                    self.connection.brokers,
                    self.topics.join(", ")
                )));
            }
            let high = self.lookup(partitions, LATEST)?;
            return Ok(offsets
                .into_iter()
                .zip(high)
                .map(|(offset, high)| offset.unwrap_or(high))
                .collect());
        }
    }
}

/// Every topic and partition that the JSON names must be there.
fn check_named(spec: &OffsetSpec, partitions: &[Partition]) -> Result<()> {
    let OffsetSpec::PerPartition(topics) = spec else {
        return Ok(());
    };
    for (topic, named) in topics {
        for partition in named.keys() {
            if !partitions
                .iter()
                .any(|(known, id)| known == topic && id == partition)
            {
                return Err(Error::invalid(format!(
                    "the offsets name {topic}[{partition}], which the table does not read: correct the JSON"
                )));
            }
        }
    }
    Ok(())
}

/// Cuts ranges into about `target` pieces of similar length, none shorter than `least` unless its range is.
pub fn cut(ranges: &[OffsetRange], target: usize, least: u64) -> Vec<OffsetRange> {
    let total: u64 = ranges.iter().map(OffsetRange::len).sum();
    let ideal = total.div_ceil(target.max(1) as u64).max(least).max(1);
    ranges
        .iter()
        .flat_map(|range| {
            let pieces = (range.len() / ideal).max(1);
            let at = move |piece: u64| {
                // u128: an offset may be anywhere in 63 bits. The quotient is at most the length.
                let from_start = u128::from(range.len()) * u128::from(piece) / u128::from(pieces);
                range.start + from_start as i64
            };
            (0..pieces).map(move |piece| OffsetRange {
                start: at(piece),
                end: at(piece + 1),
                ..range.clone()
            })
        })
        .collect()
}

impl OffsetRange {
    /// How many offsets; records may be fewer.
    pub fn len(&self) -> u64 {
        u64::try_from(self.end - self.start).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}[{}] {}..{}",
            self.topic, self.partition, self.start, self.end
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: i64, end: i64) -> OffsetRange {
        OffsetRange {
            topic: "t".to_owned(),
            partition: 0,
            start,
            end,
        }
    }

    #[test]
    fn pieces_touch_and_cover_their_range() {
        let pieces = cut(&[range(5, 100_005), range(0, 7)], 8, 10_000);
        assert_eq!(pieces.first().map(|p| p.start), Some(5));
        for pair in pieces[..pieces.len() - 1].windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        assert_eq!(pieces[pieces.len() - 2].end, 100_005);
        assert_eq!(pieces.last(), Some(&range(0, 7)));
        assert!(pieces[..pieces.len() - 1].iter().all(|p| p.len() >= 10_000));
    }

    #[test]
    fn one_piece_per_partition_when_there_are_enough() {
        let ranges: Vec<_> = (0..12).map(|_| range(0, 1000)).collect();
        assert_eq!(cut(&ranges, 8, 100).len(), 12);
    }
}
