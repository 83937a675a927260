//! A streaming job under a steady load, and what grows meanwhile: `soak [MINUTES]`, ten unless told.

use anyhow::{Context, Result, ensure};
use essaim_bench::epochs::{epochs, percentile, until_read};
use essaim_bench::load::Load;
use essaim_bench::messages::EVENT_COLUMNS;
use essaim_bench::process::{cpu_seconds_of, files, status_mib};
use essaim_bench::report::Report;
use essaim_bench::topic::PARTITIONS;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RATE: u64 = 50_000;
const MINUTES: u64 = 10;
const SAMPLE: Duration = Duration::from_secs(10);
/// How long the last messages may take.
const LATE: Duration = Duration::from_secs(120);
/// Memory may grow from the second quarter of the time to the last by so much: caches fill, and allocators round.
const GROWTH_MARK: f64 = 1.1;

/// What is looked at every ten seconds.
struct Sample {
    seconds: u64,
    /// Resident memory of the master and the workers, MiB.
    memory: Vec<f64>,
    processors: f64,
    state_rows: u64,
    state_bytes: u64,
    /// Messages handed to Kafka and not committed to PostgreSQL.
    behind: u64,
    /// The median of the epochs since the sample before, ms.
    epoch_ms: f64,
    checkpoint_files: u64,
    checkpoint_bytes: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let minutes = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("minutes: {text:?}"))?,
        None => MINUTES,
    };
    let topic = Topic::create(PARTITIONS).await?;
    let database = Database::create().await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE events ({EVENT_COLUMNS}) STORED AS KAFKA LOCATION '{}'
           OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds');
         {}
         SET essaim.trigger = '500 milliseconds';
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
    let job = client.submit(&sql, &unique("soak")).await?;
    let all = RATE * minutes * 60;
    let load = Load::start(&topic.name, RATE, all)?;
    println!(
        "| s | master, MiB | workers, MiB | processors | groups | state, KiB | behind | epoch, ms | checkpoint |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut samples: Vec<Sample> = Vec::new();
    let mut every = tokio::time::interval(SAMPLE);
    every.tick().await;
    let (mut cpu, mut epoch) = (cpu_seconds_of(cluster.pids())?, None);
    while load.sent() < all {
        every.tick().await;
        let found = sample(&cluster, &client, &job, &load, (&mut cpu, &mut epoch)).await?;
        let seconds = samples.len() as u64 * SAMPLE.as_secs() + SAMPLE.as_secs();
        let found = Sample { seconds, ..found };
        println!("{}", found.line());
        samples.push(found);
    }
    load.finish().await?;
    until_read(&client, &job, all, LATE).await?;
    let counted = database.value("SELECT sum(events) FROM windows").await?;
    ensure!(
        counted == all.to_string(),
        "the windows hold {counted} events, not {all}"
    );

    let mut report = Report::new("soak");
    report.figure("minutes", minutes, "");
    report.figure("messages", all, "");
    let quarter = samples.len() / 4;
    for (index, name) in ["master", "worker 1", "worker 2"].iter().enumerate() {
        let memory = |samples: &[Sample]| {
            let mut memory: Vec<f64> = samples.iter().map(|s| s.memory[index]).collect();
            memory.sort_by(f64::total_cmp);
            percentile(&memory, 0.5)
        };
        let early = memory(&samples[quarter..quarter * 2]);
        let late = memory(&samples[samples.len() - quarter..]);
        report.figure(&format!("{name}, second quarter, MiB"), early.round(), "");
        report.figure(&format!("{name}, last quarter, MiB"), late.round(), "");
        report.below(&format!("{name}, growth"), late / early, GROWTH_MARK, "");
    }
    let most = samples.iter().map(|sample| sample.behind).max();
    report.figure("most messages behind", most.unwrap_or(0), "");
    report.print();
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

async fn sample(
    cluster: &Cluster,
    client: &Client,
    job: &str,
    load: &Load,
    (cpu, epoch): (&mut f64, &mut Option<u64>),
) -> Result<Sample> {
    let memory = cluster.pids().into_iter();
    let memory = memory
        .map(|pid| status_mib(pid, "VmRSS"))
        .collect::<Result<Vec<f64>>>()?;
    let before = std::mem::replace(cpu, cpu_seconds_of(cluster.pids())?);
    let found = client.get(job).await?;
    let recent = epochs(client, job, *epoch).await?;
    let last = recent.last().context("no epoch in ten seconds")?;
    *epoch = Some(last.epoch);
    let query = last.queries.first().context("no query")?;
    let mut took: Vec<f64> = recent.iter().map(|epoch| epoch.duration_ms).collect();
    took.sort_by(f64::total_cmp);
    let read = found.totals.map_or(0, |totals| totals.input_rows);
    let (checkpoint_files, checkpoint_bytes) = files(&cluster.dir().join("state"));
    Ok(Sample {
        seconds: 0,
        memory,
        processors: (*cpu - before) / SAMPLE.as_secs_f64(),
        state_rows: query.state_rows,
        state_bytes: query.state_bytes,
        behind: load.sent().saturating_sub(read),
        epoch_ms: percentile(&took, 0.5),
        checkpoint_files,
        checkpoint_bytes,
    })
}

impl Sample {
    fn line(&self) -> String {
        let memory: Vec<String> = self.memory.iter().map(|mib| format!("{mib:.0}")).collect();
        let (master, workers) = memory.split_at(1);
        format!(
            "| {} | {} | {} | {:.2} | {} | {} | {} | {:.0} | {} files, {} KiB |",
            self.seconds,
            master.join(""),
            workers.join(", "),
            self.processors,
            self.state_rows,
            self.state_bytes >> 10,
            self.behind,
            self.epoch_ms,
            self.checkpoint_files,
            self.checkpoint_bytes >> 10
        )
    }
}
