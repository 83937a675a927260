//! A cluster of real processes: `essaim master` and `essaim worker`s, killed when the test ends, however it ends.

use crate::client::Client;
use crate::proxy::Proxy;
use crate::{SOON, http, unique, wait_for};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::sync::OnceCell;

/// The memory of a worker unless the test says otherwise.
pub const MEMORY: &str = "768MiB";

/// The binary under test: `essaim` in this program's folder, or in the one above for a test, which lies in `deps/`.
///
/// # Errors
/// It is not there; the message says how to build it.
pub fn binary() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let candidates = program.ancestors().skip(1).take(2);
    candidates
        .map(|folder| folder.join("essaim"))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "there is no essaim beside {}: build it with `cargo build -p essaim`, or use `make test` or `make bench`",
                program.display()
            )
        })
}

/// A child that dies with its owner: when it is dropped, and when this process ends in whatever way.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// A shell that waits for the end of its standard input, held open by us, and then kills the child.
    guard: Child,
    /// What it writes on standard output.
    stdout: PathBuf,
    /// Its log, from standard error.
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its output goes to files in `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let stdout = dir.join(format!("{name}.out"));
        let log = dir.join(format!("{name}.log"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&log)?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let guard = Command::new("sh")
            .args(["-c", "cat >/dev/null; kill -9 \"$0\""])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            name: name.to_owned(),
            child,
            guard,
            stdout,
            log,
        })
    }

    /// The first line that it wrote on standard output.
    ///
    /// # Errors
    /// It ended or wrote none in time; the end of its log is in the message.
    pub async fn first_line(&mut self) -> Result<String> {
        let (stdout, log, name) = (self.stdout.clone(), self.log.clone(), self.name.clone());
        let child = &mut self.child;
        let mut ended = None;
        let line = wait_for(&format!("{name}'s first line"), SOON, async || {
            let text = std::fs::read_to_string(&stdout)?;
            if let Some((line, _)) = text.split_once('\n') {
                return Ok(Some(Some(line.to_owned())));
            }
            ended = child.try_wait()?;
            Ok(ended.map(|_| None))
        })
        .await;
        match line {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(anyhow!("{name} ended with {ended:?}")),
            Err(error) => Err(error),
        }
        .with_context(|| format!("its log ends with:\n{}", tail(&log)))
    }

    /// The operating system's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("{} to {}", signal, self.name))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It has not within `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for(&format!("the end of {}", self.name), deadline, async || {
            Ok(child.try_wait()?)
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard first, so that it cannot kill whoever gets the pid next. Both may have ended already.
        for child in [&mut self.guard, &mut self.child] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The addresses for gRPC and HTTP in a server's first line.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (grpc, http) = line
        .strip_prefix("listening on grpc ")?
        .split_once(" http ")?;
    Some((grpc.parse().ok()?, http.trim().parse().ok()?))
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// The id under which it registered; empty if nobody waited for that.
    pub id: String,
    /// Where it listens for gRPC and for HTTP.
    pub address: SocketAddr,
    pub http: SocketAddr,
    /// Gone once it was killed or stopped.
    process: Option<Process>,
}

/// A master and its workers, on ports that the system chose.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// What masters and workers are started from.
    program: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    /// What workers connect to instead of the master, if there is something before it.
    front: Option<Proxy>,
    master: Option<Process>,
    masters_started: usize,
    workers: Vec<Worker>,
    /// In the environment of the processes that are started from now on.
    variables: Vec<(String, String)>,
    /// Where the master keeps jobs and checkpoints; `None` for a folder of the cluster's own.
    state_dir: Option<String>,
}

impl Cluster {
    /// Starts a master and `workers` workers with `slots` slots each, all registered on return.
    ///
    /// # Errors
    /// The binary is missing, or a process does not come up.
    pub async fn start(workers: usize, slots: usize) -> Result<Self> {
        Self::start_with(workers, slots, None, &[], None).await
    }

    /// As [`Self::start`], with variables in the environment of all processes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_under(
        workers: usize,
        slots: usize,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        Self::start_with(workers, slots, None, variables, None).await
    }

    /// As [`Self::start_under`], with jobs and checkpoints at a URL.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_at(
        workers: usize,
        slots: usize,
        variables: &[(&str, &str)],
        state_dir: String,
    ) -> Result<Self> {
        Self::start_with(workers, slots, None, variables, Some(state_dir)).await
    }

    /// A variable for the processes that are started from now on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// As [`Self::start`], with a proxy between workers and master.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_behind_proxy(workers: usize, slots: usize) -> Result<Self> {
        // It is told where the master is when that is known.
        let front = Proxy::start(SocketAddr::from(([127, 0, 0, 1], 1))).await?;
        Self::start_with(workers, slots, Some(front), &[], None).await
    }

    async fn start_with(
        workers: usize,
        slots: usize,
        front: Option<Proxy>,
        variables: &[(&str, &str)],
        state_dir: Option<String>,
    ) -> Result<Self> {
        let dir = logs()?.join(unique("cluster"));
        std::fs::create_dir_all(dir.join("state"))?;
        std::fs::create_dir_all(dir.join("tmp"))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut cluster = Self {
            dir,
            program: binary()?,
            grpc: any,
            http: any,
            front,
            master: None,
            masters_started: 0,
            workers: Vec::new(),
            variables: Vec::new(),
            state_dir,
        };
        for (name, value) in variables {
            cluster.set_variable(name, value);
        }
        cluster.show_logs();
        cluster.restart_master().await?;
        for _ in 0..workers {
            cluster.add_worker(slots, MEMORY).await?;
        }
        Ok(cluster)
    }

    /// Says where the logs are; the test runner shows it when the test fails.
    pub fn show_logs(&self) {
        eprintln!("logs of this test's cluster: {}", self.dir.display());
    }

    /// Where the master serves gRPC, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where the master serves HTTP, as a URL.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// A folder of this cluster's own, e.g. for job files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The workers, in the order in which they were started, dead ones among them.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// The log of the `n`th master that was started, from 1, and of a worker, by its position.
    pub fn log_of_master(&self, n: usize) -> PathBuf {
        self.dir.join(format!("master-{n}.log"))
    }

    /// See [`Self::log_of_master`].
    pub fn log_of_worker(&self, index: usize) -> PathBuf {
        self.dir.join(format!("worker-{}.log", index + 1))
    }

    /// The ids of the living processes: the master's, then the workers'.
    pub fn pids(&self) -> Vec<u32> {
        let workers = self.workers.iter().map(|worker| worker.process.as_ref());
        std::iter::once(self.master.as_ref())
            .chain(workers)
            .flatten()
            .map(Process::pid)
            .collect()
    }

    fn command(&self, role: &str) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command
            .arg(role)
            .env("TMPDIR", self.dir.join("tmp"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Starts the master, at the same ports and with the same state as before if there was one.
    ///
    /// # Errors
    /// It does not come up; the end of its log is in the message.
    pub async fn restart_master(&mut self) -> Result<()> {
        self.kill_master();
        let own = url::Url::from_directory_path(self.dir.join("state"))
            .map_err(|()| anyhow!("{} is no absolute path", self.dir.display()))?;
        let state_dir = self.state_dir.as_deref().unwrap_or(own.as_str());
        let mut command = self.command("master")?;
        command
            .args(["--listen", &self.grpc.to_string()])
            .args(["--http", &self.http.to_string()])
            .args(["--state-dir", state_dir]);
        self.masters_started += 1;
        let name = format!("master-{}", self.masters_started);
        let mut process = Process::spawn(&name, command, &self.dir)?;
        let line = process.first_line().await?;
        (self.grpc, self.http) =
            addresses(&line).with_context(|| format!("the master's first line is {line:?}"))?;
        self.master = Some(process);
        if let Some(front) = &self.front {
            front.retarget(self.grpc);
        }
        let healthy = async || Ok((self.http_get("/healthz").await?.0 == 200).then_some(()));
        wait_for("the master to answer", SOON, healthy).await
    }

    /// Starts masters and workers from this binary from now on.
    pub fn run_from(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Stops the master as an operator would (SIGTERM).
    ///
    /// # Errors
    /// It does not end, or with another code than 0.
    pub async fn stop_master(&mut self) -> Result<()> {
        let mut master = self.master.take().context("there is no master")?;
        master.signal(Signal::SIGTERM)?;
        let status = master.ended(SOON).await?;
        ensure!(status.success(), "the master ended with {status}");
        Ok(())
    }

    /// Kills the master with SIGKILL.
    pub fn kill_master(&mut self) {
        self.master = None;
    }

    /// Stops the master in its tracks (SIGSTOP): it keeps its ports and connections, and says nothing more.
    ///
    /// # Errors
    /// There is none.
    pub fn freeze_master(&self) -> Result<()> {
        let master = self.master.as_ref().context("there is no master")?;
        master.signal(Signal::SIGSTOP)
    }

    /// Starts a second master with the same state at other ports, which workers and clients find from now on. Returns
    /// the first one, which is killed when it is dropped.
    ///
    /// # Errors
    /// There is no first one; the second does not come up.
    pub async fn take_over(&mut self) -> Result<Process> {
        let old = self.master.take().context("there is no master")?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (self.grpc, self.http) = (any, any);
        self.restart_master().await?;
        Ok(old)
    }

    /// What is between workers and master, if there is something.
    pub fn front(&self) -> Option<&Proxy> {
        self.front.as_ref()
    }

    /// Starts one more worker and waits until it has registered. Returns its position.
    ///
    /// # Errors
    /// It does not come up or does not register.
    pub async fn add_worker(&mut self, slots: usize, memory: &str) -> Result<usize> {
        let index = self.start_worker(slots, memory).await?;
        let name = format!("worker-{}", index + 1);
        let id = wait_for(&format!("{name} to register"), SOON, async || {
            let registered = self.registered().await?;
            let known = |id: &String| self.workers.iter().any(|worker| worker.id == *id);
            Ok(registered.into_iter().find(|id| !known(id)))
        })
        .await
        .with_context(|| {
            let log = self.dir.join(format!("{name}.log"));
            format!("its log ends with:\n{}", tail(&log))
        })?;
        self.workers[index].id = id;
        Ok(index)
    }

    /// Starts one more worker, which registers as soon as there is a master. Returns its position.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_worker(&mut self, slots: usize, memory: &str) -> Result<usize> {
        let master = match &self.front {
            Some(front) => format!("http://{}", front.address()),
            None => self.url(),
        };
        self.start_worker_of(&master, slots, memory).await
    }

    /// As [`Self::start_worker`], for the master at this URL, whether there is a proxy or not.
    ///
    /// # Errors
    /// As [`Self::start_worker`].
    pub async fn start_worker_of(
        &mut self,
        master: &str,
        slots: usize,
        memory: &str,
    ) -> Result<usize> {
        self.start_worker_with(&["--master", master], slots, memory)
            .await
    }

    /// As [`Self::start_worker`], with these flags, `--master` among them.
    ///
    /// # Errors
    /// As [`Self::start_worker`].
    pub async fn start_worker_with(
        &mut self,
        flags: &[&str],
        slots: usize,
        memory: &str,
    ) -> Result<usize> {
        let mut command = self.command("worker")?;
        command
            .args(flags)
            .args(["--listen", "127.0.0.1:0"])
            .args(["--http", "127.0.0.1:0"])
            .args(["--slots", &slots.to_string()])
            .args(["--memory", memory]);
        let name = format!("worker-{}", self.workers.len() + 1);
        let mut process = Process::spawn(&name, command, &self.dir)?;
        let line = process.first_line().await?;
        let (address, http) =
            addresses(&line).with_context(|| format!("the worker's first line is {line:?}"))?;
        self.workers.push(Worker {
            id: String::new(),
            address,
            http,
            process: Some(process),
        });
        Ok(self.workers.len() - 1)
    }

    /// Kills a worker with SIGKILL.
    pub fn kill_worker(&mut self, index: usize) {
        self.workers[index].process = None;
    }

    /// Asks a worker to stop (SIGTERM) without waiting for it.
    ///
    /// # Errors
    /// It has ended already.
    pub fn stop_worker(&self, index: usize) -> Result<()> {
        self.worker_process(index)?.signal(Signal::SIGTERM)
    }

    /// Stops a worker in its tracks (SIGSTOP): it is there, and says nothing more.
    ///
    /// # Errors
    /// It has ended already.
    pub fn freeze_worker(&self, index: usize) -> Result<()> {
        self.worker_process(index)?.signal(Signal::SIGSTOP)
    }

    /// Waits until a worker has ended by itself.
    ///
    /// # Errors
    /// It has not within `deadline`.
    pub async fn worker_ended(&mut self, index: usize, deadline: Duration) -> Result<ExitStatus> {
        let process = self.workers[index].process.as_mut();
        let status = process
            .with_context(|| format!("worker {index} was killed before"))?
            .ended(deadline)
            .await?;
        self.workers[index].process = None;
        Ok(status)
    }

    fn worker_process(&self, index: usize) -> Result<&Process> {
        self.workers[index]
            .process
            .as_ref()
            .with_context(|| format!("worker {index} was killed before"))
    }

    /// Stops everything as an operator would (SIGTERM), workers first. Each must end with 0.
    ///
    /// # Errors
    /// A process does not end, or with another code.
    pub async fn stop(mut self) -> Result<()> {
        let workers = self.workers.iter_mut().filter_map(|w| w.process.take());
        let processes: Vec<_> = workers.chain(self.master.take()).collect();
        for mut process in processes {
            process.signal(Signal::SIGTERM)?;
            let status = process.ended(SOON).await?;
            ensure!(
                status.success(),
                "{} ended with {status}; its log ends with:\n{}",
                process.name,
                tail(&process.log)
            );
        }
        Ok(())
    }

    /// A client of the master.
    ///
    /// # Errors
    /// The master does not answer.
    pub async fn client(&self) -> Result<Client> {
        self.show_logs();
        Client::connect(&self.url()).await
    }

    /// Where the master serves HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Status and body of a page of the master.
    ///
    /// # Errors
    /// The master does not answer within five seconds, or not in HTTP.
    pub async fn http_get(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.http, path).await
    }

    /// A page of the master as JSON.
    ///
    /// # Errors
    /// Another status than 200, or no JSON.
    pub async fn json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.http_get(path).await?;
        if status != 200 {
            bail!("GET {path}: {status}: {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("GET {path}: {body:?}"))
    }

    /// The ids of the workers that the master has.
    ///
    /// # Errors
    /// Those of [`Self::json`].
    pub async fn registered(&self) -> Result<Vec<String>> {
        let page = self.json("/api/v1/cluster").await?;
        let workers = page["workers"]
            .as_array()
            .with_context(|| format!("no workers in {page}"))?;
        Ok(workers
            .iter()
            .filter(|worker| worker["state"] != "lost")
            .filter_map(|worker| worker["id"].as_str())
            .map(str::to_owned)
            .collect())
    }
}

/// The cluster that the tests of one file share: two workers with two slots each.
///
/// # Errors
/// As [`Cluster::start`].
pub async fn shared() -> Result<&'static Cluster> {
    static SHARED: OnceCell<Cluster> = OnceCell::const_new();
    SHARED.get_or_try_init(|| Cluster::start(2, 2)).await
}

/// Where logs and state go. What runs of more than an hour ago left there is removed.
fn logs() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join("essaim-tests");
    std::fs::create_dir_all(&dir)?;
    for entry in std::fs::read_dir(&dir)?.flatten() {
        // Another test may be removing it at the same time.
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > Duration::from_secs(3600)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(dir)
}
