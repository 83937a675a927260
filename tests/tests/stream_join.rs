//! Joins of two streams on a real cluster, against the same joins in PostgreSQL.

use anyhow::Result;
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::json;

const COLUMNS: &str = "id BIGINT, at TIMESTAMP, n BIGINT";
const START: i64 = 1_767_225_600_000;
const WITHIN: &str =
    "o.id = p.id AND p.at BETWEEN o.at - INTERVAL '5 seconds' AND o.at + INTERVAL '20 seconds'";

fn declare(name: &str, topic: &Topic) -> String {
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE {name} ({COLUMNS}) STORED AS KAFKA LOCATION '{}'
         OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds', max_offsets_per_trigger '300');\n",
        topic.location()
    )
}

/// (id, ms since the start, n) of order or payment number `n`: one every 100 ms, in some disorder.
fn event(stream: i64, n: i64) -> (i64, i64, i64) {
    let id = (n * 7 + stream * (n % 3)) % 400;
    let at = n * 100 + (n * (31 + stream)) % 5000;
    (id, at, n)
}

/// Sends events to the topic and puts them into the database, for its own join.
async fn produce(
    topic: &Topic,
    database: &Database,
    stream: i64,
    numbers: std::ops::Range<i64>,
) -> Result<()> {
    let table = ["orders", "payments"][stream as usize];
    let events = || numbers.clone().map(move |n| event(stream, n));
    let rows = events().map(|(id, at, n)| {
        format!("({id}, timestamp '2026-01-01 00:00:00' + {at} * interval '1 millisecond', {n})")
    });
    let rows: Vec<_> = rows.collect();
    let insert = format!("INSERT INTO {table} VALUES {}", rows.join(", "));
    database.execute(&insert).await?;
    let payloads =
        events().map(|(id, at, n)| json!({"id": id, "at": START + at, "n": n}).to_string());
    topic.produce(payloads).await?;
    Ok(())
}

/// Moves the watermark far ahead, so that all rows are freed, with rows that match nothing.
async fn flush(topic: &Topic, id: i64) -> Result<()> {
    let last = json!({"id": id, "at": START + 10_000_000, "n": 0}).to_string();
    let last = (0..topic.partitions).map(move |_| last.clone());
    topic.produce(last).await?;
    Ok(())
}

async fn until(database: &Database, sql: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    let outcome = wait_for(&format!("{sql} = {wanted}"), SOON, async || {
        last = database.value(sql).await.unwrap_or_else(|e| e.to_string());
        Ok((last == wanted).then_some(()))
    })
    .await;
    outcome.map_err(|e| e.context(format!("it is {last}")))
}

/// How many rows one of the tables has more often than the other.
fn difference(table: &str, query: &str) -> String {
    format!(
        "SELECT (SELECT count(*) FROM (SELECT * FROM {table} EXCEPT ALL ({query})) AS more)
              + (SELECT count(*) FROM (({query}) EXCEPT ALL SELECT * FROM {table}) AS less)"
    )
}

#[tokio::test]
async fn joins_of_two_streams_are_those_of_postgres_though_the_master_dies() -> Result<()> {
    let (orders, payments) = (Topic::create(2).await?, Topic::create(3).await?);
    let database = Database::create().await?;
    for table in ["orders", "payments"] {
        let create = format!("CREATE TABLE {table} ({COLUMNS})");
        database.execute(&create).await?;
    }
    let mut cluster = Cluster::start(2, 2).await?;
    let columns = "o.id, o.n AS order_n, p.n AS payment_n";
    let per_minute = format!(
        "SELECT window_start, count(*) AS paid, sum(p.n) AS total
         FROM orders o JOIN payments p ON {WITHIN} GROUP BY window(o.at, INTERVAL '1 minute')"
    );
    let sql = [
        declare("orders", &orders),
        declare("payments", &payments),
        database.declare("paid", "paid", ""),
        database.declare("all_orders", "all_orders", ""),
        database.declare("per_minute", "per_minute", ""),
        database.declare("both", "both_kinds", ""),
        format!("INSERT INTO paid SELECT {columns} FROM orders o JOIN payments p ON {WITHIN};"),
        format!(
            "INSERT INTO all_orders SELECT {columns} FROM orders o LEFT JOIN payments p ON {WITHIN};"
        ),
        format!("INSERT INTO per_minute {per_minute};"),
        "INSERT INTO both
           SELECT o.window_start, o.orders, p.payments
           FROM (SELECT window_start, count(*) AS orders FROM orders
                 GROUP BY window(at, INTERVAL '1 minute')) o
           JOIN (SELECT window_start, count(*) AS payments FROM payments
                 GROUP BY window(at, INTERVAL '1 minute')) p
           ON o.window_start = p.window_start;"
            .to_owned(),
    ]
    .concat();
    produce(&orders, &database, 0, 0..2000).await?;
    produce(&payments, &database, 1, 0..1500).await?;
    let client = cluster.client().await?;
    let job = client.submit(&sql, &unique("join")).await?;
    until(&database, "SELECT count(*) > 100 FROM paid", "t").await?;
    cluster.kill_master();
    cluster.restart_master().await?;
    produce(&payments, &database, 1, 1500..3000).await?;
    produce(&orders, &database, 0, 2000..3000).await?;
    flush(&orders, -1).await?;
    flush(&payments, -2).await?;

    let joined =
        |kind: &str| format!("SELECT {columns} FROM orders o {kind} JOIN payments p ON {WITHIN}");
    until(&database, &difference("paid", &joined("")), "0").await?;
    until(&database, &difference("all_orders", &joined("LEFT")), "0").await?;
    let unpaid = "SELECT count(*) > 0 FROM all_orders WHERE payment_n IS NULL";
    assert_eq!(database.value(unpaid).await?, "t");
    let windows = per_minute
        .replace("window_start,", "date_trunc('minute', o.at),")
        .replace(
            "window(o.at, INTERVAL '1 minute')",
            "date_trunc('minute', o.at)",
        );
    until(&database, &difference("per_minute", &windows), "0").await?;
    let counted = |table: &str| {
        format!("SELECT date_trunc('minute', at) AS at, count(*) AS n FROM {table} GROUP BY 1")
    };
    let both = format!(
        "SELECT o.at, o.n, p.n FROM ({}) o JOIN ({}) p ON o.at = p.at",
        counted("orders"),
        counted("payments")
    );
    until(&database, &difference("both_kinds", &both), "0").await?;
    let client = cluster.client().await?;
    client.cancel(&job).await?;
    assert_eq!(client.wait_job(&job).await?.state(), JobState::Cancelled);
    cluster.stop().await
}

#[tokio::test]
async fn a_join_without_a_time_bound_is_refused_with_what_to_add() -> Result<()> {
    let (orders, payments) = (Topic::create(1).await?, Topic::create(1).await?);
    let client = shared().await?.client().await?;
    let cases = [
        ("JOIN payments p ON o.id = p.id", "add a time bound such as"),
        (
            "JOIN payments p ON p.at BETWEEN o.at AND o.at + INTERVAL '1 minute'",
            "keys that are equal",
        ),
        (
            &format!("FULL JOIN payments p ON {WITHIN}"),
            "a Full join of two streams is not there",
        ),
        (
            &format!("LEFT ANTI JOIN payments p ON {WITHIN}"),
            "join of two streams is not there",
        ),
    ];
    for (join, expected) in cases {
        let sql = [
            declare("orders", &orders),
            declare("payments", &payments),
            "CREATE EXTERNAL TABLE out STORED AS CONSOLE LOCATION '';".to_owned(),
            format!("INSERT INTO out SELECT o.id FROM orders o {join};"),
        ]
        .concat();
        let error = client.submit(&sql, &unique("refused")).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{join}: {error}");
    }
    Ok(())
}
