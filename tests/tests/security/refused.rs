//! Wrong, missing and expired credentials on every listener.

use crate::certificates::Authority;
use crate::guarded::{
    EXPIRED, Guard, Guarded, READ, SUBMIT, WORKER, WRONG, connect, identity, query, refusal, tokens,
};
use crate::raw;
use anyhow::{Context, Result};
use essaim_common::net::Identity;
use essaim_proto::VERSION;
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::tasks_client::TasksClient;
use essaim_proto::v1::{
    CancelRequest, DropBroadcastsRequest, HeartbeatRequest, ListRequest, QueryRequest,
    RegisterRequest, SubmitRequest,
};
use essaim_tests::sql::{integers, numbers};
use essaim_tests::{SOON, wait_for};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

/// What each kind of call answers to a token: reading, submitting, working.
async fn answers(cluster: &Guarded, token: &str) -> Result<[Code; 3]> {
    let code = |status: tonic::Status| status.code();
    let mut jobs = cluster.jobs(token).await?;
    let read = jobs
        .list(ListRequest {
            limit: 1,
            ..Default::default()
        })
        .await;
    let request = CancelRequest {
        job_id: "nobody's".to_owned(),
    };
    let submit = jobs.cancel(request).await;
    let mut workers = ClusterClient::new(cluster.link(cluster.grpc, token).await?);
    let request = HeartbeatRequest {
        worker_id: "nobody".to_owned(),
        ..HeartbeatRequest::default()
    };
    let work = workers.heartbeat(request).await;
    Ok([
        read.err().map_or(Code::Ok, code),
        submit.err().map_or(Code::Ok, code),
        work.err().map_or(Code::Ok, code),
    ])
}

#[tokio::test]
async fn a_token_opens_what_its_role_is_for_and_nothing_else() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    use Code::{NotFound, Ok as Passed, PermissionDenied, Unauthenticated};
    // There is no such job and no such worker: whoever is told so has been let pass.
    for (token, expected) in [
        ("", [Unauthenticated; 3]),
        (WRONG, [Unauthenticated; 3]),
        (EXPIRED, [Unauthenticated; 3]),
        (READ, [Passed, PermissionDenied, PermissionDenied]),
        (SUBMIT, [Passed, NotFound, PermissionDenied]),
        (WORKER, [PermissionDenied, PermissionDenied, NotFound]),
    ] {
        assert_eq!(answers(&cluster, token).await?, expected, "{token:?}");
    }

    let mut nobody = cluster.jobs("").await?;
    let query = nobody.query(QueryRequest::default()).await.map(drop);
    assert_eq!(refusal(query)?.code(), Unauthenticated);
    let submit = nobody.submit(SubmitRequest::default()).await;
    let status = refusal(submit)?;
    assert!(status.message().contains("role submit"), "{status}");
    assert!(status.message().contains("ESSAIM_TOKEN"), "{status}");
    let mut reader = cluster.jobs(READ).await?;
    let query = reader.query(QueryRequest::default()).await.map(drop);
    assert_eq!(refusal(query)?.code(), PermissionDenied);
    let mut submitter = ClusterClient::new(cluster.link(cluster.grpc, SUBMIT).await?);
    let register = submitter.register(RegisterRequest {
        worker_id: "a-thief".to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        version: VERSION.to_owned(),
        slots: 1,
        memory_bytes: 1,
        protocol: essaim_proto::PROTOCOL,
    });
    assert_eq!(refusal(register.await)?.code(), PermissionDenied);

    // Probes have no token; what the services look like is for readers.
    let (nobody, reader) = (
        cluster.link(cluster.grpc, "").await?,
        cluster.link(cluster.grpc, READ).await?,
    );
    HealthClient::new(nobody.clone())
        .check(HealthCheckRequest::default())
        .await?;
    let request = || futures::stream::iter([ServerReflectionRequest::default()]);
    let reflection = ServerReflectionClient::new(nobody)
        .server_reflection_info(request())
        .await;
    assert_eq!(refusal(reflection)?.code(), Unauthenticated);
    ServerReflectionClient::new(reader)
        .server_reflection_info(request())
        .await?;

    // The worker's port knows no token, not even a worker's.
    for token in ["", WRONG, WORKER, SUBMIT] {
        let link = cluster.link(cluster.workers[0].1, token).await?;
        let drop = TasksClient::new(link.clone())
            .drop_broadcasts(DropBroadcastsRequest { keys: Vec::new() })
            .await;
        assert_eq!(refusal(drop)?.code(), Unauthenticated, "{token:?}");
        HealthClient::new(link)
            .check(HealthCheckRequest::default())
            .await?;
    }
    let sql = format!("{}SELECT count(*) FROM t", numbers("t", 1000));
    let (rows, _) = cluster.query(SUBMIT, &sql).await?;
    assert_eq!(integers(&rows, 0)?, [1000]);
    Ok(())
}

#[tokio::test]
async fn pages_ask_for_a_token_as_browsers_know_it() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 0, &[]).await?;
    for page in [
        "/api/v1/cluster",
        "/api/v1/jobs",
        "/api/v1/updates",
        "/metrics",
        "/nothing",
        "/healthz/x",
    ] {
        for token in ["", WRONG, EXPIRED] {
            let (status, _) = cluster.get(page, token).await?;
            assert_eq!(status, 401, "{page} {token:?}");
        }
        assert_eq!(cluster.get(page, WORKER).await?.0, 403, "{page}");
    }
    assert_eq!(cluster.get("/healthz", "").await?.0, 200);
    assert_eq!(cluster.get("/readyz", "").await?.0, 503);
    assert_eq!(cluster.get("/api/v1/jobs", READ).await?.0, 200);
    assert_eq!(cluster.get("/api/v1/jobs", SUBMIT).await?.0, 200);
    // The pages hold nothing: their scripts ask, and get no dialog for an answer.
    for page in ["/", "/jobs", "/workers/w-1"] {
        let (_, head, body) = cluster.request(page, "").await?;
        assert!(head.starts_with("HTTP/1.1 200"), "{page}: {head}");
        assert!(!body.contains(&cluster.grpc.port().to_string()), "{body}");
    }
    for (accept, challenge) in [
        ("application/json", "www-authenticate: bearer realm="),
        ("text/html,*/*", "www-authenticate: basic realm="),
    ] {
        let accept = format!("Accept: {accept}\r\n");
        let (_, head, body) = cluster.request("/api/v1/jobs", &accept).await?;
        assert!(head.to_lowercase().contains(challenge), "{head}");
        assert!(body.contains("role read"), "{body}");
    }
    // anybody:READ, as a browser sends what was typed.
    let basic = "Authorization: Basic YW55Ym9keTpyM2FkZXItdG9rZW4tb2YtdGhlLXRlc3RzLTc3YjI=\r\n";
    assert_eq!(cluster.request("/api/v1/jobs", basic).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn no_path_leads_out_of_the_pages() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 0, &[]).await?;
    for path in [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/api/v1/jobs/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/jobs/../../../etc/passwd",
        "/assets/../../../etc/passwd",
        "/assets/%00/etc/passwd",
        "/....//....//etc/passwd",
        "/\\..\\..\\etc\\passwd",
        "file:///etc/passwd",
    ] {
        for token in ["", READ] {
            let (status, body) = cluster.get(path, token).await?;
            assert!((400..500).contains(&status), "{path}: {status} {body}");
            assert!(!body.contains("root:"), "{path}: {body}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_tokens_file_that_changes_counts_at_once() -> Result<()> {
    let cluster = Guarded::start(Guard::Tokens, 1, &[]).await?;
    let mut jobs = cluster.jobs(READ).await?;
    jobs.list(ListRequest {
        limit: 1,
        ..Default::default()
    })
    .await?;
    // One reader out, one in, and another token for the workers.
    let new_worker = "an0ther-w0rker-token-of-the-tests";
    let changed = tokens().replace(READ, WRONG).replace(WORKER, new_worker);
    std::fs::write(cluster.dir.join("tokens"), changed)?;
    wait_for("the token to be revoked", SOON, async || {
        let refused = jobs
            .clone()
            .list(ListRequest {
                limit: 1,
                ..Default::default()
            })
            .await
            .err();
        Ok(refused.filter(|status| status.code() == Code::Unauthenticated))
    })
    .await?;
    let mut jobs = cluster.jobs(WRONG).await?;
    jobs.list(ListRequest {
        limit: 1,
        ..Default::default()
    })
    .await?;
    // The worker is refused, finds its new token in its file and is back.
    std::fs::write(cluster.dir.join("worker-token"), new_worker)?;
    wait_for("the worker to be back", SOON, async || {
        let log = cluster.written()?;
        let registered = log.matches(" registered").count() - log.matches("not registered").count();
        Ok((registered > 1).then_some(()))
    })
    .await?;
    let sql = format!("{}SELECT count(*) FROM t", numbers("t", 1000));
    let (rows, _) = cluster.query(SUBMIT, &sql).await?;
    assert_eq!(integers(&rows, 0)?, [1000]);
    Ok(())
}

#[tokio::test]
async fn a_certificate_must_be_of_the_authority_and_in_time() -> Result<()> {
    let cluster = Guarded::start(Guard::MutualTls, 1, &[]).await?;
    let other = Authority::new(&cluster.dir, "other")?;
    let stranger = other.sign("stranger")?;
    let expired = cluster.authority.sign_expired("expired")?;
    let ca = &cluster.authority.certificate;
    let wrong: [(&str, Identity); 3] = [
        ("no certificate", identity(ca, None)),
        ("one of another authority", identity(ca, Some(&stranger))),
        ("an expired one", identity(ca, Some(&expired))),
    ];
    let worker_http = cluster.workers[0].2;
    for address in [cluster.grpc, cluster.workers[0].1] {
        let url = cluster.url_of(address);
        for (what, identity) in &wrong {
            let called = async {
                let link = connect(&url, identity, SUBMIT).await?;
                let mut health = HealthClient::new(link);
                anyhow::Ok(health.check(HealthCheckRequest::default()).await?)
            };
            assert!(called.await.is_err(), "{url} took {what}");
        }
        // Neither does a client trust a server of another authority.
        let trusts_other = identity(&other.certificate, Some(&cluster.client));
        assert!(connect(&url, &trusts_other, SUBMIT).await.is_err());
        // And without TLS there is nothing to talk about.
        let plain = format!("http://{address}");
        let called = async {
            let link = connect(&plain, &Identity::default(), SUBMIT).await?;
            let mut health = HealthClient::new(link);
            anyhow::Ok(health.check(HealthCheckRequest::default()).await?)
        };
        assert!(called.await.is_err(), "{plain} was served");
    }
    for (what, identity) in &wrong {
        for address in [cluster.http, worker_http] {
            let page = raw::get(address, Some(identity), "/healthz", "").await;
            assert!(page.is_err(), "{what}: {page:?}");
        }
    }
    for address in [cluster.http, worker_http] {
        let plain = raw::get(address, None, "/healthz", "").await;
        assert!(plain.is_err(), "{plain:?}");
    }
    let identity = cluster.identity();
    for (token, status) in [("", 401), (WRONG, 401), (WORKER, 403), (READ, 200)] {
        let authorization = format!("Authorization: Bearer {token}\r\n");
        let page = raw::get(worker_http, Some(&identity), "/metrics", &authorization).await?;
        assert_eq!(page.0, status, "{token:?}: {page:?}");
    }
    // With a certificate a token is needed all the same.
    assert_eq!(cluster.get("/healthz", "").await?.0, 200);
    assert_eq!(cluster.get("/api/v1/jobs", WRONG).await?.0, 401);
    assert_eq!(cluster.get("/api/v1/jobs", READ).await?.0, 200);
    assert_eq!(answers(&cluster, WRONG).await?, [Code::Unauthenticated; 3]);
    let mut jobs = cluster.jobs(SUBMIT).await?;
    let sql = format!("{}SELECT count(*) FROM t", numbers("t", 1000));
    let (rows, _) = query(&mut jobs, &sql)
        .await
        .context("with everything right")?;
    assert_eq!(integers(&rows, 0)?, [1000]);
    Ok(())
}

#[tokio::test]
async fn renewed_certificates_count_without_a_restart() -> Result<()> {
    let cluster = Guarded::start(Guard::MutualTls, 2, &[]).await?;
    let tables = format!("{}{}", numbers("l", 1000), numbers("r", 100));
    // Rows cross from worker to worker, and both call each other.
    let join = format!(
        "SET essaim.execution = 'exchange'; SET essaim.broadcast_threshold = 0;
         {tables}SELECT count(*) FROM l JOIN r ON l.value = r.value"
    );
    let (rows, _) = cluster.query(SUBMIT, &join).await?;
    assert_eq!(integers(&rows, 0)?, [100]);
    let old = cluster.authority.sign("old")?;
    let old_ca = cluster.dir.join("old-ca.crt");
    std::fs::copy(&cluster.authority.certificate, &old_ca)?;

    // Another authority, and everybody has certificates of it, in the same files.
    let authority = Authority::new(&cluster.dir, "authority")?;
    authority.sign("server")?;
    authority.sign("client")?;
    let listeners = [cluster.grpc, cluster.workers[0].1, cluster.workers[1].1];
    let pages = [cluster.http, cluster.workers[0].2, cluster.workers[1].2];
    let renewed = cluster.identity();
    wait_for(
        "all listeners to show the new certificate",
        SOON,
        async || {
            for address in listeners.into_iter().chain(pages) {
                if raw::connect(address, Some(&renewed)).await.is_err() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        },
    )
    .await?;
    for address in pages {
        let (status, ..) = raw::get(address, Some(&renewed), "/healthz", "").await?;
        assert_eq!(status, 200);
        // One who trusts the new authority and shows a certificate of the old one.
        let stale = identity(&cluster.authority.certificate, Some(&old));
        let page = raw::get(address, Some(&stale), "/healthz", "").await;
        assert!(page.is_err(), "{page:?}");
        let trusts_old = identity(&old_ca, Some(&cluster.client));
        let page = raw::get(address, Some(&trusts_old), "/healthz", "").await;
        assert!(page.is_err(), "{page:?}");
    }
    let (rows, _) = cluster.query(SUBMIT, &join).await?;
    assert_eq!(integers(&rows, 0)?, [100]);

    // What cannot be used changes nothing, and is said.
    std::fs::write(cluster.dir.join("server.crt"), "nonsense")?;
    wait_for("the log to say so", SOON, async || {
        let log = cluster.written()?;
        let said = log.contains("certificates that were read before still count");
        Ok((said && log.contains("holds no certificate")).then_some(()))
    })
    .await?;
    let (status, ..) = raw::get(cluster.http, Some(&renewed), "/healthz", "").await?;
    assert_eq!(status, 200);
    Ok(())
}
