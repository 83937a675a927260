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

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// The id under which the master knows it.
    pub id: String,
    process: Process,
}

/// The cluster. Its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    folder: PathBuf,
    /// Where clients and workers connect.
    pub grpc: String,
    /// Where the status is served.
    pub http: SocketAddr,
    pub workers: Vec<Worker>,
    workers_started: usize,
    _master: Process,
}

impl Cluster {
    /// Starts a master with these variables in its environment, and workers. Logs and state go to `folder`.
    ///
    /// # Errors
    /// A process does not come up; the end of its log is in the message.
    pub async fn start(
        workers: usize,
        variables: &[(&str, &str)],
        folder: &Path,
        group: &Group,
    ) -> Result<Self> {
        let binary = std::env::current_exe().context("where this program is")?;
        std::fs::create_dir_all(folder.join("tmp"))?;
        let mut command = command(&binary, "master", folder);
        command
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(folder.join("state"))
            .envs(variables.iter().copied());
        let mut master = group.spawn("master", command, Signal::SIGKILL, folder)?;
        let line = master.line().await?;
        let (grpc, http) = line
            .strip_prefix("listening on grpc ")
            .and_then(|rest| rest.split_once(" http "))
            .and_then(|(grpc, http)| Some((grpc.to_owned(), http.parse().ok()?)))
            .with_context(|| format!("the master's first line is {line:?}"))?;
        let mut cluster = Self {
            binary,
            folder: folder.to_owned(),
            grpc: format!("http://{grpc}"),
            http,
            workers: Vec::new(),
            workers_started: 0,
            _master: master,
        };
        for _ in 0..workers {
            cluster.add_worker(group).await?;
        }
        Ok(cluster)
    }

    /// Starts one more worker and waits until it has registered.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn add_worker(&mut self, group: &Group) -> Result<()> {
        self.workers_started += 1;
        let name = format!("worker-{}", self.workers_started);
        let mut command = command(&self.binary, "worker", &self.folder);
        command
            .args(["--master", &self.grpc, "--listen", "127.0.0.1:0"])
            .args(["--slots", &SLOTS.to_string()]);
        let mut process = group.spawn(&name, command, Signal::SIGKILL, &self.folder)?;
        process.line().await?;
        let deadline = Instant::now() + REGISTER;
        loop {
            let registered = self.registered().await?;
            let known = |id: &String| self.workers.iter().any(|worker| worker.id == *id);
            if let Some(id) = registered.into_iter().find(|id| !known(id)) {
                self.workers.push(Worker { id, process });
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

    /// Kills a worker with SIGKILL. Returns the system's id that it had.
    ///
    /// # Errors
    /// There is no such worker, or it had ended by itself.
    pub fn kill_worker(&mut self, id: &str) -> Result<u32> {
        let index = self
            .workers
            .iter()
            .position(|worker| worker.id == id)
            .with_context(|| format!("there is no worker {id} to be killed"))?;
        let mut worker = self.workers.swap_remove(index);
        ensure!(
            !worker.process.has_ended()?,
            "worker {id} had ended before it was killed"
        );
        // Dropped here, which kills it.
        Ok(worker.process.pid())
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
        Ok(page.workers.into_iter().map(|worker| worker.id).collect())
    }
}

fn command(binary: &Path, role: &str, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg(role).env("TMPDIR", folder.join("tmp"));
    command
}
