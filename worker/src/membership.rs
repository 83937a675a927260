//! Keeps the worker in its master's registry: registers, renews the lease, comes back after every loss.

use crate::WorkerConfig;
use crate::tasks::Gauge;
use datafusion::execution::runtime_env::RuntimeEnv;
use essaim_common::{Error, Result};
use essaim_proto::VERSION;
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::{HeartbeatRequest, LeaveRequest, RegisterRequest};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// The worker's place in the registry. It lives on a thread of its own, so that tasks never hold up a heartbeat.
#[derive(Debug)]
pub(crate) struct Membership {
    drain: CancellationToken,
    leave: CancellationToken,
    left: oneshot::Receiver<()>,
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
    ) -> Result<Self> {
        let endpoint = Endpoint::from_shared(config.master.clone())
            .map_err(|e| {
                Error::invalid(format!(
                    "--master {}: {e}; write http://HOST:7077",
                    config.master
                ))
            })?
            .connect_timeout(Duration::from_secs(3))
            .timeout(Duration::from_secs(3))
            .tcp_nodelay(true);
        let drain = CancellationToken::new();
        let leave = CancellationToken::new();
        let (report, left) = oneshot::channel();
        let member = Member {
            id,
            endpoint,
            config: config.clone(),
            address,
            gauge,
            runtime,
            drain: drain.clone(),
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
        Ok(Self { drain, leave, left })
    }

    /// Tells the master, with the next heartbeat, to send no more tasks.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// Leaves the registry.
    pub(crate) async fn leave(self) {
        self.leave.cancel();
        // Bounded by the endpoint's own deadlines.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.left).await;
    }
}

struct Member {
    id: String,
    endpoint: Endpoint,
    config: WorkerConfig,
    address: SocketAddr,
    gauge: Gauge,
    runtime: Arc<RuntimeEnv>,
    drain: CancellationToken,
    leave: CancellationToken,
}

impl Member {
    async fn stay(self) {
        let mut back_off = FIRST_BACK_OFF;
        while !self.leave.is_cancelled() {
            let outcome = tokio::select! {
                outcome = self.one_lease(&mut back_off) => outcome,
                () = self.leave.cancelled() => break,
            };
            if let Err(error) = outcome {
                tracing::warn!(master = %self.config.master, %error, "not registered, trying again in {back_off:?}");
            }
            tokio::select! {
                () = tokio::time::sleep(back_off) => {}
                () = self.leave.cancelled() => {}
            }
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
        let mut client = ClusterClient::new(self.endpoint.connect_lazy());
        let request = LeaveRequest {
            worker_id: self.id.clone(),
        };
        if let Err(status) = client.leave(request).await {
            tracing::debug!(%status, "the master did not hear that the worker leaves");
        }
    }

    /// Registers and renews until the lease is lost.
    async fn one_lease(&self, back_off: &mut Duration) -> Result<()> {
        let channel = self
            .endpoint
            .connect()
            .await
            .map_err(|e| Error::unavailable(format!("{e:?}")))?;
        let mut client: ClusterClient<Channel> = ClusterClient::new(channel);
        let lease = client
            .register(RegisterRequest {
                worker_id: self.id.clone(),
                address: self.advertised()?,
                version: VERSION.to_owned(),
                slots: self.config.slots as u32,
                memory_bytes: self.config.memory_bytes,
            })
            .await?
            .into_inner();
        tracing::info!(worker = %self.id, master = %self.config.master, slots = self.config.slots, "registered");
        *back_off = FIRST_BACK_OFF;
        let period = Duration::from_millis(lease.heartbeat_ms.max(10));
        let mut announced_drain = false;
        loop {
            // A drain is announced at once, not with the next regular heartbeat.
            tokio::select! {
                () = tokio::time::sleep(period) => {}
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
                Ok(_) => {}
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
        Ok(format!(
            "http://{}",
            SocketAddr::new(ip, self.address.port())
        ))
    }

    /// The local address of the route to the master. Connecting a UDP socket sends nothing.
    fn route_to_master(&self) -> Option<std::net::IpAddr> {
        let uri = self.endpoint.uri();
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket
            .connect((uri.host()?, uri.port_u16().unwrap_or(7077)))
            .ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}
