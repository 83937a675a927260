//! A master and its workers as processes of their own.

use super::process::{Group, Process};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Tasks that a worker runs at a time.
const SLOTS: usize = 2;
/// How long a worker may take to register.
const REGISTER: Duration = Duration::from_secs(20);
const HTTP: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The cluster. Its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    folder: PathBuf,
    /// What the master has in its environment.
    variables: Vec<(&'static str, String)>,
    /// Where the master listens, `host:port`: the same again after a restart.
    listen: String,
    /// Where the status is served.
    pub http: SocketAddr,
    workers: Vec<Process>,
    workers_started: usize,
    masters_started: usize,
    master: Option<Process>,
}

impl Cluster {
    /// Starts a master with these variables in its environment, and workers. Logs and state go to `folder`.
    ///
    /// # Errors
    /// A process does not come up; the end of its log is in the message.
    pub async fn start(
        workers: usize,
        variables: Vec<(&'static str, String)>,
        folder: &Path,
        group: &Group,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder.join("tmp"))?;
        let mut cluster = Self {
            binary: std::env::current_exe().context("where this program is")?,
            folder: folder.to_owned(),
            variables,
            listen: "127.0.0.1:0".to_owned(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            workers: Vec::new(),
            workers_started: 0,
            masters_started: 0,
            master: None,
        };
        cluster.start_master(group).await?;
        for _ in 0..workers {
            cluster.add_worker(group).await?;
        }
        Ok(cluster)
    }

    /// Where clients and workers connect.
    pub fn grpc(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// How many workers run.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Starts a master: the first one at free ports, a later one at the same, with the same state.
    ///
    /// # Errors
    /// It does not come up; the end of its log is in the message.
    pub async fn start_master(&mut self, group: &Group) -> Result<()> {
        self.masters_started += 1;
        let name = format!("master-{}", self.masters_started);
        let mut command = command(&self.binary, "master", &self.folder);
        command
            .args(["--listen", &self.listen])
            .args(["--http", &self.http.to_string()])
            .arg("--state-dir")
            .arg(self.folder.join("state"))
            .args(["--env-prefixes", "DEMO_"])
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut master = group.spawn(&name, command, Signal::SIGKILL, &self.folder)?;
        let line = master.line().await?;
        (self.listen, self.http) = line
            .strip_prefix("listening on grpc ")
            .and_then(|rest| rest.split_once(" http "))
            .and_then(|(grpc, http)| Some((grpc.to_owned(), http.parse().ok()?)))
            .with_context(|| format!("the master's first line is {line:?}"))?;
        self.master = Some(master);
        Ok(())
    }

    /// Starts one more worker and waits until it has registered.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn add_worker(&mut self, group: &Group) -> Result<()> {
        let before = self.registered().await?;
        self.workers_started += 1;
        let name = format!("worker-{}", self.workers_started);
        let mut command = command(&self.binary, "worker", &self.folder);
        command
            .args(["--master", &self.grpc(), "--listen", "127.0.0.1:0"])
            .args(["--http", "127.0.0.1:0"])
            .args(["--slots", &SLOTS.to_string()]);
        let mut process = group.spawn(&name, command, Signal::SIGKILL, &self.folder)?;
        process.line().await?;
        let deadline = Instant::now() + REGISTER;
        loop {
            let registered = self.registered().await?;
            if registered.iter().any(|id| !before.contains(id)) {
                self.workers.push(process);
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(process.explain(anyhow::anyhow!(
                    "{name} has not registered within {} s",
                    REGISTER.as_secs()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills the first worker with SIGKILL. Returns the system's id that it had.
    ///
    /// # Errors
    /// There is none, or it had ended by itself.
    pub fn kill_worker(&mut self) -> Result<u32> {
        ensure!(!self.workers.is_empty(), "there is no worker to be killed");
        kill(self.workers.remove(0), "worker")
    }

    /// Kills the master with SIGKILL. Returns the system's id that it had.
    ///
    /// # Errors
    /// There is none, or it had ended by itself.
    pub fn kill_master(&mut self) -> Result<u32> {
        let master = self.master.take();
        kill(master.context("there is no master to be killed")?, "master")
    }

    /// The ids of the workers that the master knows.
    async fn registered(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            workers: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            id: String,
            state: String,
        }
        let exchange = async {
            let mut stream = TcpStream::connect(self.http).await?;
            stream
                .write_all(
                    b"GET /api/v1/cluster HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n",
                )
                .await?;
            let mut response = String::new();
            stream.read_to_string(&mut response).await?;
            anyhow::Ok(response)
        };
        let response = tokio::time::timeout(HTTP, exchange)
            .await
            .context("the master's status page")??;
        let (_, body) = response
            .split_once("\r\n\r\n")
            .with_context(|| format!("the master's status page is {response:?}"))?;
        let page: Page = serde_json::from_str(body)
            .with_context(|| format!("the master's status page is {body:?}"))?;
        let there = page.workers.into_iter().filter(|w| w.state != "lost");
        Ok(there.map(|worker| worker.id).collect())
    }
}

/// Dropping a process kills it.
fn kill(mut process: Process, role: &str) -> Result<u32> {
    if process.has_ended()? {
        return Err(process.explain(anyhow::anyhow!("the {role} had ended before it was killed")));
    }
    Ok(process.pid())
}

fn command(binary: &Path, role: &str, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg(role).env("TMPDIR", folder.join("tmp"));
    // What is meant for a cluster of the user's own is not for this one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ESSAIM_") && name != "ESSAIM_LOG" {
            command.env_remove(name);
        }
    }
    command
}
