//! What is wrong is told before or when it happens, with what to do, and without a secret.

use crate::output;
use anyhow::{Result, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::certificates::Certificates;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::command::essaim;
use essaim_tests::feeds::{Fault, Feeds};
use essaim_tests::kafka::Topic;
use essaim_tests::sql::text;
use essaim_tests::{SOON, unique};
use serde_json::json;

#[tokio::test]
async fn a_wrong_table_is_refused_with_what_to_do() -> Result<()> {
    let feeds = Feeds::start().await?;
    let cluster = Cluster::start_under(1, 2, &[("ESSAIM_VAR_TOKEN", "s3cr3t-token")]).await?;
    let client = cluster.client().await?;
    feeds.set("big", json!([{"id": "x".repeat(5000)}]));
    feeds.fail("/json/html", [Fault::Body("<html>oh no".to_owned())]);
    feeds.fail("/json/slow", [Fault::Slow(SOON)]);
    let fails = async |columns: &str,
                       kind: &str,
                       path: &str,
                       options: &str,
                       parts: &[&str]|
           -> Result<()> {
        let sql = format!(
            "SET essaim.max_attempts = 1; CREATE EXTERNAL TABLE t {columns} STORED AS {kind} LOCATION '{}' OPTIONS (request_timeout '1 second'{options});
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
        let id = client.submit(&sql, &unique("wrong")).await?;
        let job = client.wait_job(&id).await?;
        assert_eq!(job.state(), JobState::Failed);
        assert!(job.message.contains(part), "no {part:?} in {}", job.message);
        assert!(!job.message.contains("s3cr3t"), "{}", job.message);
    }
    cluster.stop().await
}

#[tokio::test]
async fn only_servers_that_are_trusted_are_asked() -> Result<()> {
    let feeds = Feeds::start().await?;
    let certificates = Certificates::make()?;
    let secured = feeds.secure(&certificates).await?;
    feeds.set("x", json!({"id": 7}));
    let sql = format!(
        "SET essaim.max_attempts = 1;
         CREATE EXTERNAL TABLE t (id BIGINT) STORED AS HTTP LOCATION '{}'; SELECT id FROM t",
        secured.url("/json/x")
    );
    let ca = certificates.certificate("ca");
    let cluster = Cluster::start_under(1, 1, &[("SSL_CERT_FILE", &ca.to_string_lossy())]).await?;
    assert_eq!(text(&cluster.client().await?.query(&sql).await?)?, "7");
    cluster.stop().await?;
    let error = shared().await?.client().await?.query_error(&sql).await?;
    let message = error.message();
    for part in ["certificate is not trusted", "SSL_CERT_FILE"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    Ok(())
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
