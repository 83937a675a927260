//! Streams of events: cut, silent, and of several types.

use crate::{output, until};
use anyhow::{Context, Result, ensure};
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::feeds::Feeds;
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::json;

#[tokio::test]
async fn events_come_once_though_connections_break_and_the_master_dies() -> Result<()> {
    const EVENTS: i64 = 400;
    let feeds = Feeds::start().await?;
    let topic = Topic::create(2).await?;
    let mut cluster = Cluster::start(1, 2).await?;
    feeds.cut_after(17);
    let publish = |from: i64, to: i64| {
        for n in from..to {
            let toot =
                json!({"n": n, "content": format!("<p>toot {n}</p>\nwith é"), "tags": ["a", "b"]});
            feeds.publish("update", &toot.to_string());
        }
    };
    let out = output(&topic, "n BIGINT, id VARCHAR, kind VARCHAR, tags BIGINT");
    let sql = format!(
        "SET essaim.trigger = '50 milliseconds';
         CREATE UNBOUNDED EXTERNAL TABLE toots (n BIGINT, content VARCHAR, tags VARCHAR[]) STORED AS SSE LOCATION '{}'
         OPTIONS (heartbeat_timeout '2 seconds', max_offsets_per_trigger '25');
         {out} INSERT INTO out (n, id, kind, tags)
           SELECT n, _id, _event, array_length(tags) FROM toots WHERE content LIKE '%toot%';",
        feeds.url("/events")
    );
    publish(0, 100);
    let client = cluster.client().await?;
    let job = client.submit(&sql, &unique("toots")).await?;
    let query = format!(
        "{out} SELECT count(*), count(DISTINCT n), count(DISTINCT id), coalesce(sum(n), 0), min(kind), sum(tags) FROM out"
    );
    let wanted = |n: i64| format!("{n}\t{n}\t{n}\t{}\tupdate\t{}", n * (n - 1) / 2, n * 2);
    let some = format!("{out} SELECT count(*) > 30 FROM out");
    until(&client, &some, "true").await?;
    // In the middle of its epochs.
    cluster.kill_master();
    publish(100, 200);
    cluster.restart_master().await?;
    let client = cluster.client().await?;
    until(&client, &query, &wanted(200)).await?;
    publish(200, 300);
    feeds.cut();
    cluster.kill_master();
    cluster.restart_master().await?;
    let client = cluster.client().await?;
    publish(300, EVENTS);
    until(&client, &query, &wanted(EVENTS)).await?;
    // Each of them was asked for from where the one before ended.
    let requests = feeds.requests("/events");
    assert!(
        requests.len() as i64 > EVENTS / 18,
        "{} connections",
        requests.len()
    );
    let ids = requests
        .iter()
        .map(|request| request.header("last-event-id").to_owned());
    let ids: Vec<String> = ids.collect();
    assert_eq!(ids[0], "");
    ensure!(ids[1..].iter().all(|id| !id.is_empty()), "{ids:?}");
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

#[tokio::test]
async fn types_of_events_are_told_apart_and_silence_is_broken() -> Result<()> {
    let feeds = Feeds::start().await?;
    let database = Database::create().await?;
    let client = shared().await?.client().await?;
    let sql = [
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE toots (id BIGINT, text VARCHAR) STORED AS SSE LOCATION '{0}'
             OPTIONS (events 'update, status.update', heartbeat_timeout '300 milliseconds', on_error 'skip');
             CREATE UNBOUNDED EXTERNAL TABLE deleted STORED AS SSE LOCATION '{0}'
             OPTIONS (events 'delete', format 'raw', heartbeat_timeout '300 milliseconds');\n",
            feeds.url("/events")
        ),
        database.declare("t", "toots", ", mode 'upsert', key 'id'"),
        database.declare("d", "deleted", ""),
        "INSERT INTO t SELECT id, last_value(text ORDER BY _received_at) AS text, last_value(_event ORDER BY _received_at) AS kind
           FROM toots GROUP BY id;
         INSERT INTO d SELECT cast(data AS BIGINT) AS id, _id AS event FROM deleted;"
            .to_owned(),
    ]
    .concat();
    let job = client.submit(&sql, &unique("kinds")).await?;
    let both =
        "SELECT (SELECT string_agg(id || text || kind, ',' ORDER BY id) FROM toots) || ' ' ||
                  (SELECT string_agg(id || ':' || event, ',' ORDER BY id) FROM deleted)";
    let holds = async |wanted: &str| {
        let mut last = String::new();
        let outcome = wait_for(wanted, SOON, async || {
            last = database.value(both).await.unwrap_or_else(|e| e.to_string());
            Ok((last == wanted).then_some(()))
        })
        .await;
        outcome.with_context(|| format!("it is {last}"))
    };
    feeds.publish("update", r#"{"id": 1, "text": "a"}"#);
    feeds.publish("delete", "17");
    feeds.publish("update", "no JSON at all");
    feeds.publish("announcement", "{}");
    feeds.publish("update", r#"{"id": 2, "text": "b"}"#);
    holds("1aupdate,2bupdate 17:2").await?;
    // Neither events nor heartbeats: the connection is taken for broken.
    let before = feeds.requests("/events").len();
    feeds.silence(true);
    wait_for("new connections", SOON, async || {
        Ok((feeds.requests("/events").len() >= before + 2).then_some(()))
    })
    .await?;
    feeds.silence(false);
    feeds.publish("delete", "18");
    feeds.publish("status.update", r#"{"id": 1, "text": "c"}"#);
    holds("1cstatus.update,2bupdate 17:2,18:6").await?;
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}
