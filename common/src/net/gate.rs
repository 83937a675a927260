//! What stands before all listeners of a process: TLS, who may pass, limits. One of them for gRPC and for HTTP.

use crate::error::{Error, Result};
use crate::metrics::{GrpcErrors, Listeners};
use crate::net::access::{Access, Refusal};
use crate::net::listener::{self, Connection, FIRST_REQUEST, Peer};
use crate::net::rpcs;
use crate::net::secret::ClusterSecret;
use crate::net::tls::{self, Inside};
use crate::net::watched::Watched;
use crate::net::{Limits, Security};
use futures::Stream;
use futures::future::BoxFuture;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tower::{Layer, Service};

/// Calls that one connection may have open at a time: a master has its tasks and exchanges on one.
const STREAMS: u32 = 1_000;
/// The headers of one call, in bytes. A session's settings travel in them.
const HEADER_BYTES: u32 = 64 << 10;
/// How often a quiet connection is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(20);
/// How often files are looked at, and callers that have gone are forgotten.
const CARE: Duration = Duration::from_secs(1);
/// File descriptors that are not connections: files, logs, brokers and databases.
const OTHER_FILES: u64 = 256;

/// The gate of a process. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    access: Access,
    http2: Option<Arc<Watched<ServerConfig>>>,
    http1: Option<Arc<Watched<ServerConfig>>>,
    limits: Limits,
    security: Arc<Security>,
    listeners: Listeners,
    _care: Arc<AbortOnDropHandle<()>>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({:?})", self.security)
    }
}

impl Gate {
    /// Reads certificates and tokens. A worker brings the secret that it asks for.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn open(security: &Security, secret: Option<ClusterSecret>) -> Result<Self> {
        let access = Access::open(security, secret)?;
        let http2 = tls::server(security, Inside::Http2)?.map(Arc::new);
        let http1 = tls::server(security, Inside::Http1)?.map(Arc::new);
        let certificates = http2.iter().chain(&http1).cloned().collect();
        let care = tokio::spawn(take_care(access.clone(), certificates));
        Ok(Self {
            access,
            http2,
            http1,
            limits: within_files(security.limits),
            security: Arc::new(security.clone()),
            listeners: Listeners::default(),
            _care: Arc::new(AbortOnDropHandle::new(care)),
        })
    }

    /// Whether listeners speak TLS.
    pub fn has_tls(&self) -> bool {
        self.http2.is_some()
    }

    /// Says loudly what is open to whoever reaches `address`; to be called before serving there. A worker's gRPC
    /// knows its callers by their secret: `callers_known`.
    ///
    /// # Errors
    /// Something is open, and `--require-auth` is given.
    pub fn check(&self, address: SocketAddr, callers_known: bool) -> Result<()> {
        if address.ip().is_loopback() {
            return Ok(());
        }
        let mut open = Vec::new();
        if !callers_known && !self.access.has_tokens() && self.security.client_ca.is_none() {
            open.push(
                "ANYONE WHO REACHES IT MAY USE IT: give --tokens FILE (or --tls-client-ca FILE)",
            );
        }
        if !self.has_tls() {
            open.push("ROWS, SQL, PASSWORDS AND TOKENS TRAVEL UNENCRYPTED: give --tls-cert FILE and --tls-key FILE");
        }
        if open.is_empty() {
            return Ok(());
        }
        if self.security.require_auth {
            return Err(Error::invalid(format!(
                "--require-auth: it would listen on {address}, beyond loopback, and {}",
                open.join("; and ")
            )));
        }
        for why in open {
            tracing::warn!(
                "listening on {address}, beyond loopback: {why}, or listen on 127.0.0.1"
            );
        }
        Ok(())
    }

    /// Connections, and calls that were answered with an error, by the gate or behind it.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// A gRPC server with limits, which asks about every call. Its connections come from [`Self::incoming`].
    pub fn grpc(
        &self,
    ) -> Server<tower::layer::util::Stack<AccessLayer, tower::layer::util::Identity>> {
        Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_ANSWER))
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(HEADER_BYTES)
            .layer(AccessLayer(
                self.access.clone(),
                self.listeners.grpc_errors.clone(),
            ))
    }

    /// The connections of a gRPC listener.
    pub fn incoming(
        &self,
        listener: TcpListener,
    ) -> impl Stream<Item = std::io::Result<Connection>> + Send + 'static {
        let counted = self.listeners.grpc.clone();
        listener::accept(
            listener,
            self.http2.clone(),
            self.limits,
            counted,
            FIRST_REQUEST,
        )
    }

    /// The connections of an HTTP listener.
    pub(crate) fn incoming_http(
        &self,
        listener: TcpListener,
    ) -> impl Stream<Item = std::io::Result<Connection>> + Send + 'static {
        let counted = self.listeners.http.clone();
        listener::accept(
            listener,
            self.http1.clone(),
            self.limits,
            counted,
            FIRST_REQUEST,
        )
    }

    /// The one who decides.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }
}

/// Reads tokens and certificates again when their files change.
async fn take_care(access: Access, certificates: Vec<Arc<Watched<ServerConfig>>>) {
    let certificates = Arc::new(certificates);
    let mut ticks = tokio::time::interval(CARE);
    loop {
        ticks.tick().await;
        let (access, certificates) = (access.clone(), Arc::clone(&certificates));
        let taken = tokio::task::spawn_blocking(move || {
            access.take_care();
            certificates.iter().for_each(|files| files.refresh());
        });
        if let Err(error) = taken.await {
            tracing::error!(%error, "tokens and certificates could not be looked at");
        }
    }
}

/// Lets the process open as many files as the system allows it, and no more connections than these.
fn within_files(limits: Limits) -> Limits {
    let files = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    let files = match files {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files is unknown");
            return limits;
        }
    };
    // gRPC and HTTP may each be full.
    let most = usize::try_from(files.saturating_sub(OTHER_FILES) / 2).unwrap_or(usize::MAX);
    if most < limits.connections {
        tracing::info!(
            "{files} open files are allowed (ulimit -n), so each listener takes {most} connections and not {}",
            limits.connections
        );
    }
    Limits {
        connections: limits.connections.min(most.max(1)),
        ..limits
    }
}

/// Asks about every call before a service sees it.
#[derive(Debug, Clone)]
pub struct AccessLayer(Access, GrpcErrors);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            access: self.0.clone(),
            errors: self.1.clone(),
            inner,
        }
    }
}

/// A gRPC service behind the gate.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    access: Access,
    errors: GrpcErrors,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (access, errors) = (self.access.clone(), self.errors.clone());
        // The one that is ready goes with the call, its clone stays.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let path = request.uri().path();
            let Some(peer) = request.extensions().get::<Peer>() else {
                return Ok(Status::internal("a call without a connection").into_http());
            };
            let admitted = access
                .admit(rpcs::rpc(path), path, request.headers(), peer)
                .await;
            let answer = match admitted {
                Ok(()) => inner.call(request).await?,
                Err(refusal) => status(refusal).into_http(),
            };
            errors.look(&answer);
            Ok(answer)
        })
    }
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Unauthenticated(why) => Status::unauthenticated(why),
        Refusal::Forbidden(why) => Status::permission_denied(why),
        Refusal::TooMany(why) => Status::resource_exhausted(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_open_beyond_loopback_is_said_or_refused() {
        let beyond = "0.0.0.0:7077".parse().unwrap();
        let loopback = "127.0.0.1:7077".parse().unwrap();
        let mut security = Security::default();
        let gate = Gate::open(&security, None).unwrap();
        gate.check(beyond, false).unwrap();
        security.require_auth = true;
        let gate = Gate::open(&security, None).unwrap();
        gate.check(loopback, false).unwrap();
        let error = gate.check(beyond, false).unwrap_err().to_string();
        assert!(
            error.contains("--tokens") && error.contains("--tls-cert"),
            "{error}"
        );
        let error = gate.check(beyond, true).unwrap_err().to_string();
        assert!(
            !error.contains("--tokens") && error.contains("--tls-cert"),
            "{error}"
        );
    }
}
