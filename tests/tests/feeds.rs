//! HTTP servers and streams of events as tables: every record once, whatever breaks on either side.

use anyhow::{Context, Result, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::client::Client;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::command::essaim;
use essaim_tests::feeds::{Fault, Feeds};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::sql::text;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

/// Waits until a query yields this text, values with tabs between them, rows one a line.
async fn until(client: &Client, sql: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    let outcome = wait_for(&format!("{sql} = {wanted}"), SOON * 2, async || {
        last = text(&client.query(sql).await?)?;
        Ok((last == wanted).then_some(()))
    })
    .await;
    outcome.with_context(|| format!("it is {last}"))
}

/// A topic that is written by one job and read by queries.
fn output(topic: &Topic, columns: &str) -> String {
    topic.declare("out", columns)
}

#[tokio::test]
async fn twenty_cities_are_asked_for_one_by_one_into_postgres() -> Result<()> {
    let feeds = Feeds::start().await?;
    let database = Database::create().await?;
    let cluster = Cluster::start_under(2, 2, &[("ESSAIM_VAR_KEY", "hunter2key")]).await?;
    let cities: Vec<String> = (0..20).map(|n| format!("São {n} & Co")).collect();
    for (n, city) in cities.iter().enumerate() {
        let weather = json!({
            "name": city, "dt": 1_767_225_600 + n, "main": {"temp": n as f64 + 0.5, "humidity": n},
            "weather": [{"main": if n % 4 == 0 { "Rain" } else { "Clear" }}],
        });
        feeds.set(&format!("weather/{city}"), weather);
    }
    let path = |n: usize| format!("/json/weather/S%C3%A3o%20{n}%20%26%20Co");
    feeds.fail(&path(3), [Fault::Status(503, None), Fault::Broken]);
    feeds.fail(&path(5), [Fault::Status(429, Some(1))]);
    feeds.fail(&path(7), [Fault::Slow(Duration::from_secs(60))]);
    feeds.demand_token("hunter2key");
    let sql = [
        format!(
            "CREATE EXTERNAL TABLE weather (
               name VARCHAR, dt TIMESTAMP, main STRUCT<temp DOUBLE, humidity BIGINT>, weather STRUCT<main VARCHAR>[]
             ) STORED AS HTTP LOCATION '{}&appid=${{ESSAIM_VAR_KEY}}'
             OPTIONS ('url.city' '{}', timestamp_unit 's', request_timeout '3 seconds',
               'header.Authorization' 'Bearer ${{ESSAIM_VAR_KEY}}');\n",
            feeds.url("/json/weather/{city}?packed=1"),
            cities.join(", ")
        ),
        database.declare("cities", "cities", ", mode 'overwrite'"),
        "INSERT INTO cities SELECT name, dt, main['temp'] AS temp, weather[1]['main'] AS sky,
           _url AS url, _status AS status, _fetched_at AS at FROM weather;"
            .to_owned(),
    ]
    .concat();
    let client = cluster.client().await?;
    let job = client.run_job(&sql, &unique("weather")).await?;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.message);
    let sums = "SELECT count(*) || ' ' || count(DISTINCT name) || ' ' || sum(temp) || ' ' ||
                  count(*) FILTER (WHERE sky = 'Rain') || ' ' || sum(status) || ' ' || max(dt) FROM cities";
    assert_eq!(
        database.value(sums).await?,
        "20 20 200 5 4000 2026-01-01 00:00:19"
    );
    let fresh = "SELECT bool_and(abs(extract(epoch FROM (now() AT TIME ZONE 'UTC') - at)) < 300) FROM cities";
    assert_eq!(database.value(fresh).await?, "t");
    let url = database
        .value("SELECT url FROM cities WHERE name LIKE 'São 3 %'")
        .await?;
    assert_eq!(url, feeds.url(&format!("{}?packed=1&appid=***", path(3))));
    // Each was asked for as often as it failed and once more, and not before it was said to be well.
    for n in 0..20 {
        let requests = feeds.requests(&path(n));
        let wanted = match n {
            3 => 3,
            5 | 7 => 2,
            _ => 1,
        };
        assert_eq!(requests.len(), wanted, "{}", path(n));
        assert!(
            requests
                .iter()
                .all(|request| request.header("accept-encoding").contains("gzip"))
        );
    }
    let limited = feeds.requests(&path(5));
    let waited = limited[1].at - limited[0].at;
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    // The key is in no log and no answer of the API.
    let page = cluster
        .http_get(&format!("/api/v1/jobs/{}", job.id))
        .await?
        .1;
    assert!(
        page.contains("weather") && !page.contains("hunter2key"),
        "{page}"
    );
    let logs = [
        cluster.log_of_master(1),
        cluster.log_of_worker(0),
        cluster.log_of_worker(1),
    ];
    for log in logs {
        assert!(
            !std::fs::read_to_string(&log)?.contains("hunter2key"),
            "{}",
            log.display()
        );
    }
    cluster.stop().await
}

#[tokio::test]
async fn records_of_all_pages_are_read_once() -> Result<()> {
    let feeds = Feeds::start().await?;
    let records: Vec<Value> = (0..23).map(|n| json!({"id": n})).collect();
    feeds.set_list("l", records, 5);
    feeds.fail("/page/l", [Fault::Status(500, None)]);
    let client = shared().await?.client().await?;
    let count = async |path: &str, options: &str, sql: &str| -> Result<String> {
        let declare = format!(
            "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS HTTP LOCATION '{}' OPTIONS ({options}); ",
            feeds.url(path)
        );
        text(&client.query(&(declare + sql)).await?)
    };
    let all = "SELECT count(*), count(DISTINCT id), sum(id) FROM t";
    let whole = "23\t23\t253";
    assert_eq!(count("/link/l", "paging 'link'", all).await?, whole);
    assert_eq!(feeds.requests("/link/l").len(), 5);
    let by_number = "paging 'page', json_path '$.list'";
    assert_eq!(count("/page/l?q=a%20b", by_number, all).await?, whole);
    let numbers: Vec<String> = feeds
        .requests("/page/l")
        .iter()
        .map(|request| request.uri.query().unwrap_or_default().to_owned())
        .collect();
    let wanted = ["1", "1", "2", "3", "4", "5", "6"].map(|n| format!("q=a+b&page={n}"));
    assert_eq!(numbers, wanted);
    let by_cursor =
        "paging 'cursor', cursor_path '$.next', cursor_param 'after', json_path '$.stories[*]'";
    assert_eq!(count("/cursor/l", by_cursor, all).await?, whole);
    // Not more than is wanted.
    let three = format!("{by_cursor}, max_pages '3'");
    assert_eq!(
        count("/cursor/l", &three, "SELECT count(*) FROM t").await?,
        "15"
    );
    let before = feeds.requests("/link/l").len();
    assert_eq!(
        count("/link/l", "paging 'link'", "SELECT id FROM t LIMIT 7")
            .await?
            .lines()
            .count(),
        7
    );
    assert_eq!(feeds.requests("/link/l").len() - before, 2);
    // What is no row is left out, or ends the query.
    feeds.set(
        "bad",
        json!([{"id": 1}, {"id": "no number"}, 7, {"id": 2}, null]),
    );
    assert_eq!(
        count("/json/bad", "on_error 'skip'", "SELECT sum(id) FROM t").await?,
        "3"
    );
    let error = count("/json/bad", "on_error 'fail'", "SELECT sum(id) FROM t").await;
    let error = format!("{:#}", error.unwrap_err());
    assert!(
        error.contains("/json/bad, record 1: it does not decode"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn requests_keep_to_the_rate() -> Result<()> {
    let feeds = Feeds::start().await?;
    for n in 0..6 {
        feeds.set(&n.to_string(), json!({"n": n}));
    }
    let sql = format!(
        "CREATE EXTERNAL TABLE t STORED AS HTTP LOCATION '{}'
         OPTIONS (format 'raw', requests_per_second '10', 'url.n' '[0, 1, 2, 3, 4, 5]', method 'POST', body '{{\"q\": 1}}');
         SELECT data FROM t ORDER BY data",
        feeds.url("/json/{n}")
    );
    let client = shared().await?.client().await?;
    let found = text(&client.query(&sql).await?)?;
    let wanted: Vec<String> = (0..6).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(found, wanted.join("\n"));
    let (first, last) = (feeds.requests("/json/0"), feeds.requests("/json/5"));
    assert_eq!(first[0].body, "{\"q\": 1}");
    assert_eq!(first[0].header("content-type"), "application/json");
    let took = last[0].at - first[0].at;
    assert!(took >= Duration::from_millis(450), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_document_is_taken_again_only_when_it_has_changed() -> Result<()> {
    let feeds = Feeds::start().await?;
    let topic = Topic::create(2).await?;
    let mut cluster = Cluster::start(1, 2).await?;
    feeds.set("coins", json!({"coins": [{"id": 1}, {"id": 2}]}));
    feeds.set_list("news", (0..7).map(|n| json!({"id": 100 + n})).collect(), 3);
    let declare = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE coins (id BIGINT) STORED AS HTTP LOCATION '{}'
         OPTIONS (interval '100 milliseconds', json_path '$.coins', event_time '_fetched_at', watermark_delay '1 second');
         CREATE UNBOUNDED EXTERNAL TABLE news (id BIGINT) STORED AS HTTP LOCATION '{}'
         OPTIONS (interval '100 milliseconds', json_path '$.stories', max_offsets_per_trigger '2',
           paging 'cursor', cursor_path '$.next', cursor_param 'after');\n",
        feeds.url("/json/coins"),
        feeds.url("/cursor/news"),
    );
    let out = output(&topic, "id BIGINT");
    let sql = format!(
        "{declare}{out}INSERT INTO out (id) SELECT id FROM coins; INSERT INTO out (id) SELECT id FROM news;"
    );
    let client = cluster.client().await?;
    let job = client.submit(&sql, &unique("coins")).await?;
    let query = format!("{out} SELECT id, count(*) FROM out GROUP BY id ORDER BY id");
    let shown = |ids: &[(i64, i64)]| {
        let lines = ids.iter().map(|(id, count)| format!("{id}\t{count}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut wanted: Vec<(i64, i64)> = vec![(1, 1), (2, 1)];
    wanted.extend((100..107).map(|id| (id, 1)));
    until(&client, &query, &shown(&wanted)).await?;
    // It is asked for on and on, and nothing has changed.
    let more = async |path: &str, requests: usize| {
        let before = feeds.requests(path).len();
        wait_for("more requests", SOON, async || {
            Ok((feeds.requests(path).len() >= before + requests).then_some(()))
        })
        .await
    };
    more("/json/coins", 3).await?;
    feeds.set("coins", json!({"coins": [{"id": 2}, {"id": 3}]}));
    wanted[1].1 = 2;
    wanted.insert(2, (3, 1));
    until(&client, &query, &shown(&wanted)).await?;

    cluster.kill_master();
    let (coins, news) = (
        feeds.requests("/json/coins").len(),
        feeds.requests("/cursor/news").len(),
    );
    cluster.restart_master().await?;
    let client = cluster.client().await?;
    more("/json/coins", 2).await?;
    more("/cursor/news", 2).await?;
    // The new master knows what the old one has kept.
    assert_ne!(
        feeds.requests("/json/coins")[coins].header("if-none-match"),
        ""
    );
    let query_of = feeds.requests("/cursor/news")[news]
        .uri
        .query()
        .map(str::to_owned);
    assert_eq!(query_of.as_deref(), Some("after=c7"));
    feeds.set_list("news", (0..9).map(|n| json!({"id": 100 + n})).collect(), 3);
    feeds.set("coins", json!({"coins": [{"id": 4}]}));
    wanted.insert(3, (4, 1));
    wanted.extend([(107, 1), (108, 1)]);
    until(&client, &query, &shown(&wanted)).await?;
    // A server that is away is waited for.
    feeds.fail("/json/coins", (0..9).map(|_| Fault::Status(500, None)));
    more("/json/coins", 10).await?;
    assert_eq!(client.get(&job).await?.state(), JobState::Running);
    until(&client, &query, &shown(&wanted)).await?;
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

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

#[tokio::test]
async fn a_wrong_table_is_refused_with_what_to_do() -> Result<()> {
    let feeds = Feeds::start().await?;
    let cluster = Cluster::start_under(1, 2, &[("ESSAIM_VAR_TOKEN", "s3cr3t-token")]).await?;
    let client = cluster.client().await?;
    feeds.set("big", json!([{"id": "x".repeat(5000)}]));
    feeds.fail("/json/html", [Fault::Body("<html>oh no".to_owned())]);
    feeds.fail("/json/slow", [Fault::Slow(SOON), Fault::Slow(SOON)]);
    let fails = async |columns: &str,
                       kind: &str,
                       path: &str,
                       options: &str,
                       parts: &[&str]|
           -> Result<()> {
        let sql = format!(
            "CREATE EXTERNAL TABLE t {columns} STORED AS {kind} LOCATION '{}' OPTIONS (request_timeout '1 second'{options});
             SELECT * FROM t",
            feeds.url(path)
        );
        let error = client.query_error(&sql).await?;
        for part in parts {
            ensure!(
                error.message().contains(part),
                "no {part:?} in {:?}",
                error.message()
            );
        }
        ensure!(!error.message().contains("s3cr3t"), "{error}");
        Ok(())
    };
    let id = "(id VARCHAR)";
    fails(
        "",
        "HTTP",
        "/json/x",
        "",
        &["no columns are declared", "format 'raw'"],
    )
    .await?;
    fails(
        "(_url VARCHAR)",
        "HTTP",
        "/json/x",
        "",
        &["_url is filled in"],
    )
    .await?;
    fails(id, "HTTP", "/json/{x}", "", &["{x}", "'url.x'"]).await?;
    fails(
        id,
        "HTTP",
        "/json/x",
        ", on_error 'dead_letter'",
        &["into a topic"],
    )
    .await?;
    fails(
        id,
        "HTTP",
        "/json/x",
        ", intervall '1 s'",
        &["did you mean interval?"],
    )
    .await?;
    fails(id, "SSE", "/events", "", &["UNBOUNDED"]).await?;
    fails(
        id,
        "HTTP",
        "/json/x",
        "",
        &[
            "/json/x answers 404 Not Found: no x here",
            "path in LOCATION",
        ],
    )
    .await?;
    fails(
        id,
        "HTTP",
        "/elsewhere",
        "",
        &["redirects to http://127.0.0.2:1:", "LOCATION"],
    )
    .await?;
    fails(id, "HTTP", "/json/html", "", &["no JSON", "<html>oh no"]).await?;
    fails(
        id,
        "HTTP",
        "/json/slow",
        ", retries '0'",
        &["1000 ms (option request_timeout)"],
    )
    .await?;
    let most = ", max_response_bytes '4000'";
    fails(
        id,
        "HTTP",
        "/json/big",
        most,
        &["larger than 4000 bytes (option max_response_bytes)"],
    )
    .await?;
    feeds.demand_token("another");
    let token = ", 'header.Authorization' 'Bearer ${ESSAIM_VAR_TOKEN}'";
    fails(
        id,
        "HTTP",
        "/json/big",
        token,
        &["401", "wrong credentials: Bearer ***", "check the token"],
    )
    .await?;

    // A stream ends with what cannot be helped, and so does one whose server nobody has ever heard.
    let topic = Topic::create(1).await?;
    let stream = |kind: &str, url: String, options: &str| {
        format!(
            "CREATE UNBOUNDED EXTERNAL TABLE t (id BIGINT) STORED AS {kind} LOCATION '{url}' OPTIONS (request_timeout '1 second'{options});
             {} SET essaim.max_epoch_attempts = 3; INSERT INTO out (id) SELECT id FROM t;",
            output(&topic, "id BIGINT")
        )
    };
    let nowhere = "http://127.0.0.1:1/x?token=s3cr3t".to_owned();
    let jobs = [
        (stream("SSE", feeds.url("/events"), token), "401"),
        (stream("SSE", nowhere.clone(), ""), "Connection refused"),
        (
            stream(
                "HTTP",
                nowhere,
                ", retries '0', interval '100 milliseconds'",
            ),
            "Connection refused",
        ),
    ];
    for (sql, part) in jobs {
        let job = client.run_job(&sql, &unique("wrong")).await?;
        assert_eq!(job.state(), JobState::Failed);
        assert!(job.message.contains(part), "no {part:?} in {}", job.message);
        assert!(!job.message.contains("s3cr3t"), "{}", job.message);
    }
    cluster.stop().await
}

#[tokio::test]
async fn a_feed_is_looked_at_before_its_job_runs() -> Result<()> {
    let feeds = Feeds::start().await?;
    let topic = Topic::create(1).await?;
    let cluster = shared().await?;
    feeds.set(
        "coins",
        json!((0..6).map(|n| json!({"id": n})).collect::<Vec<_>>()),
    );
    let job = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE coins (id BIGINT, \"Name\" VARCHAR) STORED AS HTTP LOCATION '{}';\n\
         CREATE UNBOUNDED EXTERNAL TABLE toots (id BIGINT) STORED AS SSE LOCATION '{}';\n{}\
         INSERT INTO out (id) SELECT id FROM coins; INSERT INTO out (id) SELECT id FROM toots;",
        feeds.url("/json/coins"),
        feeds.url("/events"),
        output(&topic, "id BIGINT"),
    );
    let file = cluster.dir().join(unique("job")).with_extension("sql");
    std::fs::write(&file, job)?;
    let file = file.to_string_lossy();
    let ended = essaim(&cluster.url(), &["check", "--json", &file]).await?;
    let found = ended.json()?.to_string();
    for part in [
        "none of the first 6 records has a value for Name",
        "cannot be read again",
        "the first event that does not decode ends the job",
    ] {
        assert!(found.contains(part), "no {part:?} in {found}");
    }
    assert_eq!(
        feeds.requests("/events").len(),
        0,
        "a check opens no stream"
    );
    let ended = essaim(&cluster.url(), &["doctor", "--json", &file]).await?;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.out.contains("SSE at http://127.0.0.1:"),
        "{}",
        ended.out
    );
    assert!(
        ended.out.contains("answers a HEAD request with 200"),
        "{}",
        ended.out
    );
    Ok(())
}
