//! Records that do not decode: each kind, under each `on_error`.

use crate::support::*;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::json;

const COLUMNS: &str = "n INT, s VARCHAR, o STRUCT<a BIGINT>, at TIMESTAMP";

/// Each kind of bad record and a part of its reason.
fn bad() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (b"{\"n\":1".to_vec(), "ends too early"),
        (b"{\"n\":1}}".to_vec(), "unexpected '}'"),
        (b"{\"n\" 1}".to_vec(), "unexpected '1'"),
        (b"hello".to_vec(), "unexpected 'h'"),
        (b"{\"n\":3000000000}".to_vec(), "3000000000"),
        (
            b"{\"n\":99999999999999999999999}".to_vec(),
            "99999999999999999999999",
        ),
        (
            b"{\"n\":\"many\"}".to_vec(),
            "column n is INT, and the message has \"many\"",
        ),
        (b"{\"n\":true}".to_vec(), "column n is INT"),
        (b"{\"s\":{\"x\":1}}".to_vec(), "column s is VARCHAR"),
        (b"{\"o\":[1]}".to_vec(), "column o is STRUCT<a BIGINT>"),
        (b"{\"at\":\"yesterday\"}".to_vec(), "column at"),
        (b"{\"s\":\"\xff\xfe\"}".to_vec(), "UTF-8"),
        (b"{\"s\":\"caf\xc3\"}".to_vec(), "UTF-8"),
        (b"".to_vec(), "the message is empty"),
        (b" \n".to_vec(), "the message is empty"),
        (b"[{\"n\":1}]".to_vec(), "no JSON object"),
        (b"17".to_vec(), "ends too early"),
        (
            b"\"text\"".to_vec(),
            "the message is \"text\", and no JSON object",
        ),
        (b"null".to_vec(), "no JSON object"),
        (b"{\"n\":1}{\"n\":2}".to_vec(), "more than one JSON value"),
        (b"{\"n\":1}\n{\"n\":2".to_vec(), "ends too early"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_fails_the_query_with_its_place_and_reason() {
    for (value, reason) in bad() {
        let topic = topic(1, &[]).await;
        produce(
            &topic,
            &[
                Record::json("{\"n\":1}"),
                Record::bytes(&value),
                Record::json("{\"n\":2}"),
            ],
        );
        let ctx = session();
        declare(&ctx, COLUMNS, &topic, "").await.unwrap();
        let error = error(&ctx, "SELECT n, s, o, at FROM t").await;
        let shown = String::from_utf8_lossy(&value).into_owned();
        assert!(
            error.contains(&format!("{topic}[0] offset 1")),
            "{shown}: {error}"
        );
        assert!(error.contains(reason), "{shown}: {error}");
    }
}

/// Good records with every kind of bad one between them; returns how many are good.
fn mixture() -> (Vec<Record>, usize) {
    let bad = bad();
    let mut records = Vec::new();
    let mut good = 0;
    for n in 0..2000 {
        if n % 40 == 17 {
            let mut record = Record::bytes(&bad[n / 40 % bad.len()].0);
            record.key = Some(format!("key {n}").into_bytes());
            record.headers = Some(OwnedHeaders::new().insert(Header {
                key: "trace",
                value: Some("t1"),
            }));
            records.push(record);
        } else {
            records.push(Record::json(&format!("{{\"n\":{n},\"s\":\"row {n}\"}}")));
            good += 1;
        }
    }
    (records, good)
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_records_take_no_good_ones_with_them() {
    let (records, good) = mixture();
    let topic = topic(1, &[]).await;
    produce(&topic, &records);
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "on_error 'skip'")
        .await
        .unwrap();
    // The offset proves that metadata and rows still stand side by side.
    let sql = "SELECT count(*) AS c, count(*) FILTER (WHERE n = _offset AND s = concat('row ', _offset)) AS same FROM t WHERE o IS NULL AND at IS NULL";
    let found = rows(&ctx, sql).await.unwrap();
    assert_eq!(found, [json!({"c":good,"same":good})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_whole_and_say_why() {
    let (records, good) = mixture();
    let topic = topic(1, &[]).await;
    named_topic(&format!("{topic}_dead_letter"), 1, &[]).await;
    produce(&topic, &records);
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "on_error 'dead_letter'")
        .await
        .unwrap();
    let found = rows(&ctx, "SELECT n, s, o, at FROM t").await.unwrap();
    assert_eq!(found.len(), good);

    let letters = format!("{topic}_dead_letter");
    declare_as(&ctx, "letters", "", &letters, "format 'raw'")
        .await
        .unwrap();
    let batches = batches(
        &ctx,
        "SELECT key, value, _headers FROM letters ORDER BY _offset",
    )
    .await
    .unwrap();
    let sent: Vec<&Record> = records.iter().filter(|r| r.key.is_some()).collect();
    let mut row_of_all = 0;
    for batch in &batches {
        use arrow::array::{Array, AsArray};
        let (keys, values) = (
            batch.column(0).as_binary::<i32>(),
            batch.column(1).as_binary::<i32>(),
        );
        for row in 0..batch.num_rows() {
            let record = sent[row_of_all];
            assert_eq!(Some(keys.value(row)), record.key.as_deref());
            assert_eq!(Some(values.value(row)), record.value.as_deref());
            let headers = batch.column(2).as_list::<i32>().value(row);
            let headers = headers.as_struct();
            let names = headers.column(0).as_string::<i32>();
            let texts = headers.column(1).as_binary::<i32>();
            let text = |name: &str| {
                let index = (0..names.len()).find(|i| names.value(*i) == name).unwrap();
                String::from_utf8(texts.value(index).to_vec()).unwrap()
            };
            assert_eq!(text("trace"), "t1");
            assert_eq!(text("essaim.topic"), topic);
            assert_eq!(text("essaim.partition"), "0");
            assert_eq!(text("essaim.offset"), format!("{}", row_of_all * 40 + 17));
            let reason = text("essaim.reason");
            let expected = bad();
            let expected = expected[row_of_all % expected.len()].1;
            assert!(reason.contains(expected), "{reason}");
            row_of_all += 1;
        }
    }
    assert_eq!(row_of_all, sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_cannot_be_written_fail_the_query() {
    let topic = topic(1, &[]).await;
    produce(&topic, &[Record::json("{"), Record::json("{\"n\":1}")]);
    let ctx = session();
    // A name that no broker accepts.
    let wrong = "x".repeat(300);
    let options =
        format!("on_error 'dead_letter', dead_letter_topic '{wrong}', request_timeout '2 seconds'");
    declare(&ctx, COLUMNS, &topic, &options).await.unwrap();
    let error = error(&ctx, "SELECT n FROM t").await;
    assert!(
        error.contains("cannot be put into the dead-letter topic"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_is_null() {
    let topic = topic(1, &[]).await;
    let mut tombstone = Record::tombstone();
    tombstone.key = Some(b"gone".to_vec());
    produce(&topic, &[Record::json("{\"n\":1,\"s\":\"a\"}"), tombstone]);
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "").await.unwrap();
    let sql = "SELECT n, s, _offset AS o, arrow_cast(_key, 'Utf8') AS k FROM t ORDER BY o";
    assert_eq!(
        rows(&ctx, sql).await.unwrap(),
        [json!({"n":1,"s":"a","o":0}), json!({"o":1,"k":"gone"})]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_not_null_makes_a_record_without_it_bad() {
    let topic = topic(1, &[]).await;
    produce(
        &topic,
        &[
            Record::json("{\"n\":1}"),
            Record::json("{}"),
            Record::tombstone(),
        ],
    );
    let ctx = session();
    declare(&ctx, "n INT NOT NULL", &topic, "on_error 'skip'")
        .await
        .unwrap();
    assert_eq!(
        rows(&ctx, "SELECT n FROM t").await.unwrap(),
        [json!({"n":1})]
    );
    let strict = session();
    declare(&strict, "n INT NOT NULL", &topic, "")
        .await
        .unwrap();
    let error = error(&strict, "SELECT n FROM t").await;
    assert!(
        error.contains(
            "offset 1: the record does not decode: column n is missing or null, and NOT NULL"
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_rows_passes_over_what_is_no_json_object() {
    let topic = topic(1, &[]).await;
    let mut records: Vec<Record> = bad()
        .iter()
        .map(|(value, _)| Record::bytes(value))
        .collect();
    records.push(Record::json("{\n  \"n\":\n 1 }\n"));
    produce(&topic, &records);
    let ctx = session();
    declare(&ctx, COLUMNS, &topic, "on_error 'skip'")
        .await
        .unwrap();
    // Those whose trouble is a field that the query does not use are rows.
    assert_eq!(count(&ctx, "SELECT count(*) FROM t").await, 8);
    assert_eq!(count(&ctx, "SELECT count(n) FROM t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_table_counts_a_record_once() {
    // As exported by scripts/services.
    let Ok(url) = std::env::var("ESSAIM_TEST_POSTGRES") else {
        panic!("ESSAIM_TEST_POSTGRES is not set: start the services with make services");
    };
    use sqlx::Connection;
    let mut postgres = sqlx::PgConnection::connect(&url).await.unwrap();
    let table = format!("letters_{}", uuid::Uuid::new_v4().simple());
    let (records, good) = mixture();
    let topic = topic(1, &[]).await;
    produce(&topic, &records);
    let ctx = session();
    let options = format!(
        "on_error 'dead_letter', dead_letter_location '{url}', dead_letter_table '{table}'"
    );
    declare(&ctx, COLUMNS, &topic, &options).await.unwrap();
    for _ in 0..2 {
        let found = rows(&ctx, "SELECT n, s, o, at FROM t").await.unwrap();
        assert_eq!(found.len(), good);
    }
    let sql = format!(
        "SELECT count(*), min(\"offset\"), max(\"offset\"), count(*) FILTER (WHERE convert_from(key, 'UTF8') = 'key ' || \"offset\") FROM {table}"
    );
    let found: (i64, i64, i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .fetch_one(&mut postgres)
        .await
        .unwrap();
    assert_eq!(found, (50, 17, 1977, 50));
    let drop = format!("DROP TABLE {table}");
    sqlx::query(sqlx::AssertSqlSafe(drop))
        .execute(&mut postgres)
        .await
        .unwrap();
}
