//! Documents and pages, asked for once or on and on.

use crate::{output, until};
use anyhow::Result;
use essaim_proto::v1::{Job, JobState};
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::feeds::{Fault, Feeds};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::sql::text;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

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
            "SET essaim.speculation = false;
             CREATE EXTERNAL TABLE weather (
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
         OPTIONS (format 'raw', requests_per_second '4', 'url.n' '[0, 1, 2, 3, 4, 5]', method 'POST', body '{{\"q\": 1}}');
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
    assert!(took >= Duration::from_millis(900), "{took:?}");
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
    // Nobody asks any more.
    let mut asked = (0, Instant::now());
    wait_for("no more requests", SOON, async || {
        let now = feeds.requests("/json/coins").len() + feeds.requests("/cursor/news").len();
        if now != asked.0 {
            asked = (now, Instant::now());
        }
        Ok((asked.1.elapsed() > Duration::from_millis(500)).then_some(()))
    })
    .await?;
    cluster.stop().await
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_of_until_it_is_back() -> Result<()> {
    let feeds = Feeds::start().await?;
    let topic = Topic::create(1).await?;
    feeds.set("coins", json!([{"id": 1}]));
    let sql = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE coins (id BIGINT) STORED AS HTTP LOCATION '{}'
         OPTIONS (interval '100 milliseconds', retries '0');
         {}INSERT INTO out (id) SELECT id FROM coins;",
        feeds.url("/json/coins"),
        output(&topic, "id BIGINT")
    );
    let client = shared().await?.client().await?;
    let job = client.submit(&sql, &unique("gone")).await?;
    let query = format!(
        "{}SELECT id FROM out ORDER BY id",
        output(&topic, "id BIGINT")
    );
    until(&client, &query, "1").await?;
    // So many that it lasts until somebody has looked.
    feeds.fail("/json/coins", vec![Fault::Status(503, None); 20]);
    let told = |job: &Job| {
        let message = &job.message;
        message.contains("table coins brings nothing for now") && message.contains("503")
    };
    client.wait_until(&job, told).await?;
    client
        .wait_until(&job, |job| job.message.is_empty())
        .await?;
    feeds.set("coins", json!([{"id": 2}]));
    until(&client, &query, "1\n2").await?;
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}
