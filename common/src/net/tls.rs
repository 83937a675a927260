//! Certificates from PEM files, for those who listen (rustls) and those who connect (tonic).

use crate::error::{Error, Result};
use crate::net::watched::Watched;
use crate::net::{Identity, Security};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity as OwnCertificate};

/// What a message calls them.
const CERTIFICATES: &str = "certificates";

/// What is spoken inside of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// HTTP/2, for gRPC.
    Http2,
    /// HTTP/1.1, for pages.
    Http1,
}

/// How a listener speaks TLS, as its files are now; `None` if it has no certificate.
///
/// # Errors
/// A file that cannot be read or is not what it should be; a certificate without its key or the other way round.
pub fn server(security: &Security, inside: Inside) -> Result<Option<Watched<ServerConfig>>> {
    let Some((cert, key)) = pair(&security.identity)? else {
        if let Some(client_ca) = &security.client_ca {
            return Err(Error::invalid(format!(
                "--tls-client-ca {} asks clients for certificates and there is none of the server's: give --tls-cert and --tls-key too",
                client_ca.display()
            )));
        }
        return Ok(None);
    };
    let (cert, key, client_ca) = (cert.clone(), key.clone(), security.client_ca.clone());
    let files = [&cert, &key].into_iter().chain(&client_ca).cloned();
    Watched::open(CERTIFICATES, files.collect(), move || {
        listens(&cert, &key, client_ca.as_deref(), inside)
    })
    .map(Some)
}

fn listens(
    cert: &Path,
    key: &Path,
    client_ca: Option<&Path>,
    inside: Inside,
) -> Result<ServerConfig> {
    let chain = certificates(cert, "--tls-cert")?;
    let private = PrivateKeyDer::from_pem_slice(&private_key(key)?).map_err(|e| {
        Error::invalid(format!(
            "--tls-key {} holds no private key in PEM: {e}",
            key.display()
        ))
    })?;
    let provider = Arc::new(ring::default_provider());
    let wrong = |what: &str, e: &dyn std::fmt::Display| Error::invalid(format!("{what}: {e}"));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong("TLS", &e))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(client_ca) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(client_ca, "--tls-client-ca")? {
                roots
                    .add(authority)
                    .map_err(|e| wrong(&format!("--tls-client-ca {}", client_ca.display()), &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| wrong(&format!("--tls-client-ca {}", client_ca.display()), &e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|e| {
        wrong(
            &format!(
                "--tls-cert {} with --tls-key {}",
                cert.display(),
                key.display()
            ),
            &e,
        )
    })?;
    config.alpn_protocols = vec![match inside {
        Inside::Http2 => b"h2".to_vec(),
        Inside::Http1 => b"http/1.1".to_vec(),
    }];
    Ok(config)
}

/// How a process connects to `https://` addresses, as its files are now; `None` if it trusts no authority.
///
/// # Errors
/// As for [`server`].
pub fn client(
    identity: &Identity,
    handshake: Duration,
) -> Result<Option<Watched<ClientTlsConfig>>> {
    let own = pair(identity)?.map(|(cert, key)| (cert.clone(), key.clone()));
    let Some(ca) = identity.ca.clone() else {
        return Ok(None);
    };
    let mut files = vec![ca.clone()];
    files.extend(own.iter().flat_map(|(cert, key)| [cert, key]).cloned());
    Watched::open(CERTIFICATES, files, move || {
        connects(&ca, own.as_ref(), handshake)
    })
    .map(Some)
}

fn connects(
    ca: &Path,
    own: Option<&(PathBuf, PathBuf)>,
    handshake: Duration,
) -> Result<ClientTlsConfig> {
    // Tonic reads the PEM again at each connection, so a wrong file is found here and not there.
    certificates(ca, "--tls-ca")?;
    let mut config = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(ca, "--tls-ca")?))
        .timeout(handshake);
    if let Some((cert, key)) = own {
        certificates(cert, "--tls-cert")?;
        let own = OwnCertificate::from_pem(read(cert, "--tls-cert")?, private_key(key)?);
        config = config.identity(own);
    }
    Ok(config)
}

fn pair(identity: &Identity) -> Result<Option<(&PathBuf, &PathBuf)>> {
    match (&identity.cert, &identity.key) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error::invalid(
            "--tls-cert needs its private key: give --tls-key",
        )),
        (None, Some(_)) => Err(Error::invalid(
            "--tls-key needs its certificate: give --tls-cert",
        )),
    }
}

fn read(path: &Path, flag: &str) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|e| Error::invalid(format!("{flag} {} cannot be read: {e}", path.display())))
}

fn private_key(path: &Path) -> Result<Vec<u8>> {
    let pem = read(path, "--tls-key")?;
    if let Ok(metadata) = std::fs::metadata(path) {
        crate::net::tokens::warn_if_shared(path, &metadata);
    }
    Ok(pem)
}

fn certificates(path: &Path, flag: &str) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path, flag)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::invalid(format!("{flag} {} is no PEM file: {e}", path.display())))?;
    if certificates.is_empty() {
        return Err(Error::invalid(format!(
            "{flag} {} holds no certificate: it begins with -----BEGIN CERTIFICATE-----",
            path.display()
        )));
    }
    Ok(certificates)
}
