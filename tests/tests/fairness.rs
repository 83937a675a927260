//! Jobs beside each other: each has its share, streams keep their pace, who is cancelled is gone, workers come and go.

use anyhow::{Context, Result, ensure};
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::{EpochProgress, Job, JobState, StopRequest};
use essaim_tests::client::{Client, RunningQuery, attempts, ended, tasks};
use essaim_tests::cluster::{Cluster, MEMORY};
use essaim_tests::load::StreamJob;
use essaim_tests::postgres::Database;
use essaim_tests::sql::{integers, numbers};
use essaim_tests::{LONG, SOON, wait_for};
use sqlx::Connection;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Rows that no test waits for.
const ENDLESS: u64 = 1_000_000_000_000;
/// Submitted batch jobs that run at a time.
const RUNNING_JOBS: usize = 32;
/// What "at once" is for a person, with some room for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(1500);

fn endless(settings: &str) -> String {
    format!(
        "{settings}{}SELECT sum(value % 7) FROM numbers",
        numbers("numbers", ENDLESS)
    )
}

/// A job that sums up an endless table for the console of the master.
fn endless_job() -> String {
    format!(
        "{}CREATE EXTERNAL TABLE out STORED AS CONSOLE LOCATION '';
         INSERT INTO out SELECT sum(value % 7) AS total FROM numbers",
        numbers("numbers", ENDLESS)
    )
}

async fn slots_used(cluster: &Cluster) -> Result<u64> {
    let page = cluster.json("/api/v1/cluster").await?;
    page["slots_used"].as_u64().context("no slots_used")
}

async fn until_slots_used(cluster: &Cluster, wanted: u64) -> Result<()> {
    wait_for(&format!("{wanted} slots in use"), SOON, async || {
        Ok((slots_used(cluster).await? == wanted).then_some(()))
    })
    .await
}

/// Cancels a job; it must have ended, and its slots must be free, at once.
async fn cancelled_at_once(cluster: &Cluster, client: &Client, job: &str) -> Result<Duration> {
    let began = Instant::now();
    client.cancel(job).await?;
    wait_for(&format!("the end of {job}"), AT_ONCE, async || {
        let found = client.get(job).await?;
        Ok(ended(&found).then_some(()))
    })
    .await?;
    wait_for("free slots", AT_ONCE, async || {
        Ok((slots_used(cluster).await? == 0).then_some(()))
    })
    .await?;
    let took = began.elapsed();
    assert_eq!(client.get(job).await?.state(), JobState::Cancelled);
    Ok(took)
}

/// The median and the 99th percentile of how long epochs took, ms.
fn percentiles(epochs: &[EpochProgress]) -> Result<(f64, f64)> {
    let mut took: Vec<f64> = epochs.iter().map(|epoch| epoch.duration_ms).collect();
    ensure!(!took.is_empty(), "no epochs");
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took[((took.len() - 1) as f64 * part).round() as usize];
    Ok((at(0.5), at(0.99)))
}

/// The next so many epochs of a job.
async fn next_epochs(client: &Client, job: &str, count: usize) -> Result<Vec<EpochProgress>> {
    let last = async || {
        let epochs = client.epochs(job, 1).await?;
        anyhow::Ok(epochs.last().map_or(0, |epoch| epoch.epoch))
    };
    let from = last().await?;
    wait_for(&format!("{count} epochs"), LONG, async || {
        Ok((last().await? >= from + count as u64).then_some(()))
    })
    .await?;
    let epochs = client.epochs(job, 1000).await?;
    Ok(epochs
        .into_iter()
        .filter(|epoch| epoch.epoch > from)
        .collect())
}

#[tokio::test]
async fn a_stream_keeps_its_pace_beside_a_batch_job_whose_tasks_never_end() -> Result<()> {
    const EPOCHS: usize = 60;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let stream = StreamJob::new().await?;
    let job = stream.submit(&client).await?;
    let load = stream.load();
    stream.moves().await?;
    let alone = percentiles(&next_epochs(&client, &job, EPOCHS).await?)?;

    let mut batch = client.start(&endless("")).await?;
    let running = batch.until("both slots", |job| tasks(job).0 == 2).await?;
    let rows = |job: &Job| job.queries[0].stages[0].rows_in;
    let beside = percentiles(&next_epochs(&client, &job, EPOCHS).await?)?;
    // It was there all the time, and did not stand still.
    let later = batch
        .until("more rows", |job| rows(job) > rows(&running))
        .await?;
    assert_eq!(tasks(&later).0, 2);
    println!(
        "an epoch takes p50 {:.0} ms, p99 {:.0} ms alone, and p50 {:.0} ms, p99 {:.0} ms beside the batch job",
        alone.0, alone.1, beside.0, beside.1
    );
    assert!(beside.0 < 500.0, "{beside:?}");
    assert!(beside.1 < 2000.0, "{beside:?}");
    drop(batch);
    load.stop().await?;
    stream.holds_all().await?;
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

/// Seconds during which `job` held slots within a span of time (ms).
fn slot_seconds(job: &Job, from: i64, to: i64) -> f64 {
    let attempts = attempts(job);
    let held = attempts.iter().map(|(_, attempt)| {
        let end = match attempt.ended_ms {
            0 => to,
            end => end.min(to),
        };
        (end - attempt.started_ms.max(from)).max(0)
    });
    held.sum::<i64>() as f64 / 1000.0
}

#[tokio::test]
async fn a_slot_is_shared_by_time_between_long_and_short_tasks() -> Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let client = cluster.client().await?;
    let sum = |rows: u64, splits: usize| {
        format!(
            "SET essaim.splits_per_slot = {splits}; {}SELECT sum(value % 7) FROM numbers",
            numbers("numbers", rows)
        )
    };
    // The tasks of the first take some twenty times as long.
    let mut long = client.start(&sum(400_000_000, 40)).await?;
    long.until("a task", |job| tasks(job).0 == 1).await?;
    let mut short = client.start(&sum(400_000_000, 800)).await?;
    short.until("a task", |job| tasks(job).1 >= 1).await?;
    let from = short
        .until("a start", |job| job.started_ms > 0)
        .await?
        .started_ms;
    // Some rounds of the long ones.
    let enough = tasks(&long.until("it", |_| true).await?).1 + 5;
    let of_long = long
        .until("five tasks", |job| tasks(job).1 >= enough)
        .await?;
    let of_short = client.get(&short.until("it", |_| true).await?.id).await?;
    let ends = attempts(&of_long);
    let to = ends.iter().map(|(_, a)| a.ended_ms).max().context("none")?;
    let (a, b) = (
        slot_seconds(&of_long, from, to),
        slot_seconds(&of_short, from, to),
    );
    println!(
        "{a:.1} s for tasks of the long kind, {b:.1} s for {} short ones",
        tasks(&of_short).1
    );
    assert!(a < 2.0 * b && b < 2.0 * a, "{a} s and {b} s");
    Ok(())
}

#[tokio::test]
async fn a_job_holds_no_more_slots_than_its_limit() -> Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    let mut limited = client.start(&endless("SET essaim.max_slots = 1;")).await?;
    limited.until("a task", |job| tasks(job).0 == 1).await?;
    let mut other = client.start(&endless("")).await?;
    other
        .until("the other slots", |job| tasks(job).0 == 3)
        .await?;
    until_slots_used(&cluster, 4).await?;
    drop(other);
    until_slots_used(&cluster, 1).await?;
    assert_eq!(tasks(&limited.until("it", |_| true).await?).0, 1);
    Ok(())
}

#[tokio::test]
async fn queued_jobs_know_their_places_and_queries_have_a_queue_of_their_own() -> Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let client = cluster.client().await?;
    let sql = endless_job();
    let mut jobs = Vec::new();
    for _ in 0..RUNNING_JOBS + 3 {
        jobs.push(client.submit(&sql, "").await?);
    }
    let places = async || {
        let mut places = Vec::new();
        for job in &jobs {
            places.push(client.get(job).await?.queue_position);
        }
        anyhow::Ok(places)
    };
    let mut wanted = vec![0; RUNNING_JOBS];
    wanted.extend([1, 2, 3]);
    assert_eq!(places().await?, wanted);
    let waiting = client.get(&jobs[RUNNING_JOBS + 1]).await?;
    assert_eq!(waiting.state(), JobState::Queued);

    // A queued job that is cancelled is gone at once, and the ones behind it move up.
    let began = Instant::now();
    client.cancel(&jobs[RUNNING_JOBS]).await?;
    let gone = client.wait_job(&jobs[RUNNING_JOBS]).await?;
    assert_eq!(gone.state(), JobState::Cancelled);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    wanted[RUNNING_JOBS..].copy_from_slice(&[0, 1, 2]);
    assert_eq!(places().await?, wanted);
    // So do those behind one that ran.
    client.cancel(&jobs[0]).await?;
    client
        .wait_until(&jobs[RUNNING_JOBS + 1], |job| {
            job.state() == JobState::Running
        })
        .await?;
    wanted[RUNNING_JOBS..].copy_from_slice(&[0, 0, 1]);
    assert_eq!(places().await?, wanted);

    // A query does not wait for jobs, but for other queries.
    assert_eq!(integers(&client.query("SELECT 1 + 1").await?, 0)?, [2]);
    let mut queries = Vec::new();
    for _ in 0..RUNNING_JOBS {
        queries.push(client.start(&endless("")).await?);
    }
    for query in &mut queries {
        query
            .until("its turn", |job| job.state() == JobState::Running)
            .await?;
    }
    let mut last = client.start(&endless("")).await?;
    let waits = last.until("a place", |job| job.queue_position == 1).await?;
    assert_eq!(waits.state(), JobState::Queued);
    drop(queries.pop());
    last.until("its turn", |job| job.state() == JobState::Running)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_cancelled_job_with_many_tasks_is_gone_at_once() -> Result<()> {
    let cluster = Cluster::start(2, 8).await?;
    let client = cluster.client().await?;
    let sql = endless("SET essaim.splits_per_slot = 60;");
    let mut query = client.start(&sql).await?;
    let running = query.until("all slots", |job| tasks(job).0 == 16).await?;
    assert_eq!(running.queries[0].stages[0].tasks, 960);
    let took = cancelled_at_once(&cluster, &client, &running.id).await?;
    println!("16 running tasks and 944 waiting ones are gone after {took:?}");
    idle(&cluster).await?;
    cluster.stop().await
}

#[tokio::test]
async fn an_exchange_holds_slots_and_a_cancelled_one_is_gone_at_once() -> Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "SET essaim.execution = 'exchange';
         {}SELECT value % 1000 AS key, count(*) FROM numbers GROUP BY key",
        numbers("numbers", ENDLESS)
    );
    let mut query: RunningQuery = client.start(&sql).await?;
    let running = query
        .until("its start", |job| {
            job.queries
                .first()
                .is_some_and(|query| query.execution == "exchange")
        })
        .await?;
    until_slots_used(&cluster, 2).await?;
    // The others are there for other jobs.
    let other = format!("{}SELECT sum(value) FROM numbers", numbers("numbers", 1000));
    assert_eq!(integers(&client.query(&other).await?, 0)?, [499_500]);
    busy(&cluster).await?;
    cancelled_at_once(&cluster, &client, &running.id).await?;
    idle(&cluster).await?;
    cluster.stop().await
}

/// The processor time that the workers have used, in ticks of 10 ms, from `/proc/PID/stat`.
fn worker_ticks(cluster: &Cluster) -> Result<u64> {
    let mut ticks = 0;
    for pid in cluster.pids().into_iter().skip(1) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit(')').next().context("no stat")?;
        let used = fields.split_whitespace().skip(11).take(2);
        for field in used {
            ticks += field.parse::<u64>()?;
        }
    }
    Ok(ticks)
}

/// Waits until the workers compute something.
async fn busy(cluster: &Cluster) -> Result<()> {
    let before = worker_ticks(cluster)?;
    wait_for("the workers to compute", SOON, async || {
        Ok((worker_ticks(cluster)? > before + 20).then_some(()))
    })
    .await
}

/// Waits until the workers compute nothing any more: not only the master has let go of the job.
async fn idle(cluster: &Cluster) -> Result<()> {
    let mut before = (worker_ticks(cluster)?, Instant::now());
    wait_for("the workers to rest", SOON, async || {
        let now = (worker_ticks(cluster)?, Instant::now());
        let span = now.1 - before.1;
        if span < Duration::from_millis(300) {
            return Ok(None);
        }
        let used = now.0 - before.0;
        before = now;
        Ok((used <= 3).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_job_whose_sink_hangs_ends_all_the_same() -> Result<()> {
    let cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    let database = Database::create().await?;
    database.execute("CREATE TABLE target (id bigint)").await?;
    let stream = StreamJob::new().await?;
    let job = stream.submit(&client).await?;
    let load = stream.load();
    stream.moves().await?;

    // Whoever writes to either table waits for this transaction.
    let lock = async |url: &str, table: &str| {
        let mut holder = sqlx::PgConnection::connect(url).await?;
        let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        essaim_tests::postgres::run(&mut holder, &sql).await?;
        anyhow::Ok(holder)
    };
    let hangs = async |database: &Database, table: &str| {
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass"
        );
        wait_for(&sql, SOON, async || {
            Ok((database.value(&sql).await? != "0").then_some(()))
        })
        .await
    };
    let holder = lock(&database.url, "target").await?;
    let stream_holder = lock(&stream.database.url, "copies").await?;
    let sql = [
        numbers("numbers", 1000),
        database.declare("target", "target", ", mode 'append'"),
        "INSERT INTO target SELECT value AS id FROM numbers".to_owned(),
    ]
    .concat();
    let batch = client.submit(&sql, "").await?;
    hangs(&database, "target").await?;
    hangs(&stream.database, "copies").await?;
    let began = Instant::now();
    client.cancel(&batch).await?;
    let found = client.wait_job(&batch).await?;
    assert_eq!(found.state(), JobState::Cancelled);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());

    // To stop is to end after the epoch, and this one never ends: it is broken off after a while.
    let began = Instant::now();
    let job_id = job.clone();
    JobsClient::new(client.channel())
        .stop(StopRequest { job_id })
        .await?;
    let found = client.wait_job(&job).await?;
    assert_eq!(found.state(), JobState::Stopped, "{}", found.message);
    println!(
        "a stream whose sink hangs has stopped after {:?}",
        began.elapsed()
    );
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    until_slots_used(&cluster, 0).await?;
    // Taken up again it hangs again, and is cancelled at once.
    assert_eq!(stream.submit(&client).await?, job);
    hangs(&stream.database, "copies").await?;
    cancelled_at_once(&cluster, &client, &job).await?;

    // The epoch that was broken off comes once, when the table is free.
    load.stop().await?;
    holder.close().await?;
    stream_holder.close().await?;
    assert_eq!(stream.submit(&client).await?, job);
    stream.holds_all().await?;
    assert_eq!(database.value("SELECT count(*) FROM target").await?, "0");
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

#[tokio::test]
async fn workers_join_and_drain_under_load_and_no_attempt_is_lost() -> Result<()> {
    const ROUNDS: usize = 3;
    let mut cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    let stream = StreamJob::new().await?;
    let job = stream.submit(&client).await?;
    let load = stream.load();
    stream.moves().await?;
    // Small tasks, so that some end while a worker drains and others wait; enough of them to last.
    let rows = 100_000_000_000;
    let sql = format!(
        "SET essaim.splits_per_slot = 1000; SET essaim.speculation = false;
         {}SELECT sum(value % 7) FROM numbers",
        numbers("numbers", rows)
    );
    let mut batch = client.start(&sql).await?;
    batch
        .until("a task to be done", |job| tasks(job).1 > 0)
        .await?;
    for round in 0..ROUNDS {
        let joined = cluster.add_worker(2, MEMORY).await?;
        let id = cluster.workers()[joined].id.clone();
        batch
            .until("a task on the new worker", |job| {
                let attempts = attempts(job);
                attempts
                    .iter()
                    .any(|(_, a)| a.worker == id && a.outcome == "succeeded")
            })
            .await?;
        cluster.stop_worker(round)?;
        let status = cluster.worker_ended(round, SOON).await?;
        ensure!(status.success(), "{status}");
        let gone = &cluster.workers()[round].id;
        assert!(!cluster.registered().await?.contains(gone));
        stream.moves().await?;
    }
    let seen = batch.until("it", |_| true).await?;
    let attempts = attempts(&seen);
    let workers: BTreeSet<_> = attempts.iter().map(|(_, a)| &a.worker).collect();
    assert_eq!(workers.len(), 2 + ROUNDS);
    for (task, attempt) in attempts {
        assert_eq!(attempt.attempt, 1, "{task:?} {attempt:?}");
        let fine = ["succeeded", "running"].contains(&attempt.outcome.as_str());
        assert!(fine, "{task:?} {attempt:?}");
    }
    drop(batch);
    load.stop().await?;
    stream.holds_all().await?;
    let epochs = client.epochs(&job, 1000).await?;
    assert!(epochs.iter().all(|epoch| epoch.retries == 0));
    let log = std::fs::read_to_string(cluster.dir().join("master-1.log"))?;
    let left: Vec<_> = log.lines().filter(|line| line.contains(" left ")).collect();
    assert_eq!(left.len(), ROUNDS, "{left:?}");
    for line in left {
        assert!(line.contains("by itself"), "{line}");
    }
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}
