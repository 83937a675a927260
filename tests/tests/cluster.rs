//! A master and its workers as processes: they find each other, share work, wait, drain, and serve what tools expect.

use anyhow::{Context, Result};
use essaim_proto::{PROTOCOL, VERSION};
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::{JobState, QueryRequest, RegisterRequest};
use essaim_tests::client::{attempts, ended, tasks};
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::sql::{integers, numbers};
use essaim_tests::{SOON, wait_for};
use futures::StreamExt;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Rows that no test waits for.
const ENDLESS: u64 = 1_000_000_000_000;

#[tokio::test]
async fn two_workers_find_their_master() -> Result<()> {
    let cluster = shared().await?;
    let page = cluster.json("/api/v1/cluster").await?;
    let workers = page["workers"].as_array().context("workers")?;
    let shown: BTreeSet<_> = workers.iter().filter_map(|w| w["id"].as_str()).collect();
    let started: BTreeSet<_> = cluster.workers().iter().map(|w| w.id.as_str()).collect();
    assert_eq!(shown, started, "{page}");
    for worker in workers {
        assert_eq!(worker["slots"], 2, "{worker}");
        assert_eq!(worker["state"], "active", "{worker}");
    }
    Ok(())
}

#[tokio::test]
async fn a_query_over_generated_rows_runs_on_both_workers() -> Result<()> {
    let cluster = shared().await?;
    let sql = format!(
        "{}SELECT count(*), sum(value), min(value), max(value) FROM numbers",
        numbers("numbers", 4_000_000)
    );
    let (rows, job) = cluster.client().await?.start(&sql).await?.finish().await?;
    let found: Vec<i64> = (0..4)
        .map(|column| integers(&rows, column))
        .collect::<Result<Vec<_>>>()?
        .concat();
    assert_eq!(found, [4_000_000, 4_000_000 * 3_999_999 / 2, 0, 3_999_999]);

    assert_eq!(job.state(), JobState::Succeeded);
    assert_eq!(job.queries.len(), 1);
    assert_eq!(job.queries[0].execution, "tasks");
    assert_eq!(job.queries[0].rows_out, 1);
    let read: u64 = job.queries[0]
        .stages
        .iter()
        .map(|stage| stage.rows_in)
        .sum();
    assert_eq!(read, 4_000_000);
    let used: BTreeSet<_> = attempts(&job)
        .iter()
        .map(|(_, a)| a.worker.clone())
        .collect();
    let started: BTreeSet<_> = cluster.workers().iter().map(|w| w.id.clone()).collect();
    assert_eq!(used, started);
    Ok(())
}

#[tokio::test]
async fn setup_statements_hold_for_one_query_only() -> Result<()> {
    let client = shared().await?.client().await?;
    let request = QueryRequest {
        setup: vec![
            numbers("only_here", 10),
            "CREATE VIEW even AS SELECT value FROM only_here WHERE value % 2 = 0".to_owned(),
        ],
        sql: "SELECT sum(value) FROM even".to_owned(),
        progress: false,
    };
    let (rows, _) = client.start_request(request).await?.finish().await?;
    assert_eq!(integers(&rows, 0)?, [20]);
    let status = client.query_error("SELECT sum(value) FROM even").await?;
    assert!(status.message().contains("even"), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_speaks_another_protocol_is_refused_naming_both_versions() -> Result<()> {
    let client = shared().await?.client().await?;
    let request = RegisterRequest {
        worker_id: "an-old-one".to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        version: "0.0.0-old".to_owned(),
        slots: 1,
        memory_bytes: 1 << 30,
        protocol: PROTOCOL + 1,
    };
    let refused = ClusterClient::new(client.channel()).register(request).await;
    let status = refused.err().context("it was taken")?;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("0.0.0-old"), "{status}");
    assert!(status.message().contains(VERSION.as_str()), "{status}");
    Ok(())
}

#[tokio::test]
async fn health_and_reflection_are_served() -> Result<()> {
    let channel = shared().await?.client().await?.channel();
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await?
        .into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(futures::stream::iter([request]))
        .await?
        .into_inner();
    let answer = answers.message().await?.context("no answer")?;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: BTreeSet<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    for name in [
        "essaim.v1.Jobs",
        "essaim.v1.Cluster",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_worker_a_query_says_what_it_waits_for_and_gives_up() -> Result<()> {
    let cluster = Cluster::start(0, 0).await?;
    assert_eq!(cluster.http_get("/healthz").await?.0, 200);
    assert_eq!(cluster.http_get("/readyz").await?.0, 503);
    let sql = format!(
        "SET essaim.worker_timeout_s = 1; {}SELECT count(*) FROM numbers",
        numbers("numbers", 10)
    );
    let began = Instant::now();
    let mut query = cluster.client().await?.start(&sql).await?;
    let waiting = query
        .until("its message", |job| !job.message.is_empty())
        .await?;
    assert!(waiting.message.contains("worker"), "{}", waiting.message);
    let status: Status = query.finish().await.err().context("it ran")?.downcast()?;
    assert!(
        status.message().contains("essaim.worker_timeout_s"),
        "{status}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_query_that_waits_runs_once_a_worker_has_come() -> Result<()> {
    let mut cluster = Cluster::start(0, 0).await?;
    let sql = format!("{}SELECT sum(value) FROM numbers", numbers("numbers", 1000));
    let mut query = cluster.client().await?.start(&sql).await?;
    query
        .until("its message", |job| !job.message.is_empty())
        .await?;
    cluster.add_worker(1, "256MiB").await?;
    let (rows, job) = query.finish().await?;
    assert_eq!(integers(&rows, 0)?, [499_500]);
    assert_eq!(job.message, "");
    assert_eq!(cluster.http_get("/readyz").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn cancelling_frees_the_slots_within_a_second() -> Result<()> {
    let cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "{}SELECT sum(value % 7) FROM numbers",
        numbers("numbers", ENDLESS)
    );
    let mut query = client.start(&sql).await?;
    let running = query.until("two tasks", |job| tasks(job).0 == 2).await?;
    assert_eq!(cluster.json("/api/v1/cluster").await?["slots_used"], 2);

    let found = client.cancel(&running.id).await?;
    assert_eq!(found, JobState::Running);
    wait_for("free slots", Duration::from_secs(1), async || {
        let page = cluster.json("/api/v1/cluster").await?;
        Ok((page["slots_used"] == 0).then_some(()))
    })
    .await?;
    let status: Status = query.finish().await.err().context("it ended")?.downcast()?;
    assert_eq!(status.code(), Code::Cancelled, "{status}");
    let job = client.wait_job(&running.id).await?;
    assert_eq!(job.state(), JobState::Cancelled);

    // The worker is as good as before.
    let sql = format!("{}SELECT sum(value) FROM numbers", numbers("numbers", 1000));
    assert_eq!(integers(&client.query(&sql).await?, 0)?, [499_500]);
    Ok(())
}

#[tokio::test]
async fn thousands_of_short_tasks_share_one_connection() -> Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    // More tasks than a connection bears calls that are dropped before their end (1,024).
    let sql = format!(
        "SET essaim.splits_per_slot = 750;
         {}SELECT count(*), sum(value) FROM numbers",
        numbers("numbers", 3000)
    );
    let query = client.start(&sql).await?;
    let (rows, job) = query.finish().await?;
    assert_eq!(integers(&rows, 0)?, [3000]);
    assert_eq!(integers(&rows, 1)?, [4_498_500]);
    assert_eq!(job.queries[0].stages[0].tasks, 3000);
    assert!(
        job.queries[0].stages[0]
            .attempts
            .iter()
            .all(|attempt| attempt.attempt == 1)
    );
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_slots() -> Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "{}SELECT sum(value % 7) FROM numbers",
        numbers("numbers", ENDLESS)
    );
    let mut query = client.start(&sql).await?;
    let running = query.until("a task", |job| tasks(job).0 == 1).await?;
    drop(query);
    wait_for("free slots", Duration::from_secs(2), async || {
        let page = cluster.json("/api/v1/cluster").await?;
        Ok((page["slots_used"] == 0).then_some(()))
    })
    .await?;
    let job = client.wait_job(&running.id).await?;
    assert_eq!(job.state(), JobState::Cancelled);
    Ok(())
}

#[tokio::test]
async fn watching_ends_with_the_job() -> Result<()> {
    let cluster = shared().await?;
    let client = cluster.client().await?;
    let sql = format!(
        "{}SELECT sum(value % 7) FROM numbers",
        numbers("numbers", ENDLESS)
    );
    let mut query = client.start(&sql).await?;
    let running = query.until("a task", |job| tasks(job).0 > 0).await?;
    let changes = client.watch(&running.id).await?;
    client.cancel(&running.id).await?;
    let seen: Vec<_> = tokio::time::timeout(SOON, changes.collect()).await?;
    let last = seen.into_iter().next_back().context("no change")??;
    assert!(ended(&last), "{last:?}");
    assert_eq!(last.state(), JobState::Cancelled);
    Ok(())
}

#[tokio::test]
async fn the_status_pages_answer() -> Result<()> {
    let cluster = shared().await?;
    let client = cluster.client().await?;
    let sql = format!("{}SELECT sum(value) FROM numbers", numbers("numbers", 1000));
    let (_, job) = client.start(&sql).await?.finish().await?;

    assert_eq!(cluster.http_get("/healthz").await?.0, 200);
    assert_eq!(cluster.http_get("/readyz").await?.0, 200);
    assert_eq!(cluster.http_get("/no-such-page").await?.0, 404);
    assert_eq!(cluster.http_get("/api/v1/jobs/no-such-job").await?.0, 404);
    let page = cluster.json("/api/v1/jobs").await?;
    let jobs = page["jobs"].as_array().context("jobs")?;
    let shown = jobs.iter().find(|shown| shown["id"] == job.id.as_str());
    let shown = shown.with_context(|| format!("{} is not in {page}", job.id))?;
    assert_eq!(shown["state"], "succeeded");
    let page = cluster.json(&format!("/api/v1/jobs/{}", job.id)).await?;
    assert_eq!(page["queries"][0]["execution"], "tasks", "{page}");
    Ok(())
}

#[tokio::test]
async fn workers_come_back_to_a_restarted_master() -> Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let before: BTreeSet<_> = cluster.registered().await?.into_iter().collect();
    cluster.restart_master().await?;
    wait_for("both workers", SOON, async || {
        let now: BTreeSet<_> = cluster.registered().await?.into_iter().collect();
        Ok((now == before).then_some(()))
    })
    .await?;
    let sql = format!("{}SELECT sum(value) FROM numbers", numbers("numbers", 1000));
    let rows = cluster.client().await?.query(&sql).await?;
    assert_eq!(integers(&rows, 0)?, [499_500]);
    Ok(())
}

#[tokio::test]
async fn a_stopped_cluster_ends_with_success() -> Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    assert_eq!(cluster.pids().len(), 3);
    cluster.stop().await
}
