//! Streaming jobs on a real cluster: windows into Postgres, and nothing lost or repeated whatever dies.

use anyhow::Result;
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::json;

const COLUMNS: &str = "id BIGINT, at TIMESTAMP, kind VARCHAR, amount BIGINT";

/// A stream of events with the time in `at`.
fn declare(topic: &Topic, options: &str) -> String {
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE events ({COLUMNS}) STORED AS KAFKA LOCATION '{}'
         OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds'{options});\n",
        topic.location()
    )
}

/// Event number `n`: one a second from 2026-01-01 on.
fn event(n: i64) -> String {
    let at = 1_767_225_600_000_i64 + n * 1000;
    json!({"id": n, "at": at, "kind": format!("kind {}", n % 5), "amount": n}).to_string()
}

async fn produce(topic: &Topic, from: i64, to: i64) -> Result<()> {
    topic.produce((from..to).map(event)).await?;
    Ok(())
}

/// Waits until a query of the database yields this text.
async fn until(database: &Database, sql: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    let outcome = wait_for(&format!("{sql} = {wanted}"), SOON, async || {
        last = database.value(sql).await.unwrap_or_else(|e| e.to_string());
        Ok((last == wanted).then_some(()))
    })
    .await;
    outcome.map_err(|e| e.context(format!("it is {last}")))
}

#[tokio::test]
async fn windows_are_updated_in_postgres_as_rows_come() -> Result<()> {
    let topic = Topic::create(3).await?;
    let database = Database::create().await?;
    produce(&topic, 0, 1000).await?;
    let sql = [
        declare(&topic, ""),
        database.declare(
            "per_minute",
            "per_minute",
            ", mode 'upsert', key 'window_start,kind'",
        ),
        "SET essaim.trigger = '100 milliseconds';
         INSERT INTO per_minute
           SELECT window_start, window_end, kind, count(*) AS events, sum(amount) AS total
           FROM events GROUP BY window(at, INTERVAL '1 minute'), kind;"
            .to_owned(),
    ]
    .concat();
    let client = shared().await?.client().await?;
    let name = unique("stream");
    let job = client.submit(&sql, &name).await?;
    until(
        &database,
        "SELECT coalesce(sum(events), 0) FROM per_minute",
        "1000",
    )
    .await?;
    produce(&topic, 1000, 1500).await?;
    until(&database, "SELECT sum(events) FROM per_minute", "1500").await?;
    let total: i64 = (0..1500).sum();
    until(
        &database,
        "SELECT sum(total) FROM per_minute",
        &total.to_string(),
    )
    .await?;
    let windows = database
        .value("SELECT count(DISTINCT window_start) FROM per_minute")
        .await?;
    assert_eq!(windows, "25");
    let wrong =
        "SELECT count(*) FROM per_minute WHERE window_end - window_start <> interval '1 minute'";
    assert_eq!(database.value(wrong).await?, "0");
    client.cancel(&job).await?;
    assert_eq!(client.wait_job(&job).await?.state(), JobState::Cancelled);
    Ok(())
}

#[tokio::test]
async fn a_joined_table_that_is_analysed_while_the_job_runs_does_no_harm() -> Result<()> {
    let topic = Topic::create(2).await?;
    let database = Database::create().await?;
    // A table without statistics: the planner knows nothing of its size.
    database
        .execute(
            "CREATE TABLE kinds (name text, label text);
             INSERT INTO kinds SELECT 'kind ' || n, 'label ' || n % 2 FROM generate_series(0, 4) n",
        )
        .await?;
    produce(&topic, 0, 100).await?;
    let sql = [
        declare(&topic, ""),
        database.declare("kinds", "kinds", ""),
        database.declare(
            "totals",
            "totals",
            ", mode 'upsert', key 'window_start,label'",
        ),
        "SET essaim.trigger = '100 milliseconds';
         SET essaim.table_refresh = '0';
         INSERT INTO totals
           SELECT window_start, label, count(*) AS events
           FROM events JOIN kinds ON kinds.name = events.kind
           GROUP BY window(at, INTERVAL '1 hour'), label;"
            .to_owned(),
    ]
    .concat();
    let client = shared().await?.client().await?;
    let job = client.submit(&sql, &unique("analysed")).await?;
    let counted = "SELECT coalesce(sum(events), 0) FROM totals";
    until(&database, counted, "100").await?;
    database.execute("ANALYZE kinds").await?;
    produce(&topic, 100, 200).await?;
    until(&database, counted, "200").await?;
    // Larger than the stream, and larger than before.
    database
        .execute(
            "INSERT INTO kinds SELECT 'other ' || n, 'none' FROM generate_series(1, 50000) n;
             ANALYZE kinds",
        )
        .await?;
    produce(&topic, 200, 300).await?;
    until(&database, counted, "300").await?;
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}

#[tokio::test]
async fn two_tables_over_one_topic_have_event_times_of_their_own() -> Result<()> {
    let topic = Topic::create(2).await?;
    let database = Database::create().await?;
    let table = |name: &str, event_time: &str| {
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE {name} (at TIMESTAMP, booked TIMESTAMP) STORED AS KAFKA LOCATION '{}'
             OPTIONS (format 'json', event_time '{event_time}', watermark_delay '10 seconds');\n",
            topic.location()
        )
    };
    let count = |stream: &str, event_time: &str| {
        format!(
            "INSERT INTO {stream}_counts SELECT window_start, count(*) AS events
             FROM {stream} GROUP BY window({event_time}, INTERVAL '1 minute');\n"
        )
    };
    let key = ", mode 'upsert', key 'window_start'";
    let sql = [
        table("seen", "at"),
        table("paid", "booked"),
        database.declare("seen_counts", "seen_counts", key),
        database.declare("paid_counts", "paid_counts", key),
        "SET essaim.trigger = '100 milliseconds';\n".to_owned(),
        count("seen", "at"),
        count("paid", "booked"),
    ]
    .concat();
    // Booked a day later: by that time every row is late by the other.
    let event = |n: i64| {
        let at = 1_767_225_600_000_i64 + n * 1000;
        json!({"at": at, "booked": at + 86_400_000}).to_string()
    };
    let client = shared().await?.client().await?;
    let job = client.submit(&sql, &unique("two-times")).await?;
    for to in [100, 200, 300] {
        topic.produce((to - 100..to).map(event)).await?;
        for table in ["seen_counts", "paid_counts"] {
            let counted = format!("SELECT coalesce(sum(events), 0) FROM {table}");
            until(&database, &counted, &to.to_string()).await?;
        }
    }
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}

#[tokio::test]
async fn appended_windows_are_written_once_when_they_close() -> Result<()> {
    let topic = Topic::create(2).await?;
    let database = Database::create().await?;
    produce(&topic, 0, 600).await?;
    let sql = [
        declare(&topic, ""),
        database.declare("closed", "closed", ""),
        "INSERT INTO closed
           SELECT window_start, count(*) AS events
           FROM events GROUP BY window(at, INTERVAL '1 minute');"
            .to_owned(),
    ]
    .concat();
    let client = shared().await?.client().await?;
    let job = client.submit(&sql, &unique("append")).await?;
    // The last event is at 599 s, the watermark 10 s behind: nine minutes are over.
    until(&database, "SELECT count(*) FROM closed", "9").await?;
    produce(&topic, 600, 700).await?;
    until(&database, "SELECT count(*) FROM closed", "11").await?;
    let wrong = "SELECT count(*) FROM closed WHERE events <> 60";
    assert_eq!(database.value(wrong).await?, "0");
    client.cancel(&job).await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_master_goes_on_where_it_was() -> Result<()> {
    let topic = Topic::create(4).await?;
    let database = Database::create().await?;
    let mut cluster = Cluster::start(2, 2).await?;
    let sql = [
        declare(&topic, ", max_offsets_per_trigger '500'"),
        database.declare(
            "per_minute",
            "per_minute",
            ", mode 'upsert', key 'window_start,kind'",
        ),
        database.declare("raw", "raw", ""),
        "INSERT INTO per_minute
           SELECT window_start, kind, count(*) AS events, sum(amount) AS total
           FROM events GROUP BY window(at, INTERVAL '1 minute'), kind;
         INSERT INTO raw SELECT id, kind FROM events WHERE amount % 2 = 0;"
            .to_owned(),
    ]
    .concat();
    produce(&topic, 0, 5000).await?;
    let client = cluster.client().await?;
    let job = client.submit(&sql, &unique("kill")).await?;
    until(&database, "SELECT sum(events) >= 1000 FROM per_minute", "t").await?;
    cluster.kill_master();
    cluster.restart_master().await?;
    cluster.kill_worker(0);
    produce(&topic, 5000, 8000).await?;
    until(&database, "SELECT sum(events) FROM per_minute", "8000").await?;
    until(&database, "SELECT count(*) FROM raw", "4000").await?;
    assert_eq!(
        database.value("SELECT count(DISTINCT id) FROM raw").await?,
        "4000"
    );
    let client = cluster.client().await?;
    client.cancel(&job).await?;
    cluster.stop().await
}

#[tokio::test]
async fn sessions_are_written_once_when_they_close() -> Result<()> {
    let topic = Topic::create(2).await?;
    let database = Database::create().await?;
    let sql = [
        declare(&topic, ""),
        database.declare("sessions", "sessions", ""),
        "INSERT INTO sessions
           SELECT window_start, window_end, kind, count(*) AS events
           FROM events GROUP BY session_window(at, INTERVAL '30 seconds'), kind;"
            .to_owned(),
    ]
    .concat();
    let client = shared().await?.client().await?;
    let job = client.submit(&sql, &unique("sessions")).await?;
    // Each kind comes every five seconds for five minutes, in several epochs; then nothing for a while.
    for chunk in 0..5 {
        produce(&topic, chunk * 60, (chunk + 1) * 60).await?;
        let seen = (chunk + 1) * 60;
        wait_for("the chunk's epoch", SOON, async || {
            let job = client.get(&job).await?;
            let totals = job.totals.unwrap_or_default();
            Ok((totals.input_rows as i64 >= seen).then_some(()))
        })
        .await?;
    }
    assert_eq!(client.get(&job).await?.state(), JobState::Running);
    produce(&topic, 1000, 1002).await?;
    until(&database, "SELECT count(*) FROM sessions", "5").await?;
    let wrong = "SELECT count(*) FROM sessions WHERE events <> 60 OR window_end - window_start <> interval '325 seconds'";
    assert_eq!(database.value(wrong).await?, "0");
    client.cancel(&job).await?;
    Ok(())
}
