//! Runs the tasks that a master hands out.
//!
//! [`membership`] keeps the worker in its master's registry, [`tasks`] serves the tasks below the cut, and
//! datafusion-distributed's own service beside it serves plans that need an exchange between workers.

mod exchange;
mod http;
mod membership;
mod metrics;
mod probe;
mod tasks;

use crate::http::Page;
use crate::membership::Membership;
use crate::metrics::TaskCounts;
use crate::tasks::{Gauge, TaskService};
use datafusion::execution::SessionStateBuilder;
use datafusion_distributed::{DistributedExt, WorkerQueryContext};
use essaim_common::broadcast::Broadcasts;
use essaim_common::net::http::serve_http;
use essaim_common::net::{ClusterSecret, Gate, Peers, Security};
use essaim_common::session;
use essaim_common::threads::Threads;
use essaim_common::{Error, Result};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::tasks_server::TasksServer;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long a draining worker waits for its tasks before it hands them back.
const DRAIN: Duration = Duration::from_secs(30);

/// What a worker needs to know at its start.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The master's address, `http://HOST:PORT`.
    pub master: String,
    /// Where the worker listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where HTTP is served, if anywhere; port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// Under which `http://HOST:PORT` others reach it; found out when `None`.
    pub advertise: Option<String>,
    /// How many tasks it runs at a time.
    pub slots: usize,
    /// Memory for all its tasks together, in bytes.
    pub memory_bytes: u64,
    /// Who may call, and how others are called.
    pub security: Security,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            master: "http://127.0.0.1:7077".to_owned(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7078),
            http: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8081)),
            advertise: None,
            slots: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: 2 << 30,
            security: Security::default(),
        }
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    gauge: Gauge,
    membership: Membership,
    stop: CancellationToken,
    server: JoinHandle<()>,
    http: Option<JoinHandle<()>>,
    _threads: Threads,
    _forget_exchanges: AbortOnDropHandle<()>,
}

impl Worker {
    /// Binds, serves in the background and registers for ever.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn start(config: WorkerConfig) -> Result<Self> {
        let secret = ClusterSecret::unknown();
        let gate = Gate::open(&config.security, Some(secret.clone()))?;
        let peers = Peers::new(&config.security.identity, secret.clone())?;
        let probed = peers.clone();
        let (listener, address) = bind("--listen", config.listen).await?;
        gate.check(address, true)?;
        let http = match config.http {
            Some(http) => Some(bind("--http", http).await?),
            None => None,
        };
        if let Some((_, http)) = &http {
            gate.check(*http, false)?;
        }

        let runtime = session::runtime(config.memory_bytes)?;
        let gauge = Gauge::default();
        let session_config = session::config(1).with_extension(Arc::new(Broadcasts::default()));
        let state = session::with_essaim(
            SessionStateBuilder::new()
                .with_config(session_config)
                .with_runtime_env(Arc::clone(&runtime)),
        )
        .build();
        let exchange_config = state.config().clone();
        let exchange = datafusion_distributed::Worker::from_session_builder(
            move |query: WorkerQueryContext| {
                // What the query's session brought along wins over ours; the connections stay ours.
                let mut builder = query.builder;
                let config = builder.config().get_or_insert_default();
                if let Some(warm) = exchange_config.get_extension::<essaim_common::scope::Warm>() {
                    config.set_extension(warm);
                }
                config.set_distributed_channel_resolver(peers.clone());
                async move { Ok(session::with_essaim(builder).build()) }
            },
        )
        .with_runtime_env(Arc::clone(&runtime))
        .with_max_message_size(MAX_MESSAGE_BYTES / 4)
        .with_version(essaim_proto::VERSION.as_str());
        let forget_exchanges = tokio::spawn(exchange::forget_ended(exchange.clone()));

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<TasksServer<TaskService>>().await;
        let broadcasts = state.config().get_extension();
        let counts = Arc::<TaskCounts>::default();
        let threads = Threads::start("task")?;
        let id = membership::new_id();
        let service = TaskService::new(
            id.clone(),
            probed,
            state,
            gauge.clone(),
            Arc::clone(&counts),
            threads.handle(),
        );
        let stop = CancellationToken::new();
        let server = gate
            .grpc()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(health_service)
            .add_service(
                TasksServer::new(service)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(
                exchange
                    .into_worker_server()
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .serve_with_incoming_shutdown(gate.incoming(listener), stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the worker's listener failed");
            }
        });
        let membership = Membership::start(
            id,
            &config,
            address,
            gauge.clone(),
            Arc::clone(&runtime),
            secret,
        )?;
        let http_address = http.as_ref().map(|(_, address)| *address);
        let http = http.map(|(listener, _)| {
            let page = Page {
                runtime,
                gauge: gauge.clone(),
                slots: config.slots,
                counts,
                listeners: gate.listeners().clone(),
                lease: membership.lease(),
                broadcasts: broadcasts.unwrap_or_default(),
            };
            tokio::spawn(serve_http(listener, page.router(), gate, stop.clone()))
        });
        Ok(Self {
            address,
            http_address,
            gauge,
            membership,
            stop,
            server,
            http,
            _threads: threads,
            _forget_exchanges: AbortOnDropHandle::new(forget_exchanges),
        })
    }

    /// The address that the worker really listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The HTTP address that the worker really listens on.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Takes no new tasks, waits up to 30 s for those that the master has given it, leaves the registry and ends.
    /// Tasks that run still then are handed back: their streams break and the master runs them elsewhere.
    pub async fn drain(self) {
        let ended = async {
            self.membership.drain().await;
            self.gauge.idle().await;
        };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::warn!("tasks are still running after 30 s: handing them back");
        }
        // The server first, so that the last words of the last tasks are out before the master forgets the worker.
        self.stop.cancel();
        let mut server = self.server;
        if tokio::time::timeout(Duration::from_secs(1), &mut server)
            .await
            .is_err()
        {
            server.abort();
        }
        if let Some(http) = self.http {
            http.abort();
        }
        self.membership.leave().await;
    }
}

async fn bind(flag: &str, wanted: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let bound = async {
        let listener = TcpListener::bind(wanted).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    bound.await.map_err(|e| {
        Error::invalid(format!(
            "cannot listen on {wanted}: {e}; give another address with {flag}, e.g. {flag} 0.0.0.0:0 for a free port"
        ))
    })
}
