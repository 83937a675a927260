//! Count and average by key over five million JSON messages, against bare librdkafka draining the same partitions.

use anyhow::{Context, Result, anyhow, bail, ensure};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use essaim_bench::measure::in_turn;
use essaim_bench::messages::{COLUMNS, KEYS, MESSAGE_BYTES, write_message};
use essaim_bench::process::cpu_seconds;
use essaim_bench::report::Report;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::brokers;
use essaim_tests::{SOON, wait_for};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "essaim-bench-1";
const PARTITIONS: i32 = 8;
const MESSAGES: u64 = 5_000_000;
const EACH: u64 = MESSAGES / PARTITIONS as u64;
const RUNS: usize = 5;
const MARK: f64 = 0.5;
const TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    prepare().await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "CREATE EXTERNAL TABLE messages ({COLUMNS}) STORED AS KAFKA LOCATION 'kafka://{}/{TOPIC}' \
         OPTIONS (format 'json', starting_offsets 'earliest');\n\
         SELECT key, count(*) AS n, avg(value) FROM messages GROUP BY key",
        brokers()
    );

    let mut cpu = Vec::new();
    let (limit, essaim) = in_turn(
        RUNS,
        async || drain().await,
        async || {
            let before = processor_time(&cluster)?;
            query(&client, &sql).await?;
            cpu.push(processor_time(&cluster)? - before);
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

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config
}

/// Makes the topic and sends what is missing in each of its partitions.
async fn prepare() -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config().create()?;
    let topic =
        NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for result in admin.create_topics([&topic], &options).await? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => bail!("creating topic {name}: {code}"),
        }
    }
    // A new topic's partitions have no leader for a moment.
    let ends = wait_for("the leaders of the topic's partitions", SOON, async || {
        Ok(Some(tokio::task::spawn_blocking(ends).await??))
    })
    .await?;
    tokio::task::spawn_blocking(move || fill(&ends)).await?
}

/// How many messages each partition holds.
fn ends() -> Result<Vec<u64>> {
    let consumer: BaseConsumer = config().create()?;
    (0..PARTITIONS)
        .map(|partition| {
            let (low, high) = consumer.fetch_watermarks(TOPIC, partition, TIMEOUT)?;
            ensure!(
                low == 0 && high as u64 <= EACH,
                "{TOPIC}[{partition}] holds {low}..{high}, not 0..{EACH}: delete the topic"
            );
            Ok(high as u64)
        })
        .collect()
}

fn fill(ends: &[u64]) -> Result<()> {
    let missing: Vec<_> = ends.iter().map(|end| *end..EACH).collect();
    if missing.iter().all(|range| range.is_empty()) {
        return Ok(());
    }
    eprintln!("filling topic {TOPIC}: about a minute, the first time only");
    // Idempotent: each message once and in order, so that a run that was broken off can be taken up.
    let producer: ThreadedProducer<DefaultProducerContext> = config()
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("batch.num.messages", "100000")
        .create()?;
    let mut payload = String::new();
    for index in 0..EACH {
        for partition in 0..PARTITIONS {
            if !missing[partition as usize].contains(&index) {
                continue;
            }
            write_message(index * PARTITIONS as u64 + partition as u64, &mut payload);
            let mut record = BaseRecord::<(), _>::to(TOPIC)
                .partition(partition)
                .payload(&payload);
            loop {
                match producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                        std::thread::sleep(Duration::from_millis(5));
                        record = refused;
                    }
                    Err((error, _)) => return Err(error).context("sending to Kafka"),
                }
            }
        }
    }
    producer.flush(TIMEOUT * 10)?;
    let ends = self::ends()?;
    ensure!(
        ends.iter().all(|end| *end == EACH),
        "{TOPIC} ends at {ends:?}, not at {EACH} in each partition"
    );
    Ok(())
}

/// Two consumers, four partitions each, read everything and drop it.
async fn drain() -> Result<()> {
    let group = |first: i32| tokio::task::spawn_blocking(move || drain_group(first));
    let (even, odd) = futures::try_join!(group(0), group(1))?;
    let (messages, bytes) = (even?, odd?);
    let (messages, bytes) = (messages.0 + bytes.0, messages.1 + bytes.1);
    ensure!(
        messages == MESSAGES && bytes == MESSAGES * MESSAGE_BYTES as u64,
        "librdkafka read {messages} messages of {bytes} bytes"
    );
    Ok(())
}

/// Reads every other partition from `first` on, with settings with which librdkafka is at its fastest here.
fn drain_group(first: i32) -> Result<(u64, u64)> {
    let consumer: BaseConsumer = config()
        .set("group.id", "essaim-bench")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.message.max.bytes", "2097152")
        .set("queued.max.messages.kbytes", "65536")
        .set("queued.min.messages", "100000")
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.wait.max.ms", "10")
        .create()?;
    let mut list = TopicPartitionList::new();
    let mut open = 0;
    for partition in (first..PARTITIONS).step_by(2) {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning)?;
        open += 1;
    }
    consumer.assign(&list)?;
    let (mut messages, mut bytes) = (0, 0);
    while open > 0 {
        match consumer.poll(TIMEOUT) {
            Some(Ok(message)) => {
                messages += 1;
                bytes += message.payload_len() as u64;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => return Err(error.into()),
            None => return Err(anyhow!("the broker sent nothing for {TIMEOUT:?}")),
        }
    }
    Ok((messages, bytes))
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

fn processor_time(cluster: &Cluster) -> Result<f64> {
    cluster.pids().into_iter().map(cpu_seconds).sum()
}
