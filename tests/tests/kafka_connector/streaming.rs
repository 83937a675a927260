//! Topics as streams: what the brokers offer behind a position, and the reading of exactly that.

use crate::support::*;
use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use essaim_common::connector::{Connector, TableSpec};
use essaim_common::options::Options;
use essaim_common::scope::Warm;
use essaim_common::secret::Secret;
use essaim_common::sources::kafka::Kafka;
use essaim_common::stream::{EpochParams, Offsets, StreamSource};
use essaim_common::{Error, ErrorKind, Result, session};
use futures::TryStreamExt;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Instant;

/// A stream of `n BIGINT, at TIMESTAMP` over a topic.
async fn stream(topic: &str, options: &[(&str, &str)]) -> Result<Arc<dyn StreamSource>> {
    let options: Vec<(String, String)> = options
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let schema = Schema::new(vec![
        Field::new("n", DataType::Int64, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ]);
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: Some(Arc::new(schema)),
        location: Secret::new(format!("kafka://{}/{topic}", brokers())),
        options: Options::new("t", options.iter().map(|(k, v)| (k, v)))?,
        primary_key: Vec::new(),
        unbounded: true,
    };
    Ok(Kafka.table(spec).await?.source.unwrap().stream().unwrap())
}

fn numbers(from: i64, to: i64) -> Vec<Record> {
    (from..to)
        .map(|n| Record::json(&format!("{{\"n\":{n},\"at\":{n}}}")))
        .collect()
}

fn offsets(topic: &str, at: &[(i32, i64)]) -> Offsets {
    let named = at.iter().map(|(id, at)| (format!("{topic}[{id}]"), *at));
    Offsets(named.collect())
}

/// A worker: what it keeps warm, and what its tasks count.
struct Worker {
    warm: Arc<Warm>,
    metrics: ExecutionPlanMetricsSet,
}

impl Worker {
    fn new() -> Self {
        Self {
            warm: Arc::default(),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// Partition, offset and `n` of each record between two positions, sorted.
    async fn read(
        &self,
        stream: &Arc<dyn StreamSource>,
        from: &Offsets,
        to: &Offsets,
    ) -> Result<Vec<(i64, i64, i64)>> {
        self.read_epoch(stream, from, to, EpochParams::default())
            .await
    }

    async fn read_epoch(
        &self,
        stream: &Arc<dyn StreamSource>,
        from: &Offsets,
        to: &Offsets,
        params: EpochParams,
    ) -> Result<Vec<(i64, i64, i64)>> {
        // `at` comes along as in the engine's own scans: late rows are told by it.
        let reader = stream.reader(&[0, 4, 5, 1])?;
        let config = session::config(1)
            .with_extension(Arc::clone(&self.warm))
            .with_extension(Arc::new(params));
        let ctx = Arc::new(TaskContext::default().with_session_config(config));
        let mut found = Vec::new();
        for split in stream.splits(from, to, 4)? {
            let batches = reader.read(&split, 0, &ctx, &self.metrics)?;
            let batches: Vec<_> = batches.try_collect().await.map_err(Error::from)?;
            for batch in batches {
                let partitions = batch
                    .column(1)
                    .as_primitive::<arrow::datatypes::Int32Type>();
                let offsets = batch.column(2).as_primitive::<Int64Type>();
                let numbers = batch.column(0).as_primitive::<Int64Type>();
                found.extend((0..batch.num_rows()).map(|row| {
                    (
                        i64::from(partitions.value(row)),
                        offsets.value(row),
                        numbers.value(row),
                    )
                }));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn counted(&self, name: &str) -> usize {
        let metrics = self.metrics.clone_inner();
        metrics
            .sum_by_name(name)
            .map_or(0, |value| value.as_usize())
    }
}

/// Partition 0's records whose `n` is their offset.
fn plain(from: i64, to: i64) -> Vec<(i64, i64, i64)> {
    (from..to).map(|n| (0, n, n)).collect()
}

async fn delete_before(topic: &str, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset))
        .unwrap();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    admin().delete_records(&list, &options).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_starts_where_the_options_say() {
    let topic = topic(2, &[]).await;
    produce(&topic, &numbers(0, 10));
    let start = async |options: &[(&str, &str)]| {
        let stream = stream(&topic, options).await.unwrap();
        stream.start().await.unwrap()
    };
    assert_eq!(start(&[]).await, offsets(&topic, &[(0, 0), (1, 0)]));
    let latest = [("starting_offsets", "latest")];
    assert_eq!(start(&latest).await, offsets(&topic, &[(0, 10), (1, 0)]));
    let json = format!("{{\"{topic}\":{{\"0\":4}}}}");
    let named = [("starting_offsets", json.as_str())];
    assert_eq!(start(&named).await, offsets(&topic, &[(0, 4), (1, 0)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_is_read_from_its_first_offset() {
    let topic = topic(1, &[]).await;
    produce(&topic, &numbers(0, 10));
    let stream = stream(&topic, &[("starting_offsets", "latest")])
        .await
        .unwrap();
    let start = stream.start().await.unwrap();
    assert_eq!(start, offsets(&topic, &[(0, 10)]));
    let found = stream.available(&start).await.unwrap();
    assert_eq!((&found.start, &found.latest), (&start, &start));

    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    admin()
        .create_partitions(&[NewPartitions::new(&topic, 2)], &options)
        .await
        .unwrap();
    let new: Vec<Record> = numbers(0, 5).into_iter().map(|r| r.at(1)).collect();
    produce(&topic, &new);
    let deadline = Instant::now() + TIMEOUT;
    let found = loop {
        let found = stream.available(&start).await.unwrap();
        if found.start.0.len() == 2 {
            break found;
        }
        assert!(Instant::now() < deadline, "the partition is not seen");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!(found.start, offsets(&topic, &[(0, 10), (1, 0)]));
    assert_eq!(found.latest, offsets(&topic, &[(0, 10), (1, 5)]));
    let rows = Worker::new()
        .read(&stream, &found.start, &found.latest)
        .await
        .unwrap();
    assert_eq!(rows, (0..5).map(|n| (1, n, n)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_offsets_fail_or_are_passed_over_and_counted() {
    let topic = topic(1, &[]).await;
    produce(&topic, &numbers(0, 20));
    let strict = stream(&topic, &[]).await.unwrap();
    let lax = stream(&topic, &[("fail_on_data_loss", "false")])
        .await
        .unwrap();
    let from = strict.start().await.unwrap();
    delete_before(&topic, 12).await;
    let error = strict.available(&from).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let text = error.to_string();
    for part in [&format!("{topic}[0] offset 0"), "12 to 20", "retention"] {
        assert!(text.contains(part), "{text}");
    }
    let found = lax.available(&from).await.unwrap();
    assert_eq!(found.start, offsets(&topic, &[(0, 12)]));
    assert_eq!(found.latest, offsets(&topic, &[(0, 20)]));
    assert_eq!(found.lost, 12);
    // What was deleted after the look is noticed by the task.
    let to = found.latest;
    let worker = Worker::new();
    let error = worker.read(&strict, &from, &to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert_eq!(worker.read(&lax, &from, &to).await.unwrap(), plain(12, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_behind_the_end_is_data_loss() {
    let topic = topic(1, &[]).await;
    produce(&topic, &numbers(0, 5));
    // As if the topic had been deleted and made anew.
    let from = offsets(&topic, &[(0, 50)]);
    let strict = stream(&topic, &[]).await.unwrap();
    let error = strict.available(&from).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("made anew"), "{error}");
    let lax = stream(&topic, &[("fail_on_data_loss", "false")])
        .await
        .unwrap();
    let found = lax.available(&from).await.unwrap();
    assert_eq!(found.start, offsets(&topic, &[(0, 0)]));
    assert_eq!(found.latest, offsets(&topic, &[(0, 5)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_is_named() {
    let missing = stream("essaim-test-none", &[]).await.unwrap();
    let error = missing.start().await.unwrap_err();
    assert!(error.to_string().contains("essaim-test-none"), "{error}");
    let topic = topic(1, &[]).await;
    let other = stream(&topic, &[]).await.unwrap();
    let from = offsets("essaim-test-none", &[(0, 0)]);
    let error = other.available(&from).await.unwrap_err();
    assert!(error.to_string().contains("essaim-test-none[0]"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_advance_over_aborted_transactions() {
    let topic = topic(1, &[]).await;
    let producer = transactional();
    let stream = stream(&topic, &[]).await.unwrap();
    let worker = Worker::new();
    let mut at = stream.start().await.unwrap();
    let mut found = Vec::new();
    for (from, to, commit) in [
        (0, 5, true),
        (100, 110, false),
        (5, 8, true),
        (110, 120, false),
        (8, 9, true),
    ] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, &numbers(from, to));
        // What is open lies behind the end.
        let open = stream.available(&at).await.unwrap();
        assert_eq!(open.latest, at);
        if commit {
            producer.commit_transaction(TIMEOUT).unwrap();
        } else {
            producer.abort_transaction(TIMEOUT).unwrap();
        }
        let deadline = Instant::now() + TIMEOUT;
        let next = loop {
            let next = stream.available(&at).await.unwrap().latest;
            if next != at {
                break next;
            }
            assert!(Instant::now() < deadline, "the position stands still");
        };
        found.extend(worker.read(&stream, &at, &next).await.unwrap());
        at = next;
    }
    // Each transaction ends with a marker.
    assert_eq!(at, offsets(&topic, &[(0, 34)]));
    let numbers: Vec<i64> = found.iter().map(|(_, _, n)| *n).collect();
    assert_eq!(numbers, (0..9).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_in_any_order_lose_and_repeat_nothing() {
    let topic = topic(1, &[]).await;
    produce(&topic, &numbers(0, 10_000));
    let stream = stream(&topic, &[]).await.unwrap();
    let worker = Worker::new();
    let ranges = [
        (0, 100),
        (100, 150),
        // An epoch that is run again.
        (100, 150),
        (150, 4_000),
        (9_000, 10_000),
        (4_000, 4_001),
        (4_001, 9_500),
        (0, 10_000),
        (9_999, 10_000),
    ];
    for (from, to) in ranges {
        let (start, end) = (offsets(&topic, &[(0, from)]), offsets(&topic, &[(0, to)]));
        let found = worker.read(&stream, &start, &end).await.unwrap();
        assert_eq!(found, plain(from, to), "{from}..{to}");
    }
    // At the end: records that come after a read that ended there.
    produce(&topic, &numbers(10_000, 10_500));
    let (start, end) = (
        offsets(&topic, &[(0, 10_000)]),
        offsets(&topic, &[(0, 10_500)]),
    );
    let found = worker.read(&stream, &start, &end).await.unwrap();
    assert_eq!(found, plain(10_000, 10_500));
    assert_eq!(
        worker.counted("rows_in"),
        ranges.iter().map(|(a, b)| (b - a) as usize).sum::<usize>() + 500
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_options_are_refused() {
    let refused = async |options: &[(&str, &str)], part: &str| {
        let error = stream("any", options).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&[("event_time", "when")], "no such column").await;
    refused(&[("event_time", "n")], "declare it TIMESTAMP").await;
    refused(&[("watermark_delay", "1 second")], "needs event_time").await;
    refused(&[("idle_timeout", "soon")], "no duration").await;
    refused(&[("late_rows", "dead_letter")], "needs event_time").await;
    refused(&[("late_rows", "keep")], "'drop' or 'dead_letter'").await;
    let two = [
        ("event_time", "at"),
        ("late_rows", "dead_letter"),
        ("dead_letter_topic", "a"),
        ("dead_letter_table", "b"),
    ];
    refused(&two, "go to one place").await;
    refused(&[("dead_letter_topic", "a")], "late_rows 'dead_letter'").await;
    refused(&[("max_offsets_per_trigger", "0")], "at least 1").await;
    refused(&[("ending_offsets", "{\"any\":{\"0\":5}}")], "has no end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_worker_in_between_costs_no_record() {
    let topic = topic(1, &[]).await;
    let stream = stream(&topic, &[]).await.unwrap();
    let workers = [Worker::new(), Worker::new()];
    let mut at = stream.start().await.unwrap();
    let mut found = Vec::new();
    for epoch in 0..40 {
        produce(&topic, &numbers(epoch * 50, (epoch + 1) * 50));
        let next = stream.available(&at).await.unwrap().latest;
        let worker = &workers[usize::from(epoch % 3 == 0)];
        found.extend(worker.read(&stream, &at, &next).await.unwrap());
        at = next;
    }
    assert_eq!(found, plain(0, 2_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_read_from_its_beginning() {
    let topic = topic(1, &[]).await;
    produce(&topic, &numbers(0, 100));
    let stream = stream(&topic, &[("fail_on_data_loss", "false")])
        .await
        .unwrap();
    let worker = Worker::new();
    let start = stream.start().await.unwrap();
    let at = stream.available(&start).await.unwrap().latest;
    assert_eq!(
        worker.read(&stream, &start, &at).await.unwrap(),
        plain(0, 100)
    );
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    admin().delete_topics(&[&topic], &options).await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    // The broker may still be busy with the deletion.
    loop {
        let new =
            rdkafka::admin::NewTopic::new(&topic, 1, rdkafka::admin::TopicReplication::Fixed(1));
        let made = admin().create_topics([&new], &options).await.unwrap();
        if made.iter().all(std::result::Result::is_ok) {
            break;
        }
        assert!(Instant::now() < deadline, "the topic is not made anew");
    }
    produce(&topic, &numbers(0, 30));
    let found = loop {
        match stream.available(&at).await {
            Ok(found) if found.latest == offsets(&topic, &[(0, 30)]) => break found,
            _ => assert!(Instant::now() < deadline, "the new topic is not seen"),
        }
    };
    assert_eq!(found.start, offsets(&topic, &[(0, 0)]));
    let rows = worker
        .read(&stream, &found.start, &found.latest)
        .await
        .unwrap();
    assert_eq!(rows, plain(0, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_reach_the_dead_letter_table_once_though_read_twice() {
    let Ok(url) = std::env::var("ESSAIM_TEST_POSTGRES") else {
        panic!("ESSAIM_TEST_POSTGRES is not set: start the services with make services");
    };
    use sqlx::Connection;
    let mut postgres = sqlx::PgConnection::connect(&url).await.unwrap();
    let table = format!("letters_{}", uuid::Uuid::new_v4().simple());
    let topic = topic(1, &[]).await;
    let mut records = numbers(0, 100);
    // A poison record among the late ones, and a row without a time, which is never late.
    records[10] = Record::json("{");
    records[20] = Record::json("{\"n\":20}");
    produce(&topic, &records);
    let stream = stream(
        &topic,
        &[
            ("event_time", "at"),
            ("late_rows", "dead_letter"),
            ("on_error", "skip"),
            ("dead_letter_location", &url),
            ("dead_letter_table", &table),
        ],
    )
    .await
    .unwrap();
    let (from, to) = (offsets(&topic, &[(0, 0)]), offsets(&topic, &[(0, 100)]));
    let params = EpochParams {
        epoch: 1,
        late_before: [("t".to_owned(), 40)].into(),
        ..EpochParams::default()
    };
    let worker = Worker::new();
    let mut on_time = plain(40, 100);
    on_time.insert(0, (0, 20, 20));
    for _ in 0..2 {
        let rows = worker
            .read_epoch(&stream, &from, &to, params.clone())
            .await
            .unwrap();
        assert_eq!(rows, on_time);
    }
    assert_eq!(worker.counted("late_rows"), 2 * 38);
    assert_eq!(worker.counted("records_skipped"), 2);
    let sql = format!(
        "SELECT count(*), min(\"offset\"), max(\"offset\"), min(reason), min(convert_from(value, 'UTF8')) FROM {table}"
    );
    let found: (i64, i64, i64, String, String) = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .fetch_one(&mut postgres)
        .await
        .unwrap();
    assert_eq!((found.0, found.1, found.2), (38, 0, 39));
    assert_eq!(
        found.3,
        "late: event time 1970-01-01T00:00:00.000Z is before 1970-01-01T00:00:00.040Z"
    );
    assert_eq!(found.4, "{\"n\":0,\"at\":0}");
    // Without a bound all rows are on time.
    let rows = worker.read(&stream, &from, &to).await.unwrap();
    assert_eq!(rows.len(), 99);
    let drop = format!("DROP TABLE {table}");
    sqlx::query(sqlx::AssertSqlSafe(drop))
        .execute(&mut postgres)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_record_ends_the_epoch_and_is_named() {
    let topic = topic(1, &[]).await;
    let mut records = numbers(0, 10);
    records[7] = Record::json("{\"n\":");
    produce(&topic, &records);
    let (from, to) = (offsets(&topic, &[(0, 0)]), offsets(&topic, &[(0, 10)]));
    let strict = stream(&topic, &[]).await.unwrap();
    let worker = Worker::new();
    for _ in 0..2 {
        let error = worker.read(&strict, &from, &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let place = format!("{topic}[0] offset 7");
        assert!(error.to_string().contains(&place), "{error}");
    }
}

/// Prints the time that the reading of one partition's part of an epoch takes: `cargo test -- --ignored latency`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn latency_of_a_split() {
    const PARTITIONS: i32 = 8;
    let topic = topic(PARTITIONS, &[]).await;
    let stream = stream(&topic, &[]).await.unwrap();
    let producer: rdkafka::producer::BaseProducer = client().create().unwrap();
    // The first way is that of a batch job: the consumer is assigned for each split.
    for way in ["assigned anew", "goes on", "goes on, two workers in turn"] {
        let workers = [Worker::new(), Worker::new()];
        let reader = match way {
            "assigned anew" => {
                plan(&topic, &[("starting_offsets", "latest")], 1)
                    .await
                    .unwrap()
                    .reader
            }
            _ => stream.reader(&[0, 5]).unwrap(),
        };
        let mut at = stream.available(&stream.start().await.unwrap()).await;
        let (mut splits_ms, mut asked_ms, mut epoch_ms) = (Vec::new(), Vec::new(), Vec::new());
        for epoch in 0..60 {
            let records: Vec<Record> = (0..1_000)
                .map(|n| Record::json(&format!("{{\"n\":{n},\"at\":{n}}}")).at(n % PARTITIONS))
                .collect();
            send(&producer, &topic, &records);
            let began = Instant::now();
            let from = at.unwrap().latest;
            let next = stream.available(&from).await.unwrap();
            asked_ms.push(began.elapsed().as_secs_f64() * 1e3);
            let worker = match way {
                "goes on, two workers in turn" => &workers[epoch % 2],
                _ => &workers[0],
            };
            let config = session::config(1).with_extension(Arc::clone(&worker.warm));
            let ctx = Arc::new(TaskContext::default().with_session_config(config));
            let splits = stream.splits(&from, &next.latest, 4).unwrap();
            let reads = splits.into_iter().map(|split| {
                let (reader, ctx) = (Arc::clone(&reader), Arc::clone(&ctx));
                let metrics = worker.metrics.clone();
                tokio::spawn(async move {
                    let began = Instant::now();
                    let rows = reader.read(&split, 0, &ctx, &metrics).unwrap();
                    let rows: Vec<_> = rows.try_collect().await.unwrap();
                    let count: usize = rows.iter().map(|batch| batch.num_rows()).sum();
                    (count, began.elapsed().as_secs_f64() * 1e3)
                })
            });
            let mut count = 0;
            for read in futures::future::join_all(reads).await {
                let (rows, ms) = read.unwrap();
                count += rows;
                splits_ms.push(ms);
            }
            assert_eq!(count, 1_000);
            epoch_ms.push(began.elapsed().as_secs_f64() * 1e3);
            at = Ok(next);
        }
        let quantiles = |mut ms: Vec<f64>| {
            // The first epochs make the connections.
            ms.drain(..ms.len() / 6);
            ms.sort_by(f64::total_cmp);
            format!(
                "p50 {:.1} p99 {:.1} max {:.1}",
                ms[ms.len() / 2],
                ms[ms.len() * 99 / 100],
                ms[ms.len() - 1]
            )
        };
        println!(
            "{way}: split ms {}; available ms {}; epoch ms {}",
            quantiles(splits_ms),
            quantiles(asked_ms),
            quantiles(epoch_ms)
        );
    }
}
