//! What this worker can reach, for `essaim doctor`.

use datafusion::execution::runtime_env::RuntimeEnv;
use essaim_common::check::Endpoint;
use essaim_common::net::Peers;
use essaim_common::probe::{self, MAX_TARGETS};
use essaim_common::{Error, Result};
use essaim_proto::v1::tasks_client::TasksClient;
use essaim_proto::v1::{Peer, ProbeRequest, ProbeResponse};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Looks at everything that is asked for, all at once. `id` is this worker's, `way` the one to the others.
pub(crate) async fn probe(
    id: &str,
    way: &Peers,
    runtime: &RuntimeEnv,
    request: ProbeRequest,
) -> ProbeResponse {
    let now_ms = now_ms();
    let mut links = Vec::new();
    if !request.endpoints.is_empty() || !request.peers.is_empty() || request.deadline_ms > 0 {
        let deadline = Duration::from_millis(request.deadline_ms.max(1));
        let endpoints = request.endpoints.into_iter().map(|endpoint| Endpoint {
            connector: endpoint.connector,
            name: endpoint.name,
            payload: endpoint.payload.to_vec(),
        });
        let peers = request.peers.into_iter().take(MAX_TARGETS);
        let peers = peers.map(|peer| async move {
            let to = format!("worker {} at {}", peer.worker_id, peer.address);
            probe::timed(to, deadline, reach(way, peer)).await
        });
        let folders = vec![("spilled rows in", std::env::temp_dir())];
        let (endpoints, peers, host) = tokio::join!(
            probe::endpoints(endpoints.collect(), deadline),
            futures::future::join_all(peers),
            probe::host(runtime, folders, deadline),
        );
        links.extend(endpoints);
        links.extend(peers);
        links.extend(host);
    }
    ProbeResponse {
        worker_id: id.to_owned(),
        version: essaim_proto::VERSION.as_str().to_owned(),
        now_ms,
        links,
    }
}

/// Asks another worker who it is, on a connection as an exchange makes it.
async fn reach(way: &Peers, peer: Peer) -> Result<String> {
    let advice = "start it with --advertise http://HOST:PORT that every other worker reaches, and open the port";
    let link = way
        .link(&peer.address)
        .map_err(|error| error.with_hint(advice))?;
    let answer = TasksClient::new(link).probe(ProbeRequest::default()).await;
    let answer = answer
        .map_err(|status| probe::call_error(&status).with_hint(advice))?
        .into_inner();
    if answer.worker_id != peer.worker_id {
        return Err(Error::invalid(format!(
            "worker {} answers there; {advice}",
            answer.worker_id
        )));
    }
    Ok(String::new())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
