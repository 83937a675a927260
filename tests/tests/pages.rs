//! The status pages in a real browser, against a real cluster under load: `tests/browser/` opens and judges them.

use anyhow::{Context, Result, bail, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::{Message, Topic};
use essaim_tests::postgres::Database;
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

/// A name that would be a script if the pages took it for markup.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";
/// The whole visit, every page in light and dark, on a desktop and a phone.
const DEADLINE: Duration = Duration::from_secs(300);
const COLUMNS: &str =
    "id BIGINT, at TIMESTAMP, language VARCHAR, content VARCHAR, account_id BIGINT";

/// A toot of now, in one of five languages.
fn toot(n: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let at = now.map_or(0, |since| since.as_millis());
    let language = ["fr", "de", "en", "ja", "es"][n as usize % 5];
    json!({"id": n, "at": at, "language": language, "content": format!("toot number {n}"), "account_id": n % 997})
        .to_string()
}

/// Produces about 10,000 toots a second until it is dropped.
fn load(topic: Arc<Topic>) -> AbortOnDropHandle<Result<()>> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        for batch in 0u64.. {
            tick.tick().await;
            topic
                .produce((batch * 1000..(batch + 1) * 1000).map(toot))
                .await?;
        }
        Ok(())
    }))
}

/// Jobs of every kind and state: a stream, one that has a dead-lettered record, a batch, one that fails, a hostile one.
async fn submit(client: &Client, topic: &Topic, broken: &Topic, database: &Database) -> Result<()> {
    let toots = |unbounded: &str, options: &str| {
        format!(
            "CREATE {unbounded}EXTERNAL TABLE toots ({COLUMNS}) STORED AS KAFKA LOCATION '{}'
             OPTIONS (format 'json', starting_offsets 'earliest'{options});\n",
            topic.location()
        )
    };
    let stream = [
        toots("UNBOUNDED ", ", event_time 'at', watermark_delay '2 seconds', on_error 'skip'"),
        database.declare("per_window", "per_window", ", mode 'upsert', key 'window_start,language'"),
        format!(
            "SET essaim.trigger = '250 milliseconds'; -- {HOSTILE}
             INSERT INTO per_window
               SELECT window_start, window_end, language, count(*) AS toots, avg(length(content)) AS average_length
               FROM toots GROUP BY window(at, INTERVAL '5 seconds'), language;"
        ),
    ];
    client.submit(&stream.concat(), "toots-per-window").await?;
    let batch = [
        toots("", ""),
        database.declare("by_language", "by_language", ", mode 'overwrite'"),
        "INSERT INTO by_language
           SELECT language, count(*) AS toots, count(DISTINCT account_id) AS accounts
           FROM toots WHERE length(content) > 5 GROUP BY language ORDER BY language;"
            .to_owned(),
    ];
    client.run_job(&batch.concat(), "toots-by-language").await?;
    client.run_job(&batch.concat(), HOSTILE).await?;
    let failing = [
        format!(
            "CREATE EXTERNAL TABLE toots ({COLUMNS}) STORED AS KAFKA LOCATION '{}'
             OPTIONS (format 'json', starting_offsets 'earliest', on_error 'fail');\n",
            broken.location()
        ),
        database.declare("copied", "copied", ", mode 'overwrite'"),
        "INSERT INTO copied SELECT * FROM toots;".to_owned(),
    ];
    let failing = client
        .submit(&failing.concat(), "copy-of-broken-toots")
        .await?;
    ensure!(
        client.wait_job(&failing).await?.state() == JobState::Failed,
        "a broken record was read"
    );
    client
        .wait_until("toots-per-window", |job| {
            job.last_epoch
                .as_ref()
                .is_some_and(|epoch| epoch.epoch > 20)
        })
        .await?;
    Ok(())
}

/// What the visitor asks for, as a line of its standard output; it goes on when a line of ours answers.
async fn act(word: &str, cluster: &mut Cluster, client: &Client, topic: &Topic) -> Result<()> {
    match word {
        "submit a job" => {
            let sql = format!(
                "CREATE EXTERNAL TABLE toots ({COLUMNS}) STORED AS KAFKA LOCATION '{}'
                 OPTIONS (format 'json', starting_offsets 'earliest');
                 CREATE EXTERNAL TABLE out STORED AS CONSOLE LOCATION '';
                 INSERT INTO out SELECT count(*) AS toots FROM toots;",
                topic.location()
            );
            client.submit(&sql, "submitted-meanwhile").await?;
        }
        "kill a worker" => cluster.kill_worker(1),
        "kill the master" => cluster.kill_master(),
        "start the master" => cluster.restart_master().await?,
        other => bail!("the visitor asks to {other:?}, which nobody knows"),
    }
    Ok(())
}

#[tokio::test]
async fn the_pages_show_a_cluster_under_load_and_what_befalls_it() -> Result<()> {
    let topic = Arc::new(Topic::create(6).await?);
    let broken = Topic::create(1).await?;
    let database = Database::create().await?;
    let mut cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    topic.produce((0..20_000).map(toot)).await?;
    let bad = Message {
        partition: 0,
        key: None,
        payload: "{\"id\": 1, \"at\": tomorrow".to_owned(),
    };
    broken.produce((0..3).map(toot)).await?;
    broken.send(std::iter::once(bad)).await?;
    let _load = load(Arc::clone(&topic));
    submit(&client, &topic, &broken, &database).await?;

    let browser = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
    ensure!(
        browser.join("node_modules/playwright-core").is_dir(),
        "tests/browser has no node_modules: scripts/setup installs them, with Node and Chromium"
    );
    let mut visitor = Command::new("node")
        .arg(browser.join("visit.js"))
        .arg(cluster.http_url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("there is no Node.js: scripts/setup installs it")?;
    let mut answers = visitor.stdin.take().context("no standard input")?;
    let mut lines = BufReader::new(visitor.stdout.take().context("no standard output")?).lines();
    let visit = async {
        while let Some(line) = lines.next_line().await? {
            match line.strip_prefix("please ") {
                Some(word) => {
                    act(word, &mut cluster, &client, &topic).await?;
                    answers.write_all(b"done\n").await?;
                }
                None => println!("{line}"),
            }
        }
        anyhow::Ok(visitor.wait().await?)
    };
    let status = tokio::time::timeout(DEADLINE, visit)
        .await
        .context("the visit takes too long")??;
    ensure!(
        status.success(),
        "the visitor of the pages found fault with them: see above"
    );
    Ok(())
}

#[tokio::test]
async fn what_the_pages_compute_is_right() -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/units.test.js");
    let run = Command::new("node").arg("--test").arg(tests).output();
    let output = run
        .await
        .context("there is no Node.js: scripts/setup installs it")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}");
    Ok(())
}
