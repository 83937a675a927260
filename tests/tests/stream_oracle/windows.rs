//! Streams without late rows: whatever the epochs' bounds, every output mode ends with what one query over all rows says.

use crate::events::{
    BACK, DAY, FORWARD, Feed, MINUTE, SECOND, Shape, chunks, closers, random_events,
};
use crate::run::{Run, same};
use anyhow::Result;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Windows, and how PostgreSQL makes them of a table.
#[derive(Debug, Clone, Copy)]
pub enum Windows {
    /// Size and slide, ms.
    Millis(i64, i64),
    /// The same in months of the calendar, UTC.
    Months(i64, i64),
}

impl Windows {
    /// What stands after GROUP BY.
    pub fn call(self) -> String {
        let (size, slide, unit) = match self {
            Self::Millis(size, slide) => (size, slide, "milliseconds"),
            Self::Months(size, slide) => (size, slide, "months"),
        };
        if size == slide {
            format!("window(at, INTERVAL '{size} {unit}')")
        } else {
            format!("window(at, INTERVAL '{size} {unit}', INTERVAL '{slide} {unit}')")
        }
    }

    /// Each row of `table` in each window that holds it, by a join with all windows there are: a query.
    pub fn joined(self, table: &str) -> String {
        let (size, slide, unit, tick) = match self {
            Self::Millis(size, slide) => (
                size,
                slide,
                "millisecond",
                "floor(extract(epoch FROM at) * 1000)::bigint",
            ),
            Self::Months(size, slide) => (
                size,
                slide,
                "month",
                "((extract(year FROM at) - 1970) * 12 + extract(month FROM at) - 1)::bigint",
            ),
        };
        let time = |tick: &str| format!("timestamp '1970-01-01' + ({tick}) * interval '1 {unit}'");
        format!(
            "(SELECT e.*, {} AS window_start, {} AS window_end
              FROM (SELECT *, {tick} AS tick FROM {table} WHERE at IS NOT NULL) e,
                   LATERAL (SELECT w * {slide} AS start FROM generate_series(
                       floor((tick - {size})::numeric / {slide})::bigint,
                       floor(tick::numeric / {slide})::bigint + 1) w) w
              WHERE start <= tick AND tick < start + {size})",
            time("start"),
            time(&format!("start + {size}"))
        )
    }

    fn longest_ms(self) -> i64 {
        match self {
            Self::Millis(size, _) => size,
            Self::Months(size, _) => size * 31 * DAY,
        }
    }

    fn edge(self) -> i64 {
        match self {
            Self::Millis(_, slide) => slide,
            Self::Months(..) => DAY,
        }
    }

    /// At random, from ms to months, with a time to begin at and how far the events go.
    fn random(random: &mut SmallRng, kind: u64) -> (Self, i64, i64) {
        let size =
            |random: &mut SmallRng, unit: i64, most: i64| unit * random.random_range(1..=most);
        // Half of them tumble, and of the others some have a slide that divides the size.
        let slide = |random: &mut SmallRng, size: i64| match random.random_range(0..4) {
            0 | 1 => size,
            2 => size / (2..=5).filter(|d| size % d == 0).max().unwrap_or(1),
            _ => random.random_range((size / 6).max(1)..=size),
        };
        let change = if random.random_bool(0.5) {
            FORWARD
        } else {
            BACK
        };
        let (unit, most) = match kind % 5 {
            0 => (1, 40),
            1 => (SECOND, 90),
            2 => (30 * MINUTE, 8),
            3 => (DAY, 10),
            _ => {
                let size = random.random_range(1..=14);
                let slide = slide(random, size);
                return (Self::Months(size, slide), FORWARD - 400 * DAY, 800 * DAY);
            }
        };
        let size = size(random, unit, most);
        let slide = slide(random, size);
        let span = 20 * size;
        (Self::Millis(size, slide), around - span / 2, span)
    }
}

const AGGREGATES: &str = "count(*) AS n, count(v) AS c, sum(v) AS s, min(v) AS lo, max(v) AS hi,
    avg(v) AS a, count(DISTINCT v) AS d";

/// What dies in the middle of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kills {
    Nothing,
    MastersAndWorkers,
}

async fn case(seed: u64, kills: Kills) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let (windows, base, span) = Windows::random(&mut random, seed);
    let delay = random.random_range(0..=span / 10);
    let shape = Shape {
        partitions: random.random_range(1..=4),
        rows: random.random_range(100..500),
        base,
        span,
        disorder: delay,
        delay,
        edge: windows.edge(),
    };
    let most = random.random_range(5..=shape.rows / 2);
    eprintln!("seed {seed}: {windows:?} {shape:?} max_offsets_per_trigger {most}");

    let mut own = match kills {
        Kills::Nothing => None,
        Kills::MastersAndWorkers => Some(Cluster::start(2, 2).await?),
    };
    let mut feed = Feed::create(shape.partitions as i32).await?;
    let database = Database::create().await?;
    let insert = |table: &str, mode: &str, k: &str| {
        format!(
            "SET essaim.output_mode = '{mode}';
             INSERT INTO {table} SELECT window_start, window_end, {k} AS k, {AGGREGATES}
             FROM events GROUP BY {}, k;\n",
            windows.call()
        )
    };
    let sql = [
        feed.declare(delay, &format!(", max_offsets_per_trigger '{most}'")),
        database.declare(
            "updated",
            "updated",
            ", mode 'upsert', key 'window_start,k'",
        ),
        database.declare("appended", "appended", ""),
        database.declare("complete", "complete", ", mode 'overwrite'"),
        insert("updated", "update", "coalesce(k, 'none')"),
        insert("appended", "append", "k"),
        insert("complete", "complete", "k"),
    ]
    .concat();
    let mut pieces = chunks(random_events(&shape, seed), &shape, &mut random).into_iter();
    feed.send(pieces.next().unwrap_or_default()).await?;
    let name = unique("windows");
    let client = match &own {
        Some(cluster) => cluster.client().await?,
        None => shared().await?.client().await?,
    };
    let mut run = Run::start_on(client, &sql, &name).await?;
    for piece in pieces {
        feed.send(piece).await?;
        if random.random_bool(0.4) {
            run.drained(&feed).await?;
        }
        let Some(cluster) = &mut own else { continue };
        if random.random_bool(0.5) {
            // Not before it runs: from then on it may be in the middle of anything.
            run.until(|job| job.generation > 0).await?;
            cluster.kill_master();
            cluster.restart_master().await?;
            run.client = cluster.client().await?;
        } else {
            let last = cluster.workers().len() - 1;
            cluster.kill_worker(last);
            cluster.add_worker(2, "768MiB").await?;
        }
    }
    feed.send(closers(&shape, windows.longest_ms())).await?;
    run.drained(&feed).await?;

    feed.load(&database, "events").await?;
    let wanted = |k: &str, filter: &str| {
        format!(
            "SELECT window_start, window_end, {k} AS k, n, c, s, lo, hi, round(a::numeric, 6) AS a, d FROM (
               SELECT window_start, window_end, k, {AGGREGATES} FROM {} j {filter}
               GROUP BY window_start, window_end, k) q",
            windows.joined("events")
        )
    };
    let got = |table: &str| {
        format!(
            "SELECT window_start, window_end, k, n, c, s, lo, hi, round(a::numeric, 6) AS a, d FROM {table}"
        )
    };
    same(
        &database,
        &got("updated"),
        &wanted("coalesce(k, 'none')", ""),
    )
    .await?;
    same(&database, &got("appended"), &wanted("k", "WHERE id >= 0")).await?;
    same(&database, &got("complete"), &wanted("k", "")).await?;
    let job = run.client.get(&run.id).await?;
    let late = job.totals.map(|totals| totals.late_rows);
    anyhow::ensure!(late == Some(0), "{late:?} late rows");
    run.cancel().await?;
    match own {
        Some(cluster) => cluster.stop().await,
        None => Ok(()),
    }
}

/// Cases of the seeds `from`, `from + 3`, …: `ESSAIM_ORACLE_SEEDS` of them.
async fn cases(from: u64) -> Result<()> {
    let count = std::env::var("ESSAIM_ORACLE_SEEDS").ok();
    let count: u64 = count.map_or(Ok(4), |count| count.parse())?;
    for round in 0..count {
        let seed = from + 3 * round;
        case(seed, Kills::Nothing)
            .await
            .map_err(|e| e.context(format!("seed {seed}")))?;
    }
    Ok(())
}

#[tokio::test]
async fn random_streams_end_with_what_a_batch_says_1() -> Result<()> {
    cases(0).await
}

#[tokio::test]
async fn random_streams_end_with_what_a_batch_says_2() -> Result<()> {
    cases(1).await
}

#[tokio::test]
async fn random_streams_end_with_what_a_batch_says_3() -> Result<()> {
    cases(2).await
}

#[tokio::test]
async fn random_streams_end_the_same_whatever_is_killed() -> Result<()> {
    for seed in [101, 202, 304] {
        case(seed, Kills::MastersAndWorkers)
            .await
            .map_err(|e| e.context(format!("seed {seed}")))?;
    }
    Ok(())
}
