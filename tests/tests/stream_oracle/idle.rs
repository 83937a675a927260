//! Partitions that bring nothing: with an idle timeout the watermark goes on without them, without one it waits.

use crate::events::{Event, FORWARD, Feed, MINUTE, SECOND};
use crate::late::{Modelled, groups, replay, same_groups};
use crate::run::Run;
use anyhow::{Result, ensure};
use essaim_tests::postgres::Database;

fn sql(feed: &Feed, database: &Database, options: &str) -> String {
    [
        feed.declare(5 * SECOND, options),
        database.declare("closed", "closed", ""),
        "INSERT INTO closed SELECT window_start, k, count(*) AS n, sum(v) AS s
         FROM events GROUP BY window(at, '1 minute'), k;"
            .to_owned(),
    ]
    .concat()
}

/// A row a second, from one second to another.
fn events(partition: usize, from: i64, to: i64) -> Vec<(usize, Event)> {
    (from..to)
        .map(|second| (partition, Event::new(second, FORWARD + second * SECOND)))
        .collect()
}

#[tokio::test]
async fn an_idle_partition_holds_nothing_back_and_its_late_rows_are_counted() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    feed.send([events(0, 0, 10), events(1, 0, 10)].concat())
        .await?;
    let run = Run::start(&sql(&feed, &database, ", idle_timeout '300 milliseconds'")).await?;
    feed.send(events(0, 10, 200)).await?;
    run.drained(&feed).await?;
    // Partition 1 is idle after a while, and without a row being read the windows before 195 s close.
    let watermark = FORWARD + 199 * SECOND - 5 * SECOND;
    let reached = |watermark| {
        move |job: &essaim_proto::v1::Job| {
            let epoch = job.last_epoch.as_ref();
            epoch.is_some_and(|epoch| epoch.sources[0].watermark_ms == Some(watermark))
        }
    };
    run.until(reached(watermark)).await?;
    assert_eq!(database.value("SELECT sum(n) FROM closed").await?, "190");
    // It comes back: 100 of its rows are late, the others count; the watermark does not go back.
    feed.send(events(1, 80, 190)).await?;
    run.drained(&feed).await?;
    // When both are idle, the later one counts.
    feed.send(events(0, 200, 400)).await?;
    run.drained(&feed).await?;
    run.until(reached(FORWARD + 394 * SECOND)).await?;
    let mut inserts = [Modelled::new(MINUTE, MINUTE, false)];
    let epochs = run.epochs().await?;
    let times = replay(&feed, &epochs, 5 * SECOND, true, &mut inserts)?;
    let late: u64 = inserts[0].late.iter().sum();
    ensure!(late == 100, "{late} rows are late");
    let got = groups(&database, "closed").await?;
    same_groups("closed", &got, &inserts[0].closed(times.watermark))?;
    let empty = epochs.iter().filter(|epoch| epoch.input_rows == 0).count();
    ensure!((1..10).contains(&empty), "{empty} epochs without rows");
    run.cancel().await
}

#[tokio::test]
async fn without_an_idle_timeout_the_slowest_partition_decides() -> Result<()> {
    let mut feed = Feed::create(3).await?;
    let database = Database::create().await?;
    // Partition 2 never has anything, and so holds nothing back; partition 1 only begins.
    feed.send([events(0, 0, 300), events(1, 0, 1)].concat())
        .await?;
    let run = Run::start(&sql(&feed, &database, "")).await?;
    run.drained(&feed).await?;
    assert_eq!(database.value("SELECT count(*) FROM closed").await?, "0");
    feed.send(events(1, 1, 126)).await?;
    run.drained(&feed).await?;
    let mut inserts = [Modelled::new(MINUTE, MINUTE, false)];
    let times = replay(&feed, &run.epochs().await?, 5 * SECOND, false, &mut inserts)?;
    ensure!(times.watermark == Some(FORWARD + 120 * SECOND), "{times:?}");
    let got = groups(&database, "closed").await?;
    same_groups("closed", &got, &inserts[0].closed(times.watermark))?;
    let rows = database.value("SELECT sum(n) FROM closed").await?;
    assert_eq!(rows, "240");
    run.cancel().await
}
