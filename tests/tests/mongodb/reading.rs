//! What comes out of a collection: its columns, each document once, the right ones after a filter.

use anyhow::Result;
use essaim_tests::cluster::{self, Cluster};
use essaim_tests::mongodb::Database;
use essaim_tests::sql::{rows, text};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, doc};
use tonic::Code;

fn line(values: &[Option<&str>]) -> Vec<Option<String>> {
    values
        .iter()
        .map(|value| value.map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn columns_that_are_not_declared_come_from_a_sample() -> Result<()> {
    let database = Database::create().await?;
    let id = ObjectId::parse_str("507f1f77bcf86cd799439011")?;
    let at = DateTime::parse_rfc3339_str("2026-01-02T03:04:05.678Z")?;
    let bytes = Binary {
        subtype: BinarySubtype::Generic,
        bytes: vec![1, 255],
    };
    database
        .insert(
            "weather",
            [
                doc! {
                    "_id": id, "city": "Lyon", "n": 1, "big": 1i64 << 40, "t": 3, "rain": true, "at": at, "raw": bytes,
                    "wind": { "speed": 4.5, "from": { "degrees": 270 } },
                    "hours": [{ "h": 1, "t": 2.5 }, { "h": 2 }], "tags": ["a", Bson::Null], "odd": 7,
                },
                doc! { "_id": "second", "city": Bson::Null, "t": 3.5, "wind": { "gusts": [1, 2i64] }, "odd": "x" },
            ],
        )
        .await?;
    let client = cluster::shared().await?.client().await?;
    let declare = database.declare("weather", "", "weather", "");
    let columns = client.query(&format!("{declare} DESCRIBE weather")).await?;
    let columns: Vec<(String, String)> = rows(&columns)?
        .into_iter()
        .map(|row| {
            (
                row[0].clone().unwrap_or_default(),
                row[1].clone().unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        ("_id", "VARCHAR"),
        ("city", "VARCHAR"),
        ("n", "INT"),
        ("big", "BIGINT"),
        ("t", "DOUBLE"),
        ("rain", "BOOLEAN"),
        ("at", "TIMESTAMP(3)"),
        ("raw", "BYTEA"),
    ];
    for (column, (name, data_type)) in columns.iter().zip(expected) {
        assert_eq!((column.0.as_str(), column.1.as_str()), (name, data_type));
    }
    let query = "SELECT _id, n, big, t, rain, at, encode(raw, 'hex'), wind['from']['degrees'], wind['gusts'][2],
                   hours[1]['t'], hours[2]['t'], cardinality(hours), tags[1], odd
                 FROM weather ORDER BY t";
    let found = rows(&client.query(&format!("{declare} {query}")).await?)?;
    assert_eq!(
        found,
        [
            line(&[
                Some("507f1f77bcf86cd799439011"),
                Some("1"),
                Some("1099511627776"),
                Some("3.0"),
                Some("true"),
                Some("2026-01-02T03:04:05.678"),
                Some("01ff"),
                Some("270"),
                None,
                Some("2.5"),
                None,
                Some("2"),
                Some("a"),
                Some("7"),
            ]),
            line(&[
                Some("second"),
                None,
                None,
                Some("3.5"),
                None,
                None,
                None,
                None,
                Some("2"),
                None,
                None,
                None,
                None,
                Some("x"),
            ]),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_collection_is_read_by_two_workers_each_document_once() -> Result<()> {
    const DOCUMENTS: i64 = 50_000;
    let database = Database::create().await?;
    // `_id`s of all sorts: the ranges are of numbers, the others must not be lost.
    let documents = (0..DOCUMENTS).map(|n| {
        let id = match n % 100 {
            0 => Bson::String(format!("s{n}")),
            1 => Bson::ObjectId(ObjectId::new()),
            2 => Bson::Double(n as f64 + 0.5),
            3 => Bson::Document(doc! { "n": n }),
            _ => Bson::Int64(n),
        };
        doc! { "_id": id, "n": n }
    });
    database.insert("numbers", documents).await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let declare = database.declare("numbers", "(n BIGINT)", "numbers", "");
    let explained = text(
        &client
            .query(&format!("{declare} EXPLAIN SELECT sum(n) FROM numbers"))
            .await?,
    )?;
    assert!(
        explained.contains("collection=numbers, fields=[n]"),
        "{explained}"
    );
    let query = format!(
        "{declare} SELECT count(*), count(DISTINCT n), sum(n), min(n), max(n) FROM numbers"
    );
    let (found, job) = client.start(&query).await?.finish().await?;
    let sum = (DOCUMENTS * (DOCUMENTS - 1) / 2).to_string();
    let all = DOCUMENTS.to_string();
    assert_eq!(
        rows(&found)?,
        [line(&[
            Some(&all),
            Some(&all),
            Some(&sum),
            Some("0"),
            Some("49999")
        ])]
    );
    let workers: std::collections::HashSet<_> = essaim_tests::client::attempts(&job)
        .into_iter()
        .map(|(_, attempt)| attempt.worker.clone())
        .collect();
    assert_eq!(workers.len(), 2, "{job:?}");
    cluster.stop().await
}

#[tokio::test]
async fn filters_go_to_the_server_and_leave_the_same_rows() -> Result<()> {
    let database = Database::create().await?;
    let hex = "507f1f77bcf86cd799439011";
    let at = |ms| DateTime::from_millis(ms);
    database
        .insert(
            "t",
            [
                doc! { "k": 1, "n": 5, "f": 0.5, "s": "Paris", "b": true, "at": at(1_000), "d": { "x": 1 } },
                doc! { "k": 2, "n": 6.0, "f": 2, "s": "Lyon", "b": false, "at": at(2_000), "d": { "x": Bson::Null } },
                doc! { "k": 3, "n": Bson::Null, "f": Bson::Null, "s": Bson::Null, "b": Bson::Null, "at": Bson::Null, "d": Bson::Null },
                doc! { "k": 4 },
                doc! { "k": 5, "n": 7i64, "f": -1.5, "s": ObjectId::parse_str(hex)?, "d": { "y": 1 } },
            ],
        )
        .await?;
    let client = cluster::shared().await?.client().await?;
    let declare = database.declare(
        "t",
        "(k INT, n BIGINT, f DOUBLE, s VARCHAR, b BOOLEAN, at TIMESTAMP, d STRUCT<x INT, y INT>)",
        "t",
        "",
    );
    for (filter, pushed, expected) in [
        ("n > 5", r#"{"n":{"$gt":5}}"#, "2 5"),
        ("6 >= n", r#"{"n":{"$lte":6}}"#, "1 2"),
        ("n <> 5", r#"{"n":{"$ne":5}}"#, "2 5"),
        ("n IN (5, 7, 8, 9)", r#"{"n":{"$in":[5,7,8,9]}}"#, "1 5"),
        ("n NOT IN (5, 7, 8, 9)", r#"{"n":{"$nin":[5,7,8,9]}}"#, "2"),
        ("n IS NULL", r#"{"n":null}"#, "3 4"),
        ("n IS NOT NULL", r#"{"n":{"$ne":null}}"#, "1 2 5"),
        ("s IS NOT NULL", r#"{"s":{"$exists":true}}"#, "1 2 5"),
        (
            "f > 0.5",
            r#"{"f":{"$not":{"$lt":0.5},"$type":"number"}}"#,
            "2",
        ),
        ("f < 1.0", r#"{"f":{"$lte":1.0}}"#, "1 5"),
        ("s = 'Paris'", r#"{"s":"Paris"}"#, "1"),
        (
            "s = '507f1f77bcf86cd799439011'",
            r#""$oid":"507f1f77bcf86cd799439011""#,
            "5",
        ),
        ("NOT b", r#"{"b":false}"#, "2"),
        (
            "at >= TIMESTAMP '1970-01-01 00:00:02'",
            r#"{"at":{"$gte":{"$date":"1970-01-01T00:00:02Z"}}}"#,
            "2",
        ),
        ("d['x'] = 1", r#"{"d.x":1}"#, "1"),
        ("d['x'] IS NULL", r#"{"d.x":null}"#, "2 3 4 5"),
        ("n > 4 AND s LIKE 'P%'", r#"{"n":{"$gt":4}}"#, "1"),
        (
            "n = 5 OR d['y'] = 1",
            r#"{"$or":[{"n":5},{"d.y":1}]}"#,
            "1 5",
        ),
    ] {
        let query = format!("{declare} EXPLAIN SELECT k FROM t WHERE {filter}");
        let explained = text(&client.query(&query).await?)?;
        assert!(explained.contains(pushed), "{filter}: {explained}");
        let query = format!("{declare} SELECT k FROM t WHERE {filter} ORDER BY k");
        let found = text(&client.query(&query).await?)?;
        assert_eq!(found.replace('\n', " "), expected, "{filter}");
    }
    let query = format!("{declare} SELECT k FROM t LIMIT 2");
    assert_eq!(
        client
            .query(&query)
            .await?
            .iter()
            .map(|batch| batch.num_rows())
            .sum::<usize>(),
        2
    );
    // A number is read as its text, which no query finds; and texts are ordered otherwise.
    database
        .insert(
            "mixed",
            [doc! { "s": 12 }, doc! { "s": "12" }, doc! { "s": "b" }],
        )
        .await?;
    let mixed = database.declare("mixed", "(s VARCHAR)", "mixed", "");
    for (filter, expected) in [("s = '12'", "2"), ("s >= '2'", "1"), ("s <> 'b'", "2")] {
        let query = format!("{mixed} SELECT count(*) FROM mixed WHERE {filter}");
        assert_eq!(text(&client.query(&query).await?)?, expected, "{filter}");
    }
    Ok(())
}

#[tokio::test]
async fn a_document_that_does_not_fit_is_named_or_skipped() -> Result<()> {
    let database = Database::create().await?;
    database
        .insert(
            "t",
            [
                doc! { "_id": 1, "d": { "l": [{ "n": 1 }] } },
                doc! { "_id": "bad", "d": { "l": [{ "n": 1 }, { "n": "two" }] } },
                doc! { "_id": 3, "d": { "l": [] } },
            ],
        )
        .await?;
    let client = cluster::shared().await?.client().await?;
    let columns = "(d STRUCT<l STRUCT<n BIGINT>[]>)";
    let fail = database.declare("t", columns, "t", "");
    let error = client
        .query_error(&format!("{fail} SELECT d FROM t"))
        .await?;
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    for part in [
        "_id \"bad\"",
        "field d.l[1].n",
        "the string two",
        "on_error 'skip'",
    ] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    let skip = database.declare("t", columns, "t", ", on_error 'skip'");
    let found = client
        .query(&format!(
            "{skip} SELECT sum(cardinality(d['l'])), count(*) FROM t"
        ))
        .await?;
    assert_eq!(text(&found)?, "1\t2");
    Ok(())
}

#[tokio::test]
async fn a_wrong_login_and_a_server_that_is_away_are_told_apart() -> Result<()> {
    let database = Database::create().await?;
    let client = cluster::shared().await?.client().await?;
    let table = |location: &str| {
        format!("CREATE EXTERNAL TABLE t STORED AS MONGODB LOCATION '{location}'; SELECT * FROM t")
    };
    let wrong = database.url.replace(":essaim@", ":hunter2@");
    let error = client.query_error(&table(&wrong)).await?;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("Check user, password"), "{error}");
    assert!(!error.message().contains("hunter2"), "{error}");
    let away = "mongodb://u:hunter2@127.0.0.1:1/db?serverSelectionTimeoutMS=500";
    let error = client.query_error(&table(away)).await?;
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(
        error.message().contains("127.0.0.1:1/db is out of reach"),
        "{error}"
    );
    assert!(!error.message().contains("hunter2"), "{error}");
    let error = client.query_error(&table("mongodb://127.0.0.1:1")).await?;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("names no database"), "{error}");
    Ok(())
}
