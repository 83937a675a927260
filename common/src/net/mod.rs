//! The network's edge: what stands before each listener, and how this process shows itself where it connects.
//!
//! A [`Gate`] takes connections in ([`listener`]: limits, TLS) and asks [`access`] about every request: [`tokens`] on a
//! master, the cluster's [`secret`] on a worker. A [`Link`] goes the other way: one connection with TLS and a word to
//! show, a token or that secret.

pub mod access;
pub mod gate;
pub mod http;
pub mod link;
pub mod listener;
pub mod rpcs;
pub mod secret;
pub mod tls;
pub mod tokens;
pub mod watched;

pub use gate::Gate;
pub use link::{Credentials, Link, Peers};
pub use secret::ClusterSecret;

use std::path::PathBuf;
use tokens::{Token, TokenSource};

/// How a server guards its listeners and shows itself to others. By default it trusts everyone.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Its certificate, and the authority that it trusts when it connects.
    pub identity: Identity,
    /// Whoever connects must show a certificate of this authority (PEM).
    pub client_ca: Option<PathBuf>,
    /// Who may do what; everybody may do everything without it.
    pub tokens: Option<TokenSource>,
    /// Whether to refuse to listen beyond loopback without TLS and without knowing who calls.
    pub require_auth: bool,
    /// How much the listeners take.
    pub limits: Limits,
}

/// How a process shows itself, and whom it trusts when it connects. Files are PEM.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The authority whose certificates are trusted at `https://` addresses.
    pub ca: Option<PathBuf>,
    /// The certificate chain, its own first.
    pub cert: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
    /// What it shows a master.
    pub token: Option<OwnToken>,
}

/// Where a process has its token from.
#[derive(Debug, Clone)]
pub enum OwnToken {
    /// The first line of a file, read again for each connection.
    File(PathBuf),
    /// The environment.
    Text(Token),
}

/// How much a listener takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are open at a time.
    pub connections: usize,
    /// Connections that are open at a time from one address (one /64 network in IPv6).
    pub connections_per_client: usize,
    /// Requests a second of one client: of the name of its token, or of its address if there are no tokens.
    pub requests_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_client: 1_000,
            requests_per_second: 1_000,
        }
    }
}
