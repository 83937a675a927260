//! A streaming job that catches up on ten million messages, against bare librdkafka draining the same topic.

use anyhow::{Result, ensure};
use essaim_bench::epochs::{epochs, steps, until_read};
use essaim_bench::measure::Runs;
use essaim_bench::messages::{EVENT_COLUMNS, MESSAGE_BYTES, write_event};
use essaim_bench::process::cpu_seconds_of;
use essaim_bench::report::Report;
use essaim_bench::topic::KeptTopic;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MESSAGES: u64 = 10_000_000;
const TOPIC: KeptTopic = KeptTopic {
    name: "essaim-bench-stream-1",
    messages: MESSAGES,
    write: |number, buffer| write_event(number, at_ms(number), buffer),
};
const RUNS: usize = 5;
const LIMIT: Duration = Duration::from_secs(600);

/// The events lie 0.12 ms apart: twenty minutes.
const fn at_ms(number: u64) -> i64 {
    1_767_225_600_000 + (number * 12 / 100) as i64
}

/// What is grouped by beside the key, how many windows hold each row, and the mark.
const QUERIES: [(&str, &str, u64, f64); 2] = [
    (
        "stream, tumbling",
        "window(at, INTERVAL '1 minute')",
        1,
        0.45,
    ),
    (
        "stream, sliding",
        "window(at, INTERVAL '1 hour', INTERVAL '1 minute')",
        60,
        0.35,
    ),
];

#[tokio::main]
async fn main() -> Result<()> {
    TOPIC.prepare().await?;
    let database = Database::create().await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    for (name, window, windows, mark) in QUERIES {
        let catch_up = CatchUp {
            client: &client,
            database: &database,
            window,
            rows: MESSAGES * windows,
        };
        let mut report = Report::new(name);
        let (mut limit, mut own) = (Runs::default(), Runs::default());
        let mut cpu = Vec::new();
        let mut last = String::new();
        for run in 0..=RUNS {
            // The first of each does not count.
            let (limit, own) = match run {
                0 => (&mut Runs::default(), &mut Runs::default()),
                _ => (&mut limit, &mut own),
            };
            limit.time(TOPIC.drain()).await?;
            let before = cpu_seconds_of(cluster.pids())?;
            let (job, table) = own.time(catch_up.run()).await?;
            cpu.push(cpu_seconds_of(cluster.pids())? - before);
            last = steps(&epochs(&client, &job, None).await?)?;
            catch_up.check_and_clear(&job, &table).await?;
        }
        report.figure("messages", MESSAGES, "");
        report.figure("bytes a message", MESSAGE_BYTES as u64, "");
        report.runs(
            "two threads of bare librdkafka",
            &limit,
            MESSAGES,
            "messages",
        );
        report.runs("essaim, two workers", &own, MESSAGES, "messages");
        let cpu = cpu.last().copied().unwrap_or_default();
        report.figure(
            "processor time of the cluster, s",
            (cpu * 100.0).round() / 100.0,
            "",
        );
        report.figure("steps of the last run, ms", last, "");
        report.ratio(&own, &limit, mark);
        report.print();
    }
    cluster.stop().await
}

struct CatchUp<'a> {
    client: &'a Client,
    database: &'a Database,
    window: &'a str,
    /// The sum of all counts in the end.
    rows: u64,
}

impl CatchUp<'_> {
    /// From the submission until everything is committed; returns the job and the table.
    async fn run(&self) -> Result<(String, String)> {
        let table = unique("windows");
        let sql = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE events ({EVENT_COLUMNS}) STORED AS KAFKA LOCATION '{}'
               OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds');
             {}
             SET essaim.trigger = '0';
             SET essaim.output_mode = 'update';
             INSERT INTO windows
               SELECT window_start, \"key\", count(*) AS events, sum(value) AS total, avg(value) AS mean
               FROM events GROUP BY {}, \"key\";",
            TOPIC.location(),
            self.database
                .declare("windows", &table, ", mode 'upsert', key 'window_start,key'"),
            self.window
        );
        let job = self.client.submit(&sql, &table).await?;
        until_read(self.client, &job, MESSAGES, LIMIT).await?;
        Ok((job, table))
    }

    /// Looks whether every message was counted, in each window that holds it, and removes job and rows.
    async fn check_and_clear(&self, job: &str, table: &str) -> Result<()> {
        let counted = format!("SELECT sum(events) FROM {table}");
        let counted = self.database.value(&counted).await?;
        ensure!(
            counted == self.rows.to_string(),
            "the windows hold {counted} events, not {}",
            self.rows
        );
        self.client.cancel(job).await?;
        self.client.wait_job(job).await?;
        self.database.execute(&format!("DROP TABLE {table}")).await
    }
}
