//! What a small epoch costs beside two million open groups: its time, its checkpoint, and the start of a new master.

use anyhow::{Context, Result, ensure};
use essaim_bench::epochs::{epochs, percentile, steps, until_read};
use essaim_bench::process::status_mib;
use essaim_bench::report::Report;
use essaim_proto::v1::EpochProgress;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::{Message, Topic};
use essaim_tests::postgres::Database;
use essaim_tests::{LONG, unique, wait_for};
use std::path::Path;
use std::time::{Duration, Instant};

const FEW: u64 = 1_000;
const MANY: u64 = 2_000_000;
/// Groups that an epoch touches.
const TOUCHED: u64 = 1_000;
const ROUNDS: u64 = 40;
const FILLING: Duration = Duration::from_secs(600);
const PARTITIONS: i32 = 4;

#[tokio::main]
async fn main() -> Result<()> {
    let mut report = Report::new("groups");
    let database = Database::create().await?;
    let mut cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let mut few = Counted::start(&client, &database, FEW).await?;
    let start = Instant::now();
    let mut many = Counted::start(&client, &database, MANY).await?;
    report.figure("opening the groups, s", start.elapsed().as_secs(), "");

    // In turn, so that whatever else the machine does falls on both.
    let (after_few, after_many) = (few.last(&client).await?, many.last(&client).await?);
    for round in 0..ROUNDS {
        few.touch(&client, round).await?;
        many.touch(&client, round).await?;
    }
    let mut medians = Vec::new();
    for (name, counted, after) in [
        ("1,000 open", &few, after_few),
        ("2,000,000 open", &many, after_many),
    ] {
        let measured = counted.measured(&client, after).await?;
        let mut took: Vec<f64> = measured.iter().map(|epoch| epoch.duration_ms).collect();
        took.sort_by(f64::total_cmp);
        medians.push(percentile(&took, 0.5));
        let query = measured.last().and_then(|epoch| epoch.queries.first());
        let query = query.context("no query")?;
        ensure!(query.state_rows == counted.open, "{query:?}");
        report.figure(&format!("state, {name}, bytes"), query.state_bytes, "");
        report.figure(&format!("steps, {name}, ms"), steps(&measured)?, "");
        let numbers: Vec<u64> = measured.iter().map(|epoch| epoch.epoch).collect();
        report.figure(
            &format!("checkpoint, {name}, bytes"),
            commit_bytes(cluster.dir(), &counted.job, &numbers)?,
            "",
        );
    }
    if let [few, many] = medians.as_slice() {
        report.below("epoch, many to few open", many / few, 2.0, "");
    }
    let master = cluster.pids()[0];
    report.figure(
        "master at most, MiB",
        status_mib(master, "VmHWM")?.round(),
        "",
    );

    // The one that is in memory no more.
    client.cancel(&few.job).await?;
    client.wait_job(&few.job).await?;
    cluster.kill_master();
    many.send(ROUNDS).await?;
    let key = many.keys(ROUNDS).next().context("no key")?;
    let start = Instant::now();
    cluster.restart_master().await?;
    let wanted = format!("SELECT n FROM {} WHERE key = {key}", many.table);
    let before: u64 = database.value(&wanted).await?.parse()?;
    wait_for("an epoch after the restart", LONG, async || {
        let now: u64 = database.value(&wanted).await?.parse()?;
        Ok((now > before).then_some(()))
    })
    .await?;
    report.below(
        "killed master, to its first epoch",
        start.elapsed().as_secs_f64(),
        5.0,
        "s",
    );
    report.print();
    cluster.stop().await
}

/// A job that counts by key, and its topic.
struct Counted {
    topic: Topic,
    table: String,
    job: String,
    /// Groups.
    open: u64,
    /// Messages.
    sent: u64,
}

impl Counted {
    /// Opens `open` groups.
    async fn start(client: &Client, database: &Database, open: u64) -> Result<Self> {
        let topic = Topic::create(PARTITIONS).await?;
        let sent = topic.produce((0..open).map(payload)).await?;
        let table = unique("counted");
        let sql = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE events (\"key\" BIGINT, value BIGINT) STORED AS KAFKA LOCATION '{}'
               OPTIONS (format 'json');
             {}
             SET essaim.trigger = '50 milliseconds';
             SET essaim.output_mode = 'update';
             INSERT INTO counted SELECT key, count(*) AS n, sum(value) AS total FROM events GROUP BY key;",
            topic.location(),
            database.declare("counted", &table, ", mode 'upsert', key 'key'"),
        );
        let job = client.submit(&sql, &table).await?;
        until_read(client, &job, sent, FILLING).await?;
        Ok(Self {
            topic,
            table,
            job,
            open,
            sent,
        })
    }

    /// Different ones in each round, spread over all.
    fn keys(&self, round: u64) -> impl Iterator<Item = u64> + use<> {
        let step = self.open / TOUCHED;
        (0..TOUCHED).map(move |index| index * step + round % step)
    }

    /// Messages to some groups, in one transaction and one partition: an epoch reads all of them or none.
    async fn send(&mut self, round: u64) -> Result<()> {
        let partition = (round % PARTITIONS as u64) as i32;
        let keys: Vec<u64> = self.keys(round).collect();
        let messages = keys.into_iter().map(move |key| Message {
            partition,
            key: None,
            payload: payload(key),
        });
        self.topic.transaction(messages, true).await?;
        self.sent += TOUCHED;
        Ok(())
    }

    async fn touch(&mut self, client: &Client, round: u64) -> Result<()> {
        self.send(round).await?;
        until_read(client, &self.job, self.sent, LONG).await?;
        Ok(())
    }

    async fn last(&self, client: &Client) -> Result<u64> {
        let epoch = client.get(&self.job).await?.last_epoch;
        Ok(epoch.context("no epoch")?.epoch)
    }

    /// The epochs that read what one round sent.
    async fn measured(&self, client: &Client, after: u64) -> Result<Vec<EpochProgress>> {
        let mut found = epochs(client, &self.job, Some(after)).await?;
        found.retain(|epoch| epoch.input_rows > 0);
        ensure!(
            found.len() as u64 == ROUNDS && found.iter().all(|epoch| epoch.input_rows == TOUCHED),
            "not {ROUNDS} epochs of {TOUCHED} rows: {:?}",
            found
                .iter()
                .map(|epoch| epoch.input_rows)
                .collect::<Vec<_>>()
        );
        Ok(found)
    }
}

fn payload(key: u64) -> String {
    format!(r#"{{"key":{key},"value":{}}}"#, key % 97)
}

/// The median size of what these epochs left in the checkpoint, as far as it is there still.
fn commit_bytes(dir: &Path, job: &str, epochs: &[u64]) -> Result<f64> {
    let folder = dir.join("state/checkpoint").join(job).join("commits");
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let epoch = name.to_string_lossy().split('.').next().map(str::parse);
        if matches!(epoch, Some(Ok(epoch)) if epochs.contains(&epoch)) {
            sizes.push(entry.metadata()?.len() as f64);
        }
    }
    sizes.sort_by(f64::total_cmp);
    Ok(percentile(&sizes, 0.5))
}
