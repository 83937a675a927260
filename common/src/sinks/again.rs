//! Trying again while a server restarts.

use crate::error::{Error, Result};
use std::time::Duration;

/// Pauses before each attempt, or each question after the fate of a commit: about what a restart of the server takes.
pub const ASK_AGAIN: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(5),
];

/// Tries until the server is there, about as long as its restart takes.
///
/// # Errors
/// One that trying again does not change; the last one.
pub async fn again<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> Result<T> {
    let mut last = Error::internal("nothing was tried");
    for pause in ASK_AGAIN {
        tokio::time::sleep(pause).await;
        match attempt().await {
            Err(error) if error.is_transient() => last = error,
            done => return done,
        }
    }
    Err(last)
}
