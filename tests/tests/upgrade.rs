//! Software of two versions in one cluster, and two masters of one state dir: an upgrade costs nobody a row.

use anyhow::{Context, Result, ensure};
use essaim_proto::VERSION;
use essaim_proto::v1::JobState;
use essaim_tests::client::{Client, ended};
use essaim_tests::cluster::{Cluster, MEMORY, binary};
use essaim_tests::load::StreamJob;
use essaim_tests::sql::numbers;
use essaim_tests::{SOON, wait_for};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What stands before the version in a binary, and the width of its place: see `proto/src/version.rs`.
const MARK: &str = "essaim-version: ";
const WIDTH: usize = 32;

/// A copy of the binary under test that says it is of another version.
fn of_version(version: &str, dir: &Path) -> Result<PathBuf> {
    let copy = dir.join(format!("essaim-{version}"));
    fs::copy(binary()?, &copy)?;
    let found = Command::new("grep")
        .args(["--only-matching", "--byte-offset", "--binary", "--text"])
        .args(["--fixed-strings", MARK])
        .arg(&copy)
        .output()?;
    let found = String::from_utf8(found.stdout)?;
    let places: Vec<&str> = found.lines().collect();
    ensure!(
        places.len() == 1,
        "the mark is there {} times",
        places.len()
    );
    let (offset, _) = places[0].split_once(':').context("no offset")?;
    let offset: u64 = offset.parse()?;
    ensure!(version.len() <= WIDTH, "{version} is too long");
    let mut bytes = [0; WIDTH];
    bytes[..version.len()].copy_from_slice(version.as_bytes());
    let place = offset + MARK.len() as u64;
    File::options()
        .write(true)
        .open(&copy)?
        .write_all_at(&bytes, place)?;
    Ok(copy)
}

/// The versions of the master and of its workers.
async fn versions(cluster: &Cluster) -> Result<(String, Vec<String>)> {
    let page = cluster.json("/api/v1/cluster").await?;
    let text = |value: &serde_json::Value| value["version"].as_str().unwrap_or("none").to_owned();
    let workers = page["workers"].as_array().context("no workers")?;
    Ok((text(&page), workers.iter().map(text).collect()))
}

#[tokio::test]
async fn workers_then_master_are_replaced_under_a_running_stream() -> Result<()> {
    const NEW: &str = "98.7.6-next";
    let old = VERSION.to_string();
    let mut cluster = Cluster::start(2, 2).await?;
    let program = of_version(NEW, cluster.dir())?;
    let said = Command::new(&program).arg("--version").output()?;
    assert_eq!(String::from_utf8(said.stdout)?, format!("essaim {NEW}\n"));

    let stream = StreamJob::new().await?;
    let client = cluster.client().await?;
    let job = stream.submit(&client).await?;
    let load = stream.load();
    stream.moves().await?;
    assert_eq!(
        versions(&cluster).await?,
        (old.clone(), vec![old.clone(); 2])
    );

    // New workers beside the old ones.
    cluster.run_from(program);
    for _ in 0..2 {
        cluster.add_worker(2, MEMORY).await?;
    }
    let (master, mut workers) = versions(&cluster).await?;
    workers.sort();
    assert_eq!(master, old);
    assert_eq!(workers, [&old, &old, NEW, NEW]);
    stream.moves().await?;
    // The old ones go, one after the other.
    for worker in 0..2 {
        cluster.stop_worker(worker)?;
        let status = cluster.worker_ended(worker, SOON).await?;
        ensure!(status.success(), "{status}");
        stream.moves().await?;
    }
    assert_eq!(
        versions(&cluster).await?,
        (old.clone(), vec![NEW.to_owned(); 2])
    );
    let epochs = client.epochs(&job, 1000).await?;
    assert!(epochs.iter().all(|epoch| epoch.retries == 0));
    let before = client.get(&job).await?;
    assert_eq!((before.state(), before.generation), (JobState::Running, 1));
    drop(client);

    // At last the master.
    cluster.stop_master().await?;
    cluster.restart_master().await?;
    stream.moves().await?;
    let wanted = (NEW.to_owned(), vec![NEW.to_owned(); 2]);
    wait_for("both workers", SOON, async || {
        Ok((versions(&cluster).await? == wanted).then_some(()))
    })
    .await?;
    load.stop().await?;
    stream.holds_all().await?;
    let client = cluster.client().await?;
    let after = client.get(&job).await?;
    assert_eq!((after.state(), after.generation), (JobState::Running, 2));
    assert_eq!(after.message, "");
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    cluster.stop().await
}

#[tokio::test]
async fn a_master_whose_state_dir_was_taken_over_ends_its_jobs_by_itself() -> Result<()> {
    let mut cluster = Cluster::start(1, 2).await?;
    let (first, url) = (cluster.client().await?, cluster.url());
    // A stream that has nothing to do, and so no reason of its own to look at the state dir.
    let stream = StreamJob::new().await?;
    let idle = stream.submit(&first).await?;
    first
        .wait_until(&idle, |job| job.state() == JobState::Running)
        .await?;
    let sql = format!(
        "{}CREATE EXTERNAL TABLE out STORED AS CONSOLE LOCATION '';
         INSERT INTO out SELECT sum(value % 7) AS total FROM numbers",
        numbers("numbers", 1_000_000_000_000)
    );
    let busy = first.submit(&sql, "").await?;
    first
        .wait_until(&busy, |job| job.state() == JobState::Running)
        .await?;
    let old = cluster.take_over().await?;
    let client = Client::connect(&url).await?;
    for job in [&idle, &busy] {
        let found = wait_for("the old master to end its job", SOON, async || {
            let found = client.get(job).await?;
            Ok(ended(&found).then_some(found))
        })
        .await?;
        assert_eq!(found.state(), JobState::Failed);
        assert!(
            found.message.contains("another master"),
            "{}",
            found.message
        );
    }
    // They are the new one's.
    let new = cluster.client().await?;
    for job in [&idle, &busy] {
        let found = new.get(job).await?;
        assert!(!ended(&found), "{found:?}");
        assert_eq!(found.message.contains("another master"), false);
    }
    drop(old);
    Ok(())
}
