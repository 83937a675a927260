//! Epochs of a streaming job: what the modes leave in the table, and that each epoch is there once.

use crate::harness::{Place, job, run, stream};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use essaim_common::Result;
use essaim_common::connector::Sink;
use essaim_common::stream::{OutputMode, StreamSink};
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
    assert_eq!(error.kind(), essaim_common::ErrorKind::Data, "{error}");
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
        assert_eq!(error.kind(), essaim_common::ErrorKind::Data, "{error}");
        for words in ["\"t\": ", "violates check constraint"] {
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(place.texts(ROWS).await, ["b 3"]);
        assert_eq!(commit(&sink, 2, &[]).await.unwrap(), 0);
        assert_eq!(place.texts(ROWS).await, Vec::<String>::new());
    }
    place.drop().await;
}
