//! Files, streams, sinks and checkpoints on S3: a real server of its protocol, and a connection that breaks.

use anyhow::{Context, Result};
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, MEMORY};
use essaim_tests::proxy::Proxy;
use essaim_tests::s3::{Server, variables};
use essaim_tests::sql::{numbers, text};
use essaim_tests::{LONG, SOON, unique, wait_for};
use std::net::SocketAddr;

async fn cluster(s3: SocketAddr, workers: usize, state_dir: Option<String>) -> Result<Cluster> {
    let variables = variables(s3);
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    match state_dir {
        Some(state_dir) => Cluster::start_at(workers, 2, &variables, state_dir).await,
        None => Cluster::start_under(workers, 2, &variables).await,
    }
}

#[tokio::test]
async fn tables_of_all_formats_are_written_and_read() -> Result<()> {
    let server = Server::shared().await?;
    let bucket = server.bucket().await?;
    let cluster = cluster(server.address(), 2, None).await?;
    let client = cluster.client().await?;
    for (stored, name) in [
        ("PARQUET", "parquet"),
        ("CSV", "csv"),
        ("JSON", "json"),
        ("CSV", "compressed"),
    ] {
        let options = match name {
            "compressed" => "OPTIONS (compression 'gzip')",
            _ => "",
        };
        let table = format!(
            "CREATE EXTERNAL TABLE files STORED AS {stored} LOCATION '{}' {options};",
            bucket.url(&format!("{name}/"))
        );
        let write = format!(
            "{}{table} INSERT INTO files SELECT value AS id, 'row ' || value AS name FROM numbers;",
            numbers("numbers", 10_000)
        );
        client.run_job(&write, &unique(name)).await?;
        let read = format!("{table} SELECT count(*), sum(id), max(name) FROM files");
        let found = text(&client.query(&read).await?)?;
        assert_eq!(found, "10000\t49995000\trow 9999", "{name}");
        let again = write.replace("INSERT INTO", "INSERT OVERWRITE");
        client.run_job(&again, &unique(name)).await?;
        assert_eq!(text(&client.query(&read).await?)?, found, "{name}");
    }
    cluster.stop().await
}

#[tokio::test]
async fn a_prefix_of_more_than_a_thousand_keys_is_read_whole_and_once() -> Result<()> {
    let server = Server::shared().await?;
    let bucket = server.bucket().await?;
    // A page of a listing has a thousand.
    let objects = (0..1100).map(|n| (format!("in/{n:05}.json"), format!("{{\"id\": {n}}}\n")));
    bucket.put_all(objects).await?;
    let cluster = cluster(server.address(), 2, None).await?;
    let client = cluster.client().await?;
    let read = format!(
        "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION '{}'; SELECT count(*), sum(id) FROM files",
        bucket.url("in/")
    );
    assert_eq!(text(&client.query(&read).await?)?, "1100\t604450");
    let pattern = read.replace("in/'", "in/0000?.js*'");
    assert_eq!(text(&client.query(&pattern).await?)?, "10\t45");

    let stream = format!(
        "SET essaim.trigger = 'available_now';
         CREATE UNBOUNDED EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION '{}' OPTIONS (max_files_per_trigger '600');
         CREATE EXTERNAL TABLE out STORED AS CSV LOCATION '{}';
         INSERT INTO out SELECT id FROM files;",
        bucket.url("in/"),
        bucket.url("out/")
    );
    let name = unique("many");
    client.run_job(&stream, &name).await?;
    bucket.put("in/last.json", "{\"id\": 1100}\n").await?;
    client.run_job(&stream, &name).await?;
    let mut ids: Vec<u32> = bucket
        .records("out")
        .await?
        .iter()
        .filter_map(|id| id.parse().ok())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..=1100).collect::<Vec<_>>());
    cluster.stop().await
}

#[tokio::test]
async fn a_large_file_goes_up_in_parts_and_a_lost_connection_leaves_nothing_half_written()
-> Result<()> {
    let server = Server::shared().await?;
    let bucket = server.bucket().await?;
    let proxy = Proxy::start(server.address()).await?;
    let cluster = cluster(proxy.address(), 1, None).await?;
    let client = cluster.client().await?;
    // Some 45 MB: a part has 10.
    let write = |file: &str| {
        format!(
            "{} CREATE EXTERNAL TABLE big STORED AS CSV LOCATION '{}';
             INSERT INTO big SELECT value AS id, repeat('x', 200) AS text FROM numbers;",
            numbers("numbers", 220_000),
            bucket.url(file)
        )
    };
    let uploads = format!("/{}?uploads", bucket.name());
    let uploading = async || {
        let (status, found) = essaim_tests::http::get(server.address(), &uploads).await?;
        anyhow::ensure!(status == 200, "{found}");
        Ok(found.contains("<Upload>").then_some(()))
    };
    let id = client
        .submit(&write("whole/big.csv"), &unique("big"))
        .await?;
    wait_for("an upload in parts to begin", SOON, uploading).await?;
    let job = client.wait_job(&id).await?;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.message);
    let whole = bucket.visible("whole").await?;
    assert!(whole.len() == 1 && whole[0].1 > 40 << 20, "{whole:?}");

    // Cut while parts go up.
    let id = client.submit(&write("cut/big.csv"), &unique("cut")).await?;
    wait_for("an upload to begin", SOON, uploading).await?;
    proxy.cut();
    assert_eq!(bucket.visible("cut").await?, []);
    proxy.restore();
    let job = client.wait_job(&id).await?;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.message);
    let found = bucket.visible("cut").await?;
    assert_eq!(found, [("cut/big.csv".to_owned(), whole[0].1)]);

    // And one that is given up.
    let id = client
        .submit(&write("gone/big.csv"), &unique("gone"))
        .await?;
    wait_for("an upload to begin", SOON, uploading).await?;
    proxy.cut();
    client.cancel(&id).await?;
    proxy.restore();
    assert_eq!(client.wait_job(&id).await?.state(), JobState::Cancelled);
    assert_eq!(bucket.visible("gone").await?, []);
    cluster.stop().await
}

#[tokio::test]
async fn files_stream_from_s3_to_s3_with_the_checkpoint_there_though_master_and_connection_die()
-> Result<()> {
    let server = Server::shared().await?;
    let bucket = server.bucket().await?;
    let proxy = Proxy::start(server.address()).await?;
    let state = bucket.url("state/");
    let mut cluster = cluster(proxy.address(), 2, Some(state)).await?;
    let client = cluster.client().await?;
    let put = |from: usize, to: usize| {
        let coins = move |n: usize| {
            let coin = |c| {
                format!(
                    "  {{\"id\": {}, \"at\": \"2026-11-21T10:00:{:02}.000Z\"}}",
                    n * 10 + c,
                    n % 60
                )
            };
            let coins: Vec<String> = (0..10).map(coin).collect();
            format!("[\n{}\n]\n", coins.join(",\n"))
        };
        bucket.put_all((from..to).map(move |n| (format!("in/{n:04}.json"), coins(n))))
    };
    put(0, 20).await?;
    let sql = format!(
        "SET essaim.trigger = '100 milliseconds';
         CREATE UNBOUNDED EXTERNAL TABLE snapshots (id BIGINT, at TIMESTAMP) STORED AS JSON LOCATION '{}'
         OPTIONS (multi_line 'true', max_files_per_trigger '4', monitor_interval '100 milliseconds',
                  clean_source 'archive', source_archive_dir '{}');
         CREATE EXTERNAL TABLE out STORED AS CSV LOCATION '{}';
         INSERT INTO out SELECT id, date_part('second', at) AS second FROM snapshots;",
        bucket.url("in/"),
        bucket.url("archive/"),
        bucket.url("out/")
    );
    let id = client.submit(&sql, &unique("markets")).await?;
    let has = async |count: usize| {
        wait_for(&format!("{count} rows"), LONG, async || {
            let records = bucket.records("out").await?;
            Ok((records.len() >= count).then_some(records))
        })
        .await
    };
    has(80).await?;
    cluster.kill_master();
    put(20, 40).await?;
    cluster.restart_master().await?;
    has(240).await?;
    proxy.cut();
    put(40, 45).await?;
    cluster.kill_worker(0);
    proxy.restore();
    cluster.add_worker(2, MEMORY).await?;
    let mut records = has(450).await?;
    records.sort_by_key(|record| {
        record
            .split(',')
            .next()
            .and_then(|id| id.parse::<u32>().ok())
    });
    let wanted: Vec<String> = (0..450)
        .map(|id| format!("{id},{}", id / 10 % 60))
        .collect();
    assert_eq!(records, wanted);
    // Behind the last commit a few may wait for the next one.
    wait_for("what was read to be moved", SOON, async || {
        let left = (
            bucket.list("in").await?.len(),
            bucket.list("archive").await?.len(),
        );
        // Moving is copying and then deleting.
        Ok((left.0 + left.1 == 45 && left.0 <= 9).then_some(()))
    })
    .await?;
    let client = cluster.client().await?;
    assert_eq!(client.get(&id).await?.state(), JobState::Running);
    client.cancel(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn wrong_credentials_are_an_error_that_says_so() -> Result<()> {
    // After the request that makes the bucket, moto wants keys that it has given out.
    let server = Server::start(&[("INITIAL_NO_AUTH_ACTION_COUNT", "1")]).await?;
    let bucket = server.bucket().await?;
    let cluster = cluster(server.address(), 1, None).await?;
    let client = cluster.client().await?;
    let read = format!(
        "CREATE EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION '{}'; SELECT count(*) FROM files",
        bucket.url("in/")
    );
    let stream = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE files (id BIGINT) STORED AS JSON LOCATION '{}';
         CREATE EXTERNAL TABLE out STORED AS CONSOLE LOCATION '';
         INSERT INTO out SELECT id FROM files;",
        bucket.url("in/")
    );
    let read = client.query_error(&read).await?;
    let error = match client.submit(&stream, &unique("wrong")).await {
        Ok(job) => client.wait_job(&job).await?.message,
        Err(error) => error.to_string(),
    };
    for message in [read.message(), &error] {
        assert!(message.contains("AWS_ACCESS_KEY_ID"), "{message}");
        assert!(message.contains("in"), "{message}");
        assert!(!message.contains("not a secret"), "{message}");
    }
    cluster.stop().await
}
