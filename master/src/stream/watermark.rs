//! How far event time has come: a watermark for each partition, and what follows from them for tables and INSERTs.

use essaim_common::scan::EventTimes;
use essaim_common::stream::{Offsets, StreamOptions};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The event times of one table's partitions. What is kept in the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableTimes {
    /// By partition: the latest event time seen, ms.
    pub latest: EventTimes,
    /// The table's watermark, ms; it never goes back.
    pub watermark: Option<i64>,
}

impl TableTimes {
    /// Takes in what an epoch read, and moves the watermark on: the least of the partitions' latest times, less the
    /// delay. A partition of `partitions` that has not had an event time yet holds it back, an idle one does not.
    pub fn advance(
        &mut self,
        read: &EventTimes,
        partitions: &Offsets,
        idle: &BTreeSet<String>,
        options: &StreamOptions,
    ) {
        if options.event_time.is_none() {
            return;
        }
        for (partition, time) in read {
            let known = self.latest.entry(partition.clone()).or_insert(*time);
            *known = (*time).max(*known);
        }
        let active: Vec<&String> = partitions
            .0
            .keys()
            .filter(|partition| !idle.contains(*partition))
            .collect();
        let least = if active.is_empty() {
            // Nobody is expected to bring anything earlier than what has been seen.
            self.latest.values().max().copied()
        } else {
            let times = active.iter().map(|partition| self.latest.get(*partition));
            times
                .collect::<Option<Vec<_>>>()
                .and_then(|times| times.into_iter().min().copied())
        };
        if let Some(least) = least {
            let watermark = least.saturating_sub(options.watermark_delay_ms);
            self.watermark = self.watermark.max(Some(watermark));
        }
    }
}

/// The watermark of an INSERT: the least of its tables', [`i64::MIN`] while one has none.
pub fn of_tables<'a>(
    times: &BTreeMap<String, TableTimes>,
    tables: impl IntoIterator<Item = &'a String>,
) -> i64 {
    tables
        .into_iter()
        .map(|table| times.get(table).and_then(|times| times.watermark))
        .min()
        .flatten()
        .unwrap_or(i64::MIN)
}

/// Tells which partitions of a table are idle.
#[derive(Debug, Clone, Default)]
pub struct Idleness {
    /// By partition: wall-clock time, ms, at which it last had something to read.
    active: BTreeMap<String, i64>,
}

impl Idleness {
    /// The partitions that hold the watermark back no longer: all has been read (`start` is `latest`), and either
    /// there never was anything (`first` is `latest`), or nothing has come for the table's idle timeout.
    pub fn look(
        &mut self,
        start: &Offsets,
        latest: &Offsets,
        never: impl Fn(&str) -> bool,
        options: &StreamOptions,
        now_ms: i64,
    ) -> BTreeSet<String> {
        let mut idle = BTreeSet::new();
        for (partition, offset) in &start.0 {
            let since = self.active.entry(partition.clone()).or_insert(now_ms);
            if latest
                .0
                .get(partition)
                .is_some_and(|latest| latest > offset)
            {
                *since = now_ms;
                continue;
            }
            let timed_out = options
                .idle_timeout_ms
                .is_some_and(|timeout| now_ms - *since >= timeout);
            if timed_out || never(partition) {
                idle.insert(partition.clone());
            }
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(delay: i64, idle: Option<i64>) -> StreamOptions {
        StreamOptions {
            event_time: Some(0),
            watermark_delay_ms: delay,
            idle_timeout_ms: idle,
            max_offsets_per_trigger: None,
        }
    }

    fn offsets(pairs: &[(&str, i64)]) -> Offsets {
        Offsets(pairs.iter().map(|(p, o)| ((*p).to_owned(), *o)).collect())
    }

    fn times(pairs: &[(&str, i64)]) -> EventTimes {
        pairs.iter().map(|(p, o)| ((*p).to_owned(), *o)).collect()
    }

    #[test]
    fn the_slowest_partition_sets_the_watermark() {
        let mut table = TableTimes::default();
        let partitions = offsets(&[("t[0]", 0), ("t[1]", 0)]);
        let none = BTreeSet::new();
        table.advance(
            &times(&[("t[0]", 100)]),
            &partitions,
            &none,
            &options(10, None),
        );
        assert_eq!(table.watermark, None, "t[1] may bring anything");
        table.advance(
            &times(&[("t[1]", 50)]),
            &partitions,
            &none,
            &options(10, None),
        );
        assert_eq!(table.watermark, Some(40));
        table.advance(
            &times(&[("t[1]", 30)]),
            &partitions,
            &none,
            &options(10, None),
        );
        assert_eq!(table.watermark, Some(40), "never back");
        table.advance(
            &times(&[("t[1]", 500)]),
            &partitions,
            &none,
            &options(10, None),
        );
        assert_eq!(table.watermark, Some(90));
    }

    #[test]
    fn an_idle_partition_does_not_hold_it_back() {
        let mut table = TableTimes::default();
        let partitions = offsets(&[("t[0]", 0), ("t[1]", 0)]);
        let idle = BTreeSet::from(["t[1]".to_owned()]);
        table.advance(
            &times(&[("t[0]", 100)]),
            &partitions,
            &idle,
            &options(0, None),
        );
        assert_eq!(table.watermark, Some(100));
        let all = BTreeSet::from(["t[0]".to_owned(), "t[1]".to_owned()]);
        table.advance(
            &times(&[("t[1]", 300)]),
            &partitions,
            &all,
            &options(0, None),
        );
        assert_eq!(table.watermark, Some(300));
    }

    #[test]
    fn a_partition_is_idle_once_read_and_quiet_for_the_timeout() {
        let mut idleness = Idleness::default();
        let start = offsets(&[("t[0]", 5), ("t[1]", 0)]);
        let look = |idleness: &mut Idleness, latest: &Offsets, now| {
            idleness.look(
                &start,
                latest,
                |p| p == "t[1]",
                &options(0, Some(1000)),
                now,
            )
        };
        let none_yet = look(&mut idleness, &offsets(&[("t[0]", 5), ("t[1]", 0)]), 0);
        assert_eq!(
            none_yet,
            BTreeSet::from(["t[1]".to_owned()]),
            "an empty one is idle at once"
        );
        let behind = look(&mut idleness, &offsets(&[("t[0]", 6), ("t[1]", 0)]), 2000);
        assert!(!behind.contains("t[0]"));
        let quiet = look(&mut idleness, &offsets(&[("t[0]", 5), ("t[1]", 0)]), 2999);
        assert!(!quiet.contains("t[0]"));
        let idle = look(&mut idleness, &offsets(&[("t[0]", 5), ("t[1]", 0)]), 3000);
        assert!(idle.contains("t[0]"));
    }

    #[test]
    fn an_insert_waits_for_all_its_tables() {
        let mut all = BTreeMap::new();
        let with = |watermark| TableTimes {
            latest: EventTimes::new(),
            watermark,
        };
        all.insert("a".to_owned(), with(Some(7)));
        all.insert("b".to_owned(), with(None));
        let a = "a".to_owned();
        let b = "b".to_owned();
        assert_eq!(of_tables(&all, [&a]), 7);
        assert_eq!(of_tables(&all, [&a, &b]), i64::MIN);
    }
}
