//! The connection to the server, made again whenever it breaks, after the last event that was kept.

use super::frames::{Event, Frames};
use crate::error::{Error, Result};
use crate::sources::feed::client::{Access, Failure, pause};
use crate::sources::feed::entry::{Entry, Meta};
use crate::sources::feed::plan::OnError;
use crate::sources::feed::shown::Veiled;
use crate::sources::feed::stream::{Feed, Inbox, Marks, mark};
use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use reqwest::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use reqwest::{Method, Response, StatusCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use url::Url;

/// The name of the mark with the id of the last event.
const LAST_EVENT_ID: &str = "last_event_id";
/// The header by which the server is told of it.
const LAST_EVENT_ID_HEADER: &str = "Last-Event-ID";
/// The pause before a connection that is made again, unless the server says otherwise.
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause that a server may ask for.
const MAX_RETRY: Duration = Duration::from_secs(15 * 60);
/// Events that come within this time are kept together: each write to the state dir has its price.
const GATHER: Duration = Duration::from_millis(50);
/// Bytes of events that are kept together at most.
const GATHER_BYTES: usize = 1 << 20;

/// One stream of events.
#[derive(Debug)]
pub struct Listener {
    pub url: Veiled<Url>,
    pub access: Access,
    /// Types of events that are wanted; empty for all.
    pub events: Vec<String>,
    /// After so long without a byte the connection is taken for broken.
    pub heartbeat_timeout: Duration,
    pub on_error: OnError,
}

/// How a connection ended.
enum End {
    /// Without an event.
    Silent(Error, Option<Duration>),
    /// After some events.
    Broken(Error),
}

#[async_trait]
impl Feed for Listener {
    async fn run(&self, mut marks: Marks, inbox: &Inbox) -> Error {
        let mut last_id: Arc<str> = marks.remove(LAST_EVENT_ID).unwrap_or_default().into();
        let mut retry = RETRY;
        let mut failures = 0;
        loop {
            let connected = self.connect(&last_id).await;
            let end = match connected {
                Ok(response) => {
                    inbox.answered();
                    match self.listen(response, &mut last_id, &mut retry, inbox).await {
                        Ok(end) => end,
                        Err(error) => return error,
                    }
                }
                Err(Failure::Passing(error, after)) => {
                    inbox.in_trouble(&error);
                    End::Silent(error, after)
                }
                Err(Failure::Lasting(error)) => return error,
            };
            let wait = match end {
                End::Broken(error) => {
                    failures = 0;
                    tracing::info!(%error, "connecting again");
                    retry
                }
                End::Silent(error, after) => {
                    failures += 1;
                    let wait = after.unwrap_or_else(|| retry.max(pause(failures)));
                    tracing::debug!(%error, ?wait, failures, "connecting again");
                    wait
                }
            };
            tokio::time::sleep(wait.min(MAX_RETRY)).await;
        }
    }
}

impl Listener {
    /// A connection over which events will come, after the one with `last_id`.
    async fn connect(&self, last_id: &str) -> Result<Response, Failure> {
        let request = self.access.request(Method::GET, &self.url.0);
        let mut request = request
            .map_err(Failure::Lasting)?
            .header(ACCEPT, "text/event-stream")
            .header(CACHE_CONTROL, "no-cache");
        if !last_id.is_empty() {
            request = request.header(LAST_EVENT_ID_HEADER, last_id);
        }
        let shown = self.access.hidden.url(&self.url.0);
        let response = match timeout(self.access.timeout(), request.send()).await {
            Ok(answered) => answered.map_err(|e| self.access.failed(&self.url.0, &e))?,
            Err(_) => {
                let error = format!(
                    "{shown}: no answer within {} ms (option request_timeout)",
                    self.access.timeout_ms
                );
                return Err(Failure::Passing(Error::unavailable(error), None));
            }
        };
        if response.status() == StatusCode::NO_CONTENT {
            return Err(Failure::Lasting(Error::invalid(format!(
                "{shown} answers 204: the server says that this stream has ended for good"
            ))));
        }
        if response.status() != StatusCode::OK {
            return Err(self.access.refused(&self.url.0, response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind
            .trim_start()
            .to_ascii_lowercase()
            .starts_with("text/event-stream")
        {
            return Err(Failure::Lasting(Error::invalid(format!(
                "{shown} sends '{kind}' and no events (text/event-stream): check the path in LOCATION, or read it STORED AS HTTP"
            ))));
        }
        Ok(response)
    }

    /// Keeps the events of a connection until it ends.
    async fn listen(
        &self,
        mut response: Response,
        last_id: &mut Arc<str>,
        retry: &mut Duration,
        inbox: &Inbox,
    ) -> Result<End> {
        let mut frames = Frames::after(last_id);
        let mut heard = false;
        loop {
            let mut events = Vec::new();
            let ended = self.gather(&mut response, &mut frames, &mut events).await;
            *retry = frames.retry().unwrap_or(*retry);
            heard |= !events.is_empty();
            let mut events = events.into_iter();
            while events.len() > 0 {
                let entries = self.entries(&mut events, last_id)?;
                inbox.put(&entries).await?;
            }
            if let Some(error) = ended {
                return Ok(match heard {
                    true => End::Broken(error),
                    false => End::Silent(error, None),
                });
            }
        }
    }

    /// Waits for events, and a little longer for those that come with them. Returns why no more will come, if so.
    async fn gather(
        &self,
        response: &mut Response,
        frames: &mut Frames,
        events: &mut Vec<Event>,
    ) -> Option<Error> {
        let shown = || self.access.hidden.url(&self.url.0);
        let mut bytes = 0;
        let mut until: Option<Instant> = None;
        loop {
            let wait = match until {
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => self.heartbeat_timeout,
            };
            match timeout(wait, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let more = frames.push(&chunk);
                    bytes += chunk.len() + more.iter().map(names_of).sum::<usize>();
                    events.extend(more);
                }
                Ok(Ok(None)) => {
                    return Some(Error::unavailable(format!(
                        "{}: the server has ended the connection",
                        shown()
                    )));
                }
                Ok(Err(error)) => return Some(self.access.failed(&self.url.0, &error).into()),
                Err(_) if until.is_some() => return None,
                Err(_) => {
                    return Some(Error::unavailable(format!(
                        "{}: nothing came for {} ms, no heartbeat either (option heartbeat_timeout)",
                        shown(),
                        self.heartbeat_timeout.as_millis()
                    )));
                }
            }
            if bytes >= GATHER_BYTES {
                return None;
            }
            if until.is_none() && !events.is_empty() {
                until = Some(Instant::now() + GATHER);
            }
        }
    }

    /// The wanted ones of the next events as entries, not many more than [`GATHER_BYTES`] of them. The last one says which
    /// id is to be named after it.
    fn entries(
        &self,
        events: &mut impl Iterator<Item = Event>,
        last_id: &mut Arc<str>,
    ) -> Result<Vec<Entry>> {
        let at_ms = Utc::now().timestamp_millis();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while bytes < GATHER_BYTES
            && let Some(event) = events.next()
        {
            last_id.clone_from(&event.id);
            if !self.events.is_empty() && !self.events.iter().any(|kind| **kind == *event.event) {
                continue;
            }
            let size = names_of(&event);
            let Some(data) = event.data else {
                let what = format!(
                    "{}: the event with the id '{}' is larger than 3 MiB, or its id or type than 1 KiB",
                    self.access.hidden.url(&self.url.0),
                    event.id
                );
                if self.on_error == OnError::Fail {
                    return Err(Error::data(format!(
                        "{what}; set on_error 'skip' to go on without"
                    )));
                }
                tracing::warn!("{what}, and is skipped");
                continue;
            };
            bytes += data.len() + size;
            entries.push(Entry {
                meta: Meta {
                    origin: event.event.to_string(),
                    id: Some(event.id.to_string()).filter(|id| !id.is_empty()),
                    status: None,
                    at_ms,
                },
                mark: None,
                payload: Bytes::from(data),
            });
        }
        if let Some(entry) = entries.last_mut() {
            let id = entry.meta.id.as_deref().unwrap_or_default();
            entry.mark = Some(mark(LAST_EVENT_ID, id));
        }
        Ok(entries)
    }
}

/// The bytes that an event's id and type take in the journal, where each has its own.
fn names_of(event: &Event) -> usize {
    event.id.len() + event.event.len()
}
