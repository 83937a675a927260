//! Count and average by key over five million JSON messages, against bare librdkafka draining the same partitions.

use anyhow::{Result, ensure};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use essaim_bench::measure::in_turn;
use essaim_bench::messages::{COLUMNS, KEYS, MESSAGE_BYTES, write_message};
use essaim_bench::process::cpu_seconds_of;
use essaim_bench::report::Report;
use essaim_bench::topic::KeptTopic;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MESSAGES: u64 = 5_000_000;
const TOPIC: KeptTopic = KeptTopic {
    name: "essaim-bench-1",
    messages: MESSAGES,
    write: write_message,
};
const RUNS: usize = 5;
const MARK: f64 = 0.5;

#[tokio::main]
async fn main() -> Result<()> {
    TOPIC.prepare().await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "CREATE EXTERNAL TABLE messages ({COLUMNS}) STORED AS KAFKA LOCATION '{}' \
         OPTIONS (format 'json', starting_offsets 'earliest');\n\
         SELECT key, count(*) AS n, avg(value) FROM messages GROUP BY key",
        TOPIC.location()
    );

    let mut cpu = Vec::new();
    let (limit, essaim) = in_turn(
        RUNS,
        async || TOPIC.drain().await,
        async || {
            let before = cpu_seconds_of(cluster.pids())?;
            query(&client, &sql).await?;
            cpu.push(cpu_seconds_of(cluster.pids())? - before);
            Ok(())
        },
    )
    .await?;

    let mut report = Report::new("kafka");
    report.figure("messages", MESSAGES, "");
    report.figure("bytes a message", MESSAGE_BYTES as u64, "");
    report.runs(
        "two threads of bare librdkafka",
        &limit,
        MESSAGES,
        "messages",
    );
    report.runs("essaim, two workers", &essaim, MESSAGES, "messages");
    let last = cpu.last().copied().unwrap_or_default();
    report.figure(
        "processor time of the cluster, s",
        (last * 100.0).round() / 100.0,
        "",
    );
    report.ratio(&essaim, &limit, MARK);
    report.print();
    cluster.stop().await
}

/// Runs the query and looks whether every message was counted.
async fn query(client: &Client, sql: &str) -> Result<()> {
    let batches = client.query(sql).await?;
    let groups: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    let counted: i64 = batches
        .iter()
        .flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values())
        .sum();
    ensure!(
        groups as u64 == KEYS && counted as u64 == MESSAGES,
        "{groups} groups of {counted} messages, not {KEYS} of {MESSAGES}"
    );
    Ok(())
}
