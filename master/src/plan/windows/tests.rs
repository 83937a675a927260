//! Queries over windows against the same queries over joins with windows that are written out.

use crate::plan::{Execution, Planner, parse};
use crate::registry;
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{TimestampMillisecondArray, TimestampSecondArray};
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::displayable;
use essaim_common::scope::JobScope;
use essaim_common::session;
use std::sync::Arc;

const MINUTE: i64 = 60_000;

/// A session with table `t`: 400 rows over 20 minutes around 1970, two of them without a time, in 3 partitions.
fn planner() -> Planner {
    let mut state = 12345_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let batches: Vec<Vec<RecordBatch>> = (0..3)
        .map(|_| {
            let times: Vec<Option<i64>> = (0..133)
                .map(|row| (row != 7).then(|| random(20 * MINUTE as u64) as i64 - 10 * MINUTE))
                .collect();
            let keys: Vec<String> = (0..133).map(|_| format!("k{}", random(3))).collect();
            let values: Vec<i64> = (0..133).map(|_| random(50) as i64).collect();
            let seconds: Vec<Option<i64>> = times
                .iter()
                .map(|t| t.map(|t| t.div_euclid(1000)))
                .collect();
            let floats: Vec<f64> = values.iter().map(|v| *v as f64 / 4.0).collect();
            let columns: Vec<(&str, ArrayRef)> = vec![
                ("ts", Arc::new(TimestampMillisecondArray::from(times))),
                ("seconds", Arc::new(TimestampSecondArray::from(seconds))),
                ("k", Arc::new(StringArray::from(keys))),
                ("v", Arc::new(Int64Array::from(values))),
                ("f", Arc::new(Float64Array::from(floats))),
            ];
            vec![RecordBatch::try_from_iter(columns).unwrap()]
        })
        .collect();
    let runtime = session::runtime(1 << 28).unwrap();
    let planner = Planner::new(
        runtime,
        registry::tests::empty(),
        JobScope::new("windows", 0, 2),
    );
    let schema = batches[0][0].schema();
    let table = MemTable::try_new(schema, batches).unwrap();
    planner.ctx.register_table("t", Arc::new(table)).unwrap();
    planner
}

async fn try_rows(planner: &mut Planner, sql: &str) -> essaim_common::Result<String> {
    let statement = parse(sql)?.remove(0);
    let query = planner.query(statement).await?;
    let Execution::Master(plan) = query.execution else {
        panic!("a table in memory is read by the master");
    };
    let plan_text = displayable(plan.as_ref()).indent(false).to_string();
    let ctx = planner.state().task_ctx();
    let schema = plan.schema();
    let mut rows = datafusion::physical_plan::collect(plan, ctx).await?;
    rows.insert(0, RecordBatch::new_empty(schema));
    let text = pretty_format_batches(&rows).unwrap().to_string();
    if std::env::var_os("SHOW_PLANS").is_some() {
        println!("{sql}\n{plan_text}\n{text}");
    }
    Ok(text)
}

async fn rows(planner: &mut Planner, sql: &str) -> String {
    match try_rows(planner, sql).await {
        Ok(rows) => rows,
        Err(error) => panic!("{sql}\n{error}"),
    }
}

async fn error(planner: &mut Planner, sql: &str) -> String {
    match try_rows(planner, sql).await {
        Ok(rows) => panic!("{sql}\n{rows}"),
        Err(error) => error.to_string(),
    }
}

/// `t` with the windows of each row, written out: columns `window_start` and `window_end`.
fn joined(size_s: i64, slide_s: i64) -> String {
    let from = -(3600 / slide_s) * slide_s;
    format!(
        "(SELECT t.*, w.window_start, w.window_end FROM t JOIN (
            SELECT arrow_cast(s * 1000, 'Timestamp(Millisecond, None)') AS window_start,
                   arrow_cast((s + {size_s}) * 1000, 'Timestamp(Millisecond, None)') AS window_end
            FROM (SELECT unnest(range({from}, 3600, {slide_s})) AS s)) w
          ON t.ts >= w.window_start AND t.ts < w.window_end)"
    )
}

#[tokio::test]
async fn windows_hold_what_a_join_with_them_holds() {
    let mut planner = planner();
    let aggregates = "count(*) AS n, sum(v) AS s, min(f) AS lo, max(f) AS hi, avg(v) AS a,
        count(DISTINCT v) AS d, approx_distinct(v) AS ad, round(corr(v, f), 6) AS c,
        round(stddev(v), 6) AS sd, round(var_pop(v), 6) AS vp, median(v) AS m,
        array_sort(array_agg(v)) AS l, bool_or(v > 48) AS b, bit_xor(v) AS x,
        sum(v) FILTER (WHERE v > 10) AS fs, sum(DISTINCT v) AS ds, min(k) AS mk";
    for (size, slide) in [(60, 60), (60, 20), (60, 40), (90, 60), (300, 300), (7, 3)] {
        for keys in ["", ", k"] {
            let windowed = format!(
                "SELECT window_start, window_end{keys}, {aggregates} FROM t
                 GROUP BY window(ts, INTERVAL '{size} seconds', INTERVAL '{slide} seconds'){keys}
                 ORDER BY window_start{keys}"
            );
            let written_out = format!(
                "SELECT window_start, window_end{keys}, {aggregates} FROM {}
                 GROUP BY window_start, window_end{keys} ORDER BY window_start{keys}",
                joined(size, slide)
            );
            let (windowed, written_out) = (
                rows(&mut planner, &windowed).await,
                rows(&mut planner, &written_out).await,
            );
            assert!(windowed.lines().count() >= 8, "{windowed}");
            assert_eq!(windowed, written_out, "{size} {slide} {keys}");
        }
    }
}

#[tokio::test]
async fn one_distinct_aggregate_is_expanded_once() {
    let mut planner = planner();
    let windowed = "SELECT window_start, count(DISTINCT v) AS d FROM t
        GROUP BY window(ts, '1 minute', '20 seconds') ORDER BY 1";
    let written_out = format!(
        "SELECT window_start, count(DISTINCT v) AS d FROM {} GROUP BY window_start ORDER BY 1",
        joined(60, 20)
    );
    let windowed = rows(&mut planner, windowed).await;
    assert_eq!(windowed, rows(&mut planner, &written_out).await);
}

#[tokio::test]
async fn filters_and_limits_see_windows_and_not_panes() {
    let mut planner = planner();
    let windows = joined(60, 20);
    let group = "GROUP BY window(ts, '1 minute', '20 seconds')";
    let bound = "TIMESTAMP '1970-01-01T00:01:00'";
    for (windowed, written_out) in [
        (
            format!("SELECT window_start, count(*) AS n FROM t {group}
                     HAVING window_start >= {bound} AND count(*) > 3 ORDER BY window_start"),
            format!("SELECT window_start, count(*) AS n FROM {windows} GROUP BY window_start
                     HAVING window_start >= {bound} AND count(*) > 3 ORDER BY window_start"),
        ),
        (
            format!("SELECT window_end, n FROM (SELECT window_start, window_end, count(*) AS n FROM t {group})
                     WHERE window_end = {bound}"),
            format!("SELECT window_end, count(*) AS n FROM {windows} WHERE window_end = {bound}
                     GROUP BY window_end"),
        ),
        (
            format!("SELECT count(*) AS n FROM (SELECT window_start FROM t {group} LIMIT 10)"),
            "SELECT 10 AS n".to_owned(),
        ),
        (
            format!("SELECT max(v) AS m FROM t {group} ORDER BY max(v) DESC LIMIT 4"),
            format!("SELECT max(v) AS m FROM {windows} GROUP BY window_start ORDER BY m DESC LIMIT 4"),
        ),
        (
            format!("SELECT window_start FROM t {group} ORDER BY window_start LIMIT 4"),
            format!("SELECT DISTINCT window_start FROM {windows} ORDER BY window_start LIMIT 4"),
        ),
    ] {
        let left = rows(&mut planner, &windowed).await;
        assert_eq!(left, rows(&mut planner, &written_out).await, "{windowed}");
    }
}

#[tokio::test]
async fn a_window_can_be_named_in_many_ways() {
    let mut planner = planner();
    let expected = rows(
        &mut planner,
        "SELECT window_start, window_end, k, count(*) AS n FROM t
         GROUP BY window(ts, INTERVAL '1 minute'), k ORDER BY window_start, k",
    )
    .await;
    for sql in [
        "SELECT window.start AS window_start, window.end AS window_end, k, count(*) AS n FROM t
         GROUP BY window(ts, '1 minute'), k ORDER BY window.start, k",
        "SELECT window_start, window_end, k, count(*) AS n FROM t
         GROUP BY WINDOW(ts, '60 seconds'), 1, 2, 3 ORDER BY 1, 3",
        "SELECT Window_Start, window_end, k, count(*) AS n FROM t
         GROUP BY k, window(t.ts, '1 minute', '1 minute'), window_start, window_end ORDER BY 1, k",
        "WITH w AS (SELECT window_start, window_end, k, count(*) AS n FROM t
         GROUP BY window(ts, '1 minute'), k) SELECT * FROM w ORDER BY window_start, w.k",
        "SELECT * FROM (SELECT window_start, window_end, k, count(*) AS n FROM t
         GROUP BY window(ts, '1 minute'), k) AS w WHERE window_start < window_end ORDER BY window_start, w.k",
    ] {
        assert_eq!(rows(&mut planner, sql).await, expected, "{sql}");
    }
    let names = rows(
        &mut planner,
        "SELECT window.start, window.end, count(*) FROM t GROUP BY window(ts, '1 year') ORDER BY window_end",
    )
    .await;
    assert!(
        names.contains("| start               | end                 | count(*) |"),
        "{names}"
    );
    assert!(
        names.contains("| 1969-01-01T00:00:00 | 1970-01-01T00:00:00 |"),
        "{names}"
    );
    assert!(
        names.contains("| 1970-01-01T00:00:00 | 1971-01-01T00:00:00 |"),
        "{names}"
    );
}

#[tokio::test]
async fn a_view_over_windows_is_windowed_again() {
    let mut planner = planner();
    let view = "CREATE VIEW by_minute AS SELECT window_start, window_end, sum(v) AS s FROM t
        GROUP BY window(ts, '1 minute')";
    planner
        .set_up(parse(view).unwrap().remove(0))
        .await
        .unwrap();
    let again = rows(
        &mut planner,
        "SELECT window_start, window_end, sum(s) AS s FROM by_minute
         GROUP BY window(by_minute.window_start, '10 minutes', '5 minutes') ORDER BY 1",
    )
    .await;
    let at_once = rows(
        &mut planner,
        "SELECT window_start, window_end, sum(v) AS s FROM t
         GROUP BY window(ts, '10 minutes', '5 minutes') ORDER BY 1",
    )
    .await;
    assert_eq!(again, at_once);
    let column = rows(
        &mut planner,
        "SELECT window_start, sum(s) AS s FROM by_minute GROUP BY window_start ORDER BY window_start LIMIT 1",
    )
    .await;
    assert!(column.contains("1969-12-31T23:50:00"), "{column}");
}

#[tokio::test]
async fn events_closer_than_the_gap_are_one_session() {
    let mut planner = planner();
    for (keys, partition) in [("", ""), (", k", "PARTITION BY k")] {
        let sessions = format!(
            "SELECT window_start, window_end{keys}, count(*) AS n, sum(v) AS s, count(DISTINCT v) AS d FROM t
             GROUP BY session_window(ts, INTERVAL '8 seconds'){keys} ORDER BY window_start{keys}"
        );
        let written_out = format!(
            "SELECT min(ts) AS window_start, max(ts) + INTERVAL '8 seconds' AS window_end{keys},
                 count(*) AS n, sum(v) AS s, count(DISTINCT v) AS d
             FROM (SELECT *, sum(CASE WHEN before IS NULL OR ts >= before + INTERVAL '8 seconds' THEN 1 ELSE 0 END)
                 OVER ({partition} ORDER BY ts ROWS UNBOUNDED PRECEDING) AS session
               FROM (SELECT *, lag(ts) OVER ({partition} ORDER BY ts) AS before FROM t WHERE ts IS NOT NULL))
             GROUP BY session{keys} ORDER BY window_start{keys}"
        );
        let sessions = rows(&mut planner, &sessions).await;
        assert!(sessions.lines().count() > 20, "{sessions}");
        assert_eq!(sessions, rows(&mut planner, &written_out).await);
    }
}

#[tokio::test]
async fn what_cannot_be_a_window_is_named() {
    let mut planner = planner();
    for (group, message) in [
        ("window(ts)", "write window(ts, INTERVAL '1 minute')"),
        ("window(ts, '0 seconds')", "longer than 0"),
        ("window(ts, '1 minute', '2 minutes')", "the slide is longer"),
        ("window(ts, '1 month', '1 day')", "mix months with shorter"),
        ("window(v, '1 minute')", "must be a timestamp, not BIGINT"),
        ("window(ts, k)", "must be literals"),
        ("window(ts, 'often')", "which is no interval"),
        (
            "window(seconds, '1500 milliseconds')",
            "over a timestamp in seconds",
        ),
        (
            "window(ts, '1 minute'), window(ts, '2 minutes')",
            "groups by one window",
        ),
        (
            "ROLLUP(window(ts, '1 minute'), k)",
            "an item of GROUP BY by itself",
        ),
        (
            "date_trunc('hour', window(ts, '1 minute'))",
            "an item of GROUP BY by itself",
        ),
        ("session_window(ts, '1 month')", "the gap is in months"),
        (
            "session_window(ts, '1 minute', '1 minute')",
            "write session_window(",
        ),
    ] {
        let sql = format!("SELECT count(*) FROM t GROUP BY {group}");
        let error = error(&mut planner, &sql).await;
        assert!(error.contains(message), "{sql}\n{error}");
    }
    for (sql, message) in [
        (
            "SELECT window(ts, '1 minute') FROM t",
            "an item of GROUP BY by itself",
        ),
        (
            "SELECT v FROM t WHERE window(ts, '1 minute') IS NULL",
            "an item of GROUP BY by itself",
        ),
        (
            "SELECT max(window_start) FROM t GROUP BY window(ts, '1 minute')",
            "inside an aggregate",
        ),
        (
            "SELECT window_start FROM t GROUP BY k",
            "GROUP BY window(ts, INTERVAL '1 minute')",
        ),
    ] {
        let error = error(&mut planner, sql).await;
        assert!(error.contains(message), "{sql}\n{error}");
    }
}
