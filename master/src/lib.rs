//! Plans, schedules and commits Essaim's jobs.
//!
//! A query's way: [`api`] takes it, [`plan`] makes a physical plan of it and cuts it, [`run`] starts it, the scheduler
//! hands the stages below the cut to the workers in the [`registry`], and DataFusion merges what they send.

pub mod api;
mod batch;
mod check;
mod doctor;
pub mod jobs;
pub mod plan;
pub mod registry;
mod run;
pub mod scheduler;
pub mod stream;

use crate::api::cluster::ClusterService;
use crate::api::jobs::JobsService;
use crate::jobs::Jobs;
use crate::registry::Registry;
use datafusion::execution::runtime_env::RuntimeEnv;
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
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// Submitted batch jobs that run at a time; each holds connections of its own. The others stay queued.
const MAX_RUNNING_JOBS: usize = 32;
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
}

impl Default for MasterConfig {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            listen: SocketAddr::new(any, 7077),
            http: Some(SocketAddr::new(any, 8080)),
            state_dir: "essaim-state".to_owned(),
            memory_bytes: 2 << 30,
        }
    }
}

/// What everything in a master shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) jobs: Jobs,
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// Jobs beyond [`MAX_RUNNING_JOBS`] wait here.
    pub(crate) running_jobs: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Shared {
    /// Runs something that ends with the master at the latest.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
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
        let (listener, address) = bind(config.listen).await?;
        let http = match config.http {
            Some(http) => Some(bind(http).await?),
            None => None,
        };
        let (jobs, open) = Jobs::open(&config.state_dir).await?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            registry: Arc::new(Registry::default()),
            jobs,
            runtime: session::runtime(config.memory_bytes)?,
            running_jobs: Semaphore::new(MAX_RUNNING_JOBS),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        shared.spawn(Arc::clone(&shared.registry).watch_leases());
        for job in open {
            tracing::info!(job = %job.id(), "taken up again");
            shared.spawn(batch::run(Arc::clone(&shared), job));
        }
        let mut servers = vec![tokio::spawn(serve_grpc(
            listener,
            Arc::clone(&shared),
            stop.clone(),
        ))];
        let http_address = http.as_ref().map(|(_, address)| *address);
        if let Some((listener, _)) = http {
            let router = api::http::router(Arc::clone(&shared));
            let server =
                axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            servers.push(tokio::spawn(async move {
                if let Err(error) = server.await {
                    tracing::error!(%error, "the HTTP listener failed");
                }
            }));
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

async fn serve_grpc(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
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
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(ClusterServer::new(cluster))
        .add_service(
            JobsServer::new(JobsService(shared))
                .max_decoding_message_size(2 * plan::MAX_SQL_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        );
    if let Err(error) = server.await {
        tracing::error!(%error, "the gRPC listener failed");
    }
}
