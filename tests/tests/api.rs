//! The status API on a real cluster: each answer is as the OpenAPI document says, and says what is the case.

use anyhow::{Context, Result, bail, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::client::{Client, tasks};
use essaim_tests::cluster::{Cluster, MEMORY, shared};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::schema;
use essaim_tests::sql::numbers;
use essaim_tests::{SOON, http, unique, wait_for};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Rows that no test waits for.
const ENDLESS: u64 = 1_000_000_000_000;

/// The OpenAPI document.
struct Document(Value);

impl Document {
    async fn of(cluster: &Cluster) -> Result<Self> {
        let document = cluster.json("/api/v1/openapi.json").await?;
        let version = document["openapi"].as_str().unwrap_or_default();
        ensure!(version.starts_with("3.1"), "OpenAPI {version}");
        Ok(Self(document))
    }

    /// What the answer to a GET of `path` (as the document has it) with `status` must be.
    fn check(&self, path: &str, status: u16, answer: &Value) -> Result<()> {
        let status = status.to_string();
        let response = &self.0["paths"][path]["get"]["responses"][status.as_str()];
        let schema = &response["content"]["application/json"]["schema"];
        schema::check(&self.0, schema, answer, path)
    }

    /// Asks for `path` with its parameters filled in (`asked`), checks the answer and returns it.
    async fn get(&self, cluster: &Cluster, path: &str, asked: &str, status: u16) -> Result<Value> {
        let (found, body) = cluster.http_get(asked).await?;
        ensure!(found == status, "{asked}: {found}: {body}");
        let answer = serde_json::from_str(&body).with_context(|| format!("{asked}: {body}"))?;
        self.check(path, status, &answer)?;
        Ok(answer)
    }
}

/// A streaming job over a topic in which a record does not decode.
struct Stream {
    topic: Topic,
    database: Database,
    job: String,
}

impl Stream {
    /// Ten good records in partitions 0 and 1, and one bad one that is skipped.
    async fn start(client: &Client) -> Result<Self> {
        let topic = Topic::create(2).await?;
        let database = Database::create().await?;
        let stream = Self {
            job: unique("stream"),
            topic,
            database,
        };
        stream.produce(0..10).await?;
        stream
            .topic
            .produce(std::iter::once("no JSON".to_owned()))
            .await?;
        let sql = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP, kind VARCHAR)
               STORED AS KAFKA LOCATION '{}'
               OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds', on_error 'skip');
             {}
             SET essaim.trigger = '100 milliseconds';
             INSERT INTO per_minute
               SELECT window_start, kind, count(*) AS events
               FROM events WHERE id >= 0 GROUP BY window(at, INTERVAL '1 minute'), kind;",
            stream.topic.location(),
            stream.database.declare(
                "per_minute",
                "per_minute",
                ", mode 'upsert', key 'window_start,kind'"
            ),
        );
        client.submit(&sql, &stream.job).await?;
        stream.until(client, 11).await?;
        Ok(stream)
    }

    async fn produce(&self, numbers: std::ops::Range<i64>) -> Result<()> {
        let event = |n: i64| {
            let at = 1_767_225_600_000_i64 + n * 1000;
            json!({"id": n, "at": at, "kind": format!("kind {}", n % 3)}).to_string()
        };
        self.topic.produce(numbers.map(event)).await?;
        Ok(())
    }

    /// Waits until so many records have been read.
    async fn until(&self, client: &Client, records: u64) -> Result<()> {
        wait_for("the epochs", SOON, async || {
            let totals = client.get(&self.job).await?.totals.unwrap_or_default();
            Ok((totals.input_rows >= records).then_some(()))
        })
        .await
    }
}

/// A batch job that sums up so many numbers into three rows.
async fn batch(client: &Client, database: &Database, rows: u64) -> Result<String> {
    let sink = unique("sums");
    let sql = format!(
        "{}{}INSERT INTO sums SELECT value % 3 AS kind, sum(value) AS total FROM numbers GROUP BY value % 3;",
        numbers("numbers", rows),
        database.declare("sums", &sink, ""),
    );
    let job = client.run_job(&sql, &unique("batch")).await?;
    Ok(job.id)
}

#[tokio::test]
async fn every_answer_is_as_the_document_says() -> Result<()> {
    let cluster = shared().await?;
    let document = Document::of(cluster).await?;
    let client = cluster.client().await?;
    let stream = Stream::start(&client).await?;
    let batch = batch(&client, &stream.database, 3_000).await?;

    let page = document
        .get(cluster, "/api/v1/cluster", "/api/v1/cluster", 200)
        .await?;
    assert_eq!(page["slots"], 4, "{page}");
    assert!(page["jobs"]["running"].as_u64() >= Some(1), "{page}");
    let page = document
        .get(cluster, "/api/v1/workers", "/api/v1/workers", 200)
        .await?;
    let worker = page["workers"][0]["id"].as_str().context("a worker")?;
    let asked = format!("/api/v1/workers/{worker}");
    let path = "/api/v1/workers/{id}";
    let shown = document.get(cluster, path, &asked, 200).await?;
    assert_eq!(shown["id"], worker);

    for asked in [
        "/api/v1/jobs",
        "/api/v1/jobs?limit=1",
        "/api/v1/jobs?kind=streaming&state=running",
        "/api/v1/jobs?queries=false",
    ] {
        let page = document.get(cluster, "/api/v1/jobs", asked, 200).await?;
        assert!(!ids(&page).is_empty(), "{page}");
    }
    for job in [&stream.job, &batch] {
        let asked = format!("/api/v1/jobs/{job}");
        let path = "/api/v1/jobs/{id}";
        document.get(cluster, path, &asked, 200).await?;
        let asked = format!("{asked}/epochs");
        let path = "/api/v1/jobs/{id}/epochs";
        let page = document.get(cluster, path, &asked, 200).await?;
        let has_epochs = !page["epochs"].as_array().context("epochs")?.is_empty();
        assert_eq!(has_epochs, *job == stream.job, "{page}");
        let asked = format!("/api/v1/events?job={job}&limit=2");
        let page = document.get(cluster, "/api/v1/events", &asked, 200).await?;
        assert_eq!(page["events"].as_array().map(Vec::len), Some(2), "{page}");
    }
    client.cancel(&stream.job).await?;
    Ok(())
}

#[tokio::test]
async fn errors_are_documented_and_name_what_is_wrong() -> Result<()> {
    let cluster = shared().await?;
    let document = Document::of(cluster).await?;
    for (path, asked, status, named) in [
        ("/api/v1/jobs/{id}", "/api/v1/jobs/nobody", 404, "nobody"),
        (
            "/api/v1/jobs/{id}/epochs",
            "/api/v1/jobs/nobody/epochs",
            404,
            "nobody",
        ),
        (
            "/api/v1/jobs/{id}/epochs",
            "/api/v1/jobs/nobody/epochs?limit=few",
            400,
            "limit",
        ),
        (
            "/api/v1/workers/{id}",
            "/api/v1/workers/nobody",
            404,
            "nobody",
        ),
        ("/api/v1/jobs", "/api/v1/jobs?state=asleep", 400, "asleep"),
        ("/api/v1/jobs", "/api/v1/jobs?limit=-1", 400, "limit"),
        ("/api/v1/jobs", "/api/v1/jobs?queries=no", 400, "queries"),
        ("/api/v1/jobs", "/api/v1/jobs?colour=red", 400, "colour"),
        (
            "/api/v1/jobs",
            "/api/v1/jobs?page_token=odd",
            400,
            "page_token",
        ),
        ("/api/v1/events", "/api/v1/events?after=now", 400, "after"),
        ("/api/v1/events", "/api/v1/events?job=nobody", 404, "nobody"),
        (
            "/api/v1/updates",
            "/api/v1/updates?job=nobody",
            404,
            "nobody",
        ),
        ("/api/v1/updates", "/api/v1/updates?jobs=1", 400, "jobs"),
    ] {
        let answer = document.get(cluster, path, asked, status).await?;
        let message = answer["error"].as_str().unwrap_or_default();
        assert!(message.contains(named), "{asked}: {message}");
    }
    let (status, body) = cluster.http_get("/api/v1/no/such").await?;
    assert_eq!(status, 404);
    assert!(body.contains("openapi.json"), "{body}");
    let (status, body) = http::request(cluster.http(), "DELETE", "/api/v1/jobs/x").await?;
    assert_eq!(status, 405);
    assert!(body.contains("gRPC"), "{body}");
    Ok(())
}

#[tokio::test]
async fn a_plan_is_a_graph_from_scan_to_sink_with_rows_on_its_edges() -> Result<()> {
    let cluster = shared().await?;
    let client = cluster.client().await?;
    let database = Database::create().await?;
    let job = batch(&client, &database, 3_000).await?;
    let job = cluster.json(&format!("/api/v1/jobs/{job}")).await?;
    assert_eq!(job["tasks"]["total"], job["tasks"]["done"], "{job}");
    assert_eq!(job["rows_in"], 3_000);
    assert_eq!(job["rows_out"], 3);
    let plan = &job["queries"][0]["plan"];
    let nodes = plan["nodes"].as_array().context("nodes")?;
    let edges = plan["edges"].as_array().context("edges")?;
    // A tree: each node but one goes to one other.
    assert_eq!(edges.len(), nodes.len() - 1, "{plan}");
    let from: BTreeSet<_> = edges.iter().map(|edge| edge["from"].as_u64()).collect();
    assert_eq!(from.len(), edges.len(), "{plan}");
    let find = |name: &str, place: &str| {
        let mut fitting = nodes
            .iter()
            .filter(|node| node["name"] == name && node["where"].as_str() == Some(place));
        fitting
            .next()
            .with_context(|| format!("no {name} on {place} in {plan}"))
    };
    assert_eq!(find("ScanExec", "stage 0")?["rows"], 3_000);
    let partial = find("AggregateExec", "stage 0")?;
    // Three groups a task.
    let groups = partial["rows"].as_u64().context("rows")?;
    let tasks = job["tasks"]["total"].as_u64().context("tasks")?;
    assert_eq!(groups, 3 * tasks, "{plan}");
    assert_eq!(find("AggregateExec", "master")?["rows"], 3);
    // The same over gRPC.
    let same = client.get(job["id"].as_str().context("id")?).await?;
    let same = same.queries[0].plan.clone().context("plan")?;
    assert_eq!(
        (same.operators.len(), same.edges.len()),
        (nodes.len(), edges.len())
    );
    Ok(())
}

#[tokio::test]
async fn a_streaming_job_shows_rows_epochs_and_the_record_that_did_not_decode() -> Result<()> {
    let cluster = shared().await?;
    let client = cluster.client().await?;
    let stream = Stream::start(&client).await?;
    stream.produce(10..20).await?;
    stream.until(&client, 21).await?;
    let asked = format!("/api/v1/jobs/{}", stream.job);
    let job = cluster.json(&asked).await?;
    assert_eq!(job["state"], "running");
    assert_eq!(job["totals"]["input_rows"], 21, "{job}");
    assert_eq!(job["totals"]["records_skipped"], 1);
    let query = &job["queries"][0];
    assert_eq!(query["execution"], "stream");
    assert_eq!(query["sink"], "per_minute");
    assert_eq!(query["rows_out"], job["totals"]["output_rows"]);
    let nodes = query["plan"]["nodes"].as_array().context("nodes")?;
    let rows: BTreeMap<_, _> = nodes
        .iter()
        .filter_map(|node| Some((node["name"].as_str()?, node["rows"].as_u64())))
        .collect();
    assert_eq!(rows.get("ScanExec"), Some(&Some(20)), "{nodes:#?}");
    assert_eq!(
        rows.get("Sink"),
        Some(&job["totals"]["output_rows"].as_u64())
    );

    let errors = job["errors"].as_array().context("errors")?;
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let error = &errors[0];
    assert_eq!(error["table"], "events");
    assert_eq!(error["topic"], stream.topic.name.as_str());
    assert!(
        error["partition"].is_i64() && error["offset"].is_i64(),
        "{error}"
    );
    let grpc = client.get(&stream.job).await?.errors;
    assert_eq!(grpc[0].offset, error["offset"].as_i64());

    let epochs = cluster
        .json(&format!("{asked}/epochs?after_epoch=0"))
        .await?;
    let epochs = epochs["epochs"].as_array().context("epochs")?;
    assert!(epochs.iter().all(|epoch| epoch["epoch"].as_u64() > Some(0)));
    client.cancel(&stream.job).await?;
    Ok(())
}

#[tokio::test]
async fn pages_of_jobs_follow_each_other() -> Result<()> {
    let cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    for number in 0..7 {
        let (_, job) = client
            .start(&format!("SELECT {number}"))
            .await?
            .finish()
            .await?;
        assert_eq!(job.state(), JobState::Succeeded);
    }
    let all = ids(&cluster.json("/api/v1/jobs").await?);
    assert_eq!(all.len(), 7);
    let mut paged = Vec::new();
    let mut asked = "/api/v1/jobs?limit=3".to_owned();
    let mut pages = 0;
    loop {
        let page = cluster.json(&asked).await?;
        paged.extend(ids(&page));
        pages += 1;
        match page["next_page_token"].as_str() {
            Some(token) => asked = format!("/api/v1/jobs?limit=3&page_token={token}"),
            None => break,
        }
    }
    assert_eq!((paged, pages), (all, 3));
    let none = cluster.json("/api/v1/jobs?kind=streaming").await?;
    assert!(ids(&none).is_empty(), "{none}");
    let named = cluster
        .json("/api/v1/jobs?name=QUER&state=succeeded")
        .await?;
    assert_eq!(ids(&named).len(), 7);
    cluster.stop().await
}

fn ids(page: &Value) -> Vec<String> {
    let jobs = page["jobs"].as_array().into_iter().flatten();
    jobs.filter_map(|job| Some(job["id"].as_str()?.to_owned()))
        .collect()
}

#[tokio::test]
async fn a_lost_worker_is_a_problem_in_words_and_an_event() -> Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "{}SELECT sum(value % 7) FROM numbers",
        numbers("numbers", ENDLESS)
    );
    let mut query = client.start(&sql).await?;
    query.until("two tasks", |job| tasks(job).0 == 2).await?;
    let page = cluster.json("/api/v1/workers").await?;
    for worker in page["workers"].as_array().context("workers")? {
        let running = worker["tasks"].as_array().context("tasks")?;
        assert_eq!(running.len(), 1, "{worker}");
        assert_eq!(running[0]["job_name"], "query");
        assert_eq!(running[0]["attempt"], 1);
    }
    let lost = cluster.workers()[0].id.clone();
    cluster.kill_worker(0);
    let page = wait_for("the problem", SOON, async || {
        let page = cluster.json("/api/v1/cluster").await?;
        let problems = page["problems"].as_array().map_or(0, Vec::len);
        Ok((problems > 0).then_some(page))
    })
    .await?;
    let problem = &page["problems"][0];
    assert_eq!(problem["severity"], "warning");
    assert_eq!(problem["worker"], lost.as_str());
    let message = problem["message"].as_str().unwrap_or_default();
    assert!(
        message.contains(&lost) && message.contains("its task started again on another worker"),
        "{message}"
    );
    let worker = cluster.json(&format!("/api/v1/workers/{lost}")).await?;
    assert_eq!(worker["state"], "lost");
    assert_eq!(page["slots"], 1);
    let events = cluster
        .json(&format!("/api/v1/events?worker={lost}"))
        .await?;
    let kinds: Vec<_> = events["events"]
        .as_array()
        .context("events")?
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    assert!(kinds.contains(&"worker_registered"), "{events}");
    assert!(kinds.contains(&"worker_lost"), "{events}");
    wait_for("the failed attempt", SOON, async || {
        let events = cluster.json("/api/v1/events").await?;
        let told = events["events"].as_array().context("events")?;
        let failed = told.iter().find(|event| event["kind"] == "task_failed");
        Ok(failed
            .filter(|event| event["worker"] == lost.as_str())
            .map(|_| ()))
    })
    .await?;

    // Without any worker it is an error.
    cluster.kill_worker(1);
    wait_for("the error", SOON, async || {
        let page = cluster.json("/api/v1/cluster").await?;
        let problem = &page["problems"][0];
        let message = problem["message"].as_str().unwrap_or_default();
        let said = message.starts_with("no worker takes tasks, and 1 job waits");
        Ok((problem["severity"] == "error" && said).then_some(()))
    })
    .await?;
    cluster.add_worker(1, MEMORY).await?;
    Ok(())
}

#[tokio::test]
async fn an_old_master_says_that_its_state_dir_was_taken_over() -> Result<()> {
    let mut cluster = Cluster::start(0, 1).await?;
    let old_http = cluster.http();
    let _old = cluster.take_over().await?;
    wait_for("the problem", SOON, async || {
        let (_, body) = http::get(old_http, "/api/v1/cluster").await?;
        let page: Value = serde_json::from_str(&body)?;
        let problem = &page["problems"][0];
        let message = problem["message"].as_str().unwrap_or_default();
        let said = message.contains("another master has taken over the state dir");
        Ok((problem["severity"] == "error" && said).then_some(()))
    })
    .await?;
    let page = cluster.json("/api/v1/cluster").await?;
    let problems = page["problems"].to_string();
    assert!(!problems.contains("another master"), "{problems}");
    Ok(())
}

/// A connection for updates.
struct Updates(BufReader<TcpStream>);

impl Updates {
    async fn open(cluster: &Cluster, asked: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(cluster.http()).await?;
        // HTTP/1.0: the answer comes as it is, not in chunks.
        let request = format!("GET {asked} HTTP/1.0\r\nHost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut updates = Self(BufReader::new(stream));
        let head = tokio::time::timeout(SOON, updates.head()).await??;
        ensure!(head.contains("text/event-stream"), "{asked}: {head}");
        Ok(updates)
    }

    async fn head(&mut self) -> Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).await? == 0 {
                bail!("the connection was closed: {head}");
            }
        }
        Ok(head)
    }

    /// The next event: its name and what it tells.
    async fn next(&mut self) -> Result<(String, Value)> {
        let next = async {
            let mut event = String::new();
            loop {
                let mut line = String::new();
                ensure!(self.0.read_line(&mut line).await? > 0, "the stream ended");
                if let Some(named) = line.strip_prefix("event: ") {
                    named.trim_end().clone_into(&mut event);
                }
                if let Some(data) = line.strip_prefix("data: ") {
                    return Ok((event, serde_json::from_str(data)?));
                }
            }
        };
        tokio::time::timeout(SOON, next).await.context("no event")?
    }

    /// The next event with this name that is wanted.
    async fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = async {
            loop {
                let (event, data) = self.next().await?;
                if event == name && wanted(&data) {
                    return Ok(data);
                }
            }
        };
        let found = tokio::time::timeout(SOON, found).await;
        found.with_context(|| format!("waiting for {name}"))?
    }
}

#[tokio::test]
async fn updates_tell_what_has_changed_as_the_other_endpoints_do() -> Result<()> {
    let cluster = shared().await?;
    let document = Document::of(cluster).await?;
    let client = cluster.client().await?;
    let stream = Stream::start(&client).await?;
    let asked = format!("/api/v1/updates?job={}", stream.job);
    let mut updates = Updates::open(cluster, &asked).await?;
    for (name, path) in [
        ("cluster", "/api/v1/cluster"),
        ("jobs", "/api/v1/jobs"),
        ("job", "/api/v1/jobs/{id}"),
        ("epochs", "/api/v1/jobs/{id}/epochs"),
    ] {
        let data = updates.until(name, |_| true).await?;
        document.check(path, 200, &data)?;
    }
    stream.produce(10..20).await?;
    updates
        .until("job", |job| job["totals"]["input_rows"] == 21)
        .await?;
    // Only new epochs come.
    let epochs = updates.until("epochs", |_| true).await?;
    let numbers = epochs["epochs"].as_array().context("epochs")?.iter();
    assert!(
        numbers.into_iter().all(|epoch| epoch["epoch"] != 0),
        "{epochs}"
    );
    client.cancel(&stream.job).await?;
    // The job may be sent before the event of its end, or after it.
    let (mut is_cancelled, mut is_told) = (false, false);
    while !is_cancelled || !is_told {
        let (name, data) = updates.next().await?;
        is_cancelled |= name == "job" && data["state"] == "cancelled";
        is_told |= name == "event" && data["kind"] == "job_ended";
    }
    Ok(())
}

#[tokio::test]
async fn connections_for_updates_are_limited_and_end_with_the_master() -> Result<()> {
    let mut cluster = Cluster::start(0, 1).await?;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(Updates::open(&cluster, "/api/v1/updates").await?);
    }
    let (status, body) = cluster.http_get("/api/v1/updates").await?;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("64 connections"), "{body}");
    // A place is free as soon as somebody has gone.
    open.pop();
    let another = wait_for("a free place", SOON, async || {
        Ok(Updates::open(&cluster, "/api/v1/updates").await.ok())
    })
    .await?;
    open.push(another);
    cluster.stop_master().await?;
    for Updates(mut stream) in open {
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await??;
    }
    Ok(())
}
