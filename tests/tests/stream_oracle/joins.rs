//! Streams with tables and with each other: joins that see the table as it is in each epoch, unions, projections above.

use crate::events::{Event, FORWARD, Feed, MINUTE, SECOND};
use crate::run::{Run, same};
use anyhow::Result;
use essaim_tests::postgres::Database;

#[tokio::test]
async fn a_joined_table_is_read_again_in_each_epoch() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE names (k text PRIMARY KEY, name text); INSERT INTO names VALUES ('k0', 'zero'), ('k1', 'one')")
        .await?;
    let sql = [
        feed.declare(10 * SECOND, ""),
        database.declare("names", "names", ""),
        database.declare("named", "named", ""),
        database.declare("left_named", "left_named", ""),
        database.declare("per_name", "per_name", ", mode 'upsert', key 'window_start,name'"),
        "SET essaim.table_refresh = '0';
         INSERT INTO named SELECT e.id, n.name FROM events e JOIN names n ON e.k = n.k;
         INSERT INTO left_named SELECT e.id, coalesce(n.name, 'nobody') AS name FROM events e LEFT JOIN names n ON e.k = n.k;
         INSERT INTO per_name SELECT window_start, n.name, count(*) AS n, sum(e.v) AS s
           FROM events e JOIN names n ON e.k = n.k GROUP BY window(e.at, '1 minute'), n.name;"
            .to_owned(),
    ]
    .concat();
    let run = Run::start(&sql).await?;
    let events = |from: i64| {
        (from..from + 30).map(|id| (id as usize % 2, Event::new(id, FORWARD + id * SECOND)))
    };
    database
        .execute("CREATE TABLE wanted (id bigint, at timestamp, v bigint, name text)")
        .await?;
    for (round, change) in [
        "SELECT 1",
        "UPDATE names SET name = 'eins' WHERE k = 'k1'; INSERT INTO names VALUES ('k2', 'two')",
        "DELETE FROM names WHERE k = 'k0'",
    ]
    .into_iter()
    .enumerate()
    {
        database.execute(change).await?;
        let before = feed.sent.clone();
        feed.send(events(30 * round as i64).collect()).await?;
        run.drained(&feed).await?;
        // What the epochs of this round saw.
        let table = format!("events_{round}");
        let all = std::mem::take(&mut feed.sent);
        feed.sent = all
            .iter()
            .zip(&before)
            .map(|(all, before)| all[before.len()..].to_vec())
            .collect();
        feed.load(&database, &table).await?;
        feed.sent = all;
        database
            .execute(&format!("INSERT INTO wanted SELECT e.id, e.at, e.v, n.name FROM {table} e LEFT JOIN names n USING (k)"))
            .await?;
    }
    same(
        &database,
        "SELECT id, name FROM named",
        "SELECT id, name FROM wanted WHERE name IS NOT NULL",
    )
    .await?;
    same(
        &database,
        "SELECT id, name FROM left_named",
        "SELECT id, coalesce(name, 'nobody') FROM wanted",
    )
    .await?;
    let wanted = "SELECT date_trunc('minute', at) w, name, count(*), sum(v) FROM wanted WHERE name IS NOT NULL GROUP BY w, name";
    same(
        &database,
        "SELECT window_start, name, n, s FROM per_name",
        wanted,
    )
    .await?;
    run.cancel().await
}

#[tokio::test]
async fn two_streams_are_counted_as_one() -> Result<()> {
    let (mut one, mut two) = (Feed::create(2).await?, Feed::create(1).await?);
    let database = Database::create().await?;
    let timed = ", event_time 'at', watermark_delay '5 seconds', max_offsets_per_trigger '40'";
    let sql = [
        one.declare_as("one", timed),
        two.declare_as("two", timed),
        database.declare("updated", "updated", ", mode 'upsert', key 'window_start'"),
        database.declare("appended", "appended", ""),
        database.declare("large", "large", ""),
        "CREATE VIEW both_streams AS SELECT id, at, v FROM one UNION ALL SELECT -id, at, v + 1 FROM two WHERE v % 2 = 0;
         INSERT INTO updated SELECT window_start, count(*) AS n, sum(v) AS s FROM both_streams
           GROUP BY window(at, '1 minute');
         INSERT INTO appended SELECT window_start, count(*) AS n, sum(v) AS s FROM both_streams
           GROUP BY window(at, '1 minute', '30 seconds');
         INSERT INTO large SELECT window_end - INTERVAL '1 minute' AS start, n * 2 AS twice FROM (
           SELECT window_end, count(*) AS n, sum(v) AS s FROM both_streams GROUP BY window(at, '1 minute')
           HAVING sum(v) % 2 = 0) WHERE n > 40;"
            .to_owned(),
    ]
    .concat();
    let event = |id: i64| Event::new(id, FORWARD + id * SECOND);
    one.send((0..100).map(|id| (id as usize % 2, event(id))).collect())
        .await?;
    let run = Run::start(&sql).await?;
    two.send((0..300).map(|id| (0, event(id))).collect())
        .await?;
    run.drained_tables(&[("one", &one), ("two", &two)]).await?;
    // The watermark is that of the slower stream.
    let wanted = "SELECT max(window_start) = timestamp '1970-01-01' + interval '1 ms' * ";
    let sql = format!("{wanted} {} FROM appended", FORWARD + 30 * SECOND);
    assert_eq!(database.value(&sql).await?, "t");
    one.send((100..300).map(|id| (id as usize % 2, event(id))).collect())
        .await?;
    run.drained_tables(&[("one", &one), ("two", &two)]).await?;
    one.load(&database, "one").await?;
    two.load(&database, "two").await?;
    database
        .execute("CREATE VIEW rows AS SELECT id, at, v FROM one UNION ALL SELECT -id, at, v + 1 FROM two WHERE v % 2 = 0")
        .await?;
    let wanted = "SELECT date_trunc('minute', at) w, count(*), sum(v) FROM rows GROUP BY w";
    same(&database, "SELECT window_start, n, s FROM updated", wanted).await?;
    let joined = crate::windows::Windows::Millis(MINUTE, MINUTE / 2).joined("rows");
    // The slowest partition has come to 298 s.
    let watermark = FORWARD + 293 * SECOND;
    let wanted = format!(
        "SELECT window_start, count(*), sum(v) FROM {joined} j
         WHERE window_end <= timestamp '1970-01-01' + interval '1 ms' * {watermark} GROUP BY window_start"
    );
    same(
        &database,
        "SELECT window_start, n, s FROM appended",
        &wanted,
    )
    .await?;
    let wanted = format!(
        "SELECT date_trunc('minute', at) w, 2 * count(*) FROM rows
         WHERE at < timestamp '1970-01-01' + interval '1 ms' * {} GROUP BY w HAVING sum(v) % 2 = 0 AND count(*) > 40",
        FORWARD + 240 * SECOND
    );
    same(&database, "SELECT start, twice FROM large", &wanted).await?;
    run.cancel().await
}
