//! The stream of events, which may be cut in the middle of one, or say nothing.

use super::{Inner, Server};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often a comment comes.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// Answers with events, from the first one or behind the last that was seen.
pub(super) async fn events(State(server): Server, headers: HeaderMap) -> Response {
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let stream = connection(server, last.unwrap_or(0));
    (
        [(CONTENT_TYPE, "text/event-stream")],
        Body::from_stream(stream),
    )
        .into_response()
}

/// The events behind position `from`, until the connection is cut.
fn connection(server: Arc<Inner>, from: usize) -> impl Stream<Item = io::Result<Bytes>> {
    struct Connection {
        server: Arc<Inner>,
        changed: watch::Receiver<u64>,
        cuts: u64,
        next: usize,
        sent: usize,
        begun: bool,
        dead: bool,
    }
    let changed = server.changed.subscribe();
    let cuts = *changed.borrow();
    let connection = Connection {
        cuts,
        server,
        changed,
        next: from,
        sent: 0,
        begun: false,
        dead: false,
    };
    let cut = || Some(Err(io::Error::other("cut")));
    futures::stream::unfold(connection, move |mut at| async move {
        if at.dead {
            return None;
        }
        if !at.begun {
            at.begun = true;
            return Some((Ok(Bytes::from_static(b"retry: 20\n\n:thump\n")), at));
        }
        loop {
            let (event, cut_after, silent) = {
                let content = at.server.content();
                (
                    content.events.get(at.next).cloned(),
                    content.cut_after,
                    content.silent,
                )
            };
            if *at.changed.borrow_and_update() != at.cuts {
                at.dead = true;
                return cut().map(|cut| (cut, at));
            }
            if let Some(event) = event.filter(|_| !silent) {
                let id = at.next + 1;
                let data = event.data.replace('\n', "\ndata: ");
                let mut text = format!("event: {}\nid: {id}\ndata: {data}\n\n", event.event);
                if cut_after > 0 && at.sent >= cut_after {
                    // In the middle of its data, and then nothing.
                    text.truncate(text.len() - data.len() / 2 - 2);
                    at.cuts = u64::MAX;
                    return Some((Ok(Bytes::from(text)), at));
                }
                (at.next, at.sent) = (id, at.sent + 1);
                return Some((Ok(Bytes::from(text)), at));
            }
            match tokio::time::timeout(HEARTBEAT, at.changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) if silent => {}
                Err(_) => return Some((Ok(Bytes::from_static(b":thump\n")), at)),
            }
        }
    })
}
