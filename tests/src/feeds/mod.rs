//! A server of one test that speaks as public APIs do: documents with ETags, pages, limits, packed and slow answers, and
//! a stream of events that can be cut.
//!
//! | path | answers |
//! |---|---|
//! | `/json/{name}` | the document of that name, with an ETag; `{name}` may hold anything |
//! | `/link/{name}`, `/page/{name}?page=N`, `/cursor/{name}?after=C` | a list in pages: by `Link`, by number from 1, by the text at `$.next` |
//! | `/events` | server-sent events, from the first one or behind `Last-Event-ID` |
//! | `/elsewhere` | a redirection to another server |

mod events;

use crate::certificates::Certificates;
use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LINK,
    LOCATION, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::task::AbortOnDropHandle;

/// A request that has come.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: String,
    pub at: Instant,
}

impl Request {
    /// The text of a header; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

/// The way to a server by TLS. Dropping it ends its connections.
#[derive(Debug)]
pub struct Secured {
    address: SocketAddr,
    _forwarding: AbortOnDropHandle<()>,
}

impl Secured {
    /// A URL of the server behind.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }
}

/// What a path does once in place of answering well.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status, with `Retry-After` if so many seconds are given.
    Status(u16, Option<u64>),
    /// The answer, so much later.
    Slow(Duration),
    /// A body that breaks off in the middle.
    Broken,
    /// This body.
    Body(String),
}

/// An event of the stream. Its id is its position, from 1.
#[derive(Debug, Clone)]
pub struct Event {
    pub event: String,
    pub data: String,
}

#[derive(Debug, Default)]
struct Content {
    documents: HashMap<String, Value>,
    lists: HashMap<String, (Vec<Value>, usize)>,
    faults: HashMap<String, VecDeque<Fault>>,
    token: Option<String>,
    requests: Vec<Request>,
    events: Vec<Event>,
    /// Connections of `/events` are cut in the middle of the event after so many; 0 for never.
    cut_after: usize,
    silent: bool,
}

#[derive(Debug)]
struct Inner {
    content: Mutex<Content>,
    /// Rung when there are more events, with how often connections have been cut.
    changed: watch::Sender<u64>,
}

impl Inner {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server. Dropping it ends all of its connections.
#[derive(Debug)]
pub struct Feeds {
    address: SocketAddr,
    inner: Arc<Inner>,
    _serving: AbortOnDropHandle<()>,
}

impl Feeds {
    /// Listens on a port that the system chooses.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner {
            content: Mutex::default(),
            changed: watch::channel(0).0,
        });
        let router = Router::new()
            .route("/json/{*name}", any(document))
            .route("/link/{name}", any(by_link))
            .route("/page/{name}", any(by_number))
            .route("/cursor/{name}", any(by_cursor))
            .route("/events", any(events::events))
            .route(
                "/elsewhere",
                any(async || {
                    (
                        StatusCode::FOUND,
                        [(LOCATION, "http://127.0.0.2:1/x?key=1")],
                    )
                }),
            )
            .layer(axum::middleware::from_fn_with_state(
                Arc::clone(&inner),
                before,
            ))
            .with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            inner,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    /// Opens a port with the certificate `server`, for 127.0.0.1.
    ///
    /// # Errors
    /// The certificate cannot be read; no port is free.
    pub async fn secure(&self, certificates: &Certificates) -> Result<Secured> {
        let chain = CertificateDer::pem_file_iter(certificates.certificate("server"))?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(certificates.key("server"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, behind) = (listener.local_addr()?, self.address);
        let forwarding = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    let mut server = TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Ok(Secured {
            address,
            _forwarding: AbortOnDropHandle::new(forwarding),
        })
    }

    /// A URL of this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What `/json/{name}` answers from now on, and with another ETag.
    pub fn set(&self, name: &str, document: Value) {
        let mut content = self.inner.content();
        content.documents.insert(name.to_owned(), document);
    }

    /// A list that is answered in pages of `size`.
    pub fn set_list(&self, name: &str, list: Vec<Value>, size: usize) {
        self.inner
            .content()
            .lists
            .insert(name.to_owned(), (list, size));
    }

    /// What a path does with its next requests, one after the other, before it answers well again.
    pub fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut content = self.inner.content();
        content
            .faults
            .entry(path.to_owned())
            .or_default()
            .extend(faults);
    }

    /// Refuses requests without this bearer token.
    pub fn demand_token(&self, token: &str) {
        self.inner.content().token = Some(token.to_owned());
    }

    /// The requests for a path so far.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        let content = self.inner.content();
        let requests = content.requests.iter();
        requests
            .filter(|request| request.uri.path() == path)
            .cloned()
            .collect()
    }

    /// Adds an event to the stream.
    pub fn publish(&self, event: &str, data: &str) {
        let event = Event {
            event: event.to_owned(),
            data: data.to_owned(),
        };
        self.inner.content().events.push(event);
        self.inner.changed.send_modify(|_| {});
    }

    /// Cuts each connection of the stream in the middle of the event after so many; 0 for never.
    pub fn cut_after(&self, events: usize) {
        self.inner.content().cut_after = events;
    }

    /// Cuts all connections of the stream that are there.
    pub fn cut(&self) {
        self.inner.changed.send_modify(|cuts| *cuts += 1);
    }

    /// Whether connections of the stream stay and say nothing, not even that they are there.
    pub fn silence(&self, silent: bool) {
        self.inner.content().silent = silent;
        self.inner.changed.send_modify(|_| {});
    }
}

type Server = State<Arc<Inner>>;

/// Notes the request, and does what is asked for in place of the answer.
async fn before(
    State(server): Server,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20)
        .await
        .unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let (fault, refused) = {
        let mut content = server.content();
        content.requests.push(Request {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            body: String::from_utf8_lossy(&body).into_owned(),
            at: Instant::now(),
        });
        let given = parts.headers.get(AUTHORIZATION);
        let refused = content
            .token
            .as_ref()
            .is_some_and(|token| given.is_none_or(|given| *given != format!("Bearer {token}")));
        let fault = content.faults.get_mut(&path).and_then(VecDeque::pop_front);
        (fault, refused)
    };
    if refused {
        // Some servers tell what they were given.
        let given = parts.headers.get(AUTHORIZATION);
        let given = given
            .and_then(|given| given.to_str().ok())
            .unwrap_or_default();
        let text = format!("wrong credentials: {given}");
        return (StatusCode::UNAUTHORIZED, text).into_response();
    }
    let gzip = parts.headers.get(ACCEPT_ENCODING).is_some_and(|accepted| {
        accepted
            .to_str()
            .is_ok_and(|accepted| accepted.contains("gzip"))
    });
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let request = axum::extract::Request::from_parts(parts, Body::from(body));
    match fault {
        Some(Fault::Status(status, after)) => {
            let mut headers = HeaderMap::new();
            if let Some(after) = after {
                headers.insert(RETRY_AFTER, after.into());
            }
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
            return (status, headers, "not now").into_response();
        }
        Some(Fault::Slow(wait)) => tokio::time::sleep(wait).await,
        Some(Fault::Broken) => {
            let pieces = [Ok("[{\"id\": 1}, "), Err(io::Error::other("cut"))];
            return Body::from_stream(futures::stream::iter(pieces)).into_response();
        }
        Some(Fault::Body(body)) => return body.into_response(),
        None => {}
    }
    let answer = next.run(request).await;
    // Packed where that is asked for.
    if !gzip || !query.contains("packed") || answer.status() != StatusCode::OK {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20)
        .await
        .unwrap_or_default();
    parts
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.remove("content-length");
    Response::from_parts(parts, Body::from(gzipped(&body)))
}

async fn document(State(server): Server, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(document) = server.content().documents.get(&name).cloned() else {
        return (StatusCode::NOT_FOUND, format!("no {name} here")).into_response();
    };
    let text = document.to_string();
    let etag = format!("\"{:08x}\"", crc32fast::hash(text.as_bytes()));
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|known| known.to_str().ok());
    if known == Some(&etag) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    (
        [(CONTENT_TYPE, "application/json".to_owned()), (ETAG, etag)],
        text,
    )
        .into_response()
}

/// The records of a list from one position on, and the position behind them if there are more.
fn part(server: &Inner, name: &str, from: usize) -> Option<(Vec<Value>, Option<usize>)> {
    let content = server.content();
    let (list, size) = content.lists.get(name)?;
    let end = (from + size).min(list.len());
    let records = list.get(from..end).unwrap_or_default().to_vec();
    Some((records, (end < list.len()).then_some(end)))
}

type Params = Query<HashMap<String, String>>;

fn number(params: &HashMap<String, String>, name: &str) -> Option<usize> {
    params.get(name).and_then(|value| value.parse().ok())
}

async fn by_link(
    State(server): Server,
    Path(name): Path<String>,
    Query(params): Params,
) -> Response {
    let from = number(&params, "from").unwrap_or(0);
    let Some((records, next)) = part(&server, &name, from) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut headers = HeaderMap::new();
    if let Some(next) = next {
        let link = format!(
            "</link/{name}?from=0>; rel=\"first\", </link/{name}?from={next}>; rel=\"next\""
        );
        if let Ok(link) = link.parse() {
            headers.insert(LINK, link);
        }
    }
    (headers, axum::Json(records)).into_response()
}

async fn by_number(
    State(server): Server,
    Path(name): Path<String>,
    Query(params): Params,
) -> Response {
    let size = server
        .content()
        .lists
        .get(&name)
        .map_or(1, |(_, size)| *size);
    let page = number(&params, "page").unwrap_or(1);
    match part(&server, &name, (page.max(1) - 1) * size) {
        Some((records, _)) => axum::Json(json!({"total": 0, "list": records})).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn by_cursor(
    State(server): Server,
    Path(name): Path<String>,
    Query(params): Params,
) -> Response {
    let from = params
        .get("after")
        .and_then(|after| after.strip_prefix('c')?.parse().ok());
    match part(&server, &name, from.unwrap_or(0)) {
        // As news services do: the last cursor is given again until there is more.
        Some((records, _)) => {
            let next = format!("c{}", from.unwrap_or(0) + records.len());
            axum::Json(json!({"stories": records, "next": next})).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Bytes as gzip (RFC 1952) without any packing: stored blocks (RFC 1951, section 3.2.4).
fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let blocks = bytes.chunks(0xffff).map(|block| (block, 0));
    for (block, last) in blocks.chain([(&[][..], 1)]) {
        let length = block.len() as u16;
        packed.push(last);
        packed.extend_from_slice(&length.to_le_bytes());
        packed.extend_from_slice(&(!length).to_le_bytes());
        packed.extend_from_slice(block);
    }
    packed.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    packed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    packed
}
