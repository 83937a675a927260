//! What one who may only look sees of jobs that others wrote their secrets into.

use crate::guarded::{Guard, Guarded, READ, SUBMIT};
use anyhow::{Context, Result};
use essaim_proto::v1::{GetRequest, ListRequest};
use serde_json::Value;

const TABLES: [&str; 4] = [
    "CREATE EXTERNAL TABLE pages (a INT) STORED AS HTTP
     LOCATION 'http://127.0.0.1:1/d?q=Paris&appid=hidden-1&api_key=hidden-2'
     OPTIONS ('header.Authorization' 'Bearer hidden-3', 'header.X-Api-Key' 'hidden-4', method 'post', body 'hidden-5');
     -- 'header.Authorization' 'Bearer hidden-6'
     SELECT 1",
    "CREATE EXTERNAL TABLE toots (a INT) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/toots'
     OPTIONS (format 'json', 'kafka.ssl.key.pem' 'hidden-7', 'kafka.sasl.password' 'ab''hidden-8\"hidden-9');
     SELECT 1",
    "CREATE EXTERNAL TABLE pages (a INT) STORED AS HTTP LOCATION 'http://127.0.0.1:1/d' OPTIONS (body = 'hidden-10');",
    "CREATE EXTERNAL TABLE pages (a INT) STORED AS HTTP LOCATION 'http://127.0.0.1:1/d' OPTIONS (body 'hidden-11);",
];

#[tokio::test]
async fn readers_see_no_secret_of_the_sql_whether_it_is_right_or_wrong() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    let mut failed = 0;
    for sql in TABLES {
        // What matters is that the job is there to be looked at.
        failed += u32::from(cluster.query(SUBMIT, sql).await.is_err());
    }
    assert!(failed >= 2, "two of them are no SQL");
    let (_, page) = cluster.get("/api/v1/jobs", READ).await?;
    let listed: Value = serde_json::from_str(&page)?;
    let listed = listed["jobs"].as_array().context("jobs")?;
    assert_eq!(listed.len(), TABLES.len(), "{page}");
    let mut reader = cluster.jobs(READ).await?;
    let jobs = reader.list(ListRequest::default()).await?;
    let mut shown = page.clone() + &format!("{jobs:?}") + &cluster.written()?;
    for job in listed {
        let id = job["id"].as_str().context("id")?;
        shown += &cluster.get(&format!("/api/v1/jobs/{id}"), READ).await?.1;
        let job_id = id.to_owned();
        shown += &format!("{:?}", reader.get(GetRequest { job_id }).await?);
    }
    for path in ["/api/v1/events", "/api/v1/cluster", "/metrics"] {
        shown += &cluster.get(path, READ).await?.1;
    }
    for part in ["q=Paris&appid=***", "header.X-Api-Key", "kafka.ssl.key.pem"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert!(!shown.contains("hidden-"), "{shown}");
    Ok(())
}
