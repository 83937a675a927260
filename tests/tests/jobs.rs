//! Whole jobs: Kafka and Postgres joined into new tables, several sinks, one snapshot, and the master's memory of them.

use anyhow::{Context, Result};
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::sql::{Order, compare, integers, numbers, text};
use rand::RngExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const EVENTS: i64 = 20_000;
const USERS: i64 = 2_000;

/// Event number `n`: user, kind and amount. One user in eleven is unknown.
fn event(n: i64) -> (i64, String, i64) {
    let user = n * 7919 % (USERS * 11 / 10);
    (user, format!("kind {}", n % 7), n * 31 % 1000 - 200)
}

/// A topic of events and the same rows in the table `sent`, and their users in the table `users`.
async fn events_and_users() -> Result<(Topic, Database)> {
    let topic = Topic::create(4).await?;
    let payloads = (0..EVENTS).map(|n| {
        let (user, kind, amount) = event(n);
        serde_json::json!({"user_id": user, "kind": kind, "amount": amount, "ignored": [n]})
            .to_string()
    });
    topic.produce(payloads).await?;
    let database = Database::create().await?;
    database
        .execute(
            "CREATE TABLE sent (user_id bigint, kind text, amount bigint);
             CREATE TABLE users (id bigint PRIMARY KEY, country text, joined date)",
        )
        .await?;
    let sent = (0..EVENTS).map(|n| {
        let (user, kind, amount) = event(n);
        format!("{user},{kind},{amount}")
    });
    database.copy("sent", sent).await?;
    let users = (0..USERS).map(|id| format!("{id},country {},2024-01-{:02}", id % 13, id % 28 + 1));
    database.copy("users", users).await?;
    Ok((topic, database))
}

#[tokio::test]
async fn kafka_joined_with_postgres_lands_in_two_new_tables() -> Result<()> {
    let (topic, database) = events_and_users().await?;
    let sql = [
        topic.declare("events", "user_id BIGINT, kind VARCHAR, amount BIGINT"),
        database.declare("users", "users", ""),
        database.declare("per_country", "per_country", ", mode 'upsert', key 'country'"),
        format!(
            "CREATE EXTERNAL TABLE per_kind (kind VARCHAR, users BIGINT, average DOUBLE, PRIMARY KEY (kind))
               STORED AS POSTGRES LOCATION '{}' OPTIONS (table 'per_kind', mode 'upsert');\n",
            database.url
        ),
        "INSERT INTO per_country
           SELECT country, count(*) AS events, sum(amount) AS total, max(joined) AS newest
           FROM events JOIN users ON user_id = id
           WHERE amount >= 0 GROUP BY country;
         INSERT INTO per_kind
           SELECT kind, count(DISTINCT user_id), avg(amount) FROM events GROUP BY kind;"
            .to_owned(),
    ]
    .concat();
    let client = shared().await?.client().await?;
    let job = client.run_job(&sql, "").await?;
    let sinks: Vec<_> = job
        .queries
        .iter()
        .map(|query| query.sink.as_str())
        .collect();
    assert_eq!(sinks, ["per_country", "per_kind"]);
    let written: Vec<_> = job.queries.iter().map(|query| query.rows_out).collect();
    assert_eq!(written, [13, 7]);

    let expected = database
        .rows(
            "SELECT country, count(*), sum(amount), max(joined) FROM sent JOIN users ON user_id = id
             WHERE amount >= 0 GROUP BY country ORDER BY country",
        )
        .await?;
    let found = database
        .rows("SELECT country, events, total, newest FROM per_country ORDER BY country")
        .await?;
    assert_eq!(found, expected);
    let differing = database
        .rows(
            "SELECT * FROM (SELECT kind, count(DISTINCT user_id) AS n, avg(amount) AS a FROM sent GROUP BY kind) e
             FULL JOIN per_kind USING (kind)
             WHERE users IS DISTINCT FROM n OR abs(average - a::float8) > 1e-9 OR (average IS NULL) <> (a IS NULL)",
        )
        .await?;
    assert!(differing.is_empty(), "{differing:?}");

    let keys = database
        .rows(
            "SELECT c.relname, a.attname FROM pg_index i
               JOIN pg_class c ON c.oid = indrelid
               JOIN pg_attribute a ON a.attrelid = indrelid AND a.attnum = ANY(indkey)
             WHERE indisprimary AND c.relname LIKE 'per%' ORDER BY 1",
        )
        .await?;
    let key = |table: &str, column: &str| vec![Some(table.to_owned()), Some(column.to_owned())];
    assert_eq!(
        keys,
        [key("per_country", "country"), key("per_kind", "kind")]
    );
    Ok(())
}

#[tokio::test]
async fn the_same_job_run_again_upserts_and_repeats_nothing() -> Result<()> {
    let (topic, database) = events_and_users().await?;
    let sql = [
        topic.declare("events", "user_id BIGINT, kind VARCHAR, amount BIGINT"),
        database.declare("per_kind", "per_kind", ", mode 'upsert', key 'kind'"),
        "INSERT INTO per_kind SELECT kind, count(*) AS events, sum(amount) AS total FROM events GROUP BY kind"
            .to_owned(),
    ]
    .concat();
    let client = shared().await?.client().await?;
    client.run_job(&sql, "").await?;
    client.run_job(&sql, "").await?;
    let expected = database
        .rows("SELECT kind, count(*), sum(amount) FROM sent GROUP BY kind ORDER BY kind")
        .await?;
    let found = database
        .rows("SELECT kind, events, total FROM per_kind ORDER BY kind")
        .await?;
    assert_eq!(found, expected);
    Ok(())
}

#[tokio::test]
async fn a_job_without_an_aggregate_is_written_by_the_workers() -> Result<()> {
    let database = Database::create().await?;
    let sql = [
        numbers("numbers", 50_000),
        database.declare("copied", "copied", ", mode 'append'"),
        "INSERT INTO copied SELECT value AS id, 'n' || CAST(value AS VARCHAR) AS name FROM numbers WHERE value % 2 = 0"
            .to_owned(),
    ]
    .concat();
    let job = shared().await?.client().await?.run_job(&sql, "").await?;
    assert_eq!(job.queries[0].execution, "tasks");
    assert_eq!(job.queries[0].rows_out, 25_000);
    assert!(job.queries[0].stages[0].tasks > 1, "{job:?}");
    let found = database
        .rows(
            "SELECT count(*), count(DISTINCT id), sum(id), bool_and(name = 'n' || id) FROM copied",
        )
        .await?;
    let row = ["25000", "25000", "624975000", "t"].map(|value| Some(value.to_owned()));
    assert_eq!(found, [row.to_vec()]);
    Ok(())
}

#[tokio::test]
async fn a_query_reads_kafka_and_postgres_as_postgres_would() -> Result<()> {
    let (topic, database) = events_and_users().await?;
    let select = "SELECT country, kind, count(*), sum(amount), min(amount), max(joined)
                  FROM events JOIN users ON user_id = id GROUP BY country, kind ORDER BY country, kind";
    let sql = [
        topic.declare("events", "user_id BIGINT, kind VARCHAR, amount BIGINT"),
        database.declare("users", "users", ""),
        select.to_owned(),
    ]
    .concat();
    let found = shared().await?.client().await?.query(&sql).await?;
    let expected = database.rows(&select.replace("events", "sent")).await?;
    assert_eq!(expected.len(), 13 * 7);
    compare(&found, &expected, Order::Total)
}

#[tokio::test]
async fn explain_shows_the_cut_the_splits_and_what_was_pushed_down() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute(
            "CREATE TABLE facts (k bigint, v bigint, note text);
             INSERT INTO facts SELECT i % 10, i, repeat('x', 100) FROM generate_series(1, 50000) i;
             ANALYZE facts",
        )
        .await?;
    let client = shared().await?.client().await?;
    let sql = format!(
        "{}EXPLAIN SELECT k, count(*) FROM facts WHERE v > 10 GROUP BY k",
        database.declare("facts", "facts", "")
    );
    let explained = text(&client.query(&sql).await?)?;
    assert!(explained.contains("tasks: cut"), "{explained}");
    assert!(explained.contains("task 0: "), "{explained}");
    assert!(
        explained.contains("AggregateExec: mode=Partial"),
        "{explained}"
    );
    assert!(
        explained.contains("AggregateExec: mode=Final"),
        "{explained}"
    );
    let scan = explained
        .lines()
        .find(|line| line.contains("ScanExec: POSTGRES table=facts"));
    let scan = scan.with_context(|| format!("no scan in {explained}"))?;
    assert!(scan.contains("\"k\"") && scan.contains("> 10"), "{scan}");
    assert!(!scan.contains("note"), "{scan}");
    let splits: usize = scan
        .split_once("splits=")
        .and_then(|(_, rest)| rest.split(',').next())
        .and_then(|count| count.parse().ok())
        .with_context(|| format!("no splits in {scan}"))?;
    assert!(splits > 1, "{scan}");
    assert!(!explained.contains("essaim:essaim"), "{explained}");

    let explained = text(&client.query("EXPLAIN SELECT 1 + 1").await?)?;
    assert!(explained.contains("master: "), "{explained}");
    let sql = format!(
        "SET essaim.execution = 'exchange'; {}EXPLAIN SELECT k, count(*) FROM facts GROUP BY k",
        database.declare("facts", "facts", "")
    );
    let explained = text(&client.query(&sql).await?)?;
    assert!(
        explained.contains("exchange: SET essaim.execution"),
        "{explained}"
    );
    Ok(())
}

#[tokio::test]
async fn both_ways_of_execution_give_the_same_answer() -> Result<()> {
    let client = shared().await?.client().await?;
    let mut answers = Vec::new();
    for execution in ["tasks", "exchange", "master"] {
        let sql = format!(
            "SET essaim.execution = '{execution}'; {}
             SELECT value % 100 AS key, count(*), sum(value) FROM numbers GROUP BY key ORDER BY key",
            numbers("numbers", 100_000)
        );
        let (rows, job) = client.start(&sql).await?.finish().await?;
        assert_eq!(job.queries[0].execution, execution);
        answers.push(
            (0..3)
                .map(|column| integers(&rows, column))
                .collect::<Result<Vec<_>>>()?,
        );
    }
    let keys: Vec<i64> = (0..100).collect();
    let sums: Vec<i64> = keys
        .iter()
        .map(|key| key * 1000 + 100 * (999 * 1000 / 2))
        .collect();
    for answer in answers {
        assert_eq!(answer, [keys.clone(), vec![1000; 100], sums.clone()]);
    }
    Ok(())
}

#[tokio::test]
async fn jobs_are_remembered_over_a_restart_of_the_master() -> Result<()> {
    let database = Database::create().await?;
    let mut cluster = Cluster::start(1, 1).await?;
    let client = cluster.client().await?;
    let sql = |table: &str, rows: u64| {
        [
            numbers("numbers", rows),
            database.declare("target", table, ", mode 'append'"),
            "INSERT INTO target SELECT value AS id FROM numbers".to_owned(),
        ]
        .concat()
    };
    let good = client.run_job(&sql("good", 10), "the good one").await?;
    database
        .execute("CREATE TABLE bad (id bigint CHECK (id < 5))")
        .await?;
    let bad = client.submit(&sql("bad", 10), "the bad one").await?;
    let bad = client.wait_job(&bad).await?;
    assert_eq!(bad.state(), JobState::Failed);

    cluster.restart_master().await?;
    let client = cluster.client().await?;
    let listed = client.list().await?;
    let listed: Vec<_> = listed
        .iter()
        .map(|job| {
            (
                job.id.as_str(),
                job.name.as_str(),
                job.state(),
                job.message.as_str(),
            )
        })
        .collect();
    let newest_first = [
        (
            bad.id.as_str(),
            "the bad one",
            JobState::Failed,
            bad.message.as_str(),
        ),
        (good.id.as_str(), "the good one", JobState::Succeeded, ""),
    ];
    assert_eq!(listed, newest_first);
    let again = client.get("the good one").await?;
    assert_eq!(again, good);
    assert!(!again.sql.contains("essaim:essaim"), "{}", again.sql);
    assert_eq!(database.value("SELECT count(*) FROM good").await?, "10");
    Ok(())
}

/// Moves money between accounts of two tables, one transaction a time, until it is dropped.
struct Transfers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Transfers {
    fn start(database: Arc<Database>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let (from, to, amount) = {
                    let mut rng = rand::rng();
                    (
                        rng.random_range(0..ACCOUNTS),
                        rng.random_range(0..ACCOUNTS),
                        rng.random_range(1..100),
                    )
                };
                // Several statements in one message are one transaction.
                let transfer = format!(
                    "UPDATE current SET balance = balance - {amount} WHERE id = {from};
                     UPDATE savings SET balance = balance + {amount} WHERE id = {to};
                     UPDATE current SET balance = balance + 1 WHERE id = {to};
                     UPDATE current SET balance = balance - 1 WHERE id = {from}"
                );
                if database.execute(&transfer).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, done }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

const ACCOUNTS: i64 = 60_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_read_by_two_workers_during_writes_add_up_to_one_moment() -> Result<()> {
    let database = Arc::new(Database::create().await?);
    // A hundred bytes a row, so that each table has some hundred blocks and rows move between them.
    for table in ["current", "savings"] {
        database
            .execute(&format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY, balance bigint NOT NULL, note text NOT NULL);
                 INSERT INTO {table} SELECT i, 1000, repeat('x', 100) FROM generate_series(0, {ACCOUNTS} - 1) i"
            ))
            .await?;
    }
    let client = shared().await?.client().await?;
    let sql = format!(
        "{}{}SELECT sum(balance), count(*) FROM
           (SELECT balance FROM current UNION ALL SELECT balance FROM savings) AS accounts",
        database.declare("current", "current", ""),
        database.declare("savings", "savings", ""),
    );
    let transfers = Transfers::start(Arc::clone(&database));
    for _ in 0..6 {
        let before = transfers.done.load(Ordering::Relaxed);
        let (rows, job) = client.start(&sql).await?.finish().await?;
        let sums = text(&rows)?;
        assert_eq!(sums, format!("{}\t{}", 2 * 1000 * ACCOUNTS, 2 * ACCOUNTS));
        let tasks: u32 = job
            .queries
            .iter()
            .flat_map(|q| &q.stages)
            .map(|s| s.tasks)
            .sum();
        assert!(tasks >= 4, "{job:?}");
        let during = transfers.done.load(Ordering::Relaxed) - before;
        assert!(during > 0, "nothing was written during the scan");
    }
    Ok(())
}
