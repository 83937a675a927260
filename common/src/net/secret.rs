//! The word by which a master and its workers know each other, new with every master.

use crate::error::Result;
use crate::net::tokens::{Token, digest};
use rand::RngExt;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::watch;

/// A master may call before the answer to the registration is read: how long such a call waits for it.
const REGISTRATION: Duration = Duration::from_secs(3);

#[derive(Clone, Default)]
struct State {
    secret: Option<(Token, [u8; 32])>,
    registering: bool,
}

/// Made by a master at its start and handed to each worker that registers. A worker takes calls only from those who
/// know the one it was handed last, so an old master that wakes up is refused.
#[derive(Clone)]
pub struct ClusterSecret(Arc<watch::Sender<State>>);

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(***)")
    }
}

impl ClusterSecret {
    /// A worker's before it has registered: nobody knows it.
    pub fn unknown() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// A master's: 256 random bits.
    ///
    /// # Errors
    /// None that can happen: 64 digits are a token.
    pub fn generate() -> Result<Self> {
        let bits: [u128; 2] = rand::rng().random();
        let secret = Self::unknown();
        secret.set(&format!("{:032x}{:032x}", bits[0], bits[1]))?;
        Ok(secret)
    }

    /// From now on this one counts and no other.
    ///
    /// # Errors
    /// A text that is no token: the master is not of this version.
    pub fn set(&self, secret: &str) -> Result<()> {
        let token = Token::new(secret)?;
        let digest = digest(token.expose());
        self.0.send_modify(|state| {
            state.secret = Some((token, digest));
            state.registering = false;
        });
        Ok(())
    }

    /// The secret itself, for calls to others who know it.
    pub fn current(&self) -> Option<Token> {
        self.0
            .borrow()
            .secret
            .as_ref()
            .map(|(token, _)| token.clone())
    }

    /// Until the guard is dropped or a secret is set, calls with another one wait for it.
    pub fn registering(&self) -> Registering {
        self.0.send_modify(|state| state.registering = true);
        Registering(self.clone())
    }

    /// Whether a caller knows the secret.
    pub async fn admits(&self, presented: &str) -> bool {
        let presented = digest(presented);
        let knows = |state: &State| match &state.secret {
            Some((_, secret)) => secret.ct_eq(&presented).into(),
            None => false,
        };
        let mut changes = self.0.subscribe();
        let waited = tokio::time::timeout(
            REGISTRATION,
            changes.wait_for(|state| knows(state) || !state.registering),
        )
        .await;
        match waited {
            Ok(Ok(state)) => knows(&state),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// A registration that is under way.
#[derive(Debug)]
pub struct Registering(ClusterSecret);

impl Drop for Registering {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.registering = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_last_secret_counts() {
        let (old, new) = (
            ClusterSecret::generate().unwrap(),
            ClusterSecret::generate().unwrap(),
        );
        let worker = ClusterSecret::unknown();
        let word = |secret: &ClusterSecret| secret.current().unwrap().expose().to_owned();
        assert!(!worker.admits(&word(&old)).await && !worker.admits("").await);
        worker.set(&word(&old)).unwrap();
        assert!(worker.admits(&word(&old)).await);
        worker.set(&word(&new)).unwrap();
        assert!(worker.admits(&word(&new)).await && !worker.admits(&word(&old)).await);
        assert_eq!(format!("{worker:?}"), "ClusterSecret(***)");
    }

    #[tokio::test]
    async fn a_call_that_outruns_the_registration_waits_for_it() {
        let master = ClusterSecret::generate().unwrap();
        let word = master.current().unwrap();
        let worker = ClusterSecret::unknown();
        let registering = worker.registering();
        let call = tokio::spawn({
            let (worker, word) = (worker.clone(), word.clone());
            async move { worker.admits(word.expose()).await }
        });
        tokio::task::yield_now().await;
        assert!(!call.is_finished());
        worker.set(word.expose()).unwrap();
        assert!(call.await.unwrap());
        drop(registering);
        let again = worker.registering();
        let other = ClusterSecret::generate().unwrap().current().unwrap();
        let call = tokio::spawn({
            let worker = worker.clone();
            async move { worker.admits(other.expose()).await }
        });
        tokio::task::yield_now().await;
        drop(again);
        assert!(!call.await.unwrap());
    }
}
