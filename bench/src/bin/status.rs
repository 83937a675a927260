//! What the status API costs: the master's processor time with 50 streaming jobs while each endpoint of the status pages
//! is asked once a second, and how long a list of 10,000 finished jobs takes.

use anyhow::{Context, Result, ensure};
use essaim_bench::measure::Runs;
use essaim_bench::process::{cpu_seconds, status_mib};
use essaim_bench::report::Report;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::Topic;
use essaim_tests::sql::numbers;
use essaim_tests::{LONG, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

const FINISHED: usize = 10_000;
const PAGE: usize = 1_000;
const RUNS: usize = 10;
const LIST_MARK_MS: f64 = 100.0;
const JOBS: usize = 50;
const MESSAGES: i64 = 1_000;
const CPU_MARK: f64 = 1.0;
/// How long processor time is counted for, with and without requests.
const SPAN: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<()> {
    let mut report = Report::new("status");
    finished(&mut report).await?;
    running(&mut report).await?;
    report.print();
    Ok(())
}

/// The time to list many finished jobs.
async fn finished(report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    let out = cluster.dir().join("out");
    let sql = format!(
        "{}CREATE EXTERNAL TABLE sums (kind BIGINT, total BIGINT) STORED AS CSV LOCATION '{}/';
         INSERT INTO sums SELECT value % 3, sum(value) FROM numbers GROUP BY value % 3;",
        numbers("numbers", 1_000),
        out.display()
    );
    let job = client.run_job(&sql, "sums").await?;
    cluster.stop_master().await?;
    multiply(&cluster.dir().join("state/jobs"), &job.id)?;
    cluster.restart_master().await?;
    let master = cluster.pids()[0];
    report.figure(
        "master with 10,000 finished jobs, resident",
        status_mib(master, "VmRSS")?,
        "MiB",
    );

    let page = format!("/api/v1/jobs?limit={PAGE}");
    // What is read for the first time is no measure.
    list(&cluster).await?;
    let (mut first, mut all) = (Runs::default(), Runs::default());
    for _ in 0..RUNS {
        first.time(cluster.http_get(&page)).await?;
        let listed = all.time(list(&cluster)).await?;
        ensure!(listed == FINISHED, "{listed} jobs are listed");
    }
    let ms = |runs: &Runs| runs.median() * 1e3;
    report.below("a page of 1,000 jobs", ms(&first), LIST_MARK_MS, "ms");
    report.below("10,000 jobs in ten pages", ms(&all), LIST_MARK_MS, "ms");
    cluster.stop().await
}

/// As many finished jobs as are to be listed, made of one.
fn multiply(folder: &Path, job: &str) -> Result<()> {
    let text = std::fs::read_to_string(folder.join(format!("{job}.json")))?;
    let mut record: Value = serde_json::from_str(&text)?;
    let submitted = record["submitted_ms"].as_i64().context("submitted_ms")?;
    for number in 1..FINISHED {
        // As unique and as long as the ids of real ones.
        let id = format!("{}{number:012x}", &job[..job.len() - 12]);
        record["id"] = json!(id);
        record["name"] = json!(format!("sums {number}"));
        record["submitted_ms"] = json!(submitted - number as i64);
        let path = folder.join(format!("{id}.json"));
        std::fs::write(path, serde_json::to_vec(&record)?)?;
    }
    Ok(())
}

/// How many jobs all pages hold together.
async fn list(cluster: &Cluster) -> Result<usize> {
    let mut count = 0;
    let mut path = format!("/api/v1/jobs?limit={PAGE}");
    loop {
        let (status, body) = cluster.http_get(&path).await?;
        ensure!(status == 200, "{path}: {status}");
        // To read all of it is the client's business, and takes longer than the answer.
        count += body.matches("\"submitted_at\"").count();
        let token = body.rsplit("\"next_page_token\":").next().unwrap_or("null");
        let Some(token) = token.strip_prefix('"').and_then(|t| t.split('"').next()) else {
            return Ok(count);
        };
        path = format!("/api/v1/jobs?limit={PAGE}&page_token={token}");
    }
}

/// The master's processor time with many jobs, with and without somebody who looks at them.
async fn running(report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(2, 4).await?;
    let client = cluster.client().await?;
    let topic = Topic::create(4).await?;
    let mut jobs = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        jobs.push(submit(&client, &cluster, &topic, number).await?);
    }
    produce(&topic, 0).await?;
    for job in &jobs {
        wait_for("the first epoch", LONG, async || {
            let totals = client.get(job).await?.totals.unwrap_or_default();
            Ok((totals.epochs > 0).then_some(()))
        })
        .await?;
    }
    let master = cluster.pids()[0];
    let idle = share(&cluster, master, &topic, &[]).await?;
    let job = &jobs[0];
    let paths = [
        "/api/v1/cluster".to_owned(),
        "/api/v1/workers".to_owned(),
        "/api/v1/jobs".to_owned(),
        format!("/api/v1/jobs/{job}"),
        format!("/api/v1/jobs/{job}/epochs?limit=100"),
        "/api/v1/events".to_owned(),
    ];
    let asked = share(&cluster, master, &topic, &paths).await?;
    let followed = {
        let updates = follow(&cluster, job).await?;
        let share = share(&cluster, master, &topic, &[]).await?;
        ensure!(!updates.is_finished(), "the updates ended");
        share
    };
    report.figure("master with 50 streaming jobs, of a core", idle, "%");
    report.below(
        "six endpoints once a second each, of a core",
        asked - idle,
        CPU_MARK,
        "%",
    );
    report.below(
        "one connection for updates, of a core",
        followed - idle,
        CPU_MARK,
        "%",
    );
    for job in &jobs {
        client.cancel(job).await?;
    }
    cluster.stop().await
}

async fn submit(
    client: &Client,
    cluster: &Cluster,
    topic: &Topic,
    number: usize,
) -> Result<String> {
    let out = cluster.dir().join(format!("out-{number}"));
    let sql = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP, kind VARCHAR)
           STORED AS KAFKA LOCATION '{}'
           OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds');
         CREATE EXTERNAL TABLE closed (window_start TIMESTAMP, kind VARCHAR, events BIGINT)
           STORED AS CSV LOCATION '{}/';
         SET essaim.trigger = '1 second';
         INSERT INTO closed
           SELECT window_start, kind, count(*) AS events
           FROM events GROUP BY window(at, INTERVAL '1 minute'), kind;",
        topic.location(),
        out.display()
    );
    client.submit(&sql, &format!("job {number}")).await
}

async fn produce(topic: &Topic, from: i64) -> Result<()> {
    let event = |n: i64| {
        let at = 1_767_225_600_000_i64 + n * 10;
        json!({"id": n, "at": at, "kind": format!("kind {}", n % 5)}).to_string()
    };
    topic.produce((from..from + MESSAGES).map(event)).await?;
    Ok(())
}

/// Processor time of the master in % of a core, while messages come and these paths are asked once a second each.
async fn share(cluster: &Cluster, master: u32, topic: &Topic, paths: &[String]) -> Result<f64> {
    let before = cpu_seconds(master)?;
    let mut ticks = tokio::time::interval(SECOND);
    for second in 0..SPAN.as_secs() {
        ticks.tick().await;
        produce(topic, MESSAGES + second as i64).await?;
        for path in paths {
            let (status, body) = cluster.http_get(path).await?;
            ensure!(status == 200, "{path}: {status}: {body}");
        }
    }
    ticks.tick().await;
    Ok(100.0 * (cpu_seconds(master)? - before) / SPAN.as_secs_f64())
}

/// Somebody who reads updates until the handle is dropped.
async fn follow(cluster: &Cluster, job: &str) -> Result<AbortOnDropHandle<Result<()>>> {
    let mut stream = TcpStream::connect(cluster.http()).await?;
    let request = format!("GET /api/v1/updates?job={job} HTTP/1.1\r\nHost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let read = async move {
        let mut buffer = vec![0; 1 << 16];
        while stream.read(&mut buffer).await? > 0 {}
        Ok(())
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(read)))
}
