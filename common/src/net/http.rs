//! Serves pages over HTTP/1.1: the gate's TLS, roles and limits before the router.

use crate::net::access::Refusal;
use crate::net::gate::Gate;
use crate::net::listener::{Connection, Peer};
use crate::net::rpcs;
use axum::Router;
use axum::body::Body;
use axum::http::header::{ACCEPT, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Request, Response, StatusCode};
use axum::response::{IntoResponse, Json};
use futures::StreamExt;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long the headers of a request may take, and a connection be idle before the next one.
const HEADERS: Duration = Duration::from_secs(10);
/// The headers of a request, in bytes and in number.
const HEADER_BYTES: usize = 16 << 10;
const HEADER_COUNT: usize = 64;
/// The body of a request, in bytes.
const BODY_BYTES: usize = 1 << 20;

/// Browsers that open an address ask for a password, which is the token; the user name does not matter.
const BROWSER_CHALLENGE: &str =
    "Basic realm=\"Essaim: any user name, a token as the password\", charset=\"UTF-8\"";

/// Scripts and programs are told what to send. Ours ask for the token in a form, over which no dialog shall open.
const CHALLENGE: &str = "Bearer realm=\"Essaim\"";

/// Serves `router` until `stop`, and then what is under way until it has ended. The pages that [`rpcs::page`] does not
/// name open need a token with the role *read* if the gate has tokens.
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    gate: Gate,
    stop: CancellationToken,
) {
    let mut incoming = std::pin::pin!(gate.incoming_http(listener));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = incoming.next() => match connection {
                Some(Ok(connection)) => {
                    let (router, gate, stop) = (router.clone(), gate.clone(), stop.clone());
                    connections.spawn(serve_connection(connection, router, gate, stop));
                }
                Some(Err(error)) => tracing::debug!(%error, "an HTTP connection"),
                None => break,
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(
    connection: Connection,
    router: Router,
    gate: Gate,
    stop: CancellationToken,
) {
    let peer = connection.peer().clone();
    let service = service_fn(|request: Request<Incoming>| {
        let (router, gate, peer) = (router.clone(), gate.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(request, router, &gate, &peer).await) }
    });
    let mut served = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(HEADER_BYTES)
            .max_headers(HEADER_COUNT)
            .serve_connection(TokioIo::new(connection), service)
    );
    let done = tokio::select! {
        done = served.as_mut() => done,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(client = %peer.address(), %error, "an HTTP connection ended");
    }
}

async fn answer(
    request: Request<Incoming>,
    router: Router,
    gate: &Gate,
    peer: &Peer,
) -> Response<Body> {
    let path = request.uri().path();
    let needs = rpcs::page(request.method(), path);
    let opened = request
        .headers()
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    let admitted = gate
        .access()
        .admit(needs, path, request.headers(), peer)
        .await;
    let mut response = match admitted {
        Ok(()) => {
            let request = request.map(|body| Body::new(Limited::new(body, BODY_BYTES)));
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Err(refusal) => refuse(&refusal, opened),
    };
    // A page is no part of another site's, and is what its type says.
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        let name = HeaderName::from_static(name);
        response
            .headers_mut()
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

/// What is answered instead; `opened` if a browser opens the address to show it.
fn refuse(refusal: &Refusal, opened: bool) -> Response<Body> {
    let error = Json(serde_json::json!({ "error": refusal.message() }));
    match refusal {
        Refusal::Unauthenticated(_) => {
            let challenge = if opened { BROWSER_CHALLENGE } else { CHALLENGE };
            let challenge = [(WWW_AUTHENTICATE, challenge)];
            (StatusCode::UNAUTHORIZED, challenge, error).into_response()
        }
        Refusal::Forbidden(_) => (StatusCode::FORBIDDEN, error).into_response(),
        Refusal::TooMany(_) => {
            let retry = [(RETRY_AFTER, "1")];
            (StatusCode::TOO_MANY_REQUESTS, retry, error).into_response()
        }
    }
}
