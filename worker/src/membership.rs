//! Keeps the worker in its master's registry: registers, renews the lease, comes back after every loss.

use crate::WorkerConfig;
use crate::tasks::Gauge;
use datafusion::execution::runtime_env::RuntimeEnv;
use essaim_common::metrics::Counter;
use essaim_common::net::{ClusterSecret, Credentials, Link, link};
use essaim_common::{Error, Result};
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::{HeartbeatRequest, LeaveRequest, RegisterRequest};
use essaim_proto::{PROTOCOL, VERSION};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Endpoint;

const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// How long the master may take to accept a connection or to answer.
const CALL: Duration = Duration::from_secs(3);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
/// How often a draining worker looks for a master that is away before it leaves without a word.
const MASTER_GONE: usize = 3;
/// How often a draining worker asks whether there is still something for it.
const RELEASE_CHECK: Duration = Duration::from_millis(50);

/// The worker's place in the registry. It lives on a thread of its own, so that tasks never hold up a heartbeat.
#[derive(Debug)]
pub(crate) struct Membership {
    drain: CancellationToken,
    released: CancellationToken,
    leave: CancellationToken,
    left: oneshot::Receiver<()>,
    lease: Arc<Lease>,
}

/// How the worker stands with its master, for probes and metrics.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The worker's id.
    pub(crate) worker: String,
    registered: AtomicBool,
    drain: CancellationToken,
    /// Leases that could not be had, or were lost.
    pub(crate) failures: Counter,
}

impl Lease {
    /// Whether the master knows the worker, as far as the worker can tell.
    pub(crate) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// Whether the worker is about to leave.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }
}

/// An id that no other worker has, and no earlier start of this one.
pub(crate) fn new_id() -> String {
    format!("w-{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

impl Membership {
    pub(crate) fn start(
        id: String,
        config: &WorkerConfig,
        address: SocketAddr,
        gauge: Gauge,
        runtime: Arc<RuntimeEnv>,
        secret: ClusterSecret,
    ) -> Result<Self> {
        let identity = &config.security.identity;
        // A file that is missing is known now and not when the master answers.
        endpoint(config)?;
        Credentials::of(identity)?;
        let drain = CancellationToken::new();
        let released = CancellationToken::new();
        let leave = CancellationToken::new();
        let (report, left) = oneshot::channel();
        let lease = Arc::new(Lease {
            worker: id.clone(),
            registered: AtomicBool::new(false),
            drain: drain.clone(),
            failures: Counter::default(),
        });
        let member = Member {
            id,
            lease: Arc::clone(&lease),
            config: config.clone(),
            address,
            gauge,
            runtime,
            secret,
            drain: drain.clone(),
            released: released.clone(),
            leave: leave.clone(),
        };
        std::thread::Builder::new()
            .name("membership".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(member.stay()),
                    Err(error) => tracing::error!(%error, "no runtime for the membership"),
                }
                // The other end may be gone with the worker.
                let _ = report.send(());
            })
            .map_err(|e| Error::internal(format!("no thread for the membership: {e}")))?;
        Ok(Self {
            drain,
            released,
            leave,
            left,
            lease,
        })
    }

    /// How the worker stands with its master.
    pub(crate) fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// Tells the master to send no more tasks. Returns once it says that none is left, not even one on its way, nor a
    /// part of an exchange; or once it cannot be reached.
    pub(crate) async fn drain(&self) {
        self.drain.cancel();
        self.released.cancelled().await;
    }

    /// Leaves the registry.
    pub(crate) async fn leave(self) {
        self.leave.cancel();
        // Bounded by the endpoint's own deadlines.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.left).await;
    }
}

/// Where the master is, and how one connects to it.
fn endpoint(config: &WorkerConfig) -> Result<Endpoint> {
    let endpoint = link::endpoint(&config.master, &config.security.identity, CALL)
        .map_err(|error| error.context("--master"))?;
    Ok(endpoint.timeout(CALL))
}

struct Member {
    id: String,
    lease: Arc<Lease>,
    config: WorkerConfig,
    address: SocketAddr,
    gauge: Gauge,
    runtime: Arc<RuntimeEnv>,
    /// What the master hands out at registration.
    secret: ClusterSecret,
    drain: CancellationToken,
    /// Cancelled once the master has nothing more for a worker that drains.
    released: CancellationToken,
    leave: CancellationToken,
}

impl Member {
    async fn stay(self) {
        let mut back_off = FIRST_BACK_OFF;
        let mut failures = 0;
        while !self.leave.is_cancelled() {
            let outcome = tokio::select! {
                outcome = self.one_lease(&mut back_off, &mut failures) => outcome,
                () = self.leave.cancelled() => break,
            };
            self.lease.registered.store(false, Ordering::Relaxed);
            self.lease.failures.inc();
            if let Err(error) = outcome {
                tracing::warn!(master = %self.config.master, %error, "not registered, trying again in {back_off:?}");
                failures += 1;
                if self.drain.is_cancelled() && failures >= MASTER_GONE {
                    self.released.cancel();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(back_off) => {}
                () = self.leave.cancelled() => {}
                // It must not leave without a word.
                () = self.drain.cancelled(), if !self.released.is_cancelled() => {}
            }
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
        if let Err(error) = self.say_goodbye().await {
            tracing::debug!(%error, "the master did not hear that the worker leaves");
        }
    }

    async fn say_goodbye(&self) -> Result<()> {
        let request = LeaveRequest {
            worker_id: self.id.clone(),
        };
        self.client().await?.leave(request).await?;
        Ok(())
    }

    /// A connection to the master, with the token and the certificates as they are now.
    async fn client(&self) -> Result<ClusterClient<Link>> {
        let credentials = Credentials::of(&self.config.security.identity)?;
        let channel = endpoint(&self.config)?
            .connect()
            .await
            .map_err(|e| Error::unavailable(format!("{e:?}")))?;
        Ok(ClusterClient::new(Link::new(channel, credentials)))
    }

    /// Registers and renews until the lease is lost.
    async fn one_lease(&self, back_off: &mut Duration, failures: &mut usize) -> Result<()> {
        let mut client = self.client().await?;
        // A master that has the address may call before its answer is here.
        let registering = self.secret.registering();
        let lease = client
            .register(RegisterRequest {
                worker_id: self.id.clone(),
                address: self.advertised()?,
                version: VERSION.to_string(),
                slots: self.config.slots as u32,
                memory_bytes: self.config.memory_bytes,
                protocol: PROTOCOL,
            })
            .await?
            .into_inner();
        self.secret
            .set(&lease.secret)
            .map_err(|error| error.context("the master's secret"))?;
        drop(registering);
        tracing::info!(worker = %self.id, master = %self.config.master, slots = self.config.slots, version = %VERSION, master_version = %lease.version, "registered");
        self.lease.registered.store(true, Ordering::Relaxed);
        *back_off = FIRST_BACK_OFF;
        *failures = 0;
        let period = Duration::from_millis(lease.heartbeat_ms.max(10));
        let mut announced_drain = false;
        loop {
            // A drain is announced at once, not with the next regular heartbeat, and its end is not waited for longer.
            let pause = match announced_drain && !self.released.is_cancelled() {
                true => RELEASE_CHECK,
                false => period,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.drain.cancelled(), if !announced_drain => {}
            }
            announced_drain = self.drain.is_cancelled();
            let heartbeat = client
                .heartbeat(HeartbeatRequest {
                    worker_id: self.id.clone(),
                    tasks_running: self.gauge.running() as u32,
                    memory_reserved_bytes: self.runtime.memory_pool.reserved() as u64,
                    draining: announced_drain,
                })
                .await;
            match heartbeat {
                Ok(answer) => {
                    if announced_drain && answer.into_inner().slots_used == 0 {
                        self.released.cancel();
                    }
                }
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                // One lost heartbeat is not yet a lost lease; a broken connection is mended by the channel.
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// The address that others are told.
    fn advertised(&self) -> Result<String> {
        if let Some(advertise) = &self.config.advertise {
            return Ok(advertise.clone());
        }
        let ip = if self.address.ip().is_unspecified() {
            self.route_to_master().ok_or_else(|| {
                Error::unavailable("cannot tell under which address others reach this worker: give --advertise http://HOST:PORT")
            })?
        } else {
            self.address.ip()
        };
        let scheme = match self.config.security.identity.cert {
            Some(_) => "https",
            None => "http",
        };
        Ok(format!(
            "{scheme}://{}",
            SocketAddr::new(ip, self.address.port())
        ))
    }

    /// The local address of the route to the master. Connecting a UDP socket sends nothing.
    fn route_to_master(&self) -> Option<std::net::IpAddr> {
        let endpoint = endpoint(&self.config).ok()?;
        let uri = endpoint.uri();
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket
            .connect((uri.host()?, uri.port_u16().unwrap_or(7077)))
            .ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}
