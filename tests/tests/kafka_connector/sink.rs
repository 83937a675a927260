//! Rows into a topic: round trip, keys, transactions, refusals.

use crate::support::*;
use arrow::array::AsArray;
use essaim_common::connector::{Connector, SinkRun, TableSpec};
use essaim_common::options::Options;
use essaim_common::secret::Secret;
use essaim_common::sources::kafka::Kafka;
use futures::StreamExt;
use serde_json::json;

const COLUMNS: &str = "n BIGINT, s VARCHAR, at TIMESTAMP, tags VARCHAR[]";

#[tokio::test(flavor = "multi_thread")]
async fn rows_written_are_rows_read() {
    let topic = topic(3, &[]).await;
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "key 'n'").await.unwrap();
    let insert = "INSERT INTO t (n, s, at, tags) SELECT value, CASE WHEN value % 2 = 0 THEN concat('line', chr(10), value) END, \
         to_timestamp(value), make_array('a', NULL) FROM generate_series(0, 9999) AS g(value)";
    assert_eq!(count(&ctx, insert).await, 10_000);
    let found = rows(
        &ctx,
        "SELECT count(*) AS c, count(DISTINCT n) AS d, sum(n) AS total, count(s) AS texts, max(at) AS last, count(DISTINCT _partition) AS p, \
         count(*) FILTER (WHERE arrow_cast(_key, 'Utf8') = CAST(n AS VARCHAR)) AS keyed FROM t",
    )
    .await
    .unwrap();
    assert_eq!(
        found,
        [
            json!({"c":10000,"d":10000,"total":49_995_000,"texts":5000,"last":"1970-01-01T02:46:39","p":3,"keyed":10000})
        ]
    );
    // Nulls are left out, and a line break stays inside its message.
    declare_as(&ctx, "raw", "", &topic, "format 'raw'")
        .await
        .unwrap();
    let sql = "SELECT value FROM raw WHERE arrow_cast(key, 'Utf8') IN ('1', '2') ORDER BY key";
    let batches = batches(&ctx, sql).await.unwrap();
    let values: Vec<_> = batches
        .iter()
        .flat_map(|b| {
            b.column(0)
                .as_binary::<i32>()
                .iter()
                .flatten()
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        })
        .map(|v| String::from_utf8(v).unwrap())
        .collect();
    assert_eq!(
        values,
        [
            "{\"n\":1,\"at\":\"1970-01-01T00:00:01\",\"tags\":[\"a\",null]}",
            "{\"n\":2,\"s\":\"line\\n2\",\"at\":\"1970-01-01T00:00:02\",\"tags\":[\"a\",null]}"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_key_columns_make_an_object() {
    let topic = topic(1, &[]).await;
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "key 's, n'").await.unwrap();
    ctx.sql("INSERT INTO t (n, s) VALUES (1, 'x')")
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let found = rows(&ctx, "SELECT arrow_cast(_key, 'Utf8') AS k FROM t")
        .await
        .unwrap();
    assert_eq!(found, [json!({"k":"{\"s\":\"x\",\"n\":1}"})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_insert_leaves_nothing_to_see() {
    let topic = topic(1, &[]).await;
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "").await.unwrap();
    let insert =
        "INSERT INTO t (n) SELECT 10 / (50000 - value) FROM generate_series(0, 60000) AS g(value)";
    let message = error(&ctx, insert).await;
    assert!(message.contains("ivide"), "{message}");
    assert_eq!(count(&ctx, "SELECT count(*) FROM t").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_attempt_fences_an_earlier_one() {
    let topic = topic(1, &[]).await;
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(format!("kafka://{}/{topic}", brokers())),
        options: Options::new("t", []).unwrap(),
        primary_key: Vec::new(),
        unbounded: false,
    };
    let sink = Kafka.table(spec).await.unwrap().sink.unwrap();
    let ctx = session();
    let batch = batches(
        &ctx,
        "SELECT value AS n FROM generate_series(1, 10) AS g(value)",
    )
    .await
    .unwrap();
    let run = SinkRun {
        job: uuid::Uuid::new_v4().to_string(),
        query: 0,
        generation: 1,
        epoch: 0,
    };
    let planned = sink.plan(&batch[0].schema(), false, &run).await.unwrap();
    assert!(!planned.committer.restartable());
    let writer = Kafka.writer(&planned.writer.encode()).unwrap();
    let schema = batch[0].schema();
    let stream = |rows: futures::stream::BoxStream<'static, _>| -> datafusion::execution::SendableRecordBatchStream {
        Box::pin(datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(schema.clone(), rows))
    };
    // The first attempt sends its rows and then hangs until the second one is done.
    let (release, hang) = tokio::sync::oneshot::channel::<()>();
    let rows = futures::stream::iter([Ok(batch[0].clone())]);
    let end = futures::stream::once(async move {
        let _ = hang.await;
        None
    });
    let hanging = rows
        .map(Some)
        .chain(end)
        .filter_map(|item| async move { item })
        .boxed();
    let task = ctx.task_ctx();
    let first = tokio::spawn({
        let (writer, rows, task) = (writer.clone(), stream(hanging), task.clone());
        async move { writer.write(0, rows, &task).await }
    });
    // Its rows have reached the log, uncommitted, once the end that read_uncommitted sees has moved.
    declare(
        &ctx,
        "n BIGINT",
        &topic,
        "isolation_level 'read_uncommitted'",
    )
    .await
    .unwrap();
    let sql = "SELECT count(*) FROM t";
    tokio::time::timeout(TIMEOUT, async { while count(&ctx, sql).await < 10 {} })
        .await
        .unwrap();

    let rows = futures::stream::iter([Ok(batch[0].clone())]).boxed();
    let part = writer.write(0, stream(rows), &task).await.unwrap();
    assert_eq!(part.rows, 10);
    release.send(()).unwrap();
    let error = first.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("another attempt"), "{error}");
    declare_as(&ctx, "committed", "n BIGINT", &topic, "")
        .await
        .unwrap();
    assert_eq!(count(&ctx, "SELECT count(*) FROM committed").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_refused() {
    let topic = topic(1, &[]).await;
    let ctx = session();
    declare_as(&ctx, "gone", COLUMNS, "essaim-no-such-topic", "")
        .await
        .unwrap();
    let message = error(&ctx, "INSERT INTO gone (n) VALUES (1)").await;
    assert!(
        message.contains("have no topic essaim-no-such-topic"),
        "{message}"
    );
    declare_as(&ctx, "two", COLUMNS, "a,b", "").await.unwrap();
    let message = error(&ctx, "INSERT INTO two (n) VALUES (1)").await;
    assert!(message.contains("takes one"), "{message}");
    declare(&ctx, COLUMNS, &topic, "").await.unwrap();
    let message = error(&ctx, "INSERT OVERWRITE t (n) VALUES (1)").await;
    assert!(message.contains("cannot be overwritten"), "{message}");
    let message = error(&ctx, "INSERT INTO t (n, _offset) VALUES (1, 7)").await;
    assert!(
        message.contains("column _offset cannot be written"),
        "{message}"
    );
    let message = error(&ctx, "INSERT INTO t (n, s) SELECT 1, repeat('x', 2000000)").await;
    assert!(
        message.contains(&topic) && message.contains("max.message.bytes"),
        "{message}"
    );
    assert_eq!(count(&ctx, "SELECT count(*) FROM t").await, 0);
}
