//! What a streaming job does when its master is not alone, and when its state dir fails it.

use anyhow::{Context, Result, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::client::{Client, ended};
use essaim_tests::cluster::{Cluster, MEMORY};
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::{SOON, unique, wait_for};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A topic of events, and a job that counts them by minute and copies them.
struct Job {
    topic: Topic,
    database: Database,
    sql: String,
    name: String,
}

impl Job {
    async fn new() -> Result<Self> {
        let topic = Topic::create(3).await?;
        let database = Database::create().await?;
        let sql = [
            format!(
                "SET essaim.trigger = '100 milliseconds';
                 CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP) STORED AS KAFKA LOCATION '{}'
                 OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds', max_offsets_per_trigger '500');\n",
                topic.location()
            ),
            database.declare("counts", "counts", ", mode 'upsert', key 'window_start'"),
            database.declare("copies", "copies", ""),
            "INSERT INTO counts SELECT window_start, count(*) AS events, sum(id) AS total
               FROM events GROUP BY window(at, INTERVAL '1 minute');
             INSERT INTO copies SELECT id FROM events;"
                .to_owned(),
        ]
        .concat();
        Ok(Self {
            topic,
            database,
            sql,
            name: unique("faults"),
        })
    }

    async fn submit(&self, client: &Client) -> Result<String> {
        client.submit(&self.sql, &self.name).await
    }

    /// Events with these numbers, one a second from 2026-01-01 on.
    async fn produce(&self, from: i64, to: i64) -> Result<()> {
        let events = (from..to).map(|n| {
            let at = 1_767_225_600_000_i64 + n * 1000;
            json!({"id": n, "at": at}).to_string()
        });
        self.topic.produce(events).await?;
        Ok(())
    }

    /// Waits until both sinks hold the first `rows` events, each once.
    async fn holds(&self, rows: i64) -> Result<()> {
        let sql = "SELECT (SELECT sum(events) FROM counts) || ' ' || (SELECT sum(total) FROM counts) || ' ' ||
                     (SELECT count(*) FROM copies) || ' ' || (SELECT count(DISTINCT id) FROM copies)";
        let wanted = format!("{rows} {} {rows} {rows}", rows * (rows - 1) / 2);
        let mut last = String::new();
        let what = format!("the sinks to hold {wanted}");
        let outcome = wait_for(&what, SOON * 2, async || {
            last = self
                .database
                .value(sql)
                .await
                .unwrap_or_else(|e| e.to_string());
            Ok((last == wanted).then_some(()))
        })
        .await;
        outcome.with_context(|| format!("they hold {last}"))
    }

    /// Waits until at least so many events are counted.
    async fn counts(&self, rows: i64) -> Result<()> {
        let sql = format!("SELECT sum(events) >= {rows} FROM counts");
        wait_for(&sql, SOON * 2, async || {
            Ok((self.database.value(&sql).await? == "t").then_some(()))
        })
        .await
    }
}

#[tokio::test]
async fn an_old_master_that_wakes_up_commits_nothing() -> Result<()> {
    let job = Job::new().await?;
    let mut cluster = Cluster::start_behind_proxy(2, 2).await?;
    job.produce(0, 5000).await?;
    let (first, url) = (cluster.client().await?, cluster.url());
    // It stays with the old master, which so has all that it needs to go on.
    cluster.start_worker_of(&url, 2, MEMORY).await?;
    let id = job.submit(&first).await?;
    job.counts(1000).await?;
    // In the middle of its epochs.
    cluster.freeze_master()?;
    drop(first);
    let old = cluster.take_over().await?;
    job.produce(5000, 6000).await?;
    job.holds(6000).await?;
    let client = cluster.client().await?;
    let generation = client.get(&id).await?.generation;
    let commits = format!(
        "SELECT coalesce(string_agg(concat(query, ' ', generation, ' ', epoch), ',' ORDER BY query, generation, epoch), '')
         FROM essaim_commits WHERE generation < {generation}"
    );
    let of_old = job.database.value(&commits).await?;

    old.signal(Signal::SIGCONT)?;
    job.produce(6000, 8000).await?;
    // It finds out by itself, and says why it stops.
    let woken = Client::connect(&url).await?;
    let found = wait_for("the old master to give the job up", SOON * 2, async || {
        let found = woken.get(&id).await?;
        Ok(ended(&found).then_some(found))
    })
    .await?;
    assert_eq!(found.state(), JobState::Failed, "{}", found.message);
    assert!(found.generation < generation, "{found:?}");
    job.holds(8000).await?;
    assert_eq!(job.database.value(&commits).await?, of_old);
    drop((woken, old));
    cluster.kill_worker(2);

    // What it found is not what the next master reads.
    cluster.kill_master();
    cluster.restart_master().await?;
    job.produce(8000, 8500).await?;
    job.holds(8500).await?;
    let client = cluster.client().await?;
    assert_eq!(client.get(&id).await?.state(), JobState::Running);
    client.cancel(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn epochs_wait_for_a_worker_however_long() -> Result<()> {
    let mut job = Job::new().await?;
    job.sql.insert_str(0, "SET essaim.worker_timeout_s = 1;\n");
    let mut cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    job.produce(0, 3000).await?;
    let id = job.submit(&client).await?;
    job.counts(500).await?;
    // In the middle of its epochs.
    cluster.kill_worker(0);
    job.produce(3000, 4000).await?;
    let log = cluster.dir().join("master-1.log");
    wait_for("an epoch to wait beyond the time-out", SOON, async || {
        let waits = fs::read_to_string(&log)?.contains("an epoch waits for a worker");
        Ok(waits.then_some(()))
    })
    .await?;
    let waiting = client.get(&id).await?;
    assert_eq!(waiting.state(), JobState::Running);
    assert!(waiting.message.contains("worker"), "{}", waiting.message);
    cluster.add_worker(2, MEMORY).await?;
    job.holds(4000).await?;
    client.cancel(&id).await?;
    client.wait_job(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn epochs_wait_for_a_state_dir_that_is_out_of_reach() -> Result<()> {
    let job = Job::new().await?;
    let cluster = Cluster::start(1, 2).await?;
    let client = cluster.client().await?;
    job.produce(0, 1000).await?;
    let id = job.submit(&client).await?;
    job.holds(1000).await?;

    let state = cluster.dir().join("state");
    let away = cluster.dir().join("away");
    fs::rename(&state, &away)?;
    job.produce(1000, 2000).await?;
    // An epoch that was planned before may still come through.
    let message = client
        .wait_until(&id, |job| job.message.contains("state dir"))
        .await?
        .message;
    assert!(message.contains(&state.display().to_string()), "{message}");
    assert!(!state.exists(), "the state dir was made anew: {message}");
    fs::rename(&away, &state)?;

    job.holds(2000).await?;
    let wanted = client.wait_until(&id, |job| job.message.is_empty()).await?;
    assert_eq!(wanted.state(), JobState::Running);
    client.cancel(&id).await?;
    client.wait_job(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn epochs_wait_for_a_full_disk() -> Result<()> {
    let job = Job::new().await?;
    let mut cluster = Cluster::start(1, 2).await?;
    cluster.kill_master();
    let Some(disk) = Disk::mount(cluster.dir().join("state"), "2m")? else {
        eprintln!("not tested: only root may mount a disk that can be filled");
        return Ok(());
    };
    cluster.restart_master().await?;
    let client = cluster.client().await?;
    job.produce(0, 1000).await?;
    let id = job.submit(&client).await?;
    job.holds(1000).await?;

    let filler = disk.fill()?;
    job.produce(1000, 2000).await?;
    let message = client
        .wait_until(&id, |job| job.message.contains("No space left"))
        .await?
        .message;
    assert!(message.contains("state dir"), "{message}");
    fs::remove_file(filler)?;

    job.holds(2000).await?;
    let found = client.wait_until(&id, |job| job.message.is_empty()).await?;
    assert_eq!(found.state(), JobState::Running);
    // And what is on the disk is whole: another master goes on with it.
    cluster.kill_master();
    cluster.restart_master().await?;
    job.produce(2000, 2500).await?;
    job.holds(2500).await?;
    let client = cluster.client().await?;
    client.cancel(&id).await?;
    client.wait_job(&id).await?;
    cluster.stop().await
}

/// A small file system in memory.
struct Disk(PathBuf);

impl Disk {
    /// `None` if that is not allowed.
    fn mount(place: PathBuf, size: &str) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "essaim-test"])
            .arg(&place)
            .output()?;
        Ok(mounted.status.success().then_some(Self(place)))
    }

    /// Writes a file until nothing more goes onto the disk.
    fn fill(&self) -> Result<PathBuf> {
        let filler = self.0.join("filler");
        let mut file = fs::File::create(&filler)?;
        loop {
            match file.write(&[1; 512]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(filler),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the master may be there still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_flipped_bit_in_the_checkpoint_is_named() -> Result<()> {
    let job = Job::new().await?;
    let mut cluster = Cluster::start(1, 2).await?;
    job.produce(0, 3000).await?;
    let id = job.submit(&cluster.client().await?).await?;
    job.holds(3000).await?;
    cluster.kill_master();
    let commits = cluster.dir().join(format!("state/checkpoint/{id}/commits"));
    let broken = newest(&commits)?;
    flip(&broken)?;

    cluster.restart_master().await?;
    let client = cluster.client().await?;
    let found = client.wait_job(&id).await?;
    assert_eq!(found.state(), JobState::Failed, "{}", found.message);
    let name = broken.file_name().context("no name")?.to_string_lossy();
    for part in [id.as_str(), &name, "checksum"] {
        assert!(found.message.contains(part), "{part}: {}", found.message);
    }
    // Nothing was done in the meantime, so with the right bit all goes on.
    job.produce(3000, 4000).await?;
    flip(&broken)?;
    assert_eq!(job.submit(&client).await?, id);
    job.holds(4000).await?;
    client.cancel(&id).await?;
    client.wait_job(&id).await?;
    cluster.stop().await
}

/// The last object of a folder that is whole.
fn newest(folder: &Path) -> Result<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        names.push(entry?.path());
    }
    names.retain(|name| !name.to_string_lossy().contains('#'));
    names.into_iter().max().context("no commit")
}

/// Flips a bit in the middle of a file.
fn flip(file: &Path) -> Result<()> {
    let mut bytes = fs::read(file)?;
    ensure!(bytes.len() > 2, "{} is empty", file.display());
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0b100;
    fs::write(file, bytes)?;
    Ok(())
}
