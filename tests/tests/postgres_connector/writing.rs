//! The sink: modes, keys, types of tables that it creates, all or nothing, once.

use crate::harness::{Place, insert, job, query, run, sql_session, write};
use arrow::array::{Array, ArrayRef, AsArray, Int32Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{Field, Int32Type, Schema};
use essaim_common::ErrorKind;
use essaim_common::connector::Begin;
use std::sync::Arc;

fn rows(ids: &[i32], names: &[&str]) -> RecordBatch {
    RecordBatch::try_from_iter([
        ("id", Arc::new(Int32Array::from(ids.to_vec())) as ArrayRef),
        (
            "name",
            Arc::new(StringArray::from(names.to_vec())) as ArrayRef,
        ),
    ])
    .unwrap()
}

async fn content(place: &mut Place) -> Vec<String> {
    place
        .texts("SELECT id || ' ' || name FROM t ORDER BY id, name")
        .await
}

async fn staged(place: &mut Place) -> String {
    let schema = place.schema.clone();
    place
        .text(&format!(
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'essaim_staging%' AND relnamespace = '{schema}'::regnamespace"
        ))
        .await
}

#[tokio::test]
async fn append_adds_upsert_replaces_overwrite_clears() {
    let mut place = Place::new().await;
    let append = place.table("t", &[("key", "id")]).await.unwrap();
    let parts = vec![rows(&[1, 2], &["a", "b"]), rows(&[3], &["c"])];
    insert(&append, &run(&job(), 1), false, parts)
        .await
        .unwrap();
    assert_eq!(content(&mut place).await, ["1 a", "2 b", "3 c"]);
    let upsert = place
        .table("t", &[("mode", "upsert"), ("key", "id")])
        .await
        .unwrap();
    insert(
        &upsert,
        &run(&job(), 1),
        false,
        vec![rows(&[2, 4], &["B", "D"])],
    )
    .await
    .unwrap();
    assert_eq!(content(&mut place).await, ["1 a", "2 B", "3 c", "4 D"]);
    // A primary key was created: the same key again is refused by an append, and nothing of it is left.
    let error = insert(
        &append,
        &run(&job(), 1),
        false,
        vec![rows(&[9, 1], &["x", "y"])],
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert_eq!(content(&mut place).await, ["1 a", "2 B", "3 c", "4 D"]);
    assert_eq!(staged(&mut place).await, "0");
    insert(&append, &run(&job(), 1), true, vec![rows(&[7], &["z"])])
        .await
        .unwrap();
    assert_eq!(content(&mut place).await, ["7 z"]);
    let overwrite = place.table("t", &[("mode", "overwrite")]).await.unwrap();
    insert(&overwrite, &run(&job(), 1), false, vec![rows(&[8], &["w"])])
        .await
        .unwrap();
    assert_eq!(content(&mut place).await, ["8 w"]);
    assert_eq!(staged(&mut place).await, "0");
    place.drop().await;
}

#[tokio::test]
async fn a_key_that_comes_twice_in_an_upsert_is_named() {
    let mut place = Place::new().await;
    place.run("CREATE TABLE t (id int, name text)").await;
    let options = [("mode", "upsert"), ("key", "id")];
    let table = place.table("t", &options).await.unwrap();
    let error = insert(&table, &run(&job(), 1), false, vec![rows(&[1], &["a"])])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("CREATE UNIQUE INDEX ON"), "{error}");
    place.run("CREATE UNIQUE INDEX ON t (id)").await;
    // The same key in two writers' rows is found, too.
    let parts = vec![rows(&[1, 5], &["a", "b"]), rows(&[5], &["c"])];
    let error = insert(&table, &run(&job(), 1), false, parts)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the key (id) = (5) comes 2 times"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Data);
    assert_eq!(content(&mut place).await, Vec::<String>::new());
    assert_eq!(staged(&mut place).await, "0");
    place.drop().await;
}

#[tokio::test]
async fn a_run_is_committed_once_and_older_masters_are_refused() {
    let mut place = Place::new().await;
    let table = place.table("t", &[]).await.unwrap();
    let job = job();
    let batch = rows(&[1], &["a"]);
    let sink = table.sink.clone().unwrap();
    // A master that begins, and is then overtaken by a newer one.
    let old = sink
        .plan(&batch.schema(), false, &run(&job, 1))
        .await
        .unwrap();
    assert_eq!(old.committer.begin().await.unwrap(), Begin::Fresh);
    let part = write(&old, vec![batch.clone()]).await.unwrap();
    let new = sink
        .plan(&batch.schema(), false, &run(&job, 2))
        .await
        .unwrap();
    assert_eq!(new.committer.begin().await.unwrap(), Begin::Fresh);
    assert_eq!(
        staged(&mut place).await,
        "0",
        "what the older run staged is gone"
    );
    let error = old.committer.commit(vec![part]).await.unwrap_err();
    assert!(
        error.to_string().contains("generation 1 may not write"),
        "{error}"
    );
    let part = write(&new, vec![batch.clone()]).await.unwrap();
    new.committer.commit(vec![part.clone()]).await.unwrap();
    // An answer that was lost: the same commit again changes nothing.
    new.committer.commit(vec![part]).await.unwrap();
    assert_eq!(content(&mut place).await, ["1 a"]);
    let again = insert(&table, &run(&job, 3), false, vec![batch.clone()])
        .await
        .unwrap();
    assert_eq!(again, Begin::AlreadyCommitted);
    assert!(old.committer.begin().await.is_err());
    let mut next = run(&job, 3);
    next.epoch = 1;
    assert_eq!(
        insert(&table, &next, false, vec![batch]).await.unwrap(),
        Begin::Fresh
    );
    assert_eq!(content(&mut place).await, ["1 a", "1 a"]);
    place.drop().await;
}

#[tokio::test]
async fn a_new_table_has_the_types_and_the_key_of_its_rows() {
    let mut place = Place::new().await;
    let session = sql_session();
    let batches = query(
        &session,
        "SELECT 1::bigint AS \"Big id\", 2::smallint AS s, 1.25::decimal(9,3) AS n, true AS b, 'x' AS t, \
         DATE '2024-02-29' AS d, TIMESTAMP '2024-02-29T01:02:03' AS ts, make_array(1, NULL, 3) AS l, \
         named_struct('a', 1, 'b', 'y') AS o, X'00ff' AS raw, 18446744073709551615::bigint unsigned AS u, \
         INTERVAL '1 month 2 days' AS iv, NULL AS nothing, make_array(make_array(1)) AS nested",
    )
    .await
    .unwrap();
    let table = place.table("t", &[("key", "Big id,s")]).await.unwrap();
    insert(&table, &run(&job(), 1), false, batches)
        .await
        .unwrap();
    let types = place
        .texts(
            "SELECT attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' !' ELSE '' END \
             FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum",
        )
        .await;
    assert_eq!(
        types,
        [
            "Big id bigint !",
            "s smallint !",
            "n numeric(9,3)",
            "b boolean",
            "t text",
            "d date",
            "ts timestamp without time zone",
            "l bigint[]",
            "o jsonb",
            "raw bytea",
            "u numeric(20,0)",
            "iv interval",
            "nothing text",
            "nested jsonb"
        ]
    );
    assert_eq!(
        place.text("SELECT ROW(t.*)::text FROM t").await,
        "(1,2,1.250,t,x,2024-02-29,\"2024-02-29 01:02:03\",\"{1,NULL,3}\",\"{\"\"a\"\": 1, \"\"b\"\": \"\"y\"\"}\",\
         \"\\\\x00ff\",18446744073709551615,\"1 mon 2 days\",,[[1]])"
    );
    place.drop().await;
}

#[tokio::test]
async fn values_are_written_in_the_types_of_the_table_that_is_there() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TYPE mood AS ENUM ('ok', 'bad');
             CREATE TABLE wide (a int, b numeric, c float4, d uuid, e jsonb, f mood, g inet, h timestamptz, i varchar(3));
             CREATE TABLE t (id smallint, name text, extra int DEFAULT 7)",
        )
        .await;
    let session = sql_session();
    query(&session, &place.declare("wide", "", ""))
        .await
        .unwrap();
    let batches = query(
        &session,
        "SELECT 5::bigint AS a, 0.1::double AS b, 2::int AS c, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' AS d, \
         '{\"k\":[1]}' AS e, 'bad' AS f, '10.1.2.3' AS g, TIMESTAMP '2024-02-29T01:02:03' AS h, 'abc' AS i",
    )
    .await
    .unwrap();
    let table = place.table("wide", &[]).await.unwrap();
    insert(&table, &run(&job(), 1), false, batches)
        .await
        .unwrap();
    assert_eq!(
        place.text("SELECT wide::text FROM wide").await,
        "(5,0.1,2,a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,\"{\"\"k\"\": [1]}\",bad,10.1.2.3,\"2024-02-29 01:02:03+00\",abc)"
    );
    // A number that is too large for the column, and a column that is not there.
    let table = place.table("t", &[]).await.unwrap();
    insert(&table, &run(&job(), 1), false, vec![rows(&[3], &["n"])])
        .await
        .unwrap();
    assert_eq!(place.text("SELECT t::text FROM t").await, "(3,n,7)");
    let error = insert(
        &table,
        &run(&job(), 1),
        false,
        vec![rows(&[70_000], &["n"])],
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("column id:"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Data);
    let other =
        RecordBatch::try_from_iter([("zz", Arc::new(Int32Array::from(vec![1])) as ArrayRef)])
            .unwrap();
    let error = insert(&table, &run(&job(), 1), false, vec![other])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has no column \"zz\": it has id, name, extra"),
        "{error}"
    );
    let text =
        RecordBatch::try_from_iter([("id", Arc::new(StringArray::from(vec!["1"])) as ArrayRef)])
            .unwrap();
    let error = insert(&table, &run(&job(), 1), false, vec![text])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is smallint, which does not take VARCHAR"),
        "{error}"
    );
    place.drop().await;
}

#[tokio::test]
async fn two_jobs_at_once_create_one_table() {
    let mut place = Place::new().await;
    let mut jobs = Vec::new();
    for id in 0..4 {
        let table = place.table("t", &[]).await.unwrap();
        jobs.push(async move {
            insert(&table, &run(&job(), 1), false, vec![rows(&[id], &["x"])]).await
        });
    }
    for done in futures::future::join_all(jobs).await {
        done.unwrap();
    }
    assert_eq!(content(&mut place).await, ["0 x", "1 x", "2 x", "3 x"]);
    place.drop().await;
}

#[tokio::test]
async fn sql_inserts_into_a_declared_table() {
    let mut place = Place::new().await;
    let session = sql_session();
    let declared = place.declare(
        "t",
        "(id INT NOT NULL, name VARCHAR, PRIMARY KEY (id))",
        ", mode 'upsert'",
    );
    query(&session, &declared).await.unwrap();
    let count = query(&session, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        .await
        .unwrap();
    assert_eq!(
        count[0]
            .column(0)
            .as_any()
            .downcast_ref::<UInt64Array>()
            .unwrap()
            .value(0),
        2
    );
    assert_eq!(content(&mut place).await, ["1 a", "2 b"]);
    let read = query(&session, "SELECT id FROM t WHERE name = 'b'")
        .await
        .unwrap();
    assert_eq!(read[0].column(0).as_primitive::<Int32Type>().value(0), 2);
    assert_eq!(
        read[0].schema().field(0),
        &Field::new("id", read[0].column(0).data_type().clone(), false)
    );
    assert_eq!(
        read[0].schema().fields().len(),
        Schema::empty().fields().len() + 1
    );
    place.drop().await;
}
