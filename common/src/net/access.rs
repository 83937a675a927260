//! Whether a request may pass: its token or the cluster's secret, its role, and how often its client asks.

use crate::error::Result;
use crate::net::listener::Peer;
use crate::net::rpcs::Needs;
use crate::net::secret::ClusterSecret;
use crate::net::tokens::{Bearer, Role, Tokens};
use crate::net::{Limits, Security};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a request may not pass. The text is for the caller and names no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who asks.
    Unauthenticated(String),
    /// It is known who asks, and that is not enough.
    Forbidden(String),
    /// It asks too often.
    TooMany(String),
}

impl Refusal {
    /// What the caller is told.
    pub fn message(&self) -> &str {
        match self {
            Self::Unauthenticated(text) | Self::Forbidden(text) | Self::TooMany(text) => text,
        }
    }
}

/// Who a limit is kept for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Client {
    Name(Arc<str>),
    Address(IpAddr),
}

#[derive(Debug)]
struct Inner {
    tokens: Option<Tokens>,
    secret: Option<ClusterSecret>,
    limits: Limits,
    rates: DefaultKeyedRateLimiter<Client>,
    /// One line of log a second for all that is refused.
    log: DefaultDirectRateLimiter,
    unlogged: AtomicU64,
}

/// The one who decides, for all listeners of a process.
#[derive(Debug, Clone)]
pub struct Access(Arc<Inner>);

impl Access {
    /// Reads the tokens. A worker brings the `secret` that it asks for.
    ///
    /// # Errors
    /// As [`Tokens::open`].
    pub fn open(security: &Security, secret: Option<ClusterSecret>) -> Result<Self> {
        let tokens = security.tokens.clone().map(Tokens::open).transpose()?;
        let limits = security.limits;
        let per_second = NonZeroU32::new(limits.requests_per_second).unwrap_or(NonZeroU32::MIN);
        Ok(Self(Arc::new(Inner {
            tokens,
            secret,
            limits,
            rates: RateLimiter::keyed(Quota::per_second(per_second)),
            log: RateLimiter::direct(Quota::per_second(NonZeroU32::MIN)),
            unlogged: AtomicU64::new(0),
        })))
    }

    /// Reads the tokens again if their file has changed, and forgets callers that have been quiet. Blocks while it does.
    pub(crate) fn take_care(&self) {
        if let Some(tokens) = &self.0.tokens {
            tokens.refresh();
        }
        self.0.rates.retain_recent();
    }

    /// Whether tokens are asked for.
    pub fn has_tokens(&self) -> bool {
        self.0.tokens.is_some()
    }

    /// Lets a request pass or says why not. `what` is asked for: an RPC or a page.
    ///
    /// # Errors
    /// No or a wrong token or secret, another role than needed, too many requests.
    pub async fn admit(
        &self,
        needs: Needs,
        what: &str,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> std::result::Result<(), Refusal> {
        let admitted = self.decide(needs, what, headers, peer).await;
        match &admitted {
            Ok(()) if needs == Needs::Nothing => {}
            Ok(()) => peer.admit(),
            Err(refusal) => self.log(refusal, what, peer),
        }
        admitted
    }

    async fn decide(
        &self,
        needs: Needs,
        what: &str,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> std::result::Result<(), Refusal> {
        let inner = &self.0;
        let by_address = Client::Address(peer.network());
        match needs {
            Needs::Nothing => self.pace(by_address),
            Needs::Secret => {
                let word = presented(headers).unwrap_or_default();
                match &inner.secret {
                    Some(secret) if secret.admits(&word).await => Ok(()),
                    _ => Err(Refusal::Unauthenticated(
                        "a worker takes calls only from its master and that master's workers"
                            .to_owned(),
                    )),
                }
            }
            Needs::Unlisted if inner.tokens.is_some() || inner.secret.is_some() => {
                Err(Refusal::Forbidden(format!("{what} is open to no role")))
            }
            Needs::Unlisted => self.pace(by_address),
            Needs::Role(role) => match &inner.tokens {
                Some(tokens) => match self.bearer(tokens, role, what, headers) {
                    Ok(name) => self.pace(Client::Name(name)),
                    // Whoever guesses is slowed down by address.
                    Err(refusal) => self.pace(by_address).and(Err(refusal)),
                },
                None => self.pace(by_address),
            },
        }
    }

    fn bearer(
        &self,
        tokens: &Tokens,
        role: Role,
        what: &str,
        headers: &HeaderMap,
    ) -> std::result::Result<Arc<str>, Refusal> {
        let Some(token) = presented(headers) else {
            return Err(Refusal::Unauthenticated(format!(
                "{what} needs a token with the role {}: give one with --token-file or ESSAIM_TOKEN",
                role.name()
            )));
        };
        match tokens.bearer(&token) {
            Bearer::Unknown => Err(Refusal::Unauthenticated(
                "this token is not known here: ask for one, or look at the one of --token-file or ESSAIM_TOKEN".to_owned(),
            )),
            Bearer::Expired(name) => Err(Refusal::Unauthenticated(format!(
                "the token of {name} has expired: ask for a new one"
            ))),
            Bearer::Known(name, roles) if roles.iter().any(|has| has.includes(role)) => Ok(name),
            Bearer::Known(name, _) => Err(Refusal::Forbidden(format!(
                "{what} needs the role {}, which the token of {name} does not have",
                role.name()
            ))),
        }
    }

    fn pace(&self, client: Client) -> std::result::Result<(), Refusal> {
        self.0.rates.check_key(&client).map_err(|_| {
            Refusal::TooMany(format!(
                "more than {} requests in this second: ask less often, or start the server with a higher --requests-per-second",
                self.0.limits.requests_per_second
            ))
        })
    }

    fn log(&self, refusal: &Refusal, what: &str, peer: &Peer) {
        if self.0.log.check().is_err() {
            self.0.unlogged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let unlogged = self.0.unlogged.swap(0, Ordering::Relaxed);
        // A path may be anything: what is shown of it is short and escaped.
        let shown: String = what.chars().take(100).collect();
        let why = refusal.message().replace(what, "it");
        tracing::warn!(client = %peer.address(), what = ?shown, %why, unlogged, "refused");
    }
}

/// The token that a request shows: of `Authorization: Bearer TOKEN`, or the password of `Authorization: Basic …`, as browsers send it.
pub fn presented(headers: &HeaderMap) -> Option<String> {
    let (scheme, value) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()?;
        return decoded
            .split_once(':')
            .map(|(_, password)| password.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tokens::TokenSource;
    use http::HeaderValue;
    use std::net::Ipv4Addr;

    const EVE: &str = "0123456789abcdef-eve";

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    fn peer() -> Peer {
        Peer::new(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn access(limits: Limits) -> Access {
        let tokens = format!("read eve {EVE}\nworker w 0123456789abcdef-worker\n");
        let security = Security {
            tokens: Some(TokenSource::Text(tokens)),
            limits,
            ..Security::default()
        };
        Access::open(&security, None).unwrap()
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_browsers_password() {
        assert_eq!(presented(&headers("Bearer abc")).as_deref(), Some("abc"));
        assert_eq!(presented(&headers("bearer  abc ")).as_deref(), Some("abc"));
        // user:abc:d
        let basic = headers("Basic dXNlcjphYmM6ZA==");
        assert_eq!(presented(&basic).as_deref(), Some("abc:d"));
        for none in ["Bearer", "Basic ?", "Digest abc", "Basic dXNlcg=="] {
            assert_eq!(presented(&headers(none)), None, "{none}");
        }
    }

    #[tokio::test]
    async fn a_role_opens_what_it_is_for() {
        let access = access(Limits::default());
        let (peer, eve) = (peer(), headers(&format!("Bearer {EVE}")));
        let ask =
            async |needs, headers: &HeaderMap| access.admit(needs, "/x", headers, &peer).await;
        assert_eq!(ask(Needs::Role(Role::Read), &eve).await, Ok(()));
        for role in [Role::Submit, Role::Worker] {
            let refused = ask(Needs::Role(role), &eve).await.unwrap_err();
            assert!(matches!(refused, Refusal::Forbidden(_)), "{refused:?}");
        }
        for headers in [HeaderMap::new(), headers("Bearer 0123456789abcdef-nobody")] {
            let refused = ask(Needs::Role(Role::Read), &headers).await.unwrap_err();
            assert!(
                matches!(refused, Refusal::Unauthenticated(_)),
                "{refused:?}"
            );
            assert_eq!(ask(Needs::Nothing, &headers).await, Ok(()));
        }
        for needs in [Needs::Unlisted, Needs::Secret] {
            assert!(ask(needs, &eve).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_too_often_is_slowed_down_and_others_are_not() {
        let access = access(Limits {
            requests_per_second: 3,
            ..Limits::default()
        });
        let peer = peer();
        let ask = async |word: &str| {
            let headers = headers(&format!("Bearer {word}"));
            access
                .admit(Needs::Role(Role::Read), "/x", &headers, &peer)
                .await
        };
        for _ in 0..3 {
            assert_eq!(ask(EVE).await, Ok(()));
        }
        assert!(matches!(ask(EVE).await, Err(Refusal::TooMany(_))));
        let worker = ask("0123456789abcdef-worker").await;
        assert!(matches!(worker, Err(Refusal::Forbidden(_))), "{worker:?}");
    }
}
