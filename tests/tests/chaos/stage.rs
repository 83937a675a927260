//! The processes of a run: broker, database, cluster and the job, and what is done to them.

use crate::faults::{Link, Step};
use crate::monitor::Monitor;
use crate::rows::{DELAY_MS, PARTITIONS, WINDOW_MS};
use anyhow::{Context, Result};
use essaim_tests::SOON;
use essaim_tests::broker::PrivateBroker;
use essaim_tests::cluster::{Cluster, MEMORY, Process};
use essaim_tests::postgres::PrivateServer;
use essaim_tests::proxy::Proxy;
use essaim_tests::wait_for;
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The topics.
pub const EVENTS: &str = "events";
pub const COPIED: &str = "copied";
/// Partitions of the copy.
pub const COPY_PARTITIONS: i32 = 2;

const WORKERS: usize = 2;
const SLOTS: usize = 2;

/// Everything that can be killed.
#[derive(Debug)]
pub struct Stage {
    pub broker: PrivateBroker,
    pub postgres: PrivateServer,
    database: Proxy,
    pub cluster: Cluster,
    pub monitor: Monitor,
    /// Workers that live, by their position.
    living: Vec<usize>,
    /// The master that was stopped, while another one has taken over.
    old_master: Option<Process>,
    /// The job's id.
    pub job: String,
}

impl Stage {
    /// Starts everything, and the job.
    ///
    /// # Errors
    /// A process does not come up; the job is refused.
    pub async fn start() -> Result<Self> {
        let broker = PrivateBroker::start().await?;
        let postgres = PrivateServer::start().await?;
        let database = Proxy::start(SocketAddr::from(([127, 0, 0, 1], postgres.port))).await?;
        let cluster = Cluster::start_behind_proxy(WORKERS, SLOTS).await?;
        broker.create_topic(EVENTS, PARTITIONS).await?;
        broker.create_topic(COPIED, COPY_PARTITIONS).await?;
        let sql = sql(
            &broker.proxy().address().to_string(),
            &format!("postgres://essaim:essaim@{}/postgres", database.address()),
            &csv(&cluster),
        );
        let job = cluster.client().await?.submit(&sql, "chaos").await?;
        Ok(Self {
            broker,
            postgres,
            database,
            monitor: Monitor::start(cluster.url(), job.clone()),
            cluster,
            living: (0..WORKERS).collect(),
            old_master: None,
            job,
        })
    }

    /// The growing file.
    pub fn csv(&self) -> PathBuf {
        csv(&self.cluster)
    }

    /// Does it. What is started may not answer yet on return.
    ///
    /// # Errors
    /// A process does not come up.
    pub async fn apply(&mut self, step: Step) -> Result<()> {
        match step {
            Step::KillWorker(which) => {
                let position = which % self.living.len().max(1);
                let worker = self.living.remove(position);
                self.cluster.kill_worker(worker);
            }
            Step::StartWorker => {
                let worker = self.cluster.start_worker(SLOTS, MEMORY).await?;
                self.living.push(worker);
            }
            Step::KillMaster => self.cluster.kill_master(),
            Step::StartMaster => self.cluster.restart_master().await?,
            Step::KillBroker => self.broker.kill(),
            Step::StartBroker => self.broker.restart()?,
            Step::KillDatabase => self.postgres.kill()?,
            Step::StartDatabase => self.start_database().await?,
            Step::Cut(link) => self.link(link)?.cut(),
            Step::Stall(link) => self.link(link)?.stall(),
            Step::Restore(link) => self.link(link)?.restore(),
            Step::FreezeMaster => self.cluster.freeze_master()?,
            Step::TakeOver => {
                self.old_master = Some(self.cluster.take_over().await?);
                self.monitor.follow(self.cluster.url());
            }
            Step::WakeOld => {
                // Also if it does not get that far: then the verification says why.
                self.monitor.next_epoch(SOON).await;
                let old = self.old_master.as_ref().context("no master is stopped")?;
                old.signal(Signal::SIGCONT)?;
            }
            Step::KillOld => self.old_master = None,
        }
        Ok(())
    }

    fn link(&self, link: Link) -> Result<&Proxy> {
        Ok(match link {
            Link::Broker => self.broker.proxy(),
            Link::Database => &self.database,
            Link::Master => self.cluster.front().context("the master has no proxy")?,
        })
    }

    /// A server that was killed may find its predecessor's memory still in use, and end.
    async fn start_database(&mut self) -> Result<()> {
        let mut tries = 0;
        loop {
            self.postgres.restart()?;
            let up = wait_for(
                "the database to answer",
                Duration::from_secs(10),
                async || Ok(Some(self.postgres.connect().await?)),
            );
            match up.await {
                Ok(_) => return Ok(()),
                Err(error) if tries == 3 => return Err(error),
                Err(_) => tries += 1,
            }
            // It may be on its way all the same.
            let _ = self.postgres.kill();
        }
    }

    /// Leaves all logs and data where they are.
    pub fn keep(&mut self) -> String {
        self.broker.keep_dir();
        self.postgres.keep_dir();
        let dirs = [self.cluster.dir(), self.broker.dir(), self.postgres.dir()];
        dirs.map(|dir: &Path| dir.display().to_string()).join(" ")
    }
}

fn csv(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("rows.csv")
}

/// The job.
fn sql(brokers: &str, database: &str, csv: &Path) -> String {
    let postgres = |table: &str, options: &str| {
        format!(
            "CREATE EXTERNAL TABLE {table} STORED AS POSTGRES LOCATION '{database}' OPTIONS (table '{table}'{options});\n"
        )
    };
    [
        format!(
            "SET essaim.trigger = '200 milliseconds';
             CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP, kind VARCHAR, amount BIGINT)
             STORED AS KAFKA LOCATION 'kafka://{brokers}/{EVENTS}'
             OPTIONS (format 'json', event_time 'at', watermark_delay '{DELAY_MS} milliseconds',
               max_offsets_per_trigger '2500', request_timeout '5 seconds',
               on_error 'dead_letter', dead_letter_location '{database}', dead_letter_table 'dead_letters');
             CREATE EXTERNAL TABLE copied (id BIGINT, kind VARCHAR, amount BIGINT)
             STORED AS KAFKA LOCATION 'kafka://{brokers}/{COPIED}' OPTIONS (format 'json', request_timeout '5 seconds');
             CREATE EXTERNAL TABLE rows STORED AS CSV LOCATION '{}' OPTIONS (single_file 'true');\n",
            csv.display()
        ),
        postgres("per_window", ", mode 'upsert', key 'window_start,kind'"),
        postgres("closed", ""),
        format!(
            "INSERT INTO per_window
               SELECT window_start, kind, count(*) AS events, sum(amount) AS total
               FROM events GROUP BY window(at, INTERVAL '{WINDOW_MS} milliseconds'), kind;
             INSERT INTO closed
               SELECT window_start, count(*) AS events, sum(amount) AS total, min(id) AS first_id, max(id) AS last_id
               FROM events GROUP BY window(at, INTERVAL '{WINDOW_MS} milliseconds');
             INSERT INTO copied (id, kind, amount) SELECT id, kind, amount FROM events WHERE amount % 3 <> 0;
             INSERT INTO rows SELECT id, kind, amount FROM events;"
        ),
    ]
    .concat()
}
