//! What goes into a collection, once, in whatever way a run ends.

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use essaim_common::ErrorKind;
use essaim_common::connector::{Begin, Connector, Part, PlannedSink, Sink, SinkRun, TableSpec};
use essaim_common::options::Options;
use essaim_common::secret::Secret;
use essaim_common::sources::mongodb::Mongodb;
use essaim_common::stream::{OutputMode, StreamSink};
use essaim_tests::cluster;
use essaim_tests::mongodb::Database;
use essaim_tests::sql::{numbers, rows, text};
use mongodb::IndexModel;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::options::IndexOptions;
use std::sync::Arc;
use tonic::Code;

#[tokio::test]
async fn nested_rows_written_are_read_back() -> Result<()> {
    let database = Database::create().await?;
    let client = cluster::shared().await?.client().await?;
    let insert = [
        database.declare("t", "", "t", ""),
        "INSERT INTO t SELECT 1::INT AS i, 2::BIGINT AS l, 1.5::DOUBLE AS f, true AS b, 'é' AS s, arrow_cast('ab', 'Binary') AS raw,
           TIMESTAMP '2026-01-02 03:04:05.678' AS at, DATE '2026-01-02' AS day, NULL::INT AS n,
           named_struct('x', 1::INT, 'y', ['a', NULL]) AS nested,
           [named_struct('z', 1.5::DOUBLE), NULL] AS list".to_owned(),
    ]
    .concat();
    assert_eq!(text(&client.query(&insert).await?)?, "1");
    let mut found = database.all("t").await?;
    let id = found[0].remove("_id").context("no _id")?;
    assert!(
        id.as_str()
            .is_some_and(|id| id.contains("_0_0000000000000000_")),
        "{id}"
    );
    let at = DateTime::parse_rfc3339_str("2026-01-02T03:04:05.678Z")?;
    let raw = Binary {
        subtype: BinarySubtype::Generic,
        bytes: b"ab".to_vec(),
    };
    assert_eq!(
        found,
        [doc! {
            "i": 1, "l": 2i64, "f": 1.5, "b": true, "s": "é", "raw": raw, "at": at,
            "day": DateTime::parse_rfc3339_str("2026-01-02T00:00:00Z")?, "n": Bson::Null,
            "nested": { "x": 1, "y": ["a", Bson::Null] }, "list": [{ "z": 1.5 }, Bson::Null],
        }]
    );
    // The sampled columns take the same row again; the `_id` is not asked for.
    let again = [
        database.declare("t", "", "t", ""),
        "INSERT INTO t SELECT i + 1, l, f, b, s, raw, at, day, n, nested, list FROM t;
         SELECT i, at, day, nested['y'][1], list[1]['z'] FROM t ORDER BY i"
            .to_owned(),
    ]
    .concat();
    let day = "2026-01-02T00:00:00";
    let line = |i: &str| {
        ["2026-01-02T03:04:05.678", day, "a", "1.5"]
            .map(str::to_owned)
            .into_iter()
            .fold(vec![Some(i.to_owned())], |mut line, value| {
                line.push(Some(value));
                line
            })
    };
    assert_eq!(rows(&client.query(&again).await?)?, [line("1"), line("2")]);
    assert_eq!(
        database.collections().await?,
        ["essaim_commits", "t"],
        "nothing staged is left"
    );
    Ok(())
}

#[tokio::test]
async fn an_upsert_replaces_by_key_and_makes_its_index() -> Result<()> {
    let database = Database::create().await?;
    let client = cluster::shared().await?.client().await?;
    let columns = "(k VARCHAR, day BIGINT, n BIGINT)";
    let table = database.declare("t", columns, "t", ", mode 'upsert', key 'k,day'");
    let insert = |values: &str| {
        format!("{table} INSERT INTO t SELECT * FROM (VALUES {values}) AS v (k, day, n)")
    };
    client.query(&insert("('a', 1, 1), ('b', 1, 2)")).await?;
    database
        .collection("t")
        .update_one(doc! { "k": "a" }, doc! { "$set": { "kept": true } })
        .await?;
    client.query(&insert("('a', 1, 10), ('a', 2, 3)")).await?;
    let mut found = database.all("t").await?;
    for document in &mut found {
        document.remove("_id");
    }
    found.sort_by_key(|document| document.to_string());
    assert_eq!(
        found,
        [
            doc! { "k": "a", "day": 1i64, "n": 10i64, "kept": true },
            doc! { "k": "a", "day": 2i64, "n": 3i64 },
            doc! { "k": "b", "day": 1i64, "n": 2i64 },
        ]
    );
    for (values, part) in [
        ("('c', 1, 1), ('c', 1, 2)", "comes more than once"),
        ("(NULL, 1, 1)", "the key column k is NULL"),
    ] {
        let error = client.query_error(&insert(values)).await?;
        assert_eq!(error.code(), Code::DataLoss, "{error}");
        assert!(error.message().contains(part), "{error}");
    }
    // Without the index nothing keeps two workers from inserting one key.
    database.insert("other", [doc! { "k": 1 }]).await?;
    let other = database.declare(
        "t",
        "(k BIGINT, n BIGINT)",
        "other",
        ", mode 'upsert', key 'k'",
    );
    let error = client
        .query_error(&format!("{other} INSERT INTO t VALUES (1, 1)"))
        .await?;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(
        error
            .message()
            .contains(r#"createIndex({"k":1}, { unique: true })"#),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_batch_that_is_refused_leaves_nothing() -> Result<()> {
    let database = Database::create().await?;
    let unique = IndexOptions::builder().unique(true).build();
    let index = IndexModel::builder()
        .keys(doc! { "n": 1 })
        .options(unique)
        .build();
    database.collection("t").create_index(index).await?;
    database
        .insert("t", [doc! { "_id": "old", "n": 4_999i64 }])
        .await?;
    let client = cluster::shared().await?.client().await?;
    let insert = [
        numbers("source", 5_000),
        database.declare("t", "(n BIGINT)", "t", ""),
        "INSERT INTO t SELECT value FROM source".to_owned(),
    ]
    .concat();
    let error = client.query_error(&insert).await?;
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert!(error.message().contains("another unique index"), "{error}");
    assert_eq!(
        database.all("t").await?,
        [doc! { "_id": "old", "n": 4_999i64 }]
    );
    assert_eq!(
        database.collections().await?,
        ["essaim_commits", "t"],
        "nothing staged is left"
    );
    let decimals = database.declare("d", "", "d", "");
    let error = client
        .query_error(&format!(
            "{decimals} INSERT INTO d SELECT 1.5::DECIMAL(10, 2) AS d"
        ))
        .await?;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(
        error
            .message()
            .contains("FerretDB 1, which has no decimals"),
        "{error}"
    );
    Ok(())
}

/// A table of the connector itself, without a cluster.
async fn sink(database: &Database, mode: &str) -> Result<Arc<dyn Sink>> {
    let options = [
        ("mode".to_owned(), mode.to_owned()),
        ("key".to_owned(), "k".to_owned()),
    ];
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(database.url.clone()),
        options: Options::new("t", options.iter().map(|(name, value)| (name, value)))?,
        primary_key: Vec::new(),
        unbounded: false,
    };
    Mongodb.table(spec).await?.sink.context("no sink")
}

fn run(generation: u64) -> SinkRun {
    SinkRun {
        job: "0192-abcd".to_owned(),
        query: 0,
        generation,
        epoch: 0,
    }
}

fn batch(keys: &[i64], value: i64) -> Result<RecordBatch> {
    let values = vec![value; keys.len()];
    let columns = [
        ("k", Arc::new(Int64Array::from(keys.to_vec())) as ArrayRef),
        ("v", Arc::new(Int64Array::from(values))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

fn stream(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let schema = batches[0].schema();
    let batches = futures::stream::iter(batches.into_iter().map(Ok));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// What breaks off in the middle of an epoch, as a worker that dies does.
fn broken(batch: RecordBatch) -> SendableRecordBatchStream {
    let schema = batch.schema();
    let error = essaim_common::Error::unavailable("a worker died").into();
    let rows = futures::stream::iter([Ok(batch), Err(error)]);
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

async fn pairs(database: &Database) -> Result<Vec<(i64, i64)>> {
    let mut pairs = Vec::new();
    for document in database.all("t").await? {
        pairs.push((document.get_i64("k")?, document.get_i64("v")?));
    }
    pairs.sort_unstable();
    Ok(pairs)
}

async fn opened(database: &Database, mode: &str, generation: u64) -> Result<Arc<dyn StreamSink>> {
    let schema = batch(&[1], 1)?.schema();
    let sink = sink(database, mode).await?;
    Ok(sink
        .stream(&schema, OutputMode::Append, &run(generation))
        .await?)
}

#[tokio::test]
async fn an_epoch_that_runs_again_is_there_once() -> Result<()> {
    let database = Database::create().await?;
    let first = opened(&database, "append", 1).await?;
    assert_eq!(first.begin().await?, None);
    // Two equal rows are two documents.
    assert_eq!(
        first.commit(0, stream(vec![batch(&[1, 2, 2], 0)?])).await?,
        3
    );
    assert_eq!(
        first.commit(0, stream(vec![batch(&[9], 0)?])).await?,
        0,
        "it is in"
    );
    // Epoch 1 breaks off behind a chunk that was sent, with rows that the next attempt does not bring.
    let many: Vec<i64> = (100..1_200).collect();
    assert!(first.commit(1, broken(batch(&many, 7)?)).await.is_err());
    assert!(database.all("t").await?.len() > 3, "a part of it is there");

    let second = opened(&database, "append", 2).await?;
    assert_eq!(second.begin().await?, Some(0));
    let again = vec![batch(&[101], 7)?, batch(&[3, 100], 7)?];
    assert_eq!(second.commit(1, stream(again)).await?, 3);
    let expected = [(1, 0), (2, 0), (2, 0), (3, 7), (100, 7), (101, 7)];
    assert_eq!(pairs(&database).await?, expected);

    // The older master wakes up: it is refused, and what it has on its way changes nothing.
    let error = first.commit(1, stream(vec![batch(&[100], 7)?])).await;
    let error = error.err().context("an older master commits")?;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(first.begin().await.is_err());
    assert_eq!(pairs(&database).await?, expected);
    assert_eq!(second.commit(4, stream(vec![batch(&[4], 4)?])).await?, 1);
    assert_eq!(second.begin().await?, Some(4));
    Ok(())
}

#[tokio::test]
async fn an_epoch_of_an_upsert_that_runs_again_changes_nothing() -> Result<()> {
    let database = Database::create().await?;
    let first = opened(&database, "upsert", 1).await?;
    first.begin().await?;
    first.commit(0, stream(vec![batch(&[1, 2], 0)?])).await?;
    let many: Vec<i64> = (1..=200).collect();
    assert!(first.commit(1, broken(batch(&many, 1)?)).await.is_err());
    let second = opened(&database, "upsert", 2).await?;
    assert_eq!(second.begin().await?, Some(0));
    second.commit(1, stream(vec![batch(&many, 1)?])).await?;
    let found = pairs(&database).await?;
    assert_eq!(found[..3], [(1, 1), (2, 1), (3, 1)]);
    // All of them are there already.
    second.commit(2, stream(vec![batch(&many, 2)?])).await?;
    let found = pairs(&database).await?;
    assert!(found.iter().all(|(_, value)| *value == 2) && found.len() == many.len());
    let error = second.commit(3, stream(vec![batch(&[5, 5], 2)?])).await;
    let error = error.err().context("a key comes twice")?;
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert!(
        error.to_string().contains(r#"the key (k) = {"k":5}"#),
        "{error}"
    );
    Ok(())
}

async fn planned(database: &Database, generation: u64) -> Result<PlannedSink> {
    let schema = batch(&[1], 1)?.schema();
    let sink = sink(database, "append").await?;
    Ok(sink.plan(&schema, false, &run(generation)).await?)
}

async fn staged(planned: &PlannedSink, keys: &[i64]) -> Result<Part> {
    let ctx = SessionContext::new().task_ctx();
    let rows = stream(vec![batch(keys, 0)?]);
    Ok(planned.writer.write(0, rows, &ctx).await?)
}

#[tokio::test]
async fn a_batch_that_was_decided_is_carried_through_by_the_next_master() -> Result<()> {
    let database = Database::create().await?;
    let keys: Vec<i64> = (0..2_500).collect();
    let first = planned(&database, 1).await?;
    assert_eq!(first.committer.begin().await?, Begin::Fresh);
    // An attempt that nobody waits for any more.
    staged(&first, &[7, 8, 9]).await?;
    let part = staged(&first, &keys).await?;
    assert!(database.collections().await?.iter().all(|name| name != "t"));

    // It dies behind its decision, with a part of the rows written.
    let known = database.all("essaim_commits").await?;
    let pending = vec![Bson::Document(
        doc! { "collection": &part.payload, "rows": 2_500i64 },
    )];
    let commits = database.collection("essaim_commits");
    let decided = doc! { "$set": { "pending": pending } };
    commits
        .update_one(doc! { "_id": known[0].get_str("_id")? }, decided)
        .await?;
    let random = part.payload.rsplit('_').next().context("no name")?;
    let id = format!(
        "{}_0000000000000000_{random}_{:08x}",
        known[0].get_str("_id")?,
        3
    );
    database
        .insert("t", [doc! { "_id": id, "k": 3i64, "v": 0i64 }])
        .await?;

    let second = planned(&database, 2).await?;
    assert_eq!(second.committer.begin().await?, Begin::AlreadyCommitted);
    let all: Vec<(i64, i64)> = keys.iter().map(|key| (*key, 0)).collect();
    assert_eq!(pairs(&database).await?, all);
    assert_eq!(database.collections().await?, ["essaim_commits", "t"]);
    // The older master is refused, and takes nothing back.
    assert!(first.committer.commit(vec![part]).await.is_err());
    first.committer.abort().await;
    assert_eq!(pairs(&database).await?, all);
    assert_eq!(second.committer.begin().await?, Begin::AlreadyCommitted);
    Ok(())
}

#[tokio::test]
async fn an_aborted_batch_takes_back_what_it_wrote() -> Result<()> {
    let database = Database::create().await?;
    database
        .insert("t", [doc! { "_id": "old", "k": -1i64, "v": 0i64 }])
        .await?;
    let sink = planned(&database, 1).await?;
    sink.committer.begin().await?;
    let whole = staged(&sink, &[1, 2, 3]).await?;
    let mut short = staged(&sink, &[4, 5]).await?;
    short.rows = 3;
    let error = sink.committer.commit(vec![whole, short]).await;
    let error = error.err().context("rows are missing")?;
    assert!(
        error.to_string().contains("holds 2 of the 3 rows"),
        "{error}"
    );
    assert_eq!(database.all("t").await?.len(), 4, "the first part is there");
    sink.committer.abort().await;
    assert_eq!(pairs(&database).await?, [(-1, 0)]);
    let commits: Vec<Document> = database.all("essaim_commits").await?;
    assert!(!commits[0].contains_key("pending"), "{commits:?}");
    assert_eq!(database.collections().await?, ["essaim_commits", "t"]);
    Ok(())
}
