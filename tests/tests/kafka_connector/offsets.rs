//! Which offsets a scan reads, and how they are cut into splits.

use crate::support::*;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use essaim_common::connector::Connector;
use essaim_common::sources::kafka::Kafka;
use futures::TryStreamExt;
use rdkafka::admin::AdminOptions;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

async fn numbered(partitions: i32, each: i64) -> String {
    let topic = topic(partitions, &[]).await;
    let records: Vec<Record> = (0..partitions)
        .flat_map(|p| (0..each).map(move |n| Record::json(&format!("{{\"n\":{n}}}")).at(p)))
        .collect();
    produce(&topic, &records);
    topic
}

async fn sums(options: &str, topic: &str) -> Vec<serde_json::Value> {
    let ctx = session();
    declare(&ctx, "n BIGINT", topic, options).await.unwrap();
    rows(
        &ctx,
        "SELECT _partition AS p, min(n) AS low, max(n) AS high, count(*) AS c FROM t GROUP BY _partition ORDER BY p",
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_read_from_its_first_to_its_last_offset() {
    let topic = numbered(2, 100).await;
    assert_eq!(
        serde_json::json!(sums("", &topic).await),
        serde_json::json!([{"p":0,"low":0,"high":99,"c":100},{"p":1,"low":0,"high":99,"c":100}])
    );
    let nothing = sums("starting_offsets 'latest'", &topic).await;
    assert!(nothing.is_empty(), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_may_be_given_for_each_partition() {
    let topic = numbered(3, 50).await;
    let options = format!(
        "starting_offsets '{{\"{topic}\":{{\"0\":20,\"1\":-2,\"2\":-1}}}}', ending_offsets '{{\"{topic}\":{{\"0\":30,\"1\":-1}}}}'"
    );
    assert_eq!(
        serde_json::json!(sums(&options, &topic).await),
        serde_json::json!([{"p":0,"low":20,"high":29,"c":10},{"p":1,"low":0,"high":49,"c":50}])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_may_be_given_by_time() {
    let topic = topic(1, &[]).await;
    let records: Vec<Record> = (0..100)
        .map(|n| {
            let mut record = Record::json(&format!("{{\"n\":{n}}}"));
            record.timestamp = Some(1_769_860_800_000 + n * 1000);
            record
        })
        .collect();
    produce(&topic, &records);
    let options = "starting_timestamp '2026-01-31T12:00:10Z', ending_timestamp '1769860820000'";
    assert_eq!(
        serde_json::json!(sums(options, &topic).await),
        serde_json::json!([{"p":0,"low":10,"high":19,"c":10}])
    );
    let later = sums("starting_timestamp '2100-01-01T00:00:00Z'", &topic).await;
    assert!(later.is_empty(), "{later:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_one_table() {
    let (a, b) = (numbered(2, 10).await, numbered(1, 5).await);
    let ctx = session();
    declare(&ctx, "n BIGINT", &format!("{a},{b}"), "")
        .await
        .unwrap();
    let found = rows(
        &ctx,
        "SELECT _topic AS t, count(*) AS c FROM t GROUP BY _topic ORDER BY c",
    )
    .await
    .unwrap();
    assert_eq!(
        serde_json::json!(found),
        serde_json::json!([{"t":b,"c":5},{"t":a,"c":20}])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_splits_of_one_partition_add_up() {
    let topic = numbered(1, 50_000).await;
    let planned = plan(&topic, &[], 4).await.unwrap();
    assert_eq!(planned.splits.len(), 4);
    assert_eq!(
        planned.splits.iter().map(|s| s.rows.unwrap()).sum::<u64>(),
        50_000
    );
    assert_eq!(planned.splits[0].label, format!("{topic}[0] 0..12500"));
    let ctx = session().task_ctx();
    let metrics = ExecutionPlanMetricsSet::new();
    // Twice over, and backwards: a warm consumer jumps within the partition each time.
    for _ in 0..2 {
        let mut seen: Vec<i64> = Vec::new();
        for split in planned.splits.iter().rev() {
            let stream = planned.reader.read(split, 0, &ctx, &metrics).unwrap();
            let batches: Vec<_> = stream.try_collect().await.unwrap();
            for batch in batches {
                seen.extend(batch.column(0).as_primitive::<Int64Type>().values().iter());
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..50_000).collect::<Vec<i64>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_without_records_make_no_split() {
    let topic = topic(3, &[]).await;
    produce(&topic, &[Record::bytes(b"x").at(1)]);
    let planned = plan(&topic, &[], 8).await.unwrap();
    let labels: Vec<_> = planned.splits.iter().map(|s| s.label.clone()).collect();
    assert_eq!(labels, [format!("{topic}[1] 0..1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_reaches_the_reader() {
    let topic = numbered(1, 100_000).await;
    let ctx = session();
    declare(&ctx, "n BIGINT", &topic, "").await.unwrap();
    let found = rows(&ctx, "SELECT n FROM t LIMIT 3").await.unwrap();
    assert_eq!(found.len(), 3);
    let plan = rows(&ctx, "EXPLAIN SELECT n FROM t LIMIT 3").await.unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert!(
        text.contains("limit=3") && text.contains("splits=1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_named() {
    let ctx = session();
    declare(&ctx, "n BIGINT", "essaim-no-such-topic", "")
        .await
        .unwrap();
    let error = error(&ctx, "SELECT * FROM t").await;
    assert!(
        error.contains("have no topic essaim-no-such-topic"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_out_of_reach_are_named_in_time() {
    let ctx = session();
    let text = "CREATE EXTERNAL TABLE t (n BIGINT) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/x' OPTIONS (request_timeout '300 milliseconds')";
    ctx.sql(text).await.unwrap();
    let error = error(&ctx, "SELECT * FROM t").await;
    assert!(
        error.contains("127.0.0.1:1") && error.contains("topic x"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_go_away_after_planning_are_named_in_time() {
    let topic = numbered(1, 10).await;
    let planned = plan(&topic, &[("request_timeout", "500 milliseconds")], 1)
        .await
        .unwrap();
    let elsewhere = String::from_utf8(planned.reader.encode()).unwrap();
    let elsewhere = elsewhere.replace(&brokers(), "127.0.0.1:1");
    let reader = Kafka
        .reader(elsewhere.as_bytes(), planned.reader.schema())
        .unwrap();
    let ctx = session().task_ctx();
    let stream = reader.read(&planned.splits[0], 0, &ctx, &ExecutionPlanMetricsSet::new());
    let outcome: Result<Vec<_>, _> = stream.unwrap().try_collect().await;
    let error = essaim_common::Error::from(outcome.unwrap_err());
    assert!(error.is_transient());
    let text = error.to_string();
    let place = format!("{topic}[0] offset 0: nothing came from the brokers 127.0.0.1:1");
    assert!(text.contains(&place), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_records_are_missed_or_passed_over() {
    let topic = numbered(1, 100).await;
    let planned_strict = plan(&topic, &[], 1).await.unwrap();
    let planned_loose = plan(&topic, &[("fail_on_data_loss", "false")], 1)
        .await
        .unwrap();
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&topic, 0, Offset::Offset(40))
        .unwrap();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    admin().delete_records(&before, &options).await.unwrap();

    let ctx = session().task_ctx();
    let metrics = ExecutionPlanMetricsSet::new();
    let read = async |planned: essaim_common::connector::PlannedScan| {
        let stream = planned
            .reader
            .read(&planned.splits[0], 0, &ctx, &metrics)
            .unwrap();
        stream.try_collect::<Vec<_>>().await
    };
    let error = read(planned_strict).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "{topic}[0] offset 0: the record is gone, the partition has 40 to 100"
        )),
        "{error}"
    );
    let rows: usize = read(planned_loose)
        .await
        .unwrap()
        .iter()
        .map(|b| b.num_rows())
        .sum();
    assert_eq!(rows, 60);

    let options = [("starting_offsets", format!("{{\"{topic}\":{{\"0\":7}}}}"))];
    let options: Vec<_> = options.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let error = plan(&topic, &options, 1).await.unwrap_err().to_string();
    assert!(
        error.contains("the starting offset 7 does not exist"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_options_are_refused_with_a_hint() {
    let ctx = session();
    for (columns, options, hint) in [
        (
            "n BIGINT",
            "starting_offsets 'newest'",
            "'earliest', 'latest' or JSON",
        ),
        (
            "n BIGINT",
            "ending_offsets 'earliest'",
            "nothing would be read",
        ),
        (
            "n BIGINT",
            "starting_offsets '{\"x\":{\"0\":-3}}'",
            "or JSON",
        ),
        ("n BIGINT", "formt 'json'", "did you mean format?"),
        ("n BIGINT", "format 'avro'", "'json' or 'raw'"),
        ("n BIGINT", "format 'raw'", "leave the columns out"),
        ("n BIGINT", "event_time 'at'", "there is no such column"),
        ("n BIGINT", "event_time 'n'", "declare it TIMESTAMP"),
        (
            "at TIMESTAMP",
            "event_time 'at', watermark_delay 'soon'",
            "'10 seconds'",
        ),
        (
            "n BIGINT",
            "'kafka.isolation.level' 'x'",
            "use the option isolation_level",
        ),
        ("n BIGINT", "'kafka.no.such' 'x'", "no.such"),
        ("_offset BIGINT", "format 'json'", "_offset is filled in"),
        ("n INTERVAL", "format 'json'", "which JSON cannot hold"),
        (
            "n BIGINT",
            "dead_letter_topic 'x'",
            "need on_error 'dead_letter'",
        ),
    ] {
        let error = declare(&ctx, columns, "x", options)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{options}: {error}");
    }
}
