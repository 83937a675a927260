//! A job with everything switched on: tasks and an exchange over mutual TLS with tokens, and no secret in what is shown.

use crate::guarded::{Guard, Guarded, READ, SUBMIT, WORKER};
use anyhow::{Context, Result};
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::{ListRequest, RegisterRequest};
use essaim_tests::client::attempts;
use essaim_tests::sql::{integers, numbers};
use std::collections::BTreeSet;

#[tokio::test]
async fn tasks_and_an_exchange_run_over_mutual_tls_and_nothing_secret_is_shown() -> Result<()> {
    let cluster = Guarded::start(Guard::MutualTls, 2, &[]).await?;
    let tables = format!("{}{}", numbers("l", 20_000_000), numbers("r", 100_000));
    let count = format!("{tables}SELECT count(*), sum(value) FROM l");
    let (rows, job) = cluster.query(SUBMIT, &count).await?;
    assert_eq!(integers(&rows, 0)?, [20_000_000]);
    assert_eq!(integers(&rows, 1)?, [20_000_000 * 19_999_999 / 2]);
    assert_eq!(job.queries[0].execution, "tasks");
    let used: BTreeSet<_> = attempts(&job)
        .iter()
        .map(|(_, attempt)| attempt.worker.clone())
        .collect();
    assert_eq!(used.len(), 2, "{job:?}");

    // Rows cross from worker to worker here: both inputs are dealt out by the join's key.
    let join = format!(
        "SET essaim.execution = 'exchange'; SET essaim.broadcast_threshold = 0;
         {tables}SELECT count(*), sum(l.value) FROM l JOIN r ON l.value = r.value"
    );
    let (rows, job) = cluster.query(SUBMIT, &join).await?;
    assert_eq!(integers(&rows, 0)?, [100_000]);
    assert_eq!(integers(&rows, 1)?, [100_000 * 99_999 / 2]);
    assert_eq!(job.queries[0].execution, "exchange");
    assert_eq!(job.queries[0].retries, 0);

    let request = RegisterRequest {
        worker_id: "w-of-the-test".to_owned(),
        address: format!("https://127.0.0.1:{}", cluster.grpc.port()),
        version: essaim_proto::VERSION.to_owned(),
        slots: 1,
        memory_bytes: 1,
        protocol: essaim_proto::PROTOCOL,
    };
    let mut workers = ClusterClient::new(cluster.link(cluster.grpc, WORKER).await?);
    let registered = workers.register(request).await?.into_inner();
    let jobs = cluster
        .jobs(READ)
        .await?
        .list(ListRequest {
            limit: 0,
            ..Default::default()
        })
        .await?;
    let mut shown = cluster.written()? + &format!("{registered:?} {jobs:?}");
    for page in ["/api/v1/cluster", "/api/v1/jobs", "/metrics", "/"] {
        shown += &cluster.get(page, READ).await?.1;
    }
    assert!(
        shown.contains("registered") && shown.contains("w-of-the-test"),
        "{shown}"
    );
    let key = std::fs::read_to_string(&cluster.client.key)?;
    let line_of_key = key.lines().nth(1).context("a key of one line")?;
    for secret in [WORKER, SUBMIT, READ, &registered.secret, line_of_key] {
        assert!(!shown.contains(secret), "{secret} is shown in {shown}");
    }
    Ok(())
}
