//! What the other tests stand on: the TPC-H data is whole, its queries have answers, servers come and go.

use anyhow::Result;
use essaim_tests::kafka::{Message, Topic, brokers};
use essaim_tests::postgres::{Database, PrivateServer, maintenance, rows, run};
use essaim_tests::tpch;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::{Connection, PgConnection};
use std::time::Duration;

#[tokio::test]
async fn the_tpch_data_is_whole_and_every_query_has_an_answer() -> Result<()> {
    let mut server = PgConnection::connect(tpch::database().await?).await?;
    let counts = [5, 25, 1_000, 15_000, 20_000, 80_000, 150_000, 600_572];
    for (table, count) in tpch::TABLES.into_iter().zip(counts) {
        let found = rows(&mut server, &format!("SELECT count(*) FROM {table}")).await?;
        assert_eq!(found, [[Some(count.to_string())]], "{table}");
    }
    for number in 1..=22 {
        let answer = rows(&mut server, &tpch::query(number)?).await?;
        assert!(!answer.is_empty(), "query {number} has no answer");
    }
    Ok(())
}

#[tokio::test]
async fn a_database_is_there_for_one_test_only() -> Result<()> {
    let database = Database::create().await?;
    database.execute("CREATE TABLE t (a int, b text)").await?;
    let lines = ["1,x", "2,", "3,\"y,z\""].map(str::to_owned);
    assert_eq!(database.copy("t", lines.into_iter()).await?, 3);
    assert_eq!(
        database.value("SELECT string_agg(b, '|') FROM t").await?,
        "x|y,z"
    );
    let there = format!(
        "SELECT 1 FROM pg_database WHERE datname = '{}'",
        database.name
    );
    let mut server = maintenance().await?;
    assert_eq!(rows(&mut server, &there).await?.len(), 1);
    drop(database);
    assert!(rows(&mut server, &there).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_topic_takes_plain_committed_and_aborted_messages() -> Result<()> {
    let topic = Topic::create(2).await?;
    let payloads = (0..100_000).map(|n| format!("{{\"n\": {n}}}"));
    assert_eq!(topic.produce(payloads).await?, 100_000);
    for commit in [true, false] {
        let messages = (0..10).map(|n| Message {
            partition: 0,
            key: Some(n.to_string()),
            payload: "{}".to_owned(),
        });
        topic.transaction(messages, commit).await?;
    }
    let name = topic.name.clone();
    let watermarks = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .create()?;
        let of = |partition| consumer.fetch_watermarks(&name, partition, Duration::from_secs(10));
        anyhow::Ok((of(0)?, of(1)?))
    })
    .await??;
    // Two transactions of ten messages, each with its marker.
    assert_eq!(watermarks, ((0, 50_022), (0, 50_000)));
    Ok(())
}

#[tokio::test]
async fn a_private_server_asks_for_the_password_and_dies_at_once() -> Result<()> {
    let mut server = PrivateServer::start().await?;
    let wrong = server.url.replace("essaim:essaim", "essaim:wrong");
    assert!(PgConnection::connect(&wrong).await.is_err());
    let mut connection = server.connect().await?;
    assert_eq!(rows(&mut connection, "SELECT 1").await?.len(), 1);
    server.kill()?;
    assert!(run(&mut connection, "SELECT 1").await.is_err());
    assert!(server.connect().await.is_err());
    Ok(())
}
