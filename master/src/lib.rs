//! Plans, schedules and commits Essaim's jobs.
//!
//! A query's way: [`api`] takes it, [`plan`] makes a physical plan of it and cuts it, [`run`] starts it, the scheduler
//! hands the stages below the cut to the workers in the [`registry`], and DataFusion merges what they send.

pub mod api;
mod batch;
mod check;
mod doctor;
pub mod events;
pub mod jobs;
mod metrics;
pub mod plan;
pub mod registry;
mod run;
pub mod scheduler;
pub mod shares;
pub mod stream;

use crate::api::cluster::ClusterService;
use crate::api::http::updates::Updates;
use crate::api::jobs::JobsService;
use crate::events::{EventKind, Events, Severity};
use crate::jobs::Jobs;
use crate::jobs::handle::JobHandle;
use crate::jobs::model::{JobKind, now_ms};
use crate::jobs::queue::Queue;
use crate::registry::Registry;
use datafusion::execution::runtime_env::RuntimeEnv;
use essaim_common::metrics::Listeners;
use essaim_common::net::http::serve_http;
use essaim_common::net::{ClusterSecret, Gate, Peers, Security};
use essaim_common::threads::Threads;
use essaim_common::{Error, Result, session};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::FILE_DESCRIPTOR_SET;
use essaim_proto::v1::cluster_server::ClusterServer;
use essaim_proto::v1::jobs_server::JobsServer;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Submitted batch jobs that run at a time, and as many queries of clients; each holds connections of its own. The others
/// stay queued.
const MAX_RUNNING: usize = 32;
/// How long a stopping master waits for what is under way.
const STOP: Duration = Duration::from_secs(2);

/// What a master needs to know at its start.
#[derive(Debug, Clone)]
pub struct MasterConfig {
    /// Where gRPC is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where HTTP is served, if anywhere.
    pub http: Option<SocketAddr>,
    /// Where jobs are kept: a folder, or the URL of one in an object store.
    pub state_dir: String,
    /// Memory for merging and finalising, in bytes.
    pub memory_bytes: u64,
    /// Who may call, and how others are called.
    pub security: Security,
}

impl Default for MasterConfig {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            listen: SocketAddr::new(any, 7077),
            http: Some(SocketAddr::new(any, 8080)),
            state_dir: "essaim-state".to_owned(),
            memory_bytes: 2 << 30,
            security: Security::default(),
        }
    }
}

/// What everything in a master shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) jobs: Jobs,
    pub(crate) events: Arc<Events>,
    /// When this master began, ms since 1970-01-01 UTC.
    pub(crate) started_ms: i64,
    /// What its memory pool may take, bytes.
    pub(crate) memory_bytes: u64,
    /// Status connections that stay open.
    pub(crate) updates: Updates,
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// Where batch jobs and queries are planned, and the master's part of them is computed. Neither streams nor heartbeats
    /// and pages, which have the process's own threads, are held up by it.
    pub(crate) queries: Threads,
    /// The same for streaming jobs.
    pub(crate) streams: Threads,
    /// Where submitted batch jobs wait for their turn.
    pub(crate) job_queue: Arc<Queue>,
    /// Where queries of clients do: long jobs do not keep somebody waiting who sits before a shell.
    pub(crate) query_queue: Arc<Queue>,
    pub(crate) listeners: Listeners,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Shared {
    /// Runs something that ends with the master at the latest.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), work);
    }

    fn spawn_on(&self, threads: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let work = async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        };
        self.tasks.spawn_on(work, threads);
    }

    /// Runs a job, on the threads for its kind.
    pub(crate) fn run_job(self: &Arc<Self>, job: Arc<JobHandle>) {
        let threads = match job.read(|record| record.kind) {
            JobKind::Batch => &self.queries,
            JobKind::Streaming => &self.streams,
        };
        self.spawn_on(&threads.handle(), batch::run(Arc::clone(self), job));
    }
}

/// A running master.
#[derive(Debug)]
pub struct Master {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    shared: Arc<Shared>,
    servers: Vec<JoinHandle<()>>,
}

impl Master {
    /// Binds, takes up the jobs of the state dir and serves in the background.
    ///
    /// # Errors
    /// An address is taken; the state dir is out of reach.
    pub async fn start(config: MasterConfig) -> Result<Self> {
        let gate = Gate::open(&config.security, None)?;
        let (listener, address) = bind(config.listen).await?;
        gate.check(address, false)?;
        let http = match config.http {
            Some(http) => Some(bind(http).await?),
            None => None,
        };
        if let Some((_, http)) = &http {
            gate.check(*http, false)?;
        }
        let peers = Peers::new(&config.security.identity, ClusterSecret::generate()?)?;
        let events = Arc::new(Events::default());
        let (jobs, open) = Jobs::open(&config.state_dir, Arc::clone(&events)).await?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            registry: Arc::new(Registry::new(Arc::clone(&events), peers)),
            jobs,
            events,
            started_ms: now_ms(),
            memory_bytes: config.memory_bytes,
            updates: Updates::default(),
            runtime: session::runtime(config.memory_bytes)?,
            queries: Threads::start("query")?,
            streams: Threads::start("stream")?,
            job_queue: Queue::new(MAX_RUNNING),
            query_queue: Queue::new(MAX_RUNNING),
            listeners: gate.listeners().clone(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let message = format!("Essaim {} serves {address}", essaim_proto::VERSION);
        shared
            .events
            .note(EventKind::MasterStarted, Severity::Info, message);
        shared.spawn(Arc::clone(&shared.registry).watch_leases());
        shared.spawn({
            let shared = Arc::clone(&shared);
            async move { shared.jobs.watch_state_dir().await }
        });
        for job in open {
            tracing::info!(job = %job.id(), "taken up again");
            shared.run_job(job);
        }
        let mut servers = vec![tokio::spawn(serve_grpc(
            listener,
            gate.clone(),
            Arc::clone(&shared),
            stop.clone(),
        ))];
        let http_address = http.as_ref().map(|(_, address)| *address);
        if let Some((listener, _)) = http {
            let router = api::http::router(Arc::clone(&shared));
            servers.push(tokio::spawn(serve_http(listener, router, gate, stop)));
        }
        Ok(Self {
            address,
            http_address,
            shared,
            servers,
        })
    }

    /// The gRPC address that the master really listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The HTTP address that the master really listens on.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Ends. Jobs that run are taken up by the next master on the same state dir.
    pub async fn stop(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let ended = async {
            self.shared.tasks.wait().await;
            futures::future::join_all(self.servers).await
        };
        if tokio::time::timeout(STOP, ended).await.is_err() {
            tracing::debug!("connections were still open");
        }
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    bound
        .await
        .map_err(|e| Error::invalid(format!("cannot listen on {address}: {e}")))
}

async fn serve_grpc(
    listener: TcpListener,
    gate: Gate,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<JobsService>>().await;
    health.set_serving::<ClusterServer<ClusterService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => reflection,
        Err(error) => {
            tracing::error!(%error, "the descriptors cannot be served");
            return;
        }
    };
    let cluster = ClusterService(Arc::clone(&shared.registry));
    let server = gate
        .grpc()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(ClusterServer::new(cluster))
        .add_service(
            JobsServer::new(JobsService(shared))
                .max_decoding_message_size(2 * plan::MAX_SQL_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(gate.incoming(listener), stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "the gRPC listener failed");
    }
}
