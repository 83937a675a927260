//! A group-by over ten million rows on two workers, against two connections that drain the same COPY into nothing.

use anyhow::{Context, Result, ensure};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use essaim_bench::measure::in_turn;
use essaim_bench::process::cpu_seconds_of;
use essaim_bench::report::Report;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::postgres::{maintenance, rows, run, url_of};
use futures::TryStreamExt;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DATABASE: &str = "essaim_bench";
const ROWS: u64 = 10_000_000;
const RUNS: usize = 5;
const MARK: f64 = 0.6;
/// The splits that Essaim makes by default: four for each of two slots.
const SPLITS: u64 = 8;

/// Eight columns, 100 bytes of data a row; the table's comment says that it is complete.
const FILL: &str = "
DROP TABLE IF EXISTS events;
CREATE TABLE events (
    id bigint NOT NULL,
    key integer NOT NULL,
    quantity integer NOT NULL,
    amount double precision NOT NULL,
    price bigint NOT NULL,
    created_at timestamptz NOT NULL,
    code varchar(16) NOT NULL,
    note text NOT NULL
);
INSERT INTO events
SELECT id, h % 1000, h % 97, (h % 100000) / 100.0, h % 1000000,
       timestamptz '2026-01-01' + make_interval(secs => id), 'code-' || lpad((h % 10000)::text, 10, '0'),
       rpad('note ' || h, 43, ' of some length')
FROM (SELECT id, abs(hashint8(id)::bigint)::bigint AS h FROM generate_series(1, 10000000) AS id) AS numbers;
VACUUM (FREEZE, ANALYZE) events;
COMMENT ON TABLE events IS 'complete: 10000000 rows, version 1';
";
const COMPLETE: &str = "complete: 10000000 rows, version 1";
const COLUMNS: &str = r#""key", "quantity", "amount", "price""#;
const QUERY: &str =
    "SELECT key, count(*) AS n, sum(quantity), avg(amount), sum(price) FROM events GROUP BY key";

#[tokio::main]
async fn main() -> Result<()> {
    let url = prepare().await?;
    let ranges = ranges(&url).await?;
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "CREATE EXTERNAL TABLE events STORED AS POSTGRES LOCATION '{url}' OPTIONS (table 'events');\n{QUERY}"
    );

    // Connected already, as Essaim's workers are after their first query.
    let mut connections = Vec::new();
    for _ in 0..2 {
        connections.push(PgConnection::connect(&url).await?);
    }
    let mut bytes = 0;
    let mut cpu = Vec::new();
    let (limit, essaim) = in_turn(
        RUNS,
        async || {
            (bytes, connections) = drain(std::mem::take(&mut connections), &ranges).await?;
            Ok(())
        },
        async || {
            let before = cpu_seconds_of(cluster.pids())?;
            query(&client, &sql).await?;
            cpu.push(cpu_seconds_of(cluster.pids())? - before);
            Ok(())
        },
    )
    .await?;

    let mut report = Report::new("postgres");
    report.figure("rows", ROWS, "");
    report.figure("COPY bytes a row", (bytes / ROWS) as f64, "");
    report.runs("two connections drain COPY", &limit, ROWS, "rows");
    report.runs("essaim, two workers", &essaim, ROWS, "rows");
    let last = cpu.last().copied().unwrap_or_default();
    report.figure(
        "processor time of the cluster, s",
        (last * 100.0).round() / 100.0,
        "",
    );
    report.ratio(&essaim, &limit, MARK);
    report.print();
    cluster.stop().await
}

/// Makes database and table unless they are there; returns the database's URL.
async fn prepare() -> Result<String> {
    let mut server = maintenance().await?;
    let there = format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'");
    if rows(&mut server, &there).await?.is_empty() {
        run(&mut server, &format!("CREATE DATABASE {DATABASE}")).await?;
    }
    server.close().await?;
    let url = url_of(DATABASE)?;
    let mut connection = PgConnection::connect(&url).await?;
    let comment = "SELECT obj_description(to_regclass('public.events'), 'pg_class')";
    let comment = rows(&mut connection, comment).await?;
    if comment.first().and_then(|row| row.first()) != Some(&Some(COMPLETE.to_owned())) {
        eprintln!("filling {DATABASE}.events: about a minute, the first time only");
        for statement in FILL.split_inclusive(";\n") {
            // One by one: VACUUM refuses to be part of what several statements at once are.
            run(&mut connection, statement).await?;
        }
    }
    connection.close().await?;
    Ok(url)
}

/// The ranges that Essaim cuts the table into: equally many blocks each.
async fn ranges(url: &str) -> Result<Vec<String>> {
    let mut connection = PgConnection::connect(url).await?;
    let blocks = "SELECT pg_relation_size('public.events') / current_setting('block_size')::bigint";
    let blocks = rows(&mut connection, blocks).await?;
    let blocks: u64 = blocks
        .first()
        .and_then(|row| row.first()?.as_ref()?.parse().ok())
        .context("the table has no size")?;
    let edge = |piece: u64| blocks * piece / SPLITS;
    Ok((0..SPLITS)
        .map(|piece| {
            format!(
                "ctid >= '({},0)'::tid AND ctid < '({},0)'::tid",
                edge(piece),
                edge(piece + 1)
            )
        })
        .collect())
}

/// Two connections, on a thread each, take the ranges in turn and drop what comes. Returns the bytes that came, and the
/// connections for the next time.
async fn drain(
    connections: Vec<PgConnection>,
    ranges: &[String],
) -> Result<(u64, Vec<PgConnection>)> {
    let queue = Arc::new(Mutex::new(ranges.iter().cloned().collect::<VecDeque<_>>()));
    let draining: Vec<_> = connections
        .into_iter()
        .map(|connection| tokio::spawn(drain_queue(connection, Arc::clone(&queue))))
        .collect();
    let (mut bytes, mut connections) = (0, Vec::new());
    for drained in futures::future::try_join_all(draining).await? {
        let (came, connection) = drained?;
        bytes += came;
        connections.push(connection);
    }
    Ok((bytes, connections))
}

async fn drain_queue(
    mut connection: PgConnection,
    queue: Arc<Mutex<VecDeque<String>>>,
) -> Result<(u64, PgConnection)> {
    let next = || queue.lock().ok()?.pop_front();
    let mut bytes = 0;
    while let Some(range) = next() {
        let copy = format!(
            r#"COPY (SELECT {COLUMNS} FROM ONLY "public"."events" WHERE {range}) TO STDOUT (FORMAT binary)"#
        );
        let mut chunks = connection.copy_out_raw(&copy).await?;
        while let Some(chunk) = chunks.try_next().await? {
            bytes += chunk.len() as u64;
        }
    }
    Ok((bytes, connection))
}

/// Runs the query and looks whether every row was counted.
async fn query(client: &Client, sql: &str) -> Result<()> {
    let batches = client.query(sql).await?;
    let groups: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    let counted: i64 = batches
        .iter()
        .flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values())
        .sum();
    ensure!(
        groups == 1000 && counted as u64 == ROWS,
        "{groups} groups of {counted} rows, not 1000 of {ROWS}"
    );
    Ok(())
}
