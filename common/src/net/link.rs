//! Connections to other processes: TLS where the address says so, and a word in every call that shows who calls.

use crate::error::{Error, Result};
use crate::net::Identity;
use crate::net::OwnToken;
use crate::net::secret::ClusterSecret;
use crate::net::tls;
use crate::net::tokens::{self, Token};
use crate::net::watched::Watched;
use async_trait::async_trait;
use datafusion::common::DataFusionError;
use datafusion_distributed::{ChannelResolver, WorkerChannel, grpc};
use http::HeaderValue;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tonic::body::Body;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tower::Service;
use url::Url;

const CONNECT: Duration = Duration::from_secs(3);
/// A connection to a worker that no exchange has used for so long is closed.
const UNUSED: Duration = Duration::from_secs(300);

/// What a caller shows.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Nothing,
    /// A token.
    Token(Token),
    /// The cluster's secret, whichever it is at the time of the call.
    Secret(ClusterSecret),
}

impl Credentials {
    /// What the identity holds; a token file is read now.
    ///
    /// # Errors
    /// A token file that cannot be read.
    pub fn of(identity: &Identity) -> Result<Self> {
        Ok(match &identity.token {
            None => Self::Nothing,
            Some(OwnToken::Text(token)) => Self::Token(token.clone()),
            Some(OwnToken::File(path)) => Self::Token(tokens::from_file(path)?),
        })
    }

    fn header(&self) -> Option<HeaderValue> {
        let token = match self {
            Self::Nothing => None,
            Self::Token(token) => Some(token.clone()),
            Self::Secret(secret) => secret.current(),
        }?;
        // A token is visible ASCII, so it is a header's value.
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// A connection whose calls show who makes them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    channel: Channel,
    credentials: Credentials,
}

impl Link {
    /// Calls on `channel` show `credentials`.
    pub fn new(channel: Channel, credentials: Credentials) -> Self {
        Self {
            channel,
            credentials,
        }
    }
}

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(value) = self.credentials.header() {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        self.channel.call(request)
    }
}

/// An endpoint that speaks TLS if its address begins with `https://`, with what `identity` trusts and shows.
///
/// # Errors
/// No URL; `https://` and no `--tls-ca`; a certificate file that is wrong.
pub fn endpoint(address: &str, identity: &Identity, connect: Duration) -> Result<Endpoint> {
    let tls = tls::client(identity, connect)?;
    with_tls(address, tls.map(|tls| tls.get()).as_deref(), connect)
}

fn with_tls(address: &str, tls: Option<&ClientTlsConfig>, connect: Duration) -> Result<Endpoint> {
    let wrong = |e: tonic::transport::Error| {
        Error::invalid(format!(
            "{address}: {e}; write http://HOST:PORT or https://HOST:PORT"
        ))
    };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(wrong)?
        .connect_timeout(connect)
        .tcp_nodelay(true);
    match endpoint.uri().scheme_str() {
        Some("http") => Ok(endpoint),
        Some("https") => match tls {
            Some(tls) => endpoint
                .tls_config(tls.clone())
                .map_err(|e| Error::invalid(format!("{address}: {e:?}"))),
            None => Err(Error::invalid(format!(
                "{address} speaks TLS: give the authority of its certificate with --tls-ca FILE"
            ))),
        },
        _ => Err(Error::invalid(format!(
            "{address} is no address: write http://HOST:PORT or https://HOST:PORT"
        ))),
    }
}

/// A connection of exchanges.
struct Exchange {
    link: Link,
    /// When it was last asked for.
    used: Instant,
    /// With which certificates it connects, and connects again.
    tls: Option<Arc<ClientTlsConfig>>,
}

/// The way to the workers of a cluster, for its master and for the workers among themselves.
#[derive(Clone)]
pub struct Peers {
    tls: Option<Arc<Watched<ClientTlsConfig>>>,
    secret: ClusterSecret,
    /// What keeps connections alive: not the threads of whoever calls, which may be busy computing.
    runtime: Handle,
    /// Exchanges ask for a connection at each call.
    exchanges: Arc<Mutex<HashMap<Url, Exchange>>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tonic's configuration would show the private key.
        write!(f, "Peers(tls: {})", self.tls.is_some())
    }
}

impl Peers {
    /// With what `identity` trusts and shows, and the cluster's secret. Connections live on the runtime of the caller.
    ///
    /// # Errors
    /// A certificate file is wrong.
    pub fn new(identity: &Identity, secret: ClusterSecret) -> Result<Self> {
        Ok(Self {
            tls: tls::client(identity, CONNECT)?.map(Arc::new),
            secret,
            runtime: Handle::current(),
            exchanges: Arc::default(),
        })
    }

    /// What the others know this cluster by.
    pub fn secret(&self) -> &ClusterSecret {
        &self.secret
    }

    /// A connection of its own to the worker at `address`, made with the first call and again when it breaks.
    ///
    /// # Errors
    /// As [`endpoint`].
    pub fn link(&self, address: &str) -> Result<Link> {
        let _entered = self.runtime.enter();
        let channel = self.endpoint(address)?.connect_lazy();
        Ok(Link::new(channel, Credentials::Secret(self.secret.clone())))
    }

    /// As [`Self::link`], made now.
    ///
    /// # Errors
    /// As [`endpoint`]; nobody answers there.
    pub async fn connect(&self, address: &str) -> Result<Link> {
        let endpoint = self.endpoint(address)?;
        let connecting = self
            .runtime
            .spawn(async move { endpoint.connect().await.map_err(|e| format!("{e:?}")) });
        let channel = connecting
            .await
            .unwrap_or_else(|e| Err(e.to_string()))
            .map_err(|e| {
                Error::unavailable(format!("no connection to the worker at {address}: {e}"))
            })?;
        Ok(Link::new(channel, Credentials::Secret(self.secret.clone())))
    }

    /// The certificates as they are now.
    fn tls(&self) -> Option<Arc<ClientTlsConfig>> {
        let tls = self.tls.as_ref()?;
        tls.refresh();
        Some(tls.get())
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint> {
        Ok(with_tls(address, self.tls().as_deref(), CONNECT)?
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20))
    }
}

#[async_trait]
impl ChannelResolver for Peers {
    async fn get_worker_client_for_url(
        &self,
        url: &Url,
    ) -> std::result::Result<Box<dyn WorkerChannel>, DataFusionError> {
        let tls = self.tls();
        let known = {
            let mut exchanges = self.exchanges.lock();
            let known = exchanges.get_mut(url);
            known
                .filter(|known| {
                    known.tls.as_ref().map(Arc::as_ptr) == tls.as_ref().map(Arc::as_ptr)
                })
                .map(|known| {
                    known.used = Instant::now();
                    known.link.clone()
                })
        };
        let link = match known {
            Some(link) => link,
            None => {
                // A URL ends with a slash where an address need not.
                let link = self.connect(url.as_str()).await?;
                let mut exchanges = self.exchanges.lock();
                exchanges.retain(|_, exchange| exchange.used.elapsed() < UNUSED);
                let exchange = Exchange {
                    link: link.clone(),
                    used: Instant::now(),
                    tls,
                };
                exchanges.insert(url.clone(), exchange);
                link
            }
        };
        Ok(grpc::create_worker_client(grpc::BoxCloneSyncChannel::new(
            link,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_whether_it_speaks_tls() {
        let plain = Identity::default();
        endpoint("http://127.0.0.1:7077", &plain, CONNECT).unwrap();
        for (address, word) in [
            ("https://127.0.0.1:7077", "--tls-ca"),
            ("kafka://h:9092", "write http://"),
            ("h", "write http://"),
        ] {
            let error = endpoint(address, &plain, CONNECT).unwrap_err().to_string();
            assert!(error.contains(word), "{address}: {error}");
        }
    }

    #[test]
    fn a_secret_is_shown_to_nobody_but_the_peer() {
        let secret = ClusterSecret::generate().unwrap();
        let word = secret.current().unwrap();
        let credentials = Credentials::Secret(secret);
        let header = credentials.header().unwrap();
        assert_eq!(
            header.to_str().unwrap(),
            format!("Bearer {}", word.expose())
        );
        let shown = format!("{credentials:?} {header:?}");
        assert!(!shown.contains(word.expose()), "{shown}");
        assert!(Credentials::Nothing.header().is_none());
    }
}
