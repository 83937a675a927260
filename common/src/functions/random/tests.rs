//! The functions as SQL sees them.

use super::*;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;

fn context() -> SessionContext {
    let builder = SessionStateBuilder::new_with_default_features();
    SessionContext::new_with_state(crate::session::with_essaim(builder).build())
}

/// The rows of a query, each column as text; `null` for a null.
async fn rows(sql: &str) -> Vec<Vec<String>> {
    let batches = context().sql(sql).await.unwrap().collect().await.unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let text = |column: &ArrayRef| match column.is_null(row) {
                true => "null".to_owned(),
                false => array_value_to_string(column, row).unwrap(),
            };
            rows.push(batch.columns().iter().map(text).collect());
        }
    }
    rows
}

async fn refused(sql: &str) -> String {
    let error = match context().sql(sql).await {
        Ok(frame) => frame.collect().await.unwrap_err(),
        Err(error) => error,
    };
    Error::from(error).to_string()
}

#[tokio::test]
async fn values_follow_from_their_seeds_alone() {
    // Written down, for other versions and machines must make them too.
    let known = "SELECT uniform(0, 999, value, 'a'), uniform(0, 999, value, 'b'), randstr(12, value), uuid_of(value),
                        uniform(0.0, 1.0, value)
                 FROM range(1, 4) ORDER BY value";
    let wanted = [
        [
            "440",
            "350",
            "iagAJHLudWhM",
            "9ecb6160-9c20-4382-a759-99bf76e6341c",
            "0.7388187843335046",
        ],
        [
            "140",
            "752",
            "uQRAtUtDDVci",
            "7dd8a50a-fd71-4f63-b49d-8ce9795e8a45",
            "0.034498674430334164",
        ],
        [
            "720",
            "532",
            "yPs91xxz3nyL",
            "90d43e7f-19f2-4447-8c22-a50051205107",
            "0.14245893430331336",
        ],
    ];
    assert_eq!(rows(known).await, wanted);
}

#[tokio::test]
async fn whole_numbers_lie_evenly_between_both_bounds() {
    let found = rows(
        "SELECT n, count(*) FROM (SELECT uniform(-1, 2, value) AS n FROM range(0, 100000)) GROUP BY n ORDER BY n",
    )
    .await;
    let numbers: Vec<_> = found.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(numbers, ["-1", "0", "1", "2"]);
    for row in &found {
        let count: i64 = row[1].parse().unwrap();
        // The standard deviation is 137.
        assert!((24_300..25_700).contains(&count), "{found:?}");
    }
    let widest = format!(
        "SELECT count(DISTINCT uniform({}, {}, value)) FROM range(0, 1000)",
        i64::MIN,
        i64::MAX
    );
    assert_eq!(rows(&widest).await, [["1000"]]);
    assert_eq!(rows("SELECT uniform(7, 7, 1)").await, [["7"]]);
}

#[tokio::test]
async fn fractions_and_the_bell_have_their_moments() {
    let sql = "SELECT round(avg(u), 2), min(u) >= 10.0, max(u) < 20.0, abs(corr(u, n)) < 0.02,
                      abs(avg(n) - 5.0) < 0.02, abs(stddev(n) - 2.0) < 0.02,
                      abs(avg(CASE WHEN abs(n - 5.0) < 2.0 THEN 1.0 ELSE 0.0 END) - 0.6827) < 0.01
               FROM (SELECT uniform(10.0, 20, value) AS u, normal(5, 2.0, value) AS n FROM range(0, 100000))";
    let found = rows(sql).await;
    let average: f64 = found[0][0].parse().unwrap();
    assert!((average - 15.0).abs() < 0.05, "{found:?}");
    assert!(found[0][1..].iter().all(|is| is == "true"), "{found:?}");
}

#[tokio::test]
async fn a_null_gives_a_null_and_other_types_are_seeds_too() {
    let sql = "SELECT uniform(1, 2, CAST(NULL AS BIGINT)), uniform(1, NULL, value), randstr(3, NULL, value),
                      uuid_of(CASE WHEN value > 5 THEN 'x' END) FROM range(0, 1)";
    assert_eq!(rows(sql).await, [["null", "null", "null", "null"]]);
    let sql = "SELECT count(DISTINCT u) FROM (
                 SELECT unnest([uniform(0.0, 1.0, 1), uniform(0.0, 1.0, '1'), uniform(0.0, 1.0, 1, ''), uniform(0.0, 1.0, 1.5),
                         uniform(0.0, 1.0, true), uniform(0.0, 1.0, DATE '2026-01-01'),
                         uniform(0.0, 1.0, TIMESTAMP '2026-01-01 00:00:00'), uniform(0.0, 1.0, 1, 2), uniform(0.0, 1.0, 2, 1)]) AS u)";
    // 1 and '1' are different seeds.
    assert_eq!(rows(sql).await, [["9"]]);
}

#[tokio::test]
async fn texts_have_their_length_and_uuids_their_form() {
    let sql = "SELECT count(DISTINCT t), min(length(t)), max(length(t)), bool_and(regexp_like(t, '^[0-9a-zA-Z]+$'))
               FROM (SELECT randstr(25, value) AS t FROM range(0, 5000))";
    assert_eq!(rows(sql).await, [["5000", "25", "25", "true"]]);
    assert_eq!(rows("SELECT length(randstr(0, 1))").await, [["0"]]);
    let sql = "SELECT count(DISTINCT t), bool_and(regexp_like(t, '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'))
               FROM (SELECT uuid_of(value, 'x') AS t FROM range(0, 5000))";
    assert_eq!(rows(sql).await, [["5000", "true"]]);
}

#[tokio::test]
async fn wrong_calls_are_refused_by_name() {
    for (call, parts) in [
        (
            "uniform(1, 2)",
            ["uniform() needs a seed", "write uniform(min, max, seed"],
        ),
        (
            "uuid_of()",
            ["uuid_of() needs a seed", "write uuid_of(seed"],
        ),
        ("normal('a', 1, 2)", ["normal()", "takes numbers"]),
        ("uniform(2, 1, 3)", ["uniform(2, 1, …)", "comes first"]),
        ("randstr(-1, 3)", ["randstr(-1, …)", "0 to 10000"]),
        ("uuid_of([1])", ["a seed is a number", "uuid_of(seed"]),
    ] {
        let message = refused(&format!("SELECT {call}")).await;
        for part in parts {
            assert!(message.contains(part), "{call}: {message}");
        }
    }
}
