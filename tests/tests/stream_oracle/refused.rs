//! Jobs that a stream cannot run are refused when they are submitted, with an error that says what fits.

use crate::events::{Event, FORWARD, Feed, SECOND};
use crate::run::Run;
use anyhow::{Context, Result, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::cluster::shared;
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use tonic::Status;

/// INSERTs (with what is SET before), and a part of the error.
const WRONG: &[(&str, &str)] = &[
    (
        "INSERT INTO rows SELECT k, count(*) FROM untimed GROUP BY k",
        "the groups never become final",
    ),
    (
        "INSERT INTO rows SELECT window_start, count(*) FROM untimed GROUP BY window(at, '1 minute')",
        "the groups never become final",
    ),
    (
        "SET essaim.output_mode = 'append'; INSERT INTO keyed SELECT k, count(*) AS n FROM events GROUP BY k",
        "output mode 'append' writes groups when they are final",
    ),
    (
        "SET essaim.output_mode = 'update'; INSERT INTO rows SELECT window_start, count(*) FROM events GROUP BY window(at, '1 minute')",
        "upsert",
    ),
    (
        "SET essaim.output_mode = 'complete'; INSERT INTO rows SELECT k, v FROM events",
        "would keep every row",
    ),
    (
        "SET essaim.output_mode = 'sometimes'; INSERT INTO rows SELECT k, v FROM events",
        "write 'auto', 'append', 'update' or 'complete'",
    ),
    (
        "SET essaim.trigger = 'sometimes'; INSERT INTO rows SELECT k, v FROM events",
        "write an interval such as",
    ),
    ("INSERT INTO rows SELECT k, v FROM events LIMIT 3", "LIMIT over a stream"),
    (
        "INSERT INTO rows SELECT k, v FROM events ORDER BY v LIMIT 3",
        "LIMIT over a stream",
    ),
    (
        "INSERT INTO rows SELECT k, sum(v) OVER (PARTITION BY k ORDER BY id) AS s FROM events",
        "(OVER)",
    ),
    (
        "INSERT INTO rows SELECT k, count(*) FROM events GROUP BY ROLLUP (k)",
        "write an INSERT for each grouping",
    ),
    ("INSERT OVERWRITE rows SELECT k, v FROM events", "'complete'"),
    (
        "INSERT INTO rows SELECT k, v FROM events; INSERT INTO others SELECT k, v FROM names",
        "some INSERTs of the job read UNBOUNDED tables and some do not",
    ),
    (
        "INSERT INTO rows SELECT n.k, e.v FROM names n LEFT JOIN events e ON n.k = e.k",
        "stream LEFT JOIN table",
    ),
    (
        "INSERT INTO rows SELECT n.k, e.v FROM names n FULL JOIN events e ON n.k = e.k",
        "stream LEFT JOIN table",
    ),
    (
        "INSERT INTO rows SELECT n.k FROM names n WHERE n.k NOT IN (SELECT k FROM events)",
        "stream LEFT JOIN table",
    ),
    (
        "INSERT INTO rows SELECT n.k FROM names n WHERE EXISTS (SELECT 1 FROM events e WHERE e.k = n.k)",
        "stream LEFT JOIN table",
    ),
    ("SELECT * FROM events", "only yields rows"),
];

#[tokio::test]
async fn what_a_stream_cannot_do_is_refused_with_what_fits() -> Result<()> {
    let feed = Feed::create(1).await?;
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE names (k text PRIMARY KEY, v bigint); INSERT INTO names SELECT 'k' || i, i FROM generate_series(0, 9) i")
        .await?;
    let client = shared().await?.client().await?;
    let declarations = [
        feed.declare(SECOND, ""),
        feed.declare_as("untimed", ""),
        database.declare("names", "names", ""),
        database.declare("rows", "rows", ""),
        database.declare("others", "others", ""),
        database.declare("keyed", "keyed", ", mode 'upsert', key 'k'"),
    ]
    .concat();
    let mut wrong = Vec::new();
    for (insert, part) in WRONG {
        let name = unique("wrong");
        match client.submit(&format!("{declarations}{insert};"), &name).await {
            Ok(job) => {
                client.cancel(&job).await?;
                wrong.push(format!("taken: {insert}"));
            }
            Err(error) => {
                let status = error.downcast::<Status>()?;
                if !status.message().contains(part) || status.code() != tonic::Code::InvalidArgument {
                    wrong.push(format!("{insert}\n  -> {status:?}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let error = client
        .query_error(&format!("{declarations}SELECT count(*) FROM events"))
        .await?;
    ensure!(error.message().contains("leave the word UNBOUNDED out"), "{error:?}");
    let tables = database
        .value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .await?;
    assert_eq!(tables, "1", "a refused job leaves nothing");
    Ok(())
}

#[tokio::test]
async fn another_query_under_the_same_name_is_refused_and_the_old_one_goes_on() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    let query = |into: &str, select: &str| {
        [
            feed.declare(SECOND, ""),
            database.declare(into, into, ", mode 'upsert', key 'window_start'"),
            format!("INSERT INTO {into} SELECT {select} FROM events GROUP BY window(at, '1 minute');"),
        ]
        .concat()
    };
    let old = query("counted", "window_start, count(*) AS n");
    let other = query("counted", "window_start, count(*) AS n, sum(v) AS s");
    let fresh = query("summed", "window_start, sum(v) AS s");
    let events = |from: i64| (from..from + 50).map(|id| (id as usize % 2, Event::new(id, FORWARD + id * SECOND)));
    feed.send(events(0).collect()).await?;
    let run = Run::start(&old).await?;
    run.drained(&feed).await?;
    let error = run.client.submit(&old, &run.name).await.err();
    let message = error.context("two jobs of one name run")?.to_string();
    ensure!(message.contains("is running"), "{message}");
    run.stop().await?;

    let changed = run.resubmit(&other, false).await?;
    ensure!(changed.id == run.id);
    let message = changed.failure().await?;
    ensure!(
        message.contains("the checkpoint of this job is of another query") && message.contains("--from-scratch"),
        "{message}"
    );
    let old_again = run.resubmit(&old, false).await?;
    feed.send(events(50).collect()).await?;
    old_again.drained(&feed).await?;
    assert_eq!(database.value("SELECT sum(n) FROM counted").await?, "100");
    old_again.stop().await?;

    let anew = run.resubmit(&fresh, true).await?;
    ensure!(anew.id != run.id, "a job from scratch is another job");
    anew.drained(&feed).await?;
    let total: i64 = (0..100).sum();
    assert_eq!(database.value("SELECT sum(s) FROM summed").await?, total.to_string());
    let before = run.client.get(&run.id).await?;
    ensure!(before.state() == JobState::Stopped, "{before:?}");
    anew.cancel().await
}
