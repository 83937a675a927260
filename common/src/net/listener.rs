//! Takes connections in: so many in all and from one client, TLS within a deadline, a first request within another.

use crate::metrics::Connections;
use crate::net::Limits;
use crate::net::watched::Watched;
use futures::Stream;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may go without a request that was let pass, from its beginning.
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// Connections that are ready and not yet served.
const READY: usize = 64;
/// How long to wait when the system has no more file descriptors.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection. Tonic puts it into each request.
#[derive(Debug, Clone)]
pub struct Peer {
    address: IpAddr,
    admitted: Arc<AtomicBool>,
}

impl Peer {
    /// A client that has not been let pass yet.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            admitted: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its address as limits see it: whoever has one address of IPv6 has 2⁶⁴ of them.
    pub fn network(&self) -> IpAddr {
        network(self.address)
    }

    /// A request of it was let pass: the connection may now stay.
    pub(crate) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        v4 => v4,
    }
}

/// The open connections of one listener.
#[derive(Debug)]
struct Open {
    limits: Limits,
    connections: Connections,
    /// By the client's network.
    clients: Mutex<HashMap<IpAddr, usize>>,
}

impl Open {
    /// A place for one more of this client, if there is one.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, &'static str> {
        let network = network(address);
        let mut clients = self.clients.lock();
        if self.connections.open() >= self.limits.connections {
            return Err("as many connections are open as --max-connections allows");
        }
        let own = clients.entry(network).or_default();
        if *own >= self.limits.connections_per_client {
            return Err("this client has as many as --max-connections-per-client allows");
        }
        *own += 1;
        self.connections.enter();
        Ok(Place {
            open: Arc::clone(self),
            network,
        })
    }
}

/// The right to one open connection; given back when dropped.
#[derive(Debug)]
struct Place {
    open: Arc<Open>,
    network: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.open.clients.lock();
        self.open.connections.leave();
        if let Some(own) = clients.get_mut(&self.network) {
            *own -= 1;
            if *own == 0 {
                clients.remove(&self.network);
            }
        }
    }
}

/// The connections that come in, TLS agreed on. Ends when it is dropped; what fails before a request is only logged.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Option<Arc<Watched<ServerConfig>>>,
    limits: Limits,
    connections: Connections,
    first_request: Duration,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let (ready, accepted) = mpsc::channel(READY);
    connections.set_limit(limits.connections);
    let open = Arc::new(Open {
        limits,
        connections,
        clients: Mutex::default(),
    });
    tokio::spawn(accept_all(listener, tls, open, first_request, ready));
    ReceiverStream::new(accepted)
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<Arc<Watched<ServerConfig>>>,
    open: Arc<Open>,
    first_request: Duration,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let mut handshakes = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            // Dropping the set ends the handshakes.
            () = ready.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // A client that has gone again costs no wait; a system without descriptors must not be asked in a loop.
                if !matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) {
                    tracing::warn!(%error, "no connection can be taken in");
                    tokio::time::sleep(EXHAUSTED).await;
                }
                continue;
            }
        };
        let place = match open.enter(address.ip()) {
            Ok(place) => place,
            Err(why) => {
                let refused = open.connections.refuse();
                if refused.is_power_of_two() {
                    tracing::warn!(client = %address.ip(), refused, "a connection was refused: {why}");
                }
                continue;
            }
        };
        let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.get()));
        let ready = ready.clone();
        handshakes.spawn(async move {
            match shake_hands(stream, tls).await {
                Ok(io) => {
                    let peer = Peer::new(address.ip());
                    let connection = Connection::new(io, peer, place, first_request);
                    // The server may have stopped meanwhile.
                    let _ = ready.send(Ok(connection)).await;
                }
                Err(error) => {
                    tracing::debug!(client = %address.ip(), %error, "no agreement on TLS");
                }
            }
        });
    }
}

async fn shake_hands(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Io::Plain(stream));
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(stream) => Ok(Io::Tls(Box::new(stream?))),
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    }
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that counts towards its listener's limits and is closed if no request of it is let pass in time.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: Peer,
    first_request: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(io: Io, peer: Peer, place: Place, first_request: Duration) -> Self {
        Self {
            io,
            peer,
            first_request: Some(Box::pin(tokio::time::sleep(first_request))),
            _place: place,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(deadline) = &mut self.first_request
            && deadline.as_mut().poll(cx).is_ready()
        {
            if !self.peer.admitted.load(Ordering::Relaxed) {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no request in time",
                )));
            }
            self.first_request = None;
        }
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;

    fn open(connections: usize, connections_per_client: usize) -> Arc<Open> {
        let limits = Limits {
            connections,
            connections_per_client,
            ..Limits::default()
        };
        Arc::new(Open {
            limits,
            connections: Connections::default(),
            clients: Mutex::default(),
        })
    }

    #[test]
    fn a_client_takes_no_more_than_its_share() {
        let open = open(3, 2);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = open.enter(ip("10.0.0.1")).unwrap();
        let _second = open.enter(ip("::ffff:10.0.0.1")).unwrap();
        assert!(
            open.enter(ip("10.0.0.1"))
                .unwrap_err()
                .contains("per-client")
        );
        let third = open.enter(ip("10.0.0.2")).unwrap();
        assert!(
            open.enter(ip("10.0.0.3"))
                .unwrap_err()
                .contains("--max-connections allows")
        );
        drop(third);
        drop(first);
        open.enter(ip("10.0.0.1")).unwrap();
        assert_eq!(open.clients.lock().len(), 1);
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let peer = |text: &str| Peer::new(text.parse().unwrap()).network();
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
    }

    #[tokio::test]
    async fn a_connection_that_asks_nothing_is_closed() {
        let deadline = Duration::from_millis(50);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits::default();
        let counted = Connections::default();
        let accepted = accept(listener, None, limits, counted.clone(), deadline);
        let mut connections = Box::pin(accepted);
        let _client = TcpStream::connect(address).await.unwrap();
        let mut connection = connections.next().await.unwrap().unwrap();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(counted.open(), 1);
        drop(connection);
        let client = TcpStream::connect(address).await.unwrap();
        let mut connection = connections.next().await.unwrap().unwrap();
        connection.peer().admit();
        let longer = tokio::time::timeout(deadline * 3, connection.read_u8()).await;
        assert!(longer.is_err(), "{longer:?}");
        drop(client);
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop(connection);
        assert_eq!(counted.open(), 0);
    }
}
