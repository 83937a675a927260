//! Metrics of a live cluster: they count what happened, promtool accepts them, and what is written about them is true.

use crate::scrape::{Scrape, promtool};
use crate::{COUNT_EVENTS, declare_events, event};
use anyhow::{Context, Result};
use essaim_tests::client::Client;
use essaim_tests::cluster::{Cluster, http_get};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::sql::numbers;
use essaim_tests::{SOON, unique, wait_for};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rows of the batch job and of the stream, and records of the stream that do not decode.
const BATCH: u64 = 100_000;
const STREAM: i64 = 1_000;
const BROKEN: u64 = 6;
/// Records that the stream's tasks read.
const READ: u64 = STREAM as u64 + BROKEN;

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(repository().join(file)).with_context(|| file.to_owned())
}

/// Everything that looks like the name of a metric of ours.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| word.starts_with("essaim_") || word.starts_with("process_");
    words.filter(ours).map(str::to_owned).collect()
}

async fn run_batch(client: &Client, database: &Database, name: &str) -> Result<()> {
    let sql = [
        numbers("numbers", BATCH),
        database.declare("tens", "tens", ""),
        "INSERT INTO tens SELECT value % 10 AS ten, count(*) AS numbers FROM numbers GROUP BY 1;"
            .to_owned(),
    ]
    .concat();
    client.run_job(&sql, name).await?;
    Ok(())
}

/// A stream that has read everything. Its last event closes all windows but one.
async fn run_stream(client: &Client, topic: &Topic, database: &Database, name: &str) -> Result<()> {
    topic.produce((0..STREAM).map(event)).await?;
    topic
        .produce((0..BROKEN).map(|n| format!("broken {n}")))
        .await?;
    let sql = [
        declare_events(topic, "skip"),
        database.declare(
            "per_minute",
            "per_minute",
            ", mode 'upsert', key 'window_start,kind'",
        ),
        COUNT_EVENTS.to_owned(),
    ]
    .concat();
    let job = client.submit(&sql, name).await?;
    let all = |totals: &essaim_proto::v1::EpochTotals| {
        totals.input_rows == READ && totals.records_skipped == BROKEN
    };
    client
        .wait_until(&job, |job| job.totals.as_ref().is_some_and(all))
        .await?;
    Ok(())
}

async fn scrape_all(cluster: &Cluster, check: bool) -> Result<(Scrape, Scrape)> {
    let master = Scrape::of(cluster.http(), check).await?;
    let mut workers = Scrape::default();
    for worker in cluster.workers() {
        workers.add(Scrape::of(worker.http, check).await?);
    }
    Ok((master, workers))
}

#[tokio::test]
async fn metrics_count_what_happened_and_are_what_docs_dashboard_and_alerts_name() -> Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    let (topic, database) = (Topic::create(3).await?, Database::create().await?);
    let (batch, stream) = (unique("batch"), unique("stream"));
    run_batch(&client, &database, &batch).await?;
    run_stream(&client, &topic, &database, &stream).await?;
    let (master, workers) = scrape_all(&cluster, true).await?;

    let batch = [("job", batch.as_str())];
    let stream = [("job", stream.as_str())];
    let one = |name, labels: &[(&str, &str)]| master.sum(name, labels);
    assert_eq!(
        one("essaim_job_input_rows_total", &batch),
        Some(BATCH as f64)
    );
    assert_eq!(one("essaim_job_output_rows_total", &batch), Some(10.0));
    assert_eq!(one("essaim_job_sink_commits_total", &batch), Some(1.0));
    assert_eq!(
        one("essaim_job_input_rows_total", &stream),
        Some(READ as f64)
    );
    let skipped = one("essaim_job_records_skipped_total", &stream);
    assert_eq!(skipped, Some(BROKEN as f64));
    let written = one("essaim_job_output_rows_total", &stream).context("output")?;
    // 17 minutes of 5 kinds, each at least once.
    assert!(written >= 85.0, "{written}");
    let epochs = one("essaim_job_epoch_duration_seconds_count", &stream).context("epochs")?;
    let known = client.get(stream[0].1).await?.totals.context("totals")?;
    assert_eq!(epochs, known.epochs as f64);
    assert_eq!(one("essaim_job_lag_offsets", &stream), Some(0.0));
    assert_eq!(
        one("essaim_job_state_limit_bytes", &stream),
        Some(1_073_741_824.0)
    );
    assert!(one("essaim_job_state_rows", &stream) > Some(0.0));
    assert!(one("essaim_job_watermark_lag_seconds", &stream).is_some());
    assert_eq!(one("essaim_job_epoch_failures_total", &stream), Some(0.0));
    for (labels, state) in [(batch, "succeeded"), (stream, "running")] {
        let labels = [labels[0], ("state", state)];
        assert_eq!(one("essaim_job_state", &labels), Some(1.0), "{labels:?}");
    }
    let ended = [("kind", "batch"), ("state", "succeeded")];
    assert_eq!(one("essaim_jobs_ended_total", &ended), Some(1.0));
    assert_eq!(one("essaim_cluster_slots", &[]), Some(4.0));
    assert_eq!(
        one("essaim_cluster_workers", &[("state", "active")]),
        Some(2.0)
    );
    assert_eq!(one("essaim_cluster_workers_joined_total", &[]), Some(2.0));
    assert!(one("essaim_state_dir_request_duration_seconds_count", &[]) > Some(2.0));
    assert!(one("process_resident_memory_bytes", &[]) > Some(1e6));

    let rows_read = workers.sum("essaim_worker_input_rows_total", &[]);
    assert_eq!(rows_read, Some((BATCH + READ) as f64));
    let tasks = workers.sum("essaim_worker_tasks_total", &[("outcome", "succeeded")]);
    let attempts = one(
        "essaim_job_task_attempts_total",
        &[("outcome", "succeeded")],
    );
    assert_eq!(tasks, attempts);
    assert_eq!(workers.sum("essaim_worker_registered", &[]), Some(2.0));
    for worker in cluster.workers() {
        let label = [("worker", worker.id.as_str())];
        assert_eq!(workers.sum("essaim_worker_info", &label), Some(1.0));
        assert_eq!(one("essaim_cluster_worker_slots", &label), Some(2.0));
    }

    let mut served = master.names();
    served.extend(workers.names());
    let base = |name: String| {
        let suffixes = ["_bucket", "_sum", "_count"];
        let stripped = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        match stripped.filter(|stripped| served.contains(*stripped)) {
            Some(stripped) => stripped.to_owned(),
            None => name,
        }
    };
    for file in [
        "docker/grafana/dashboards/essaim.json",
        "docker/prometheus/alerts.yml",
        "docs/metrics.md",
    ] {
        let named: BTreeSet<String> = names_in(&read(file)?).into_iter().map(base).collect();
        let wrong: Vec<_> = named.difference(&served).collect();
        assert!(
            wrong.is_empty(),
            "{file} names what is not served: {wrong:?}"
        );
    }
    let documented = names_in(&read("docs/metrics.md")?);
    let missing: Vec<_> = served.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/metrics.md leaves out {missing:?}");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_lost_is_counted_and_its_series_end() -> Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let lost = cluster.workers()[0].id.clone();
    let label = [("worker", lost.as_str())];
    let before = Scrape::of(cluster.http(), false).await?;
    assert_eq!(before.sum("essaim_cluster_worker_slots", &label), Some(1.0));
    assert_eq!(
        before.sum("essaim_cluster_workers_lost_total", &[]),
        Some(0.0)
    );
    cluster.kill_worker(0);
    let after = wait_for("the worker to be given up", SOON, async || {
        let scrape = Scrape::of(cluster.http(), false).await?;
        let gone = scrape.sum("essaim_cluster_workers_lost_total", &[]) == Some(1.0);
        Ok(gone.then_some(scrape))
    })
    .await?;
    assert_eq!(after.sum("essaim_cluster_worker_slots", &label), None);
    assert_eq!(after.sum("essaim_cluster_slots", &[]), Some(1.0));
    Ok(())
}

#[tokio::test]
async fn a_worker_is_ready_while_its_master_knows_it() -> Result<()> {
    let mut cluster = Cluster::start(1, 1).await?;
    let address = cluster.workers()[0].http;
    assert_eq!(http_get(address, "/healthz").await?.0, 200);
    assert_eq!(http_get(address, "/readyz").await?.0, 200);
    assert_eq!(http_get(address, "/no-such-page").await?.0, 404);
    cluster.kill_master();
    wait_for("the worker to miss its master", SOON, async || {
        Ok((http_get(address, "/readyz").await?.0 == 503).then_some(()))
    })
    .await?;
    assert_eq!(http_get(address, "/healthz").await?.0, 200);
    cluster.restart_master().await?;
    wait_for("the worker to find its master", SOON, async || {
        Ok((http_get(address, "/readyz").await?.0 == 200).then_some(()))
    })
    .await?;
    let scrape = Scrape::of(address, false).await?;
    assert!(scrape.sum("essaim_worker_lease_failures_total", &[]) > Some(0.0));
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_too_large_is_counted() -> Result<()> {
    let cluster = Cluster::start(0, 0).await?;
    let client = cluster.client().await?;
    let sql = format!("SELECT '{}'", "x".repeat(4 << 20));
    let status = client.query_error(&sql).await?;
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    let scrape = Scrape::of(cluster.http(), false).await?;
    let refused = scrape.sum("essaim_grpc_errors_total", &[("code", "out_of_range")]);
    assert_eq!(refused, Some(1.0));
    Ok(())
}

#[test]
fn promtool_accepts_configuration_and_alerts_and_each_alert_has_a_paragraph() -> Result<()> {
    let folder = repository().join("docker/prometheus");
    let path = |file: &str| folder.join(file).to_string_lossy().into_owned();
    promtool(&["check", "config", &path("prometheus.yml")], "")?;
    promtool(&["check", "rules", &path("alerts.yml")], "")?;
    promtool(&["test", "rules", &path("alerts.test.yml")], "")?;
    let alerts = read("docker/prometheus/alerts.yml")?;
    let docs = read("docs/metrics.md")?.to_lowercase();
    let mut found = 0;
    for line in alerts.lines() {
        if let Some((_, anchor)) = line.split_once("docs/metrics.md#") {
            found += 1;
            let heading = format!("### {anchor}\n");
            assert!(docs.contains(&heading), "docs/metrics.md lacks {heading}");
        }
    }
    assert_eq!(found, alerts.matches("- alert:").count());
    assert!(found > 10, "{found}");
    Ok(())
}
