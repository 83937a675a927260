//! How long toots take from the producer to a row that everybody sees in PostgreSQL.

use anyhow::{Context, Result};
use parking_lot::Mutex;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at the result table. A latency is too long by at most so much and the time of the query.
const LOOK: Duration = Duration::from_millis(10);

/// A number of toots, and when it was reached.
pub type Reached = (Instant, u64);

/// How many toots had been produced when.
#[derive(Debug, Default)]
pub struct Produced(Mutex<Vec<Reached>>);

impl Produced {
    /// Toots up to number `toots` are sent from `now` on.
    pub fn note(&self, now: Instant, toots: u64) {
        let mut reached = self.0.lock();
        if reached.last().is_none_or(|(_, last)| *last < toots) {
            reached.push((now, toots));
        }
    }

    /// How many have been sent.
    pub fn sent(&self) -> u64 {
        self.0.lock().last().map_or(0, |(_, toots)| *toots)
    }

    /// When each number was reached.
    pub fn all(&self) -> Vec<Reached> {
        self.0.lock().clone()
    }
}

/// How many toots a result table counted when.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Vec<Reached>>);

impl Seen {
    /// Looks at column `toots` of a table, which the job may not have made yet, again and again.
    ///
    /// # Errors
    /// The server's. It does not return otherwise.
    pub async fn look(self: Arc<Self>, url: String, table: &'static str) -> Result<Infallible> {
        let mut connection = PgConnection::connect(&url).await?;
        let there = format!("SELECT to_regclass('{table}') IS NOT NULL");
        while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(there.clone()))
            .fetch_one(&mut connection)
            .await?
        {
            tokio::time::sleep(LOOK).await;
        }
        let sum = format!("SELECT coalesce(sum(toots), 0)::bigint FROM {table}");
        loop {
            let toots: i64 = sqlx::query_scalar(AssertSqlSafe(sum.clone()))
                .fetch_one(&mut connection)
                .await
                .with_context(|| format!("a look at {table}"))?;
            self.note(Instant::now(), u64::try_from(toots)?);
            tokio::time::sleep(LOOK).await;
        }
    }

    fn note(&self, now: Instant, toots: u64) {
        let mut reached = self.0.lock();
        if reached.last().map_or(0, |(_, last)| *last) != toots {
            reached.push((now, toots));
        }
    }

    /// How many are counted, and since when nothing has changed; absent before the first.
    pub fn last(&self) -> Option<Reached> {
        self.0.lock().last().copied()
    }

    /// When each number was seen first.
    pub fn all(&self) -> Vec<Reached> {
        self.0.lock().clone()
    }
}

/// How long toots took, longest last, each with how many took so long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies(Vec<(Duration, u64)>);

impl Latencies {
    /// The n-th toot took from when n toots had been produced to when n were first seen to be counted: an epoch reads
    /// what is there of all partitions, so they are counted in the order in which they are produced but for
    /// milliseconds. Only toots produced `within` are regarded, all if
    /// that is absent.
    pub fn new(produced: &[Reached], seen: &[Reached], within: Option<Range<Instant>>) -> Self {
        let mut took = Vec::new();
        let mut known = 0;
        let mut produced = produced.iter().copied().peekable();
        for (when, count) in seen {
            while known < *count {
                let Some((at, reached)) = produced.peek().copied() else {
                    break;
                };
                let upto = reached.min(*count);
                if upto > known {
                    if within.as_ref().is_none_or(|within| within.contains(&at)) {
                        took.push((when.saturating_duration_since(at), upto - known));
                    }
                    known = upto;
                }
                if reached <= *count {
                    produced.next();
                }
            }
        }
        took.sort_unstable();
        Self(took)
    }

    /// That which `share` of the toots (0 to 1) do not exceed, ms; 0 if there are none.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let all: u64 = self.0.iter().map(|(_, toots)| toots).sum();
        let rank = (all as f64 * share).ceil() as u64;
        let mut passed = 0;
        let found = self.0.iter().find(|(_, toots)| {
            passed += toots;
            passed >= rank
        });
        found.map_or(0.0, |(took, _)| {
            (took.as_secs_f64() * 10_000.0).round() / 10.0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_toot_took_until_n_were_counted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let produced = [(at(0), 10), (at(5), 20), (at(10), 30)];
        let seen = [(at(30), 15), (at(50), 30)];
        let all = Latencies::new(&produced, &seen, None);
        assert_eq!(
            all,
            Latencies(vec![(ms(25), 5), (ms(30), 10), (ms(40), 10), (ms(45), 5)])
        );
        assert_eq!(all.quantile_ms(0.5), 30.0);
        assert_eq!(all.quantile_ms(0.99), 45.0);
        assert_eq!(all.quantile_ms(1.0), 45.0);
        let early = Latencies::new(&produced, &seen, Some(at(0)..at(5)));
        assert_eq!(early, Latencies(vec![(ms(30), 10)]));
        assert_eq!(Latencies::new(&[], &seen, None).quantile_ms(0.5), 0.0);
    }

    #[test]
    fn a_count_that_falls_and_rises_again_is_seen_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let seen = [(at(1), 10), (at(2), 4), (at(3), 10)];
        let all = Latencies::new(&[(at(0), 10)], &seen, None);
        assert_eq!(all.0, [(Duration::from_millis(1), 10)]);
    }
}
