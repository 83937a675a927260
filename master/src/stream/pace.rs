//! How much an epoch reads: a limit that the user set, or one that lets an epoch last about as long as its trigger.

use essaim_common::stream::Offsets;
use std::time::Duration;

/// What the first epoch reads at most: enough to learn from, little enough to be quick.
const FIRST: u64 = 200_000;
const LEAST: u64 = 1_000;
/// About what two workers hold of a wide table without spilling.
const MOST: u64 = 20_000_000;
/// Where the trigger is shorter: below it the fixed cost of an epoch outweighs its rows when catching up.
const SHORTEST: Duration = Duration::from_secs(1);
/// Where finishing takes long, as it does with many groups to write: what it costs hardly depends on the rows read, so
/// reading takes as many times as long as finishing, and both go on side by side.
const FINISHES: u32 = 3;
/// However long finishing takes.
const LONGEST: Duration = Duration::from_secs(10);

/// The limit of the next epoch, for all partitions together.
#[derive(Debug, Clone)]
pub struct Pace {
    target: Duration,
    limit: u64,
}

impl Pace {
    /// For epochs that are to last about `trigger`.
    pub fn new(trigger: Duration) -> Self {
        Self {
            target: trigger.max(SHORTEST),
            limit: FIRST,
        }
    }

    /// Offsets that the next epoch may read.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Reading an epoch of so many offsets took so long, and finishing the last one `finishing`. Only an epoch that was
    /// as large as it might be, or took too long, says how large the next should be; it grows to at most four times and shrinks to at
    /// least a quarter.
    pub fn learn(&mut self, offsets: u64, took: Duration, finishing: Duration) {
        let target = self.target.max((finishing * FINISHES).min(LONGEST));
        if offsets * 2 < self.limit && took <= target {
            return;
        }
        let per_target = offsets as f64 * target.as_secs_f64() / took.as_secs_f64().max(1e-3);
        let next = (per_target as u64).clamp(self.limit / 4, self.limit.saturating_mul(4));
        self.limit = next.clamp(LEAST, MOST);
    }
}

/// The positions at which an epoch of at most `limit` offsets ends, each partition giving in proportion to what it has:
/// so all of them reach their ends together, and event time moves on alike in all.
pub fn end(start: &Offsets, latest: &Offsets, limit: u64) -> Offsets {
    let lag = |partition: &String, from: i64| {
        let latest = latest.0.get(partition).copied().unwrap_or(from);
        u64::try_from(latest - from).unwrap_or(0)
    };
    let total: u64 = start.0.iter().map(|(p, from)| lag(p, *from)).sum();
    let ends = start.0.iter().map(|(partition, from)| {
        let lag = lag(partition, *from);
        let share = if total <= limit {
            lag
        } else {
            // Rounded up: a partition with little is not left behind for ever.
            let share = (u128::from(lag) * u128::from(limit)).div_ceil(u128::from(total.max(1)));
            lag.min(share as u64)
        };
        (partition.clone(), from + share as i64)
    });
    Offsets(ends.collect())
}

/// Offsets between two positions, of all partitions.
pub fn distance(from: &Offsets, to: &Offsets) -> u64 {
    from.0
        .iter()
        .filter_map(|(partition, from)| {
            let to = to.0.get(partition)?;
            u64::try_from(to - from).ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(values: &[i64]) -> Offsets {
        let pairs = values.iter().enumerate();
        Offsets(pairs.map(|(p, o)| (format!("t[{p}]"), *o)).collect())
    }

    #[test]
    fn partitions_give_in_proportion_to_what_they_have() {
        let end = end(&offsets(&[0, 0, 10]), &offsets(&[1000, 10, 10]), 101);
        assert_eq!(end, offsets(&[100, 1, 10]));
    }

    #[test]
    fn everything_is_read_if_it_fits() {
        let latest = offsets(&[7, 9]);
        assert_eq!(end(&offsets(&[0, 9]), &latest, 7), latest);
    }

    #[test]
    fn a_full_epoch_teaches_and_a_small_one_does_not() {
        let mut pace = Pace::new(Duration::from_millis(50));
        let quick = Duration::from_millis(1);
        pace.learn(10, Duration::from_millis(5), quick);
        assert_eq!(pace.limit(), FIRST);
        pace.learn(FIRST, Duration::from_millis(500), quick);
        assert_eq!(pace.limit(), 2 * FIRST);
        pace.learn(2 * FIRST, Duration::from_secs(100), quick);
        assert_eq!(
            pace.limit(),
            FIRST / 2,
            "a stall does not shrink it to nothing"
        );
    }

    #[test]
    fn an_epoch_that_is_long_in_finishing_reads_more() {
        let mut pace = Pace::new(Duration::from_millis(50));
        let second = Duration::from_secs(1);
        pace.learn(FIRST, second, second);
        assert_eq!(pace.limit(), 3 * FIRST);
        pace.learn(3 * FIRST, 10 * second, 60 * second);
        assert_eq!(pace.limit(), 3 * FIRST, "no longer than ten seconds");
    }
}
