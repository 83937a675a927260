//! Duplicates over epochs: each key once, within the watermark or the time that state is kept.

use crate::events::{Event, FORWARD, Feed, SECOND};
use crate::run::{Run, same};
use anyhow::Result;
use essaim_tests::postgres::Database;
use essaim_tests::{LONG, wait_for};

#[tokio::test]
async fn an_id_that_comes_again_is_written_once() -> Result<()> {
    let mut feed = Feed::create(3).await?;
    let database = Database::create().await?;
    let sql = [
        feed.declare(60 * SECOND, ", max_offsets_per_trigger '50'"),
        database.declare("once", "once", ""),
        database.declare("keys", "keys", ""),
        database.declare("counted", "counted", ", mode 'upsert', key 'window_start'"),
        "INSERT INTO once SELECT DISTINCT ON (id) id, at, v FROM events ORDER BY id, at;
         INSERT INTO keys SELECT DISTINCT k FROM events;
         INSERT INTO counted SELECT window_start, count(*) AS n
           FROM (SELECT DISTINCT id, at FROM events) GROUP BY window(at, '10 seconds');"
            .to_owned(),
    ]
    .concat();
    let run = Run::start(&sql).await?;
    for chunk in 0..6_i64 {
        // A third of each chunk has been sent before, and some of its rows come twice in it.
        let ids = (20 * chunk - 10).max(0)..20 * (chunk + 1);
        let events = ids.flat_map(|id| {
            let event = (id as usize % 3, Event::new(id, FORWARD + id * 500));
            vec![event; 1 + usize::from(id % 4 == 0)]
        });
        feed.send(events.collect()).await?;
        run.drained(&feed).await?;
    }
    feed.load(&database, "events").await?;
    let wanted = "SELECT DISTINCT id, at, v FROM events";
    same(&database, "SELECT id, at, v FROM once", wanted).await?;
    same(
        &database,
        "SELECT k, 1 FROM keys",
        "SELECT DISTINCT k, 1 FROM events",
    )
    .await?;
    let wanted = "SELECT date_bin('10 seconds', at, timestamp '1970-01-01') w, count(DISTINCT id) FROM events GROUP BY w";
    same(&database, "SELECT window_start, n FROM counted", wanted).await?;
    // A duplicate that comes so late that its id is forgotten is late itself.
    let at = FORWARD + 3_600_000;
    let closers = (0..3).map(|partition| (partition as usize, Event::new(1000 + partition, at)));
    feed.send(closers.collect()).await?;
    run.drained(&feed).await?;
    feed.send(vec![
        (0, Event::new(1, FORWARD + 500)),
        (1, Event::new(1000, at)),
    ])
    .await?;
    let job = run.drained(&feed).await?;
    let late: Vec<u64> = job
        .last_epoch
        .unwrap_or_default()
        .queries
        .iter()
        .map(|q| q.late_rows)
        .collect();
    anyhow::ensure!(late[0] == 1, "late rows: {late:?}");
    let ids = database
        .value("SELECT count(*) FROM once WHERE id IN (1, 1000)")
        .await?;
    assert_eq!(ids, "2");
    run.cancel().await
}

#[tokio::test]
async fn a_group_is_forgotten_after_the_time_to_live() -> Result<()> {
    let mut feed = Feed::create(1).await?;
    let database = Database::create().await?;
    let sql = [
        feed.declare_as("events", ""),
        database.declare("by_id", "by_id", ", mode 'upsert', key 'id'"),
        "SET essaim.state_ttl = '500 milliseconds';
         INSERT INTO by_id SELECT id, count(*) AS n FROM events GROUP BY id;"
            .to_owned(),
    ]
    .concat();
    let run = Run::start(&sql).await?;
    let event = |id| vec![(0, Event::new(id, FORWARD))];
    feed.send([event(1), event(1), event(2)].concat()).await?;
    let job = run.drained(&feed).await?;
    let rows = |job: &essaim_proto::v1::Job| {
        job.last_epoch
            .as_ref()
            .map_or(0, |epoch| epoch.queries[0].state_rows)
    };
    assert_eq!(rows(&job), 2);
    assert_eq!(
        database.value("SELECT n FROM by_id WHERE id = 1").await?,
        "2"
    );
    // Group 3 is touched over and over; the others have gone when it is alone.
    let mut touched = 0;
    wait_for("the groups to be forgotten", LONG, async || {
        feed.send(event(3)).await?;
        touched += 1;
        let job = run.drained(&feed).await?;
        Ok((rows(&job) == 1).then_some(()))
    })
    .await?;
    let kept = database.value("SELECT n FROM by_id WHERE id = 3").await?;
    assert_eq!(kept, touched.to_string());
    feed.send([event(1), event(3)].concat()).await?;
    run.drained(&feed).await?;
    // It begins anew.
    assert_eq!(
        database.value("SELECT n FROM by_id WHERE id = 1").await?,
        "1"
    );
    run.cancel().await
}
