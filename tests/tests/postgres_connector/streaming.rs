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

/// The same rows, of one epoch that is copied because it has many.
async fn commit_many(sink: &Arc<dyn StreamSink>, epoch: u64, rows: &[(&str, i64)]) -> Result<u64> {
    let words: Vec<String> = (0..MANY).map(|i| format!("~{i}")).collect();
    let others: Vec<_> = words.iter().map(|word| (word.as_str(), 1)).collect();
    let done = sink
        .commit(epoch, stream(vec![counts(rows), counts(&others)]))
        .await?;
    Ok(done - MANY)
}

/// More than are sent with the statement that inserts them.
const MANY: u64 = 20_000;

const ROWS: &str = "SELECT word || ' ' || n FROM t WHERE word < '~' ORDER BY word, n";

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
    let error = commit_many(&sink, 2, &[("b", 4), ("b", 5)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert!(
        error.to_string().contains("(word) = (b) comes 2 times"),
        "{error}"
    );
    assert_eq!(place.texts(ROWS).await, ["a 1", "b 3", "c 1"]);
    assert_eq!(commit(&sink, 2, &[("b", 5)]).await.unwrap(), 1);
    assert_eq!(place.texts(ROWS).await, ["a 1", "b 5", "c 1"]);
    assert_eq!(
        commit_many(&sink, 3, &[("c", 6), ("d", 7)]).await.unwrap(),
        2
    );
    assert_eq!(place.texts(ROWS).await, ["a 1", "b 5", "c 6", "d 7"]);
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
        assert_eq!(
            commit_many(&sink, 2, &[("a", 1), ("b", 2)]).await.unwrap(),
            2
        );
        assert_eq!(place.texts(ROWS).await, ["a 1", "b 2"]);
        assert_eq!(commit(&sink, 3, &[]).await.unwrap(), 0);
        assert_eq!(place.texts("SELECT word FROM t").await, [""; 0]);
    }
    place.drop().await;
}

/// Columns of all types that a value of SQL can have here: name, type, value, and how the server shows it.
const TYPES: &[(&str, &str, &str, &str)] = &[
    ("b", "boolean", "true", "true"),
    ("i2", "smallint", "-7", "-7"),
    ("i4", "integer", "2147483647", "2147483647"),
    (
        "i8",
        "bigint",
        "-9223372036854775807",
        "-9223372036854775807",
    ),
    ("o", "oid", "4294967295", "4294967295"),
    ("f4", "real", "1.5", "1.5"),
    (
        "f8",
        "double precision",
        "arrow_cast('-inf', 'Float64')",
        "-Infinity",
    ),
    (
        "n",
        "numeric(38,3)",
        "arrow_cast('12345678901234567890.123', 'Decimal128(38, 3)')",
        "12345678901234567890.123",
    ),
    ("free", "numeric", "0.1::double", "0.1"),
    ("p", "price", "9.95::double", "9.95"),
    ("t", "text", "'é''\\'", "é'\\"),
    ("v", "varchar(5)", "'12345'", "12345"),
    ("short", "short", "'123'", "123"),
    ("c", "char(3)", "'x'", "x"),
    ("nm", "name", "'nm'", "nm"),
    ("e", "mood", "'so-so'", "so-so"),
    ("de", "my_mood", "'happy'", "happy"),
    ("raw", "bytea", "arrow_cast(X'00ff', 'Binary')", "\\x00ff"),
    ("d", "date", "DATE '2024-02-29'", "2024-02-29"),
    (
        "tm",
        "time",
        "arrow_cast('23:59:59.999999', 'Time64(Microsecond)')",
        "23:59:59.999999",
    ),
    (
        "ts",
        "timestamp",
        "arrow_cast('2024-02-29T12:34:56.789012', 'Timestamp(Microsecond, None)')",
        "2024-02-29 12:34:56.789012",
    ),
    (
        "tz",
        "timestamptz",
        "arrow_cast('2024-02-29T12:34:56.789012Z', 'Timestamp(Microsecond, Some(\"+00:00\"))')",
        "2024-02-29 12:34:56.789012+00",
    ),
    (
        "iv",
        "interval",
        "INTERVAL '14 months 3 days 4 seconds'",
        "1 year 2 mons 3 days 00:00:04",
    ),
    (
        "u",
        "uuid",
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    ),
    ("j", "json", "'{\"a\":  1}'", "{\"a\":  1}"),
    (
        "jb",
        "jsonb",
        "make_array(make_array(1, NULL), NULL)",
        "[[1, null], null]",
    ),
    ("other", "inet", "'10.0.0.0/8'", "10.0.0.0/8"),
    ("others", "inet[]", "'{10.0.0.1,NULL}'", "{10.0.0.1,NULL}"),
    ("nothing", "integer", "NULL", "NULL"),
];

/// One more, whose values go by COPY only.
const ARRAY: (&str, &str, &str, &str) = ("a", "bigint[]", "make_array(1, NULL, 3)", "{1,NULL,3}");

#[tokio::test]
async fn every_type_arrives_as_it_is() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TYPE mood AS ENUM ('sad', 'so-so', 'happy'); CREATE DOMAIN my_mood AS mood; \
             CREATE DOMAIN price AS numeric(8,2); CREATE DOMAIN short AS varchar(3); SET timezone = 'UTC'",
        )
        .await;
    let (schema, session) = (place.schema.clone(), sql_session());
    for array in [false, true] {
        let types: Vec<_> = TYPES
            .iter()
            .copied()
            .chain(array.then_some(ARRAY))
            .collect();
        let values: Vec<String> = types
            .iter()
            .map(|t| format!("{} AS {}", t.2, t.0))
            .collect();
        let nulls: Vec<&str> = types.iter().map(|_| "NULL").collect();
        let (values, nulls) = (values.join(", "), nulls.join(", "));
        let columns: Vec<String> = types
            .iter()
            .map(|(name, sql, ..)| match *sql {
                "mood" | "my_mood" | "price" | "short" => format!("{name} {schema}.{sql}"),
                _ => format!("{name} {sql}"),
            })
            .collect();
        let few =
            format!("SELECT arrow_cast(1, 'Int64') AS k, {values} UNION ALL SELECT 2, {nulls}");
        let many = format!("{few} UNION ALL SELECT value, {nulls} FROM generate_series(3, {MANY})");
        for (rows, many) in [(few, false), (many, true)] {
            let batches = query(&session, &rows).await.unwrap();
            let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
            for (options, mode, staged) in [
                (&[][..], OutputMode::Append, true),
                (
                    &[("mode", "upsert"), ("key", "k")],
                    OutputMode::Update,
                    true,
                ),
                (&[], OutputMode::Complete, true),
                // Without types that are cast the rows are copied straight into the table.
                (&[], OutputMode::Append, false),
            ] {
                let columns = columns.join(", ");
                let columns = match staged {
                    true => columns,
                    false => columns
                        .replace(" inet[]", " text")
                        .replace(" inet", " text"),
                };
                place
                    .run(&format!(
                        "DROP TABLE IF EXISTS t; CREATE TABLE t (k bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns}, \
                         way text DEFAULT pg_catalog.substr(pg_catalog.current_query(), 1, 6))"
                    ))
                    .await;
                let sink = sink(&place, options).await;
                let run = run(&job(), 1);
                let sink = sink.stream(&batches[0].schema(), mode, &run).await.unwrap();
                sink.begin().await.unwrap();
                let written = sink.commit(0, stream(batches.clone())).await.unwrap();
                assert_eq!(usize::try_from(written).unwrap(), count);
                let found = place.text("SELECT pg_catalog.count(*) FROM t").await;
                assert_eq!(found, count.to_string());
                for (name, sql, _, shown) in &types {
                    let values = format!("SELECT {name} FROM t WHERE k <= 2 ORDER BY k");
                    assert_eq!(place.texts(&values).await, [shown, "NULL"], "{name} {sql}");
                }
                let way = match (many || array, staged || mode != OutputMode::Append) {
                    (false, _) => "INSERT",
                    (true, true) => "SAVEPO",
                    (true, false) => "COPY \"",
                };
                assert_eq!(place.texts("SELECT DISTINCT way FROM t").await, [way]);
            }
        }
    }
    place.drop().await;
}

#[tokio::test]
async fn a_text_that_does_not_fit_is_refused_however_many_rows_there_are() {
    let mut place = Place::new().await;
    place
        .run("CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN short AS varchar(3)")
        .await;
    for (sql, word, why) in [
        (
            "varchar(3)",
            "four",
            "too long for type character varying(3)",
        ),
        ("char(3)", "four", "too long for type character(3)"),
        ("short", "four", "too long for type character varying(3)"),
        ("mood", "glad", "invalid input value for enum"),
        ("inet", "nowhere", "invalid input syntax for type inet"),
    ] {
        for many in [false, true] {
            place
                .run(&format!(
                    "DROP TABLE IF EXISTS t; CREATE TABLE t (word {sql}, n bigint)"
                ))
                .await;
            let sink = open(&place, &[], OutputMode::Append, &job(), 1)
                .await
                .unwrap();
            sink.begin().await.unwrap();
            let mut batches = vec![counts(&[(word, 1)])];
            if many {
                batches.push(counts(&vec![(word, 1); MANY as usize]));
            }
            let error = sink.commit(0, stream(batches)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data, "{error}");
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(place.texts("SELECT word FROM t").await, [""; 0]);
        }
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
