//! From produce to visible in PostgreSQL at a steady rate, and what a job takes that has nothing to do.
//!
//! Each key's messages go to one partition, and a partition is read in order. So the counts by partition that a query
//! of the table finds tell exactly which messages it saw, and each message's time ends with the answer to the first
//! query that saw it. It begins when the message was due, even if the producer was late.

use anyhow::{Context, Result, ensure};
use essaim_bench::epochs::{epochs, percentile, steps};
use essaim_bench::load::{Load, partition_of};
use essaim_bench::messages::EVENT_COLUMNS;
use essaim_bench::process::cpu_seconds_of;
use essaim_bench::report::Report;
use essaim_bench::topic::PARTITIONS;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::{Database, rows};
use essaim_tests::unique;
use sqlx::{Connection, PgConnection};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RATE: u64 = 20_000;
const SECONDS: u64 = 60;
/// What is sent in the first seconds does not count.
const WARM_UP: u64 = 10;
const TRIGGER_MS: u64 = 50;
/// Between two looks at the table.
const LOOK: Duration = Duration::from_millis(4);
/// How long all may take to become visible once all is sent.
const LATE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(30);
/// Before that: a few heartbeats, the last checkpoint, and PostgreSQL's statistics, which come up to ten seconds late.
const SETTLE: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> Result<()> {
    let topic = Topic::create(PARTITIONS).await?;
    let database = Database::create().await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE events ({EVENT_COLUMNS}) STORED AS KAFKA LOCATION '{}'
           OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds');
         {}
         SET essaim.trigger = '{TRIGGER_MS} milliseconds';
         SET essaim.output_mode = 'update';
         INSERT INTO windows
           SELECT window_start, \"key\", count(*) AS events, sum(value) AS total, avg(value) AS mean
           FROM events GROUP BY window(at, INTERVAL '1 minute'), \"key\";",
        topic.location(),
        database.declare(
            "windows",
            "windows",
            ", mode 'upsert', key 'window_start,key'"
        ),
    );
    let job = client.submit(&sql, &unique("latency")).await?;

    let mut report = Report::new("latency");
    report.figure("messages a second", RATE, "");
    let before = cpu_seconds_of(cluster.pids())?;
    let (seen, looks) = visible(&topic, &database).await?;
    let took = cpu_seconds_of(cluster.pids())? - before;
    report.figure("messages measured", seen.len(), "");
    report.figure("looks at the table", looks, "");
    report.below("p50", percentile(&seen, 0.5), 100.0, "ms");
    report.figure("p95, ms", percentile(&seen, 0.95).round(), "");
    report.below("p99", percentile(&seen, 0.99), 250.0, "ms");
    report.figure("highest, ms", percentile(&seen, 1.0).round(), "");
    report.figure(
        "processors taken by the cluster",
        (took / SECONDS as f64 * 100.0).round() / 100.0,
        "",
    );
    let measured = epochs(&client, &job, None).await?;
    report.figure("steps, ms", steps(&measured)?, "");

    idle(&mut report, &cluster, &client, &database, &job).await?;
    report.print();
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

/// Sends for a minute; returns how long each message took to become visible, ms, sorted, and how often was looked.
async fn visible(topic: &Topic, database: &Database) -> Result<(Vec<f64>, u64)> {
    let mut connection = PgConnection::connect(&database.url).await?;
    // The key is `k` and three digits, the partition its remainder by 8.
    let look = format!(
        "SELECT right(\"key\", 3)::int % {PARTITIONS}, sum(events)::bigint FROM windows GROUP BY 1"
    );
    let all = RATE * SECONDS;
    let mut numbers: Vec<Vec<u64>> = vec![Vec::new(); PARTITIONS as usize];
    for number in 0..all {
        numbers[partition_of(number)].push(number);
    }
    let load = Load::start(&topic.name, RATE, all)?;
    let mut seen = vec![0; PARTITIONS as usize];
    let mut took = Vec::with_capacity(all as usize);
    let (mut looks, mut unseen) = (0, all);
    let end = Instant::now() + Duration::from_secs(SECONDS) + LATE;
    while unseen > 0 {
        ensure!(
            Instant::now() < end,
            "{unseen} of {all} messages are not there"
        );
        tokio::time::sleep(LOOK).await;
        // The table is not there before the first epoch.
        let Ok(counts) = rows(&mut connection, &look).await else {
            continue;
        };
        let now = Instant::now();
        looks += 1;
        for count in counts {
            let (partition, count) = pair(&count).context("partition and count")?;
            let (numbers, seen) = (&numbers[partition], &mut seen[partition]);
            ensure!(
                *seen <= count && count <= numbers.len(),
                "partition {partition} shows {count} of {} messages, after {seen}",
                numbers.len()
            );
            for number in &numbers[*seen..count] {
                unseen -= 1;
                if *number >= WARM_UP * RATE {
                    took.push((now - load.due(*number)).as_secs_f64() * 1000.0);
                }
            }
            *seen = count;
        }
    }
    load.finish().await?;
    took.sort_by(f64::total_cmp);
    Ok((took, looks))
}

fn pair(row: &[Option<String>]) -> Option<(usize, usize)> {
    match row {
        [Some(partition), Some(count)] => Some((partition.parse().ok()?, count.parse().ok()?)),
        _ => None,
    }
}

/// What the job takes while nothing comes, against the same cluster without it.
async fn idle(
    report: &mut Report,
    cluster: &Cluster,
    client: &Client,
    database: &Database,
    job: &str,
) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let state = cluster.dir().join("state");
    let done = async || {
        anyhow::Ok(
            client
                .get(job)
                .await?
                .totals
                .map_or(0, |totals| totals.epochs),
        )
    };
    // The statistics count the questions for them too, so they are asked for outside of the time.
    let counters = format!(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{}'",
        database.name
    );
    let transactions: i64 = database.value(&counters).await?.parse()?;
    let (epoch, files) = (done().await?, newest(&state)?);
    let before = cpu_seconds_of(cluster.pids())?;
    tokio::time::sleep(IDLE).await;
    let took = cpu_seconds_of(cluster.pids())? - before;
    let (epoch_after, files_after) = (done().await?, newest(&state)?);
    let transactions_after: i64 = database.value(&counters).await?.parse()?;
    // PostgreSQL's autovacuum comes by about once a minute, and the first question is one too.
    let others = transactions_after - transactions;
    report.figure("epochs of the idle job", epoch_after - epoch, "");
    report.figure(
        "state dir written by the idle job",
        files != files_after,
        "",
    );
    report.figure("transactions in its database", others, "");
    let looks = IDLE.as_secs_f64() * 1000.0 / TRIGGER_MS as f64;
    report.below(
        "processor time by trigger",
        took * 1000.0 / looks,
        5.0,
        "ms",
    );
    Ok(())
}

/// Number of files below a folder, their bytes, and when one was last changed.
fn newest(folder: &Path) -> Result<(u64, u64, SystemTime)> {
    let mut found = (0, 0, SystemTime::UNIX_EPOCH);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        let here = match data.is_dir() {
            true => newest(&entry.path())?,
            false => (1, data.len(), data.modified()?),
        };
        found = (found.0 + here.0, found.1 + here.1, found.2.max(here.2));
    }
    Ok(found)
}
