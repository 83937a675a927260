//! The servers: a master, a worker, or a whole cluster in this process.

use crate::client::MasterAddress;
use crate::logging::{LogFormat, Logging};
use crate::security::{GateArgs, TlsArgs, TokenArgs};
use crate::sql;
use anyhow::Result;
use essaim_common::access::{self, Access, DEFAULT_ENV_PREFIXES};
use essaim_master::{Master, MasterConfig};
use essaim_worker::{Worker, WorkerConfig};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use tokio::signal::unix::{Signal, SignalKind, signal};

const SERVER_FILTER: &str = "info";

#[derive(Debug, clap::Args)]
pub struct MasterArgs {
    /// Where clients and workers connect (gRPC). Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7077")]
    listen: SocketAddr,
    /// Where /healthz, /readyz, /metrics and /api/v1 are served. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    /// Where jobs are kept: a folder or an object store's URL.
    #[arg(long, value_name = "URL", default_value_t = MasterConfig::default().state_dir)]
    state_dir: String,
    /// What the master's own operators may hold in memory.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    memory: ByteSize,
    /// What the names of variables begin with that jobs may use as ${NAME}.
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', default_value = DEFAULT_ENV_PREFIXES)]
    env_prefixes: Vec<String>,
    /// Folders and s3://bucket/path below which jobs may read and write files; none for no files [default: anywhere].
    #[arg(long, value_name = "DIR,…", value_delimiter = ',')]
    file_roots: Vec<String>,
    /// How log lines are written to standard error; ESSAIM_LOG filters them.
    #[arg(long, env = "ESSAIM_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    gate: GateArgs,
}

impl MasterArgs {
    /// What the master logs.
    pub fn logging(&self) -> Logging {
        Logging {
            format: self.log_format,
            default_filter: SERVER_FILTER,
            service: Some("essaim-master"),
        }
    }

    /// The master that these flags describe.
    pub fn config(&self) -> MasterConfig {
        MasterConfig {
            listen: self.listen,
            http: Some(self.http),
            state_dir: self.state_dir.clone(),
            memory_bytes: self.memory.0,
            security: self.gate.master(&self.tls),
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// The master to work for.
    #[arg(long, env = "ESSAIM_MASTER", value_name = "URL", default_value = crate::client::DEFAULT_MASTER)]
    master: String,
    /// Where the master and other workers connect (gRPC). Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7078")]
    listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are served. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8081")]
    http: SocketAddr,
    /// The URL under which others reach this worker, if not by the address it listens on.
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Tasks at a time [default: one a core].
    #[arg(long, value_name = "N")]
    slots: Option<NonZeroUsize>,
    /// What all tasks together may hold in memory before they spill to disk.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    memory: ByteSize,
    /// Folders and s3://bucket/path below which jobs may read and write files; none for no files [default: anywhere].
    #[arg(long, value_name = "DIR,…", value_delimiter = ',')]
    file_roots: Vec<String>,
    /// How log lines are written to standard error; ESSAIM_LOG filters them.
    #[arg(long, env = "ESSAIM_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    gate: GateArgs,
}

impl WorkerArgs {
    /// What the worker logs.
    pub fn logging(&self) -> Logging {
        Logging {
            format: self.log_format,
            default_filter: SERVER_FILTER,
            service: Some("essaim-worker"),
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct LocalArgs {
    /// Workers in this process.
    #[arg(long, value_name = "N", default_value = "2")]
    workers: NonZeroUsize,
    /// Tasks at a time, on each worker [default: the cores shared out].
    #[arg(long, value_name = "N")]
    slots: Option<NonZeroUsize>,
    #[command(flatten)]
    input: sql::Input,
}

/// Runs a master until SIGTERM or SIGINT.
///
/// # Errors
/// An address that is taken, a state dir that cannot be opened.
pub async fn master(args: MasterArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    limit(
        Access::new(&args.env_prefixes, &args.file_roots)?,
        args.listen,
    )?;
    // A state dir that does not answer is waited for: a signal ends that too.
    let master = tokio::select! {
        master = Master::start(args.config()) => master?,
        () = signals.next() => return Ok(()),
    };
    announce(master.address(), master.http_address())?;
    signals.next().await;
    tracing::info!("stopping; a second signal ends the process at once");
    tokio::select! {
        () = master.stop() => {}
        () = signals.next() => tracing::warn!("stopped at once"),
    }
    Ok(())
}

/// Runs a worker until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// An address that is taken, a master that refuses this worker.
pub async fn worker(args: WorkerArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    // Variables are filled in by the master.
    limit(Access::new(&[], &args.file_roots)?, args.listen)?;
    let config = WorkerConfig {
        security: args.gate.worker(&args.tls, &args.token)?,
        master: args.master,
        listen: args.listen,
        http: Some(args.http),
        advertise: args.advertise,
        slots: args.slots.map_or_else(cores, NonZeroUsize::get),
        memory_bytes: args.memory.0,
    };
    // Registration may take as long as the master is away: a signal ends that too.
    let worker = tokio::select! {
        worker = Worker::start(config) => worker?,
        () = signals.next() => return Ok(()),
    };
    announce(worker.address(), worker.http_address())?;
    signals.next().await;
    tracing::info!("draining; a second signal ends the process at once");
    tokio::select! {
        () = worker.drain() => {}
        () = signals.next() => tracing::warn!("stopped at once: running tasks are lost"),
    }
    Ok(())
}

/// Runs a cluster in this process for as long as its SQL takes.
///
/// # Errors
/// What the SQL ends with.
pub async fn local(args: LocalArgs) -> Result<()> {
    let slots = args
        .slots
        .map_or_else(|| (cores() / args.workers).max(1), NonZeroUsize::get);
    let cluster = LocalCluster::start(args.workers.get(), slots).await?;
    let greeting = format!(
        "a master at {} and {} workers of {slots} slots in this process",
        cluster.address,
        cluster.workers.len()
    );
    let done = sql::run_at(
        &MasterAddress::plain(&cluster.address),
        args.input,
        &greeting,
    )
    .await;
    cluster.stop().await;
    done
}

/// A master and workers in this process, with a state dir that goes with them.
pub struct LocalCluster {
    /// The master's gRPC address.
    pub address: String,
    master: Master,
    workers: Vec<Worker>,
    // Removed last.
    _state: tempfile::TempDir,
}

impl LocalCluster {
    /// Starts them on free ports of the loopback interface.
    ///
    /// # Errors
    /// No folder for the state, no free port.
    pub async fn start(workers: usize, slots: usize) -> Result<Self> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        access::limit(Access::unlimited())?;
        let state = tempfile::Builder::new().prefix("essaim-").tempdir()?;
        let master = Master::start(MasterConfig {
            listen: loopback,
            http: None,
            state_dir: state.path().to_string_lossy().into_owned(),
            ..MasterConfig::default()
        })
        .await?;
        let address = format!("http://{}", master.address());
        let start = |_| {
            Worker::start(WorkerConfig {
                master: address.clone(),
                listen: loopback,
                http: None,
                advertise: None,
                slots,
                ..WorkerConfig::default()
            })
        };
        let workers = futures::future::try_join_all((0..workers).map(start)).await?;
        Ok(Self {
            address,
            master,
            workers,
            _state: state,
        })
    }

    /// Drains the workers and ends; at once if somebody interrupts.
    pub async fn stop(self) {
        let stop = async {
            futures::future::join_all(self.workers.into_iter().map(Worker::drain)).await;
            self.master.stop().await;
        };
        tokio::select! {
            () = stop => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}

/// Says what jobs may use of this process, and warns if that is every file.
fn limit(access: Access, listen: SocketAddr) -> Result<()> {
    if !access.confines_files() && !listen.ip().is_loopback() {
        tracing::warn!(
            "whoever may submit a job can read and write every file that this process can: name folders with --file-roots"
        );
    }
    Ok(access::limit(access)?)
}

/// One line on standard output, so that whoever asked for port 0 learns the addresses.
fn announce(grpc: SocketAddr, http: Option<SocketAddr>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "listening on grpc {grpc}")?;
    if let Some(http) = http {
        write!(out, " http {http}")?;
    }
    writeln!(out)?;
    out.flush()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// SIGTERM and SIGINT as one stream.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both signals over from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A number of bytes as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ByteSize(u64);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no size: write a whole number and MiB or GiB, e.g. 2GiB");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(wrong()),
        };
        match number.checked_mul(unit) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!("2GiB".parse(), Ok(ByteSize(2 << 30)));
        assert_eq!("512 mib".parse(), Ok(ByteSize(512 << 20)));
        assert_eq!("1024".parse(), Ok(ByteSize(1024)));
        for wrong in ["", "GiB", "2GB", "-1", "0", "99999999999TiB", "1.5GiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }
}
