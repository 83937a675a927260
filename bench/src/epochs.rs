//! What a streaming job tells about its epochs, and how it is waited for.

use anyhow::{Context, Result, bail};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{EpochProgress, EpochsRequest, Job};
use essaim_tests::client::{Client, ended};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// As many epochs as a master keeps.
const ALL: u32 = 1000;
/// How often a job is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// The epochs of a job with a number higher than `after`, as far as the master has them still.
///
/// # Errors
/// There is no such job.
pub async fn epochs(client: &Client, job: &str, after: Option<u64>) -> Result<Vec<EpochProgress>> {
    let request = EpochsRequest {
        job_id: job.to_owned(),
        after_epoch: after,
        limit: ALL,
    };
    let mut jobs = JobsClient::new(client.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok(jobs.epochs(request).await?.into_inner().epochs)
}

/// Waits until a job has committed epochs of `rows` rows together.
///
/// # Errors
/// It ends before, or does not get so far within `limit`.
pub async fn until_read(client: &Client, job: &str, rows: u64, limit: Duration) -> Result<Job> {
    let end = Instant::now() + limit;
    loop {
        let found = client.get(job).await?;
        let read = found.totals.as_ref().map_or(0, |totals| totals.input_rows);
        if read >= rows {
            return Ok(found);
        }
        if ended(&found) {
            bail!(
                "job {job} ended after {read} of {rows} rows: {}",
                found.message
            );
        }
        if Instant::now() > end {
            bail!(
                "job {job} has read {read} of {rows} rows in {limit:?}: {}",
                found.message
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One line: the median and the highest of each step of these epochs, ms.
///
/// # Errors
/// There is no epoch.
pub fn steps(epochs: &[EpochProgress]) -> Result<String> {
    let mut steps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for epoch in epochs {
        steps.entry("whole").or_default().push(epoch.duration_ms);
        for (step, took) in &epoch.durations_ms {
            steps.entry(step).or_default().push(*took);
        }
    }
    let mut parts = vec![format!("{} epochs", epochs.len())];
    for (step, mut took) in steps {
        took.sort_by(f64::total_cmp);
        let highest = took.last().context("no epoch")?;
        parts.push(format!(
            "{step} {:.1} (at most {highest:.1})",
            percentile(&took, 0.5)
        ));
    }
    Ok(parts.join(", "))
}

/// The value that a part of them does not exceed, e.g. 0.99; they are sorted. Of none: not a number.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    // Nearest rank: the smallest value such that `part` of all are at most it.
    let rank = (part * sorted.len() as f64).ceil() as usize;
    let found = sorted.get(rank.saturating_sub(1));
    found.copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values, 1.0), 100.0);
        assert_eq!(percentile(&values[..1], 0.99), 1.0);
    }
}
