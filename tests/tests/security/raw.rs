//! Requests written by hand, over TCP or TLS.

use anyhow::{Context, Result};
use essaim_common::net::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const PATIENCE: Duration = Duration::from_secs(20);

/// Both ways of a connection.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Connects, with TLS if there is an identity to trust and show.
pub async fn connect(address: SocketAddr, identity: Option<&Identity>) -> Result<Box<dyn Wire>> {
    let stream = TcpStream::connect(address).await?;
    let Some(identity) = identity else {
        return Ok(Box::new(stream));
    };
    let mut roots = RootCertStore::empty();
    let ca = identity.ca.as_ref().context("no authority")?;
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match (&identity.cert, &identity.key) {
        (Some(cert), Some(key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(cert)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?,
        _ => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(address.ip().to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// Writes a request and reads until the server closes the connection.
pub async fn exchange(wire: &mut dyn Wire, request: &[u8]) -> Result<String> {
    let exchange = async {
        // A server that refuses may close while we still write: what it said counts.
        let _ = wire.write_all(request).await;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match wire.read(&mut chunk).await {
                Ok(0) => break,
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
                Err(error) if answer.is_empty() => return Err(error.into()),
                Err(_) => break,
            }
        }
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}

/// Status, headers and body of a page; `headers` are whole lines.
pub async fn get(
    address: SocketAddr,
    identity: Option<&Identity>,
    path: &str,
    headers: &str,
) -> Result<(u16, String, String)> {
    let mut wire = connect(address, identity).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
    let answer = exchange(&mut *wire, request.as_bytes()).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("GET {path}: no HTTP: {answer:?}"))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("GET {path}: no status: {head:?}"))?;
    Ok((status, head.to_owned(), body.to_owned()))
}
