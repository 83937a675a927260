//! More of everything than anybody needs: a log that nobody reads, long names, long texts, and many of them.

use crate::guarded::{Guard, Guarded, READ, SUBMIT, addresses, command, folder, refusal};
use anyhow::{Context, Result};
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{CheckRequest, Finding, GetRequest, ListRequest, SubmitRequest};
use essaim_tests::sql::numbers;
use essaim_tests::{SOON, http, wait_for};
use serde_json::Value;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::Code;

#[tokio::test]
async fn a_master_whose_log_nobody_reads_goes_on_and_counts_what_is_lost() -> Result<()> {
    let dir = folder()?;
    let mut command = command("master", &dir)?;
    command
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(dir.join("state"))
        .env("ESSAIM_LOG", "trace")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut master = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()?;
    let stdout = master.stdout.take().context("its output")?;
    let line = BufReader::new(stdout).lines().next_line().await?;
    let (grpc, status) = addresses(&line.context("a line")?)?;
    let mut jobs = JobsClient::connect(format!("http://{grpc}")).await?;
    wait_for("lines to be dropped", SOON, async || {
        for _ in 0..100 {
            jobs.list(ListRequest {
                limit: 1,
                ..ListRequest::default()
            })
            .await?;
        }
        assert_eq!(http::get(status, "/healthz").await?.0, 200);
        let (_, metrics) = http::get(status, "/metrics").await?;
        let dropped = metrics
            .lines()
            .find_map(|line| line.strip_prefix("essaim_log_lines_dropped_total "));
        let dropped: f64 = dropped.context("the metric")?.parse()?;
        Ok((dropped > 0.0).then_some(()))
    })
    .await?;
    // Now somebody reads again, and is told.
    let mut log = BufReader::new(master.stderr.take().context("its log")?).lines();
    let told = async {
        while let Some(line) = log.next_line().await? {
            if line.contains("log lines were dropped") {
                return Ok(());
            }
        }
        anyhow::bail!("the log ended")
    };
    tokio::time::timeout(SOON, told).await?
}

#[tokio::test]
async fn names_lists_and_texts_have_their_limits() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    let mut jobs = cluster.jobs(SUBMIT).await?;
    let sql = numbers("n", 1)
        + "CREATE EXTERNAL TABLE out STORED AS CONSOLE LOCATION ''; INSERT INTO out SELECT * FROM n;";
    for (name, about) in [
        ("n".repeat(129), "at most"),
        ("a\nb".to_owned(), "control characters"),
        ("a\u{1b}[2J".to_owned(), "control characters"),
    ] {
        let request = SubmitRequest {
            name,
            sql: sql.clone(),
            ..SubmitRequest::default()
        };
        let status = refusal(jobs.submit(request).await)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(about), "{status:?}");
    }
    let request = SubmitRequest {
        name: "é".repeat(128),
        sql,
        ..SubmitRequest::default()
    };
    jobs.submit(request).await?;

    // More SQL than a message holds: no list carries it.
    let long = format!("SELEC '{}'", "x".repeat(900_000));
    for _ in 0..75 {
        refusal(cluster.query(SUBMIT, &long).await.map_err(as_status))?;
    }
    let mut reader = cluster.jobs(READ).await?;
    let request = ListRequest {
        limit: u32::MAX,
        ..ListRequest::default()
    };
    let listed = reader.list(request).await?.into_inner().jobs;
    assert_eq!(listed.len(), 76);
    assert!(listed.iter().all(|job| job.sql.is_empty()));
    let job_id = listed[0].id.clone();
    let whole = reader.get(GetRequest { job_id }).await?.into_inner();
    assert_eq!(whole.sql.len(), long.len());

    let sql = "SELECT 1;".repeat(110_000);
    let answer = jobs.check(CheckRequest { sql }).await?.into_inner();
    let is_told = |finding: &Finding| finding.what.contains("statements");
    assert!(answer.findings.iter().any(is_told), "{answer:?}");
    Ok(())
}

/// How a query failed: what is no status is worse.
fn as_status(error: anyhow::Error) -> tonic::Status {
    match error.downcast::<tonic::Status>() {
        Ok(status) => status,
        Err(error) => tonic::Status::internal(format!("{error:#}")),
    }
}

#[tokio::test]
async fn wrong_requests_of_the_status_api_are_all_answered_in_json() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    for path in [
        "/api/v1/jobs/%ff",
        "/api/v1/jobs/%ff/epochs",
        "/api/v1/workers/%ff",
        "/api/v1/cluster?x=1",
        "/api/v1/workers?x=1",
        "/api/v1/jobs/none?x=1",
    ] {
        let (status, body) = cluster.get(path, READ).await?;
        let error: Value =
            serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))?;
        assert_eq!(status, 400, "{path}: {body}");
        assert!(error["error"].is_string(), "{path}: {body}");
    }
    let (status, body) = cluster.get("/api/v1/events?limit=0", READ).await?;
    let events: Value = serde_json::from_str(&body)?;
    assert_eq!(status, 200, "{body}");
    assert_eq!(events["events"].as_array().map(Vec::len), Some(1), "{body}");
    let (_, document) = cluster.get("/api/v1/openapi.json", READ).await?;
    let document: Value = serde_json::from_str(&document)?;
    for status in ["401", "403", "429"] {
        let answers = &document["paths"]["/api/v1/jobs"]["get"]["responses"];
        assert!(answers[status].is_object(), "{status}: {answers}");
    }
    Ok(())
}
