//! Epochs of a streaming job: what the modes leave in the table, and that each epoch is there once.

use crate::harness::{Place, job, query, run, sql_session, stream};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use essaim_common::connector::Sink;
use essaim_common::stream::{OutputMode, StreamSink};
use essaim_common::{ErrorKind, Result};
use std::sync::Arc;

fn counts(rows: &[(&str, i64)]) -> RecordBatch {
    let words: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0)));
    let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1)));
    RecordBatch::try_from_iter([("word", words), ("n", counts)]).unwrap()
}

async fn sink(place: &Place, options: &[(&str, &str)]) -> Arc<dyn Sink> {
    place.table("t", options).await.unwrap().sink.unwrap()
}

const UPSERT: &[(&str, &str)] = &[("mode", "upsert"), ("key", "word")];

async fn open(
    place: &Place,
    options: &[(&str, &str)],
    mode: OutputMode,
    job: &str,
    generation: u64,
) -> Result<Arc<dyn StreamSink>> {
    let schema = counts(&[]).schema();
    let sink = sink(place, options).await;
    sink.stream(&schema, mode, &run(job, generation)).await
}

async fn commit(sink: &Arc<dyn StreamSink>, epoch: u64, rows: &[(&str, i64)]) -> Result<u64> {
    sink.commit(epoch, stream(vec![counts(rows)])).await
}

const ROWS: &str = "SELECT word || ' ' || n FROM t ORDER BY word, n";

#[tokio::test]
async fn append_adds_the_rows_of_each_epoch_once() {
    let mut place = Place::new().await;
    let job = job();
    let sink = open(&place, &[], OutputMode::Append, &job, 1)
        .await
        .unwrap();
    assert_eq!(place.text("SELECT to_regclass('t') IS NULL").await, "true");
    assert_eq!(sink.begin().await.unwrap(), None);
    assert_eq!(commit(&sink, 0, &[("a", 1), ("b", 2)]).await.unwrap(), 2);
    assert_eq!(commit(&sink, 0, &[("a", 1), ("b", 2)]).await.unwrap(), 0);
    assert_eq!(commit(&sink, 3, &[("a", 1)]).await.unwrap(), 1);
    assert_eq!(commit(&sink, 2, &[("x", 1)]).await.unwrap(), 0);
    assert_eq!(commit(&sink, 4, &[]).await.unwrap(), 0);
    assert_eq!(place.texts(ROWS).await, ["a 1", "a 1", "b 2"]);
    assert_eq!(sink.begin().await.unwrap(), Some(4));
    place.drop().await;
}

#[tokio::test]
async fn update_replaces_the_groups_that_changed() {
    let mut place = Place::new().await;
    let job = job();
    let sink = open(&place, UPSERT, OutputMode::Update, &job, 1)
        .await
        .unwrap();
    assert_eq!(sink.begin().await.unwrap(), None);
    assert_eq!(commit(&sink, 0, &[("a", 1), ("b", 2)]).await.unwrap(), 2);
    assert_eq!(commit(&sink, 1, &[("b", 3), ("c", 1)]).await.unwrap(), 2);
    assert_eq!(place.texts(ROWS).await, ["a 1", "b 3", "c 1"]);
    let error = commit(&sink, 2, &[("b", 4), ("b", 5)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert!(
        error.to_string().contains("(word) = (b) comes 2 times"),
        "{error}"
    );
    assert_eq!(place.texts(ROWS).await, ["a 1", "b 3", "c 1"]);
    assert_eq!(commit(&sink, 2, &[("b", 5)]).await.unwrap(), 1);
    assert_eq!(place.texts(ROWS).await, ["a 1", "b 5", "c 1"]);
    place.drop().await;
}

#[tokio::test]
async fn complete_replaces_all_rows() {
    let mut place = Place::new().await;
    place.run("CREATE TABLE t (word text PRIMARY KEY, n bigint CHECK (n > 0)); INSERT INTO t VALUES ('old', 1)").await;
    for options in [&[][..], UPSERT, &[("mode", "overwrite")]] {
        let sink = open(&place, options, OutputMode::Complete, &job(), 1)
            .await
            .unwrap();
        assert_eq!(sink.begin().await.unwrap(), None);
        assert_eq!(commit(&sink, 0, &[("a", 1), ("b", 2)]).await.unwrap(), 2);
        assert_eq!(place.texts(ROWS).await, ["a 1", "b 2"]);
        assert_eq!(commit(&sink, 1, &[("b", 3)]).await.unwrap(), 1);
        assert_eq!(place.texts(ROWS).await, ["b 3"]);
        let error = commit(&sink, 2, &[("b", -1)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        for words in ["\"t\": ", "violates check constraint"] {
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(place.texts(ROWS).await, ["b 3"]);
        assert_eq!(commit(&sink, 2, &[]).await.unwrap(), 0);
        assert_eq!(place.texts(ROWS).await, Vec::<String>::new());
    }
    place.drop().await;
}

#[tokio::test]
async fn every_type_arrives_as_it_is() {
    let mut place = Place::new().await;
    let session = sql_session();
    let rows = "SELECT arrow_cast(1, 'Int64') AS k, true AS b, 1.5::double AS f, \
                arrow_cast('12345678901234567890.123', 'Decimal128(38, 3)') AS d, 'é''\\' AS s, \
                arrow_cast('2024-02-29T12:34:56.789012Z', 'Timestamp(Microsecond, Some(\"+00:00\"))') AS z, \
                DATE '2024-02-29' AS day, make_array(1, NULL, 3) AS a, '10.0.0.1' AS i, '{\"x\": 1}' AS j \
                UNION ALL SELECT 2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
    let batches = query(&session, rows).await.unwrap();
    let shown = "SELECT concat_ws('|', k, b, f, d, s, z AT TIME ZONE 'UTC', day, a, i, j) FROM t ORDER BY k";
    // By way of the temporary table, which `inet` needs too, and straight into the target.
    for (i, upsert) in [
        ("inet", true),
        ("inet", false),
        ("text", true),
        ("text", false),
    ] {
        place
            .run(&format!(
                "DROP TABLE IF EXISTS t; CREATE TABLE t (k bigint PRIMARY KEY, b boolean, f real, d numeric(38,3), \
                 s varchar(9), z timestamptz, day date, a bigint[], i {i}, j jsonb, other text DEFAULT 'x')"
            ))
            .await;
        let options: &[_] = match upsert {
            true => &[("mode", "upsert"), ("key", "k")],
            false => &[],
        };
        let schema = batches[0].schema();
        let run = run(&job(), 1);
        let sink = sink(&place, options).await;
        let sink = sink
            .stream(&schema, OutputMode::Append, &run)
            .await
            .unwrap();
        sink.begin().await.unwrap();
        assert_eq!(sink.commit(0, stream(batches.clone())).await.unwrap(), 2);
        assert_eq!(
            place.texts(shown).await,
            [
                "1|t|1.5|12345678901234567890.123|é'\\|2024-02-29 12:34:56.789012|2024-02-29|{1,NULL,3}|10.0.0.1|{\"x\": 1}",
                "2"
            ]
        );
        assert_eq!(place.texts("SELECT other FROM t").await, ["x", "x"]);
    }
    place.drop().await;
}

#[tokio::test]
async fn a_mode_that_would_repeat_or_lose_rows_is_refused() {
    let place = Place::new().await;
    for (options, mode, words) in [
        (&[][..], OutputMode::Update, "set mode 'upsert' and key"),
        (
            &[("mode", "overwrite")],
            OutputMode::Append,
            "essaim.output_mode = 'complete'",
        ),
        (
            &[("mode", "overwrite")],
            OutputMode::Update,
            "essaim.output_mode = 'complete'",
        ),
    ] {
        let error = open(&place, options, mode, &job(), 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(sink(&place, UPSERT).await.prefers_update());
    assert!(!sink(&place, &[]).await.prefers_update());
    place.drop().await;
}
