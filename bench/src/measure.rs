//! Two things measured in turn, so that whatever else the machine does falls on both.

use anyhow::Result;
use std::time::Instant;

/// The seconds of several runs of one thing, in the order in which they were run.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    seconds: Vec<f64>,
}

impl Runs {
    /// Runs `what` once and keeps how long it took.
    ///
    /// # Errors
    /// Those of `what`.
    pub async fn time<T>(&mut self, what: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let answer = what.await?;
        self.seconds.push(start.elapsed().as_secs_f64());
        Ok(answer)
    }

    /// The runs in the order in which they were run, s.
    pub fn seconds(&self) -> &[f64] {
        &self.seconds
    }

    /// The fastest, s.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// The median, s.
    pub fn median(&self) -> f64 {
        median(&self.sorted())
    }

    /// The slowest, s.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    /// The rate of the median run as a part of another's: 1 is as fast as `limit`, 0.5 takes twice as long.
    pub fn ratio_to(&self, limit: &Self) -> f64 {
        limit.median() / self.median()
    }

    /// The same for each pair of neighbouring runs, sorted.
    pub fn ratios_to(&self, limit: &Self) -> Vec<f64> {
        let pairs = limit.seconds.iter().zip(&self.seconds);
        let mut ratios: Vec<f64> = pairs.map(|(limit, own)| limit / own).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    fn sorted(&self) -> Vec<f64> {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds
    }
}

fn median(sorted: &[f64]) -> f64 {
    match (sorted.len() / 2, sorted.len() % 2) {
        (_, _) if sorted.is_empty() => f64::NAN,
        (half, 0) => f64::midpoint(sorted[half - 1], sorted[half]),
        (half, _) => sorted[half],
    }
}

/// Runs the limit and Essaim in turn, `runs` times each, after one run of each that does not count.
///
/// # Errors
/// The first error of either.
pub async fn in_turn(
    runs: usize,
    mut limit: impl AsyncFnMut() -> Result<()>,
    mut essaim: impl AsyncFnMut() -> Result<()>,
) -> Result<(Runs, Runs)> {
    limit().await?;
    essaim().await?;
    let (mut limits, mut own) = (Runs::default(), Runs::default());
    for _ in 0..runs {
        limits.time(limit()).await?;
        own.time(essaim()).await?;
    }
    Ok((limits, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians() {
        let limit = Runs {
            seconds: vec![9.0, 1.0, 2.0],
        };
        let own = Runs {
            seconds: vec![4.0, 4.0, 3.0, 5.0],
        };
        assert_eq!((limit.min(), limit.median(), limit.max()), (1.0, 2.0, 9.0));
        assert_eq!(own.ratio_to(&limit), 0.5);
        assert_eq!(own.ratios_to(&limit), [0.25, 2.0 / 3.0, 2.25]);
    }
}
