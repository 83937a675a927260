//! Generated rows on a real cluster: in batch and as a stream, the same rows whoever makes them.

use anyhow::Result;
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, MEMORY, shared};
use essaim_tests::command::essaim;
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::sql::{integers, rows};
use essaim_tests::{SOON, unique, wait_for};
use serde_json::json;

/// Events of devices with 0 to 3 readings each, over a generator `numbers`.
const DEVICES: &str = "CREATE VIEW devices AS
  SELECT value, uuid_of(seed, 'event') AS event_id,
         CASE WHEN uniform(0.0, 1.0, seed, 'customer') >= 0.1 THEN 'customer ' || uniform(1, 20, seed, 'name') END AS customer,
         array_slice([
           named_struct('device_id', uuid_of(seed, 'device', 1), 'temperature', uniform(-5, 40, seed, 'temperature', 1)),
           named_struct('device_id', uuid_of(seed, 'device', 2), 'temperature', uniform(-5, 40, seed, 'temperature', 2)),
           named_struct('device_id', uuid_of(seed, 'device', 3), 'temperature', uniform(-5, 40, seed, 'temperature', 3))
         ], 1, uniform(0, 3, seed, 'devices')) AS readings
  FROM numbers;\n";

fn batch(options: &str) -> String {
    format!("CREATE EXTERNAL TABLE numbers STORED AS GENERATOR LOCATION '' OPTIONS ({options});\n")
}

fn unbounded(options: &str) -> String {
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE numbers STORED AS GENERATOR LOCATION '' OPTIONS ({options});\n"
    )
}

#[tokio::test]
async fn a_batch_holds_what_postgres_computes() -> Result<()> {
    let database = Database::create().await?;
    let client = shared().await?.client().await?;
    let sql = [
        batch(
            "number_of_rows '100000', rows_per_second '3', start_time '2026-01-01 00:00:00', seed '7'",
        ),
        database.declare("copies", "copies", ""),
        "INSERT INTO copies SELECT value, timestamp, seed, uniform(1, 6, seed, 'dice') AS dice FROM numbers;".to_owned(),
    ]
    .concat();
    let job = client.run_job(&sql, &unique("generator")).await?;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.message);
    let wrong = "WITH wanted AS (
                   SELECT n AS value, timestamp '2026-01-01' + n / 3 * interval '1 second' + n % 3 * 1000000 / 3 * interval '1 microsecond' AS at
                   FROM generate_series(0::bigint, 99999) n)
                 SELECT count(*) FROM wanted FULL JOIN copies USING (value) WHERE at IS DISTINCT FROM timestamp";
    assert_eq!(database.value(wrong).await?, "0");
    let seeds = "SELECT count(*) || ' ' || count(DISTINCT seed) FROM copies";
    assert_eq!(database.value(seeds).await?, "100000 100000");
    // 100,000 throws: the standard deviation of each count is 118.
    let dice = "SELECT string_agg(dice::text, '' ORDER BY dice) || ' ' || max(abs(n - 16667)) FROM (SELECT dice, count(*) AS n FROM copies GROUP BY dice) d";
    let found = database.value(dice).await?;
    let off = found.strip_prefix("123456 ").map(str::parse::<i64>);
    assert!(matches!(off, Some(Ok(..600))), "{found}");
    Ok(())
}

#[tokio::test]
async fn equal_seeds_give_equal_rows_however_they_are_cut() -> Result<()> {
    let client = shared().await?.client().await?;
    let answer = async |seed: i64, splits: i64| -> Result<_> {
        let sql = [
            format!("SET essaim.splits_per_slot = {splits};\n"),
            batch(&format!("number_of_rows '5000', seed '{seed}'")),
            DEVICES.to_owned(),
            "SELECT value, event_id, customer, readings FROM devices ORDER BY value".to_owned(),
        ]
        .concat();
        rows(&client.query(&sql).await?)
    };
    let first = answer(7, 1).await?;
    assert_eq!(first.len(), 5000);
    assert!(first == answer(7, 13).await?);
    let other = answer(8, 1).await?;
    let equal = first.iter().zip(&other).filter(|(a, b)| a[1] == b[1]);
    assert_eq!(equal.count(), 0);
    let nulls = first.iter().filter(|row| row[2].is_none()).count();
    assert!((400..600).contains(&nulls), "{nulls} of 5000 are null");
    Ok(())
}

#[tokio::test]
async fn a_stream_gives_each_number_once_though_workers_and_master_die() -> Result<()> {
    let topic = Topic::create(2).await?;
    let mut cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    let sql = [
        unbounded("rows_per_second '2000', number_of_rows '10000', seed '7'"),
        topic.declare("numbers_topic", "value BIGINT, at BIGINT, seed BIGINT"),
        "SET essaim.trigger = '50 milliseconds';
         INSERT INTO numbers_topic (value, at, seed) SELECT value, CAST(timestamp AS BIGINT), seed FROM numbers;"
            .to_owned(),
    ]
    .concat();
    let job = client.submit(&sql, &unique("generator")).await?;
    let count = [
        topic.declare("copies", "value BIGINT, at BIGINT, seed BIGINT"),
        "SELECT count(*), count(DISTINCT value), count(DISTINCT at - value * 500), min(value), max(value) FROM copies".to_owned(),
    ]
    .concat();
    let holds = async |cluster: &Cluster, least: i64| {
        let client = cluster.client().await?;
        wait_for(&format!("{least} numbers"), SOON, async || {
            let found = client.query(&count).await?;
            let count = integers(&found, 0)?;
            Ok((count[0] >= least).then_some(found))
        })
        .await
    };
    holds(&cluster, 500).await?;
    cluster.kill_worker(0);
    holds(&cluster, 2500).await?;
    cluster.kill_master();
    cluster.restart_master().await?;
    cluster.add_worker(2, MEMORY).await?;
    let found = holds(&cluster, 10_000).await?;
    let column = |column| integers(&found, column);
    assert_eq!((column(0)?, column(1)?), (vec![10_000], vec![10_000]));
    // Every time is that of the first row and 500 µs for each since.
    assert_eq!(column(2)?, [1]);
    assert_eq!((column(3)?, column(4)?), (vec![0], vec![9999]));
    // The seeds are those of a batch.
    let seeds = [
        topic.declare("copies", "value BIGINT, seed BIGINT"),
        batch("number_of_rows '10000', seed '7'"),
        "SELECT count(*) FROM copies JOIN numbers ON copies.value = numbers.value AND copies.seed = numbers.seed".to_owned(),
    ]
    .concat();
    let client = cluster.client().await?;
    assert_eq!(integers(&client.query(&seeds).await?, 0)?, [10_000]);
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

#[tokio::test]
async fn rows_come_at_their_rate_and_close_windows() -> Result<()> {
    let database = Database::create().await?;
    let client = shared().await?.client().await?;
    let sql = [
        unbounded("rows_per_second '200'"),
        database.declare("windows", "windows", ""),
        "SET essaim.trigger = '50 milliseconds';
         SET essaim.output_mode = 'append';
         INSERT INTO windows SELECT window_start, count(*) AS events, min(value) AS first
           FROM numbers GROUP BY window(timestamp, INTERVAL '500 milliseconds');"
            .to_owned(),
    ]
    .concat();
    let job = client.submit(&sql, &unique("generator")).await?;
    wait_for("four closed windows", SOON, async || {
        let closed = database.value("SELECT count(*) >= 4 FROM windows").await?;
        Ok((closed == "t").then_some(()))
    })
    .await?;
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    // The first one began before the job did.
    let whole = "SELECT string_agg(DISTINCT events::text, ' ') FROM windows WHERE first > 0";
    assert_eq!(database.value(whole).await?, "100");
    Ok(())
}

#[tokio::test]
async fn lists_of_structs_are_taken_apart_in_a_stream_as_in_a_batch() -> Result<()> {
    let database = Database::create().await?;
    let client = shared().await?.client().await?;
    let flat = "SELECT value, event_id, customer, reading['device_id'] AS device_id, reading['temperature'] AS temperature
                FROM (SELECT value, event_id, customer, unnest(readings) AS reading FROM devices)";
    let sql = [
        unbounded("rows_per_second '100000', number_of_rows '4000', seed '3'"),
        DEVICES.to_owned(),
        database.declare("readings", "readings", ""),
        format!("INSERT INTO readings {flat};"),
    ]
    .concat();
    let job = client.submit(&sql, &unique("generator")).await?;
    let wanted = [
        batch("number_of_rows '4000', seed '3'"),
        DEVICES.to_owned(),
        format!("{flat} ORDER BY value, device_id"),
    ]
    .concat();
    let wanted = rows(&client.query(&wanted).await?)?;
    assert!((5500..6500).contains(&wanted.len()), "{}", wanted.len());
    let found = wait_for("all readings", SOON, async || {
        let sql = "SELECT value, event_id, customer, device_id, temperature FROM readings ORDER BY value, device_id COLLATE \"C\"";
        let found = database.rows(sql).await?;
        Ok((found.len() >= wanted.len()).then_some(found))
    })
    .await?;
    assert!(found == wanted);
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_when_it_is_submitted() -> Result<()> {
    let client = shared().await?.client().await?;
    for (sql, parts) in [
        (
            "CREATE EXTERNAL TABLE t (a INT) STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '1'); SELECT * FROM t",
            ["table t", "leave the columns out"],
        ),
        (
            "CREATE EXTERNAL TABLE t STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '1');
             CREATE VIEW v AS SELECT uniform(1, 6, sed) AS dice FROM t; SELECT * FROM v",
            ["sed", "t.seed"],
        ),
        (
            "CREATE EXTERNAL TABLE t STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '1');
             SELECT uniform(1, 6) FROM t",
            ["uniform()", "needs a seed"],
        ),
    ] {
        let status = client.query_error(sql).await?;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        for part in parts {
            assert!(status.message().contains(part), "{}", status.message());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_check_has_nothing_to_say_of_a_stream_and_knows_what_is_due() -> Result<()> {
    let sql = [
        unbounded("rows_per_second '1'"),
        "CREATE EXTERNAL TABLE shown STORED AS CONSOLE LOCATION '';
         INSERT INTO shown SELECT uniform(1, 6, seed) FROM numbers;"
            .to_owned(),
    ]
    .concat();
    let cluster = shared().await?;
    let file = cluster.dir().join(unique("job")).with_extension("sql");
    std::fs::write(&file, sql)?;
    let arguments = ["check", "--json", &file.to_string_lossy()];
    let found = essaim(&cluster.url(), &arguments).await?.json()?;
    assert_eq!(found["findings"], json!([]), "{found:#}");
    let estimate = &found["estimates"][0];
    let told = ["table", "connector", "rows"].map(|name| &estimate[name]);
    assert_eq!(told, [&json!("numbers"), &json!("GENERATOR"), &json!(1)]);
    Ok(())
}

#[tokio::test]
async fn numbers_with_a_point_are_exact_and_give_way_to_doubles() -> Result<()> {
    let client = shared().await?.client().await?;
    let values = "CREATE VIEW t AS SELECT value, CAST(value AS DOUBLE) * 1e20 AS d, CAST(value AS DECIMAL(10, 2)) AS m FROM numbers;\n";
    let declared = batch("number_of_rows '3'") + values;
    for (expression, wanted) in [
        ("sum(0.1 + 0.2)", "0.9"),
        ("bool_and(0.1 + 0.2 = 0.3)", "true"),
        ("max(19.99 * 1.2)", "23.988"),
        ("max(m * 1.2)", "2.400"),
        ("max(20.00 / 3)", "6.6666666666"),
        // What a unit is converted with must not be cut off.
        ("max(value / 1000000.0)", "0.0000020000"),
        ("max(1.0 * value / 3)", "0.6666666666"),
        ("arrow_typeof(max(1e-9))", "Float64"),
        ("max(1e-9 * value)", "2e-9"),
        ("max(-1.5e3)", "-1500.0"),
        // Far beyond a DECIMAL(30, 15).
        ("count(*) FILTER (WHERE d > 0.5)", "2"),
        (
            "count(*) FILTER (WHERE d BETWEEN 0.5 AND 1.5 + value * 1e20)",
            "2",
        ),
        ("count(*) FILTER (WHERE d IN (0.0, 0.5))", "1"),
        ("count(*) FILTER (WHERE d > m)", "2"),
        ("sum(CASE WHEN d > 1e20 THEN d ELSE 0.5 END)", "2e20"),
        ("max(coalesce(nullif(d, 0.0), 0.25))", "2e20"),
        ("approx_percentile_cont(value, 0.5)", "1.0"),
        (
            "approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY value)",
            "1.0",
        ),
        ("max(ceil(0.5))", "1.0"),
        ("max(power(1.5, value))", "2.25"),
        ("max(uniform(0.25, 0.25, value))", "0.25"),
    ] {
        for execution in ["tasks", "master"] {
            let sql = format!(
                "SET essaim.execution = '{execution}';\n{declared}SELECT CAST({expression} AS VARCHAR) FROM t"
            );
            let found = rows(&client.query(&sql).await?)?;
            let wanted = [[Some(wanted.to_owned())]];
            assert_eq!(found, wanted, "{expression}, {execution}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_setting_is_shown_and_reset_with_and_without_its_prefix() -> Result<()> {
    let client = shared().await?.client().await?;
    for name in ["essaim.max_attempts", "max_attempts", "ESSAIM.Max_Attempts"] {
        for (sql, wanted) in [
            (format!("SET {name} = 2; SHOW {name}"), "2"),
            (format!("SET {name} = 2; RESET {name}; SHOW {name}"), "4"),
        ] {
            let shown = rows(&client.query(&sql).await?)?;
            let wanted = [["max_attempts", wanted].map(|text| Some(text.to_owned()))];
            assert_eq!(shown, wanted, "{sql}");
        }
    }
    // To what a session begins with, which is not what DataFusion does.
    let sql = "SET datafusion.sql_parser.parse_float_as_decimal = false; RESET datafusion.sql_parser.parse_float_as_decimal; SELECT arrow_typeof(0.5)";
    let found = rows(&client.query(sql).await?)?;
    assert_eq!(found, [[Some("Decimal128(1, 1)".to_owned())]]);
    Ok(())
}
