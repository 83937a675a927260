//! Too much of everything: messages, connections, requests, and bytes that mean nothing.

use crate::guarded::{Guard, Guarded, READ, SUBMIT, WORKER};
use crate::raw;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use essaim_common::net::Link;
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::{ListRequest, RegisterRequest};
use essaim_tests::sql::{integers, numbers};
use essaim_tests::{SOON, wait_for};
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

const GIGABYTE: u32 = 1 << 30;
/// What a process may grow by while it refuses a gigabyte.
const GROWTH: u64 = 96 << 20;

/// A query that needs a worker.
async fn still_works(cluster: &Guarded) -> Result<()> {
    let sql = format!("{}SELECT count(*) FROM t", numbers("t", 1000));
    let (rows, _) = cluster.query(SUBMIT, &sql).await?;
    ensure!(integers(&rows, 0)? == [1000]);
    Ok(())
}

/// The most memory that a process has held so far, in bytes.
fn peak_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("no VmHWM")?.parse::<u64>()? << 10)
}

/// Sends one message of a gigabyte as a stream, and returns how the call ended and how much of it went out.
async fn send_gigabyte(mut link: Link, base: &str, path: &str) -> Result<(Code, u64)> {
    let prefix = [&[0][..], &GIGABYTE.to_be_bytes()].concat();
    let chunk = Bytes::from(vec![b'x'; 1 << 20]);
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let chunks = futures::stream::once(async move { Bytes::from(prefix) })
        .chain(futures::stream::repeat(chunk).take(1 << 10))
        .map(move |bytes| {
            counted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok::<_, Status>(http_body::Frame::data(bytes))
        });
    let request = http::Request::post(format!("{base}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(StreamBody::new(chunks)))?;
    let call = async {
        let response = link.ready().await?.call(request).await?;
        let mut status = response.headers().get("grpc-status").cloned();
        if status.is_none() {
            let trailers = response.into_body().collect().await?.trailers().cloned();
            status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
        }
        let status = status.context("no grpc-status")?;
        anyhow::Ok(Code::from_bytes(status.as_bytes()))
    };
    let code = tokio::time::timeout(SOON, call).await??;
    Ok((code, sent.load(Ordering::Relaxed)))
}

#[tokio::test]
async fn a_message_of_a_gigabyte_is_refused_and_takes_no_memory() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    still_works(&cluster).await?;
    let mut workers = ClusterClient::new(cluster.link(cluster.grpc, WORKER).await?);
    let request = RegisterRequest {
        worker_id: "w-of-the-test".to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        version: essaim_proto::VERSION.to_owned(),
        slots: 1,
        memory_bytes: 1,
        protocol: essaim_proto::PROTOCOL,
    };
    let secret = workers.register(request).await?.into_inner().secret;
    let (master, worker) = (cluster.grpc, cluster.workers[0].1);
    let pids = [cluster.master.pid(), cluster.workers[0].0.pid()];
    let before = [peak_memory(pids[0])?, peak_memory(pids[1])?];
    for (address, token, path) in [
        (master, SUBMIT, "/essaim.v1.Jobs/Submit"),
        (master, SUBMIT, "/essaim.v1.Jobs/Query"),
        (master, WORKER, "/essaim.v1.Cluster/Register"),
        (master, "", "/grpc.health.v1.Health/Check"),
        (
            master,
            READ,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ),
        (worker, &*secret, "/essaim.v1.Tasks/Run"),
        (worker, &*secret, "/essaim.v1.Tasks/PutBroadcast"),
        (worker, &*secret, "/worker.WorkerService/CoordinatorChannel"),
        (worker, &*secret, "/worker.WorkerService/ExecuteTask"),
        (worker, "", "/grpc.health.v1.Health/Check"),
    ] {
        let link = cluster.link(address, token).await?;
        let (code, sent) = send_gigabyte(link, &cluster.url_of(address), path).await?;
        // Reflection simply ends its answers.
        let reflection = path.contains("Reflection") && code == Code::Ok;
        assert!(code == Code::OutOfRange || reflection, "{path}: {code:?}");
        assert!(
            sent < 64 << 20,
            "{path} took {sent} bytes before it refused"
        );
    }
    for (address, path) in [
        (master, "/essaim.v1.Jobs/Submit"),
        (worker, "/essaim.v1.Tasks/Run"),
        (worker, "/worker.WorkerService/ExecuteTask"),
        (worker, "/essaim.v1.Unknown/Call"),
    ] {
        let link = cluster.link(address, "").await?;
        let (code, _) = send_gigabyte(link, &cluster.url_of(address), path).await?;
        let expected = if path.contains("Unknown") {
            Code::PermissionDenied
        } else {
            Code::Unauthenticated
        };
        assert_eq!(code, expected, "{path}");
    }
    // Pages take no bodies, and headers of a size.
    let mut wire = raw::connect(cluster.http, None).await?;
    let head = format!(
        "GET /api/v1/jobs HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAuthorization: Bearer {READ}\r\nContent-Length: {GIGABYTE}\r\n\r\n"
    );
    let mut request = head.into_bytes();
    request.resize(8 << 20, b'x');
    let answer = raw::exchange(&mut *wire, &request).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1")));
    let long = format!("X-Long: {}\r\n", "x".repeat(1 << 20));
    // It closes before all is written, so its answer may be lost.
    if let Ok((status, ..)) = cluster.request("/healthz", &long).await {
        assert_eq!(status, 431);
    }
    for (pid, before) in pids.into_iter().zip(before) {
        let grown = peak_memory(pid)?.saturating_sub(before);
        assert!(grown < GROWTH, "process {pid} has grown by {grown} bytes");
    }
    still_works(&cluster).await
}

/// Opens connections from 127.0.0.2 and says nothing on them; those that were refused are not among them.
async fn idle(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)))?;
        streams.push(socket.connect(address).await?);
    }
    Ok(streams)
}

/// Whether the server has closed it.
async fn closed(stream: &mut TcpStream, within: Duration) -> bool {
    tokio::time::timeout(within, stream.read_u8()).await.is_ok()
}

#[tokio::test]
async fn ten_thousand_idle_connections_do_not_stop_a_query() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // We hold one end of each, the server the other.
    let count = usize::try_from(hard.saturating_sub(2_000))?.min(10_000);
    let share = count
        .saturating_sub(1_000)
        .min(usize::try_from(hard)? / 2 - 1_000);
    let flags = ["--max-connections-per-client", &share.to_string()];
    let cluster = Guarded::start(Guard::Tokens, 1, &flags).await?;
    let begun = Instant::now();
    let mut streams = idle(cluster.grpc, count).await?;
    eprintln!(
        "{} idle connections, of which {share} may stay",
        streams.len()
    );
    // From another address than theirs.
    still_works(&cluster).await?;
    let last = streams.last_mut().context("no connection")?;
    assert!(closed(last, SOON).await, "one more than the share was kept");
    let first = streams.first_mut().context("no connection")?;
    let early = closed(first, Duration::from_millis(200)).await;
    assert!(
        !early || begun.elapsed() > Duration::from_secs(15),
        "the first was not kept"
    );
    // Whoever asks nothing in time is sent away.
    assert!(closed(first, SOON).await, "an idle connection was kept");
    still_works(&cluster).await
}

#[tokio::test]
async fn random_bytes_into_all_ports_break_nothing() -> Result<()> {
    let seed = 7;
    for guard in [Guard::Tokens, Guard::MutualTls] {
        let cluster = Guarded::start(guard, 1, &[]).await?;
        let identity = cluster.identity();
        let tls = (guard == Guard::MutualTls).then_some(&identity);
        let mut random = StdRng::seed_from_u64(seed);
        let (_, worker, worker_http) = &cluster.workers[0];
        for address in [cluster.grpc, cluster.http, *worker, *worker_http] {
            for round in 0..24 {
                let mut bytes: Vec<u8> = match round % 4 {
                    0 => Vec::new(),
                    1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                    2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
                    _ => b"GET /api/v1/jobs HTTP/1.1\r\n".to_vec(),
                };
                let length = random.random_range(1..20_000);
                bytes.extend(std::iter::repeat_with(|| random.random::<u8>()).take(length));
                // Inside of TLS every other time, if there is any.
                let inside = tls.filter(|_| round % 2 == 0);
                let mut wire = raw::connect(address, inside).await?;
                tokio::select! {
                    // Whatever it answers, or if it goes: it must only go on.
                    _ = raw::exchange(&mut *wire, &bytes) => {}
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        }
        still_works(&cluster)
            .await
            .with_context(|| format!("{guard:?}, seed {seed}"))?;
        assert_eq!(cluster.get("/healthz", "").await?.0, 200);
        assert!(
            !cluster.written()?.contains("panicked"),
            "{}",
            cluster.written()?
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_so_and_others_go_on() -> Result<()> {
    let flags = ["--requests-per-second", "10"];
    let cluster = Guarded::start(Guard::Tokens, 1, &flags).await?;
    let mut reader = cluster.jobs(READ).await?;
    let refused = wait_for("the limit", SOON, async || {
        Ok(reader
            .list(ListRequest {
                limit: 1,
                ..Default::default()
            })
            .await
            .err())
    });
    // The probes of `wait_for` come 50 times a second.
    let many = futures::future::join_all((0..60).map(|_| cluster.get("/api/v1/jobs", READ)));
    let (refused, many) = tokio::join!(refused, many);
    assert_eq!(refused?.code(), Code::ResourceExhausted);
    let statuses: Vec<u16> = many
        .into_iter()
        .map(|page| Ok(page?.0))
        .collect::<Result<_>>()?;
    assert!(statuses.contains(&429), "{statuses:?}");
    still_works(&cluster).await
}

#[tokio::test]
async fn a_result_that_is_too_large_names_its_setting() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    let limited = |rows| {
        let table = numbers("t", rows);
        format!("SET essaim.max_result_bytes = 1000000; {table}SELECT value FROM t")
    };
    let (rows, _) = cluster.query(SUBMIT, &limited(10_000)).await?;
    assert_eq!(integers(&rows, 0)?.len(), 10_000);
    let error = cluster.query(SUBMIT, &limited(1_000_000)).await;
    let status = error.err().context("it was sent")?.downcast::<Status>()?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status.message().contains("essaim.max_result_bytes"),
        "{status}"
    );
    Ok(())
}

#[tokio::test]
async fn statements_that_are_deep_or_large_cost_nobody_but_their_author() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 2, &[]).await?;
    let table = numbers("t", 10);
    let chain = |count: usize, term: &str, with: &str| vec![term; count].join(with);
    let ctes = (1..300).map(|n| format!(", c{n} AS (SELECT value FROM c{})", n - 1));
    let views = (1..25).map(|n| {
        format!(
            "CREATE VIEW v{n} AS SELECT a.value FROM v{} a JOIN v{} b ON a.value = b.value; ",
            n - 1,
            n - 1
        )
    });
    let deep = [
        format!("{table}SELECT {} FROM t", chain(1_000, "value", " + ")),
        format!(
            "{table}SELECT count(*) FROM t WHERE {}",
            chain(500, "value < 5", " AND ")
        ),
        format!(
            "{table}SELECT count(*) FROM t WHERE {}",
            chain(500, "value = 5", " OR ")
        ),
        format!(
            "{table}{}",
            chain(150, "SELECT value FROM t", " UNION ALL ")
        ),
        format!(
            "SELECT CAST(NULL AS {}INT{})",
            "ARRAY<".repeat(500),
            ">".repeat(500)
        ),
        format!("SELECT 1{}", "::INT".repeat(2_000)),
        format!(
            "{table}WITH c0 AS (SELECT value FROM t){} SELECT * FROM c299",
            ctes.collect::<String>()
        ),
    ];
    for sql in &deep {
        // An answer or an error: what matters is who is still there.
        let _ = cluster.query(SUBMIT, sql).await;
        still_works(&cluster)
            .await
            .with_context(|| sql.chars().take(200).collect::<String>())?;
    }
    let refused = [
        (
            format!("SELECT {}", chain(6_000, "1", " + ")),
            "at most 5000 are taken",
        ),
        (
            format!(
                "{table}CREATE VIEW v0 AS SELECT value FROM t; {}SELECT count(*) FROM v24",
                views.collect::<String>()
            ),
            "more than 10000 steps",
        ),
    ];
    for (sql, said) in &refused {
        let error = cluster.query(SUBMIT, sql).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        still_works(&cluster).await?;
    }
    Ok(())
}
