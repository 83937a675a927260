//! What JSON says is what the columns hold: every type, random rows, metadata columns, raw bytes.

use crate::support::*;
use arrow::array::AsArray;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::{Map, Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_read() {
    let topic = topic(1, &[]).await;
    let record = json!({
        "b": true, "i": -5, "l": 9_007_199_254_740_993_i64, "quoted": "17", "d": 1.5, "s": "täxt \"q\" \\ \n\u{1F600}", "from_number": 12.5,
        "ts": "2026-01-31T12:00:00.123456789Z", "ms": 1_769_860_800_123_i64, "zone": "2026-01-31 13:00:00+01:00", "day": "2026-01-31",
        "dec": 12345.67, "dec_text": "0.01", "tags": ["a", null, "b"], "o": {"a": {"x": 1, "at": 1000}, "extra": [1, {"y": 2}]},
        "list": [{"x": 1}, {}], "times": ["1970-01-01T00:00:01Z", 2000], "extra": {"deep": [[[]]]}
    });
    produce(
        &topic,
        &[Record::json(&record.to_string()), Record::json("{}")],
    );
    let ctx = session();
    let columns = "b BOOLEAN, i INT, l BIGINT, quoted BIGINT, d DOUBLE, s VARCHAR, from_number VARCHAR, ts TIMESTAMP, ms TIMESTAMP, \
        zone TIMESTAMP, day DATE, dec DECIMAL(10,2), dec_text DECIMAL(10,2), tags VARCHAR[], o STRUCT<a STRUCT<x BIGINT, at TIMESTAMP>>, \
        list STRUCT<x INT>[], times TIMESTAMP[], missing VARCHAR";
    declare(&ctx, columns, &topic, "").await.unwrap();
    let found = rows(
        &ctx,
        "SELECT b, i, l, quoted, d, s, from_number, ts, ms, zone, day, CAST(dec AS VARCHAR) AS dec, CAST(dec_text AS VARCHAR) AS dec_text, \
         tags, o, list, times, missing FROM t WHERE _offset = 0",
    )
    .await
    .unwrap();
    assert_eq!(
        found,
        [json!({
            "b": true, "i": -5, "l": 9_007_199_254_740_993_i64, "quoted": 17, "d": 1.5, "s": "täxt \"q\" \\ \n\u{1F600}", "from_number": "12.5",
            "ts": "2026-01-31T12:00:00.123456789", "ms": "2026-01-31T12:00:00.123", "zone": "2026-01-31T12:00:00", "day": "2026-01-31",
            "dec": "12345.67", "dec_text": "0.01", "tags": ["a", null, "b"], "o": {"a": {"x": 1, "at": "1970-01-01T00:00:01"}},
            "list": [{"x": 1}, {}], "times": ["1970-01-01T00:00:01", "1970-01-01T00:00:02"]
        })]
    );
    assert_eq!(
        count(&ctx, "SELECT count(*) FROM t WHERE b IS NULL AND o IS NULL").await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_count_in_the_chosen_unit() {
    for (unit, number) in [
        ("s", "86400.5"),
        ("us", "86400500000"),
        ("ns", "86400500000000"),
    ] {
        let topic = topic(1, &[]).await;
        produce(&topic, &[Record::json(&format!("{{\"at\":{number}}}"))]);
        let ctx = session();
        declare(
            &ctx,
            "at TIMESTAMP",
            &topic,
            &format!("timestamp_unit '{unit}'"),
        )
        .await
        .unwrap();
        let found = rows(&ctx, "SELECT at FROM t").await.unwrap();
        assert_eq!(found, [json!({"at":"1970-01-02T00:00:00.500"})], "{unit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_columns_follow_the_declared_ones() {
    let topic = topic(2, &[]).await;
    let mut record = Record::json("{\"n\":1}").at(1);
    record.key = Some(b"k".to_vec());
    record.timestamp = Some(1_769_860_800_123);
    record.headers = Some(
        OwnedHeaders::new()
            .insert(Header {
                key: "a",
                value: Some(b"\x01".as_slice()),
            })
            .insert(Header::<&[u8]> {
                key: "b",
                value: None,
            }),
    );
    produce(&topic, &[record]);
    let ctx = session();
    declare(&ctx, "n BIGINT", &topic, "").await.unwrap();
    let found = rows(&ctx, "SELECT * FROM t").await.unwrap();
    assert_eq!(
        found,
        [json!({
            "n": 1, "_key": "6b", "_topic": topic, "_partition": 1, "_offset": 0, "_timestamp": "2026-01-31T12:00:00.123",
            "_headers": [{"key": "a", "value": "01"}, {"key": "b"}]
        })]
    );
    let names: Vec<_> = batches(&ctx, "SELECT * FROM t").await.unwrap()[0]
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(
        names,
        [
            "n",
            "_key",
            "_topic",
            "_partition",
            "_offset",
            "_timestamp",
            "_headers"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_gives_the_bytes_as_they_are() {
    let topic = topic(1, &[]).await;
    let mut keyed = Record::bytes(b"\x00\xff{");
    keyed.key = Some(b"k".to_vec());
    produce(&topic, &[keyed, Record::tombstone(), Record::bytes(b"")]);
    let ctx = session();
    declare(&ctx, "", &topic, "format 'raw'").await.unwrap();
    let batches = batches(&ctx, "SELECT value, key FROM t").await.unwrap();
    let (values, keys) = (
        batches[0].column(0).as_binary::<i32>(),
        batches[0].column(1).as_binary::<i32>(),
    );
    let values: Vec<_> = values.iter().collect();
    assert_eq!(values, [Some(&b"\x00\xff{"[..]), None, Some(&b""[..])]);
    assert_eq!(
        keys.iter().collect::<Vec<_>>(),
        [Some(&b"k"[..]), None, None]
    );
}

/// A column's type: its SQL, and JSON values of it that come back from Arrow as they went in.
#[derive(Debug, Clone)]
enum Kind {
    Boolean,
    Int,
    BigInt,
    Double,
    Text,
    Timestamp,
    List(Box<Kind>),
    Struct(Vec<Kind>),
}

impl Kind {
    fn sql(&self) -> String {
        match self {
            Self::Boolean => "BOOLEAN".to_owned(),
            Self::Int => "INT".to_owned(),
            Self::BigInt => "BIGINT".to_owned(),
            Self::Double => "DOUBLE".to_owned(),
            Self::Text => "VARCHAR".to_owned(),
            Self::Timestamp => "TIMESTAMP".to_owned(),
            Self::List(item) => format!("{}[]", item.sql()),
            Self::Struct(fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .enumerate()
                    .map(|(i, f)| format!("f{i} {}", f.sql()))
                    .collect();
                format!("STRUCT<{}>", fields.join(", "))
            }
        }
    }

    fn value(&self) -> BoxedStrategy<Option<Value>> {
        let some = match self {
            Self::Boolean => any::<bool>().prop_map(Value::from).boxed(),
            Self::Int => any::<i32>().prop_map(Value::from).boxed(),
            Self::BigInt => any::<i64>().prop_map(Value::from).boxed(),
            // Eighths: serde_json, which compares here, rounds longer fractions its own way.
            Self::Double => any::<i32>()
                .prop_map(|n| Value::from(f64::from(n) / 8.0))
                .boxed(),
            Self::Text => any::<String>().prop_map(Value::from).boxed(),
            Self::Timestamp => (0..4_000_000_000_i64).prop_map(time).boxed(),
            Self::List(item) => prop::collection::vec(item.value(), 0..4)
                .prop_map(|items| {
                    items
                        .into_iter()
                        .map(|i| i.unwrap_or(Value::Null))
                        .collect()
                })
                .boxed(),
            Self::Struct(fields) => fields
                .iter()
                .map(Kind::value)
                .collect::<Vec<_>>()
                .prop_map(|values| Value::Object(object("f", values)))
                .boxed(),
        };
        prop::option::weighted(0.8, some).boxed()
    }
}

/// Seconds since 1970 as Arrow writes them.
fn time(seconds: i64) -> Value {
    let array = arrow::array::TimestampSecondArray::from(vec![seconds]);
    Value::from(arrow::util::display::array_value_to_string(&array, 0).unwrap())
}

fn object(prefix: &str, values: Vec<Option<Value>>) -> Map<String, Value> {
    values
        .into_iter()
        .enumerate()
        .filter_map(|(i, value)| Some((format!("{prefix}{i}"), value?)))
        .collect()
}

fn kind() -> impl Strategy<Value = Kind> {
    let leaf = prop_oneof![
        Just(Kind::Boolean),
        Just(Kind::Int),
        Just(Kind::BigInt),
        Just(Kind::Double),
        Just(Kind::Text),
        Just(Kind::Timestamp),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|item| Kind::List(Box::new(item))),
            prop::collection::vec(inner, 1..3).prop_map(Kind::Struct),
        ]
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn random_rows_come_back_as_they_were_sent() {
    let mut runner = TestRunner::deterministic();
    let case = prop::collection::vec(kind(), 1..6).prop_flat_map(|kinds| {
        let row = kinds.iter().map(Kind::value).collect::<Vec<_>>();
        let row = row.prop_map(|values| object("c", values));
        (Just(kinds), prop::collection::vec(row, 1..40))
    });
    for _ in 0..24 {
        let (kinds, sent) = case.new_tree(&mut runner).unwrap().current();
        let topic = topic(1, &[]).await;
        let records: Vec<_> = sent
            .iter()
            .map(|row| Record::json(&Value::Object(row.clone()).to_string()))
            .collect();
        produce(&topic, &records);
        let columns: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(i, k)| format!("c{i} {}", k.sql()))
            .collect();
        let names: Vec<_> = (0..kinds.len()).rev().map(|i| format!("c{i}")).collect();
        let ctx = session();
        declare(&ctx, &columns.join(", "), &topic, "")
            .await
            .unwrap();
        // In another order than declared, so that a column in the wrong place shows.
        let sql = format!("SELECT {} FROM t ORDER BY _offset", names.join(", "));
        let found = rows(&ctx, &sql).await.unwrap();
        let sent: Vec<Value> = sent.into_iter().map(Value::Object).collect();
        assert_eq!(found, sent, "{columns:?}");
    }
}
