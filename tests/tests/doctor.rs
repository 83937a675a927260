//! `essaim doctor`: a cluster in order has only links that work, and a broken one is named with what to do.

use anyhow::{Context, Result, ensure};
use essaim_tests::client::Client;
use essaim_tests::cluster::{Cluster, MEMORY};
use essaim_tests::command::{Ended, essaim};
use essaim_tests::kafka::{Topic, brokers};
use essaim_tests::postgres::Database;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::{Value, json};
use std::net::TcpListener;
use url::Url;

/// One row: from, to, status and text.
type Link = (String, String, String, String);

/// Examines a cluster, with a job file unless it is empty.
async fn doctor(cluster: &Cluster, sql: &str) -> Result<(Ended, Vec<Link>)> {
    let file = cluster.dir().join(unique("job")).with_extension("sql");
    std::fs::write(&file, sql)?;
    let file = file.to_string_lossy();
    let mut arguments = vec!["doctor", "--json", "--deadline", "3"];
    if !sql.is_empty() {
        arguments.push(&file);
    }
    let ended = essaim(&cluster.url(), &arguments).await?;
    let found: Value = ended.json()?;
    assert_eq!(found["ok"], json!(ended.code == 0), "{found:#}");
    let links = found["links"].as_array().context("no links")?;
    let links = links.iter().map(|link| {
        let text = |name: &str| link[name].as_str().unwrap_or_default().to_owned();
        (text("from"), text("to"), text("status"), text("text"))
    });
    let links: Vec<Link> = links.collect();
    Ok((ended, links))
}

/// The rows from and to something.
fn between<'a>(links: &'a [Link], from: &str, to: &str) -> Vec<&'a Link> {
    let links = links.iter();
    links
        .filter(|link| link.0.starts_with(from) && link.1.starts_with(to))
        .collect()
}

fn failed(links: &[Link]) -> Vec<&Link> {
    links.iter().filter(|link| link.2 == "failed").collect()
}

/// A port of this machine that nobody listens at.
fn closed_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn read_and_write(topic: &str, database: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS KAFKA LOCATION '{topic}' OPTIONS (format 'json');\n\
         CREATE EXTERNAL TABLE out STORED AS POSTGRES LOCATION '{database}' OPTIONS (table 'out');\n\
         INSERT INTO out SELECT id FROM t;\n"
    )
}

#[tokio::test]
async fn a_cluster_in_order_has_no_broken_link() -> Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let (topic, database) = (Topic::create(2).await?, Database::create().await?);
    let sql = read_and_write(&topic.location(), &database.url);
    let (ended, links) = doctor(&cluster, &sql).await?;
    ensure!(failed(&links).is_empty() && ended.code == 0, "{links:#?}");
    for from in ["master", "worker"] {
        let sides = if from == "master" { 1 } else { 2 };
        let brokers = between(&links, from, "Kafka at ");
        assert_eq!(brokers.len(), sides, "{links:#?}");
        assert!(
            brokers
                .iter()
                .all(|link| link.3 == "1 broker, 2 partitions"),
            "{brokers:#?}"
        );
        let databases = between(&links, from, "PostgreSQL at ");
        assert_eq!(databases.len(), sides, "{links:#?}");
        for what in ["spilled rows in", "open files", "memory"] {
            assert_eq!(
                between(&links, from, what).len(),
                sides,
                "{what}: {links:#?}"
            );
        }
    }
    assert_eq!(between(&links, "master", "worker ").len(), 2);
    assert_eq!(between(&links, "master", "clock of worker").len(), 2);
    assert_eq!(between(&links, "worker", "worker ").len(), 2);
    assert_eq!(between(&links, "worker", "master").len(), 2);
    assert_eq!(between(&links, "client", "").len(), 2);
    assert_eq!(
        between(&links, "master", "state dir ")[0].3,
        "written, read and removed"
    );
    ensure!(!ended.out.contains("essaim:essaim"), "a password is shown");

    // Without a file: what the running jobs name. There is none.
    let (ended, links) = doctor(&cluster, "").await?;
    ensure!(
        ended.code == 0 && between(&links, "", "Kafka at ").is_empty(),
        "{links:#?}"
    );
    let unreachable = essaim("http://127.0.0.1:1", &["doctor"]).await?;
    assert_eq!(unreachable.code, 3, "{unreachable:?}");
    let no_sql = essaim(&cluster.url(), &["doctor", "/dev/null", "--deadline", "60"]).await?;
    assert_eq!(no_sql.code, 2, "{no_sql:?}");
    Ok(())
}

#[tokio::test]
async fn the_sources_and_sinks_of_running_jobs_are_tried() -> Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let (topic, database) = (Topic::create(1).await?, Database::create().await?);
    let sql = read_and_write(&topic.location(), &database.url).replace(
        "CREATE EXTERNAL TABLE t",
        "CREATE UNBOUNDED EXTERNAL TABLE t",
    );
    let client: Client = cluster.client().await?;
    let job = client.submit(&sql, "running").await?;
    wait_for("the job to run", SOON, async || {
        let job = client.get(&job).await?;
        Ok((job.state() == essaim_proto::v1::JobState::Running).then_some(()))
    })
    .await?;
    let (ended, links) = doctor(&cluster, "").await?;
    assert_eq!(
        between(&links, "worker", "Kafka at ").len(),
        1,
        "{links:#?}"
    );
    assert_eq!(
        between(&links, "worker", "PostgreSQL at ").len(),
        1,
        "{links:#?}"
    );
    assert_eq!(ended.code, 0);
    client.cancel(&job).await?;
    Ok(())
}

#[tokio::test]
async fn a_closed_broker_and_a_refused_password_are_named_from_every_side() -> Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let database = Database::create().await?;
    let mut url = Url::parse(&database.url)?;
    url.set_password(Some("hunter2"))
        .ok()
        .context("the password")?;
    let closed = format!("kafka://127.0.0.1:{}/t", closed_port()?);
    let (ended, links) = doctor(&cluster, &read_and_write(&closed, url.as_str())).await?;
    assert_eq!(ended.code, 1);
    assert_eq!(ended.err, "error: 4 links are broken\n");
    for from in ["master", "worker"] {
        let broker = between(&links, from, "Kafka at ");
        assert!(
            broker[0].2 == "failed" && broker[0].3.contains("is a broker running there"),
            "{broker:?}"
        );
        let refused = between(&links, from, "PostgreSQL at ");
        assert!(
            refused[0].2 == "failed" && refused[0].3.contains("password authentication failed"),
            "{refused:?}"
        );
    }
    ensure!(!ended.out.contains("hunter2"), "the password is shown");

    let missing = format!("kafka://{}/essaim-nowhere", brokers());
    let nowhere = format!("postgres://u@127.0.0.1:{}/d", closed_port()?);
    let (ended, links) = doctor(&cluster, &read_and_write(&missing, &nowhere)).await?;
    assert_eq!(ended.code, 1);
    assert!(
        between(&links, "worker", "Kafka at ")[0]
            .3
            .contains("have no topic essaim-nowhere"),
        "{links:#?}"
    );
    assert!(
        between(&links, "worker", "PostgreSQL at ")[0]
            .3
            .contains("out of reach"),
        "{links:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_that_advertises_a_wrong_address_is_named() -> Result<()> {
    let mut cluster = Cluster::start(1, 1).await?;
    let url = cluster.url();
    let closed = format!("http://127.0.0.1:{}", closed_port()?);
    let first = format!("http://{}", cluster.workers()[0].address);
    for advertised in [&closed, &first] {
        cluster
            .start_worker_with(&["--master", &url, "--advertise", advertised], 1, MEMORY)
            .await?;
    }
    wait_for("all workers", SOON, async || {
        Ok((cluster.registered().await?.len() == 3).then_some(()))
    })
    .await?;
    let (ended, links) = doctor(&cluster, "").await?;
    assert_eq!(ended.code, 1);
    let right = &cluster.workers()[0].id;
    let broken = failed(&links);
    let says = |from: &str, part: &str| {
        broken
            .iter()
            .any(|link| link.0 == from && link.1.starts_with("worker ") && link.3.contains(part))
    };
    for from in ["master".to_owned(), format!("worker {right}")] {
        assert!(says(&from, "refused"), "{from}: {links:#?}");
        assert!(
            says(&from, &format!("worker {right} answers there")),
            "{from}: {links:#?}"
        );
        assert!(
            says(&from, "--advertise http://HOST:PORT"),
            "{from}: {links:#?}"
        );
    }
    assert_eq!(broken.len(), 4, "{links:#?}");
    Ok(())
}

#[tokio::test]
async fn a_state_dir_that_cannot_be_written_is_named() -> Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    // Where the probe goes there is a file: as good as a folder that belongs to somebody else.
    std::fs::write(cluster.dir().join("state/probes"), "")?;
    let (ended, links) = doctor(&cluster, "").await?;
    let state = between(&links, "master", "state dir ");
    assert!(
        state[0].2 == "failed" && state[0].3.contains("probes"),
        "{links:#?}"
    );
    assert_eq!((failed(&links).len(), ended.code), (1, 1), "{links:#?}");

    let state = cluster.dir().join("state");
    std::fs::rename(&state, cluster.dir().join("gone"))?;
    let (_, links) = doctor(&cluster, "").await?;
    let state = between(&links, "master", "state dir ");
    assert!(
        state[0].2 == "failed" && state[0].3.contains("still mounted"),
        "{links:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_given_up_in_time() -> Result<()> {
    let mut cluster = Cluster::start(1, 1).await?;
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let (url, advertised) = (cluster.url(), format!("http://{}", silent.local_addr()?));
    cluster
        .start_worker_with(&["--master", &url, "--advertise", &advertised], 1, MEMORY)
        .await?;
    wait_for("both workers", SOON, async || {
        Ok((cluster.registered().await?.len() == 2).then_some(()))
    })
    .await?;
    let (ended, links) = doctor(&cluster, "").await?;
    let broken = failed(&links);
    assert_eq!((broken.len(), ended.code), (2, 1), "{links:#?}");
    for link in broken {
        assert!(link.1.ends_with(&advertised), "{link:?}");
        assert!(link.3.contains("no answer within 3.0 s"), "{link:?}");
    }
    let table = essaim(&url, &["doctor", "--deadline", "0.5"]).await?;
    ensure!(table.out.trim_start().starts_with("FROM"), "{table:?}");
    assert_eq!(table.code, 1);
    Ok(())
}
