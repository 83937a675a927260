//! A TCP proxy that can stop forwarding, cut connections, and send new ones elsewhere.

use anyhow::Result;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// How long the server behind may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// What the proxy does with bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Connections stay and are accepted, and nothing moves.
    Stall,
    /// Connections are ended as soon as they come.
    Cut,
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    target: SocketAddr,
    mode: Mode,
    /// How often connections have been cut: one that is older than the last cut ends.
    cuts: u64,
}

/// A proxy on a port of its own. Dropping it ends all of its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    setting: watch::Sender<Setting>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Listens on a port that the system chooses, and forwards to `target`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (setting, seen) = watch::channel(Setting {
            target,
            mode: Mode::Forward,
            cuts: 0,
        });
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((client, _)) = accepted {
                            connections.spawn(connection(client, seen.clone()));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self {
            address,
            setting,
            _accepting: AbortOnDropHandle::new(accepting),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds back all bytes from now on, of connections that are there and of new ones.
    pub fn stall(&self) {
        self.setting
            .send_modify(|setting| setting.mode = Mode::Stall);
    }

    /// Ends all connections and lets no new ones come up.
    pub fn cut(&self) {
        self.setting.send_modify(|setting| {
            setting.mode = Mode::Cut;
            setting.cuts += 1;
        });
    }

    /// Forwards again.
    pub fn restore(&self) {
        self.setting
            .send_modify(|setting| setting.mode = Mode::Forward);
    }

    /// Ends all connections; those that come from now on go to `target`.
    pub fn retarget(&self, target: SocketAddr) {
        self.setting.send_modify(|setting| {
            setting.target = target;
            setting.cuts += 1;
        });
    }
}

/// One connection, to its end.
async fn connection(client: TcpStream, mut setting: watch::Receiver<Setting>) {
    let now = *setting.borrow_and_update();
    if now.mode == Mode::Cut {
        return;
    }
    let Ok(Ok(server)) = timeout(CONNECT, TcpStream::connect(now.target)).await else {
        return;
    };
    // Small messages matter more here than full packets.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (up, down) = (setting.clone(), setting.clone());
    tokio::select! {
        // A failure of either direction ends both; an orderly end of one leaves the other.
        _ = async {
            tokio::try_join!(pump(from_client, to_server, up), pump(from_server, to_client, down))
        } => {}
        _ = setting.wait_for(|setting| setting.cuts != now.cuts) => {}
    }
}

/// Forwards what comes from one side, while the proxy does.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut setting: watch::Receiver<Setting>,
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        setting
            .wait_for(|setting| setting.mode == Mode::Forward)
            .await?;
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, after its own name.
    async fn echo(name: u8) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        if stream.write_all(&[name, byte[0]]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(address)
    }

    async fn ask(stream: &mut TcpStream, byte: u8) -> Result<[u8; 2]> {
        let mut answer = [0; 2];
        stream.write_all(&[byte]).await?;
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn it_forwards_stalls_cuts_and_follows() -> Result<()> {
        let proxy = Proxy::start(echo(b'a').await?).await?;
        let mut stream = TcpStream::connect(proxy.address()).await?;
        assert_eq!(ask(&mut stream, 1).await?, [b'a', 1]);

        proxy.stall();
        let soon = Duration::from_millis(200);
        assert!(timeout(soon, ask(&mut stream, 2)).await.is_err());
        proxy.restore();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        assert_eq!(answer, [b'a', 2]);

        proxy.cut();
        assert!(ask(&mut stream, 3).await.is_err());
        let mut refused = TcpStream::connect(proxy.address()).await?;
        assert!(ask(&mut refused, 3).await.is_err());

        proxy.restore();
        proxy.retarget(echo(b'b').await?);
        let mut stream = TcpStream::connect(proxy.address()).await?;
        assert_eq!(ask(&mut stream, 4).await?, [b'b', 4]);
        Ok(())
    }
}
