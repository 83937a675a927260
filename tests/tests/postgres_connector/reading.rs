//! The source: one moment for all splits, every way of cutting, and filters that the server answers as we would.

use crate::harness::{Place, query, read_split, refused, scope, shown, sql_session, url};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use essaim_common::connector::{ConnectorTable, PlannedScan, ScanRequest};
use sqlx::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

async fn plan(table: &ConnectorTable, projection: &[usize], target_splits: usize) -> PlannedScan {
    let scope = scope();
    let request = ScanRequest {
        projection,
        filters: &[],
        limit: None,
        target_splits,
        scope: &scope,
    };
    let scan = table.source.as_ref().unwrap().plan(request).await.unwrap();
    // The snapshot lives as long as the job's scope.
    std::mem::forget(scope);
    scan
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn block_ranges_add_up_to_one_moment_while_others_write() {
    let mut place = Place::new().await;
    // Wide rows, so that there are enough blocks for eight splits.
    place
        .run(
            "CREATE TABLE moving AS SELECT i AS id, 1::bigint AS amount, repeat('x', 300) AS pad \
             FROM generate_series(1, 100000) AS i; ALTER TABLE moving ADD PRIMARY KEY (id); ANALYZE moving",
        )
        .await;
    let table = place.table("moving", &[]).await.unwrap();
    let scan = plan(&table, &[0, 1], 8).await;
    assert_eq!(scan.splits.len(), 8, "{:?}", scan.splits);
    let guessed: u64 = scan.splits.iter().map(|split| split.rows.unwrap()).sum();
    assert!((99_000..=101_000).contains(&guessed), "{guessed}");

    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let writer = {
        let (stop, rounds, schema) = (Arc::clone(&stop), Arc::clone(&rounds), place.schema.clone());
        tokio::spawn(async move {
            let mut sql = sqlx::PgConnection::connect(&url()).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                let round = rounds.fetch_add(1, Ordering::Relaxed);
                // Updated rows move to other blocks, deleted and new ones change the count.
                let text = format!(
                    "UPDATE {schema}.moving SET amount = amount + 1000 WHERE id % 97 = {}; \
                     DELETE FROM {schema}.moving WHERE id % 101 = {}; \
                     INSERT INTO {schema}.moving VALUES ({}, 5, '')",
                    round % 97,
                    round % 101,
                    200_000 + round
                );
                sqlx::raw_sql(sqlx::AssertSqlSafe(text))
                    .execute(&mut sql)
                    .await
                    .unwrap();
            }
        })
    };
    let (mut count, mut total) = (0, 0);
    for split in 0..scan.splits.len() {
        let before = rounds.load(Ordering::Relaxed);
        let batches = read_split(&scan, split).await.unwrap();
        count += rows(&batches);
        total += batches
            .iter()
            .map(|batch| {
                batch
                    .column(1)
                    .as_primitive::<Int64Type>()
                    .values()
                    .iter()
                    .sum::<i64>()
            })
            .sum::<i64>();
        // The next split is read only after the table has changed once more.
        while rounds.load(Ordering::Relaxed) < before + 2 {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert_eq!((count, total), (100_000, 100_000));
    assert_ne!(place.text("SELECT sum(amount) FROM moving").await, "100000");
    place.drop().await;
}

#[tokio::test]
async fn a_partitioned_table_is_read_leaf_by_leaf() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (100);
             CREATE TABLE high (v text, gone int, id int);
             ALTER TABLE high DROP COLUMN gone;
             ALTER TABLE parts ATTACH PARTITION high FOR VALUES FROM (100) TO (1000);
             CREATE TABLE rest PARTITION OF parts DEFAULT PARTITION BY HASH (id);
             CREATE TABLE rest0 PARTITION OF rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE rest1 PARTITION OF rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             INSERT INTO parts SELECT i, 'v' || i FROM generate_series(1, 3000) AS i",
        )
        .await;
    let table = place.table("parts", &[]).await.unwrap();
    let scan = plan(&table, &[1, 0], 8).await;
    let labels: Vec<_> = scan
        .splits
        .iter()
        .map(|split| split.label.as_str())
        .collect();
    assert_eq!(labels, ["low", "high", "rest0", "rest1"]);
    let mut ids = Vec::new();
    for split in 0..scan.splits.len() {
        for batch in read_split(&scan, split).await.unwrap() {
            let found = batch
                .column(1)
                .as_primitive::<Int32Type>()
                .values()
                .to_vec();
            for (row, id) in found.iter().enumerate() {
                assert_eq!(
                    batch.column(0).as_string_view().value(row),
                    format!("v{id}")
                );
            }
            ids.extend(found);
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=3000).collect::<Vec<_>>());
    place.drop().await;
}

#[tokio::test]
async fn a_view_is_cut_by_key_and_bounds_leave_nothing_out() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE VIEW seen AS SELECT i AS id, '2024-01-01'::date + i AS day \
             FROM generate_series(-50, 150) AS i UNION ALL SELECT NULL, NULL",
        )
        .await;
    for (column, lower, upper) in [("id", "0", "100"), ("day", "2024-01-01", "2024-04-01")] {
        let options = [
            ("partition_column", column),
            ("lower_bound", lower),
            ("upper_bound", upper),
            ("num_partitions", "4"),
        ];
        let table = place.table("seen", &options).await.unwrap();
        let scan = plan(&table, &[0], 8).await;
        assert_eq!(scan.splits.len(), 4);
        let mut counts = Vec::new();
        for split in 0..4 {
            counts.push(rows(&read_split(&scan, split).await.unwrap()));
        }
        assert_eq!(counts.iter().sum::<usize>(), 202, "{counts:?}");
        assert!(counts.iter().all(|count| *count >= 20), "{counts:?}");
    }
    let wrong = [
        ("partition_column", "zz"),
        ("lower_bound", "0"),
        ("upper_bound", "1"),
        ("num_partitions", "4"),
    ];
    let error = place.table("seen", &wrong).await.unwrap_err().to_string();
    assert!(error.contains("no such column; it has id, day"), "{error}");
    let error = place
        .table("seen", &[("lower_bound", "0")])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("give all four"), "{error}");
    let whole = place.table("seen", &[]).await.unwrap();
    assert_eq!(plan(&whole, &[0], 8).await.splits.len(), 1);
    place.drop().await;
}

#[tokio::test]
async fn filters_are_answered_by_the_server_as_we_would() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TYPE size AS ENUM ('small', 'large', 'huge');
             CREATE TABLE facts AS SELECT i AS id, nullif(i % 7, 3) AS k, (i % 40)::numeric(6,2) / 8 AS n,
                (i % 11)::float8 / 2 AS f, CASE WHEN i % 13 = 0 THEN NULL WHEN i % 3 = 0 THEN 'Éa' || i % 5
                WHEN i % 3 = 1 THEN 'a%_' || i % 5 ELSE 'B''\\' || i % 5 END AS t,
                ('x' || i % 3)::char(4) AS c, (ARRAY['small', 'large', 'huge'])[1 + i % 3]::size AS e,
                '2024-01-01'::date + i % 60 AS d, '2024-01-01'::timestamp + i % 60 * interval '1 hour' AS ts,
                '2024-01-01 00:00+00'::timestamptz + i % 60 * interval '1 hour' AS tz, i % 2 = 0 AS b,
                decode(lpad(to_hex(i % 9), 2, '0'), 'hex') AS raw,
                ('00000000-0000-0000-0000-0000000000' || lpad(to_hex(i % 9), 2, '0'))::uuid AS u
             FROM generate_series(1, 500) AS i;
             ALTER TABLE facts ALTER n TYPE numeric(8,3)",
        )
        .await;
    let session = sql_session();
    query(&session, &place.declare("facts", "", ""))
        .await
        .unwrap();
    // The filter, whether it goes to the server, and how the server says it if not the same.
    let cases: &[(&str, bool, Option<&str>)] = &[
        ("k = 2", true, None),
        ("k <> 2", true, None),
        ("2 < k", true, None),
        ("NOT (k = 2 OR id > 400)", true, None),
        ("k IS NULL AND id >= 100", true, None),
        ("k IS NOT NULL", true, None),
        ("k IN (1, 2, 5)", true, None),
        ("k NOT IN (1, 2, 5, 6)", true, None),
        ("id BETWEEN 17 AND 33", true, None),
        ("id NOT BETWEEN 17 AND 490", true, None),
        ("k < id", true, None),
        ("n > 1.125", true, None),
        ("n = 2.5", true, None),
        ("t = 'a%_1'", true, None),
        ("t < 'a'", true, Some("t COLLATE \"C\" < 'a'")),
        ("t >= 'a%_3'", true, Some("t COLLATE \"C\" >= 'a%_3'")),
        ("t LIKE 'a%'", true, None),
        ("t NOT LIKE '_a_'", true, None),
        ("t IN ('a%_1', 'Éa2')", true, None),
        ("e = 'huge'", true, None),
        (
            "e > 'large'",
            false,
            Some("e::text COLLATE \"C\" > 'large'"),
        ),
        ("c = 'x1'", false, Some("false")),
        ("d >= DATE '2024-02-01'", true, None),
        ("ts < TIMESTAMP '2024-01-02T03:00:00'", true, None),
        ("tz < TIMESTAMPTZ '2024-01-02T03:00:00Z'", true, None),
        ("b", true, None),
        ("NOT b", true, None),
        ("raw > X'04'", true, Some("raw > '\\x04'")),
        ("u = '00000000-0000-0000-0000-000000000004'", true, None),
        ("f > 2.5", false, None),
        ("abs(k) = 2", false, None),
    ];
    for (filter, pushed, theirs) in cases {
        let theirs = theirs.unwrap_or(filter);
        let expected = place
            .text(&format!(
                "SELECT count(*) || ' ' || coalesce(sum(id), 0) FROM facts WHERE {theirs}"
            ))
            .await;
        let ours =
            format!("SELECT count(*) AS n, coalesce(sum(id), 0) AS s FROM facts WHERE {filter}");
        let found = shown(&session, &ours).await;
        let found = found.lines().nth(3).unwrap().replace('|', "");
        assert_eq!(
            found.split_whitespace().collect::<Vec<_>>().join(" "),
            expected,
            "{filter}"
        );
        let plan = shown(&session, &format!("EXPLAIN {ours}")).await;
        assert_eq!(!plan.contains("FilterExec"), *pushed, "{filter}: {plan}");
    }
    place.drop().await;
}

#[tokio::test]
async fn a_limit_and_an_empty_projection_reach_the_server() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE several AS SELECT generate_series(1, 1000) AS id")
        .await;
    let session = sql_session();
    query(&session, &place.declare("several", "", ""))
        .await
        .unwrap();
    let plan = shown(
        &session,
        "EXPLAIN SELECT id FROM several WHERE id > 5 LIMIT 3",
    )
    .await;
    assert!(plan.contains("LIMIT 3"), "{plan}");
    let count = shown(&session, "SELECT count(*) AS n FROM several").await;
    assert!(count.contains("| 1000 |"), "{count}");
    assert_eq!(
        rows(
            &query(&session, "SELECT id FROM several LIMIT 3")
                .await
                .unwrap()
        ),
        3
    );
    place.drop().await;
}

#[tokio::test]
async fn batches_are_as_large_as_asked_for_and_the_empty_table_has_none() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE many AS SELECT generate_series(1, 20000) AS id; CREATE TABLE none (id int)")
        .await;
    let many = plan(&place.table("many", &[]).await.unwrap(), &[0], 1).await;
    let sizes: Vec<_> = read_split(&many, 0)
        .await
        .unwrap()
        .iter()
        .map(RecordBatch::num_rows)
        .collect();
    assert_eq!(sizes, [8192, 8192, 20000 - 2 * 8192]);
    let none = plan(&place.table("none", &[]).await.unwrap(), &[0], 8).await;
    assert_eq!(none.splits.len(), 1);
    assert!(read_split(&none, 0).await.unwrap().is_empty());
    place.drop().await;
}

#[tokio::test]
async fn a_table_that_is_not_there_cannot_be_read() {
    let place = Place::new().await;
    let session = sql_session();
    query(&session, &place.declare("absent", "(id INT)", ""))
        .await
        .unwrap();
    let error = refused(&session, "SELECT * FROM absent").await;
    assert!(
        error.contains("has no table") && error.contains(".absent"),
        "{error}"
    );
    place.drop().await;
}
