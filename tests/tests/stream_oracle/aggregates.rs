//! Aggregates of every kind keep their state over epochs: the same query over the topic as a batch says the same.

use crate::events::{COLUMNS, Event, FORWARD, Feed, MINUTE, SECOND};
use crate::run::{Run, same};
use anyhow::Result;
use essaim_tests::cluster::shared;
use essaim_tests::postgres::Database;
use essaim_tests::unique;

/// In Essaim's SQL, each with the PostgreSQL expression that says the same, if it has one.
const AGGREGATES: &[(&str, &str, Option<&str>)] = &[
    ("n", "count(*)", Some("count(*)")),
    ("s", "sum(v)", Some("sum(v)")),
    ("fs", "sum(f)", Some("sum(f)")),
    ("a", "avg(v)", Some("avg(v)")),
    ("lo", "min(f)", Some("min(f)")),
    ("hi", "max(at)", Some("max(at)")),
    ("text_lo", "min(t)", Some("min(t)")),
    ("d", "count(DISTINCT v % 7)", Some("count(DISTINCT v % 7)")),
    ("sd", "sum(DISTINCT v % 7)", Some("sum(DISTINCT v % 7)")),
    ("ad", "approx_distinct(v)", None),
    ("std", "stddev(f)", Some("stddev(f)")),
    ("stdp", "stddev_pop(f)", Some("stddev_pop(f)")),
    ("var", "var_samp(f)", Some("var_samp(f)")),
    ("c", "corr(v, f)", Some("corr(v, f)")),
    ("cov", "covar_pop(v, f)", Some("covar_pop(v, f)")),
    ("slope", "regr_slope(f, v)", Some("regr_slope(f, v)")),
    (
        "med",
        "median(f)",
        Some("percentile_cont(0.5) WITHIN GROUP (ORDER BY f)"),
    ),
    (
        "p90",
        "percentile_cont(0.9) WITHIN GROUP (ORDER BY f)",
        Some("percentile_cont(0.9) WITHIN GROUP (ORDER BY f)"),
    ),
    (
        "list",
        "array_sort(array_agg(v))",
        Some("array_agg(v ORDER BY v)"),
    ),
    (
        "texts",
        "array_to_string(array_sort(string_to_array(string_agg(t, ','), ',')), ',')",
        Some("string_agg(t, ',' ORDER BY t COLLATE \"C\")"),
    ),
    (
        "ordered",
        "string_agg(t, ',' ORDER BY id)",
        Some("string_agg(t, ',' ORDER BY id)"),
    ),
    ("b", "bool_and(v > 20)", Some("bool_and(v > 20)")),
    ("o", "bool_or(v > 280)", Some("bool_or(v > 280)")),
    ("x", "bit_xor(v)", Some("bit_xor(v)")),
    (
        "filtered",
        "sum(v) FILTER (WHERE v % 2 = 0)",
        Some("sum(v) FILTER (WHERE v % 2 = 0)"),
    ),
    (
        "first",
        "first_value(v ORDER BY id)",
        Some("(array_agg(v ORDER BY id))[1]"),
    ),
    (
        "last",
        "last_value(v ORDER BY f, id)",
        Some("(array_agg(v ORDER BY f DESC, id DESC))[1]"),
    ),
];

/// Columns to compare: floats without their last digits.
const COMPARED: &str = "window_start, k, n, s, round(fs::numeric, 6), round(a::numeric, 6), round(lo::numeric, 6), hi,
    text_lo, d, sd, round(std::numeric, 6), round(stdp::numeric, 6), round(var::numeric, 6), round(c::numeric, 6),
    round(cov::numeric, 4), round(slope::numeric, 6), round(med::numeric, 6), round(p90::numeric, 4), list, texts,
    ordered, b, o, x, filtered, first, last";

#[tokio::test]
async fn every_aggregate_keeps_its_state_over_epochs() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    let selected = |postgres: bool| {
        let columns = AGGREGATES.iter().filter_map(|(name, essaim, theirs)| {
            let expression = if postgres { (*theirs)? } else { essaim };
            Some(format!("{expression} AS {name}"))
        });
        columns.collect::<Vec<_>>().join(", ")
    };
    // A minute, and six of ten seconds each.
    for (table, window) in [
        ("tumbling", "window(at, '1 minute')"),
        ("sliding", "window(at, '1 minute', '20 seconds')"),
    ] {
        let insert = |into: &str| {
            format!(
                "INSERT INTO {into} SELECT window_start, k, {} FROM (SELECT *, 't' || id AS t FROM events)
                 GROUP BY {window}, k;",
                selected(false)
            )
        };
        let streaming = [
            feed.declare(10 * SECOND, ", max_offsets_per_trigger '37'"),
            database.declare(table, table, ", mode 'upsert', key 'window_start,k'"),
            insert(table),
        ]
        .concat();
        let run = Run::start(&streaming).await?;
        let from = feed.sent.iter().map(Vec::len).sum::<usize>() as i64;
        for chunk in 0..5 {
            let events = (from + 30 * chunk..from + 30 * (chunk + 1)).map(|id| {
                // The windows of the second round are of the first one's rows too.
                let at = FORWARD - MINUTE + id % 150 * SECOND;
                (id as usize % 2, Event::new(id, at - id % 7 * SECOND))
            });
            feed.send(events.collect()).await?;
            run.drained(&feed).await?;
        }
        let epochs = run.epochs().await?.len();
        anyhow::ensure!(epochs >= 5, "{epochs} epochs");
        run.cancel().await?;

        let batch = format!("{table}_batch");
        let sql = [
            feed.topic.declare("events", COLUMNS),
            database.declare(&batch, &batch, ""),
            insert(&batch),
        ]
        .concat();
        let client = shared().await?.client().await?;
        client.run_job(&sql, &unique("batch")).await?;
        let compared = |table: &str| format!("SELECT {COMPARED} FROM {table}");
        same(
            &database,
            &format!("SELECT {COMPARED}, ad FROM {table}"),
            &format!("SELECT {COMPARED}, ad FROM {batch}"),
        )
        .await?;
        let loaded = format!("events_{table}");
        feed.load(&database, &loaded).await?;
        let windows = if table == "tumbling" {
            crate::windows::Windows::Millis(MINUTE, MINUTE)
        } else {
            crate::windows::Windows::Millis(MINUTE, 20 * SECOND)
        };
        let postgres = format!(
            "(SELECT window_start, k, {} FROM (SELECT *, 't' || id AS t FROM {} w) e GROUP BY window_start, k) q",
            selected(true),
            windows.joined(&loaded)
        );
        same(&database, &compared(table), &compared(&postgres)).await?;
        // The next table begins where this one ends, with all of the topic.
    }
    Ok(())
}

#[tokio::test]
async fn groups_without_a_window_are_updated() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    let sql = [
        feed.declare_as("events", ""),
        database.declare("by_key", "by_key", ", mode 'upsert', key 'k'"),
        database.declare("firsts", "firsts", ", mode 'upsert', key 'k'"),
        database.declare("total", "total", ", mode 'overwrite'"),
        "INSERT INTO by_key SELECT k, count(*) AS n, max(id) AS hi FROM events GROUP BY k HAVING count(*) > 3;
         INSERT INTO firsts SELECT k, first_value(v ORDER BY id DESC) AS latest FROM events GROUP BY k;
         SET essaim.output_mode = 'complete';
         INSERT INTO total SELECT count(*) AS n, sum(v) AS s FROM events;"
            .to_owned(),
    ]
    .concat();
    let run = Run::start(&sql).await?;
    for chunk in 0..4 {
        let events =
            (5 * chunk..5 * (chunk + 1)).map(|id| (id as usize % 2, Event::new(id, FORWARD)));
        feed.send(events.collect()).await?;
        run.drained(&feed).await?;
        let table = format!("events_{chunk}");
        feed.load(&database, &table).await?;
        let wanted = format!(
            "SELECT k, count(*) AS n, max(id) AS hi FROM {table} GROUP BY k HAVING count(*) > 3"
        );
        same(&database, "SELECT k, n, hi FROM by_key", &wanted).await?;
        let wanted = format!("SELECT count(*) AS n, sum(v) AS s FROM {table}");
        same(&database, "SELECT n, s FROM total", &wanted).await?;
        let wanted =
            format!("SELECT k, (array_agg(v ORDER BY id DESC))[1] FROM {table} GROUP BY k");
        same(&database, "SELECT k, latest FROM firsts", &wanted).await?;
    }
    run.cancel().await
}
