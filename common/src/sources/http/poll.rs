//! The master's half of an UNBOUNDED table: asks for every URL at each interval.

use super::pages::{Pages, Standing, Walk};
use crate::error::{Error, Result};
use crate::sources::feed::plan::OnError;
use crate::sources::feed::shown::Veiled;
use crate::sources::feed::stream::{Feed, Inbox, Marks, mark};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use url::Url;

/// URLs that are asked for at a time.
const AT_A_TIME: usize = 4;

/// All URLs of one table.
#[derive(Debug)]
pub struct Poll {
    pub pages: Arc<Pages>,
    pub urls: Veiled<Vec<Url>>,
    pub interval: Duration,
    pub on_error: OnError,
}

/// Where each URL stands, by its name in the journal.
type Standings = Mutex<BTreeMap<String, Standing>>;

#[async_trait]
impl Feed for Poll {
    async fn run(&self, marks: Marks, inbox: &Inbox) -> Error {
        let standings = marks.into_iter().filter_map(|(name, standing)| {
            // What another version wrote is not needed: the document is asked for whole.
            Some((name, serde_json::from_str(&standing).ok()?))
        });
        let standings = Mutex::new(standings.collect());
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let polled = futures::stream::iter(self.urls.0.clone())
                .map(|url| self.poll(url, &standings, inbox))
                .buffer_unordered(AT_A_TIME)
                .try_collect::<Vec<()>>();
            if let Err(error) = polled.await {
                return error;
            }
        }
    }
}

impl Poll {
    /// Asks for one URL. Returns an error if there is no use in asking again.
    async fn poll(&self, url: Url, standings: &Standings, inbox: &Inbox) -> Result<()> {
        let name = name(&url);
        let before = standings.lock().get(&name).cloned().unwrap_or_default();
        let mut walk = Walk::new(Arc::clone(&self.pages), url, Some(before));
        loop {
            let page = match walk.next().await {
                Ok(page) => page,
                Err(error) if error.is_transient() => {
                    inbox.in_trouble(&error);
                    return Ok(());
                }
                Err(error) if self.on_error == OnError::Skip => {
                    tracing::warn!(%error, "an answer is skipped");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            inbox.answered();
            let Some(mut page) = page else { return Ok(()) };
            if let Some(last) = page.records.last_mut() {
                let standing = serde_json::to_string(&page.standing)
                    .map_err(|e| Error::internal(e.to_string()))?;
                last.mark = Some(mark(&name, &standing));
            }
            inbox.put(&page.records).await?;
            standings.lock().insert(name.clone(), page.standing);
        }
    }
}

/// A URL's name in the journal: the URL itself may hold a key, and a job's state is kept where its secrets are not.
fn name(url: &Url) -> String {
    let digest = Sha256::digest(url.as_str());
    digest[..12].iter().fold(String::new(), |mut name, byte| {
        // Writing to a text does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_name_that_does_not_show_its_key() {
        let one = name(&Url::parse("https://h/?appid=hunter2").unwrap());
        let other = name(&Url::parse("https://h/?appid=hunter3").unwrap());
        assert_eq!(one.len(), 24);
        assert_ne!(one, other);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
