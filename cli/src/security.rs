//! The flags of TLS, tokens and limits, for those who listen and those who connect.

use crate::client::Failure;
use essaim_common::net::tokens::{Token, TokenSource};
use essaim_common::net::{Identity, Limits, OwnToken, Security};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

/// The text of a tokens file, for a server without files.
const TOKENS_VARIABLE: &str = "ESSAIM_TOKENS";
/// The token that a client or a worker shows.
const TOKEN_VARIABLE: &str = "ESSAIM_TOKEN";

/// Certificates, for whoever connects and whoever listens.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// The authority (PEM) whose certificates are trusted at https:// addresses.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The own certificate chain (PEM): a server's, and what is shown where a client certificate is demanded.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// The token that is shown to a master.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TokenArgs {
    /// A file with the token to show the master, in its first line [default: the variable ESSAIM_TOKEN].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// What a server asks of its callers.
#[derive(Debug, Clone, clap::Args)]
pub struct GateArgs {
    /// Demand a certificate of this authority (PEM) from whoever connects.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Who may do what: lines ROLE NAME TOKEN [EXPIRES], with the roles worker, submit and read [default: the text in
    /// the variable ESSAIM_TOKENS].
    // The variable that its name asks for holds the text itself.
    #[arg(long, env = "ESSAIM_TOKENS_FILE", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Refuse to listen beyond loopback without TLS and without knowing who calls.
    #[arg(long)]
    require_auth: bool,
    /// Open connections of each listener.
    #[arg(long, value_name = "N", default_value_t = positive(Limits::default().connections))]
    max_connections: NonZeroUsize,
    /// Open connections of each listener from one address.
    #[arg(long, value_name = "N", default_value_t = positive(Limits::default().connections_per_client))]
    max_connections_per_client: NonZeroUsize,
    /// Requests a second of one token's name, or of one address where there are no tokens.
    #[arg(long, value_name = "N", default_value_t = rate())]
    requests_per_second: NonZeroU32,
}

fn positive(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

fn rate() -> NonZeroU32 {
    NonZeroU32::new(Limits::default().requests_per_second).unwrap_or(NonZeroU32::MIN)
}

impl TlsArgs {
    /// How this process shows itself, and whom it trusts.
    ///
    /// # Errors
    /// The variable ESSAIM_TOKEN holds what cannot be a token.
    pub fn identity(&self, token: &TokenArgs) -> Result<Identity, Failure> {
        Ok(Identity {
            token: token.token()?,
            ..self.without_token()
        })
    }

    fn without_token(&self) -> Identity {
        Identity {
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            token: None,
        }
    }
}

impl TokenArgs {
    fn token(&self) -> Result<Option<OwnToken>, Failure> {
        if let Some(file) = &self.token_file {
            return Ok(Some(OwnToken::File(file.clone())));
        }
        let Some(text) = variable(TOKEN_VARIABLE) else {
            return Ok(None);
        };
        let token = Token::new(text.trim())
            .map_err(|error| Failure::Usage(format!("{TOKEN_VARIABLE}: {error}")))?;
        Ok(Some(OwnToken::Text(token)))
    }
}

impl GateArgs {
    /// How a master guards itself. It shows workers no token but the cluster's secret.
    pub fn master(&self, tls: &TlsArgs) -> Security {
        self.security(tls.without_token())
    }

    /// How a worker guards itself, and what it shows its master.
    ///
    /// # Errors
    /// As [`TlsArgs::identity`].
    pub fn worker(&self, tls: &TlsArgs, token: &TokenArgs) -> Result<Security, Failure> {
        Ok(self.security(tls.identity(token)?))
    }

    fn security(&self, identity: Identity) -> Security {
        let tokens = match &self.tokens {
            Some(file) => Some(TokenSource::File(file.clone())),
            None => variable(TOKENS_VARIABLE).map(TokenSource::Text),
        };
        Security {
            identity,
            client_ca: self.tls_client_ca.clone(),
            tokens,
            require_auth: self.require_auth,
            limits: Limits {
                connections: self.max_connections.get(),
                connections_per_client: self.max_connections_per_client.get(),
                requests_per_second: self.requests_per_second.get(),
            },
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .filter(|text| !text.trim().is_empty())
}
