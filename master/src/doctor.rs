//! `essaim doctor`: which of the links between master, workers, state dir and the places that jobs use is broken.
//!
//! Everything is tried at once, from the master and from each worker, each with the same deadline.

use crate::Shared;
use crate::jobs::model::{JobState, now_ms};
use crate::plan::{Planner, parse};
use crate::registry::{WorkerInfo, WorkerState};
use bytes::Bytes;
use essaim_common::check::{self, Endpoint};
use essaim_common::probe::{self, MAX_TARGETS, call_error, fact, timed};
use essaim_common::scope::JobScope;
use essaim_common::{Error, Result};
use essaim_proto::v1::{
    DoctorRequest, DoctorResponse, Link, LinkStatus, Peer, ProbeRequest, ProbeResponse,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;

/// How long one probe may take unless the client says otherwise, and at most.
const DEADLINE: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(30);
/// What a worker's own answer may take beyond its probes.
const SLACK: Duration = Duration::from_secs(1);
/// Clocks that are further apart are a warning; ms.
const SKEW_MS: f64 = 1000.0;
/// A heartbeat comes every second.
const LATE_HEARTBEAT_MS: i64 = 2_500;

/// Tries all links.
///
/// # Errors
/// The job file that is to be looked at has a syntax error.
pub(crate) async fn examine(
    shared: &Arc<Shared>,
    request: DoctorRequest,
) -> Result<DoctorResponse> {
    let deadline = match request.deadline_ms {
        0 => DEADLINE,
        ms => Duration::from_millis(ms).min(LONGEST),
    };
    let mut found = Endpoints::default();
    match &request.sql {
        Some(sql) => found.of(shared, "the job file", sql).await?,
        None => {
            for job in shared.jobs.list(usize::MAX) {
                let (state, sql, name) =
                    job.read(|record| (record.state, record.sql.clone(), record.name.clone()));
                // One that was submitted has no syntax error, unless it was by another version.
                if state == JobState::Running
                    && let Err(error) = found.of(shared, &format!("job {name}"), &sql).await
                {
                    found.failed(&format!("job {name}"), &error);
                }
            }
        }
    }
    let Endpoints { endpoints, broken } = found;
    let endpoints: Vec<Endpoint> = endpoints.into_iter().take(MAX_TARGETS).collect();
    let workers = shared.registry.workers();
    let seen = workers
        .iter()
        .map(|worker| from_worker(shared, worker, &workers, &endpoints, deadline));
    let folder = shared.jobs.state_dir().folder().map(ToOwned::to_owned);
    let folders = [("spilled rows in", std::env::temp_dir())].into_iter();
    let folders = folders.chain(folder.map(|folder| ("state in", folder)));
    let (state_dir, host, reached, seen) = tokio::join!(
        timed(
            format!("state dir {}", shared.jobs.state_dir().show("")),
            deadline,
            state_dir(shared)
        ),
        probe::host(&shared.runtime, folders.collect(), deadline),
        probe::endpoints(endpoints.clone(), deadline),
        futures::future::join_all(seen),
    );
    let mut links = vec![state_dir];
    links.extend(broken);
    links.extend(host);
    links.extend(reached);
    if workers.is_empty() {
        links.push(fact(
            "workers",
            LinkStatus::Warning,
            "none is registered: start one with `essaim worker --master http://HOST:7077`",
        ));
    }
    for link in &mut links {
        "master".clone_into(&mut link.from);
    }
    links.extend(seen.into_iter().flatten());
    links.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    Ok(DoctorResponse {
        links,
        version: essaim_proto::VERSION.as_str().to_owned(),
        now_ms: now_ms(),
    })
}

/// The places that jobs name, each once.
#[derive(Debug, Default)]
struct Endpoints {
    endpoints: BTreeSet<Endpoint>,
    /// Declarations that name no place.
    broken: Vec<Link>,
}

impl Endpoints {
    /// Adds those of one job; `whose` is for people.
    async fn of(&mut self, shared: &Arc<Shared>, whose: &str, sql: &str) -> Result<()> {
        let statements = parse(sql)?;
        let scope = JobScope::new("doctor", 0, 1);
        let runtime = Arc::clone(&shared.runtime);
        let planner = Planner::new(runtime, Arc::clone(&shared.registry), scope);
        for statement in statements {
            let Some(declaration) = planner.declaration(statement).await.transpose() else {
                continue;
            };
            let endpoints = declaration.and_then(|declared| {
                let place = format!("table {}", declared.name);
                // What comes from its options names the table already.
                check::endpoints(&declared).map_err(|e| match e.to_string().starts_with(&place) {
                    true => e,
                    false => e.context(place),
                })
            });
            match endpoints {
                Ok(endpoints) => self.endpoints.extend(endpoints),
                Err(error) => self.failed(whose, &error),
            }
        }
        Ok(())
    }

    fn failed(&mut self, whose: &str, error: &Error) {
        self.broken
            .push(fact(whose, LinkStatus::Failed, error.to_string()));
    }
}

/// Writes an object, reads it and removes it.
async fn state_dir(shared: &Arc<Shared>) -> Result<String> {
    let dir = shared.jobs.state_dir();
    shared.jobs.check_fence().await?;
    let name = format!("probes/{}", uuid::Uuid::new_v4().simple());
    let content = Bytes::from_static(b"essaim doctor\n");
    dir.put(&name, vec![content.clone()]).await?;
    let read = dir.get(&name).await;
    dir.remove(&name).await?;
    match read? {
        Some(read) if read == content => Ok("written, read and removed".to_owned()),
        _ => Err(dir.trouble("what was written could not be read back: is it one and the same place for every request?")),
    }
}

/// What the master sees of a worker, and the worker of everything else.
async fn from_worker(
    shared: &Arc<Shared>,
    worker: &WorkerInfo,
    all: &[WorkerInfo],
    endpoints: &[Endpoint],
    deadline: Duration,
) -> Vec<Link> {
    let from_master = |mut link: Link| {
        "master".clone_into(&mut link.from);
        link
    };
    let name = format!("worker {}", worker.id);
    let mut links = vec![heartbeat(worker)];
    for link in &mut links {
        link.from.clone_from(&name);
    }
    let to = format!("{name} at {}", worker.address);
    let (sent_ms, begun) = (now_ms(), Instant::now());
    let mut answer = None;
    let first = timed(to.clone(), deadline, async {
        let first = ask(shared, worker, ProbeRequest::default()).await?;
        let text = format!("essaim {}", first.version);
        answer = Some(first);
        Ok(text)
    })
    .await;
    let took_ms = begun.elapsed().as_secs_f64() * 1000.0;
    links.push(from_master(first));
    let Some(answer) = answer else {
        links.push(Link {
            from: name,
            ..fact(
                "everything else",
                LinkStatus::Warning,
                "not looked at, as the master does not reach the worker",
            )
        });
        return links;
    };
    links.push(from_master(clock(&name, &answer, sent_ms, took_ms)));
    let request = ProbeRequest {
        endpoints: endpoints
            .iter()
            .map(|endpoint| essaim_proto::v1::Endpoint {
                connector: endpoint.connector.clone(),
                name: endpoint.name.clone(),
                payload: endpoint.payload.clone().into(),
            })
            .collect(),
        peers: all
            .iter()
            .filter(|peer| peer.id != worker.id)
            .map(|peer| Peer {
                worker_id: peer.id.clone(),
                address: peer.address.clone(),
            })
            .collect(),
        deadline_ms: deadline.as_millis() as u64,
    };
    let asked = ask(shared, worker, request);
    match tokio::time::timeout(deadline + SLACK, asked).await {
        Ok(Ok(answer)) => links.extend(answer.links.into_iter().map(|mut link| {
            link.from.clone_from(&name);
            link
        })),
        Ok(Err(error)) => links.push(from_master(fact(to, LinkStatus::Failed, error.to_string()))),
        Err(_) => links.push(from_master(fact(
            to,
            LinkStatus::Failed,
            format!(
                "its probes have not ended within {:.1} s",
                (deadline + SLACK).as_secs_f64()
            ),
        ))),
    }
    links
}

/// One question to a worker, on the connection that tasks use too.
async fn ask(
    shared: &Arc<Shared>,
    worker: &WorkerInfo,
    request: ProbeRequest,
) -> Result<ProbeResponse> {
    let advice =
        "start it with --advertise http://HOST:PORT that the master reaches, and open the port";
    let mut client = shared
        .registry
        .client(&worker.id)
        .ok_or_else(|| Error::unavailable("it has just left"))?;
    let answer = client
        .probe(request)
        .await
        .map_err(|status| match status.code() {
            Code::Unimplemented => Error::invalid(format!(
                "it runs Essaim {} and knows no probes: upgrade it",
                worker.version
            )),
            _ => call_error(&status).with_hint(advice),
        })?;
    let answer = answer.into_inner();
    if answer.worker_id != worker.id {
        return Err(Error::invalid(format!(
            "worker {} answers there: {advice}",
            answer.worker_id
        )));
    }
    Ok(answer)
}

/// How long ago the worker was heard.
fn heartbeat(worker: &WorkerInfo) -> Link {
    let ago = now_ms() - worker.last_heartbeat_ms;
    let state = match worker.state {
        WorkerState::Active => "",
        WorkerState::Draining => ", draining",
        WorkerState::Lost => ", given up",
    };
    let text = format!("last heartbeat {ago} ms ago{state}");
    match ago > LATE_HEARTBEAT_MS {
        true => fact(
            "master",
            LinkStatus::Warning,
            format!("{text}: it is given up after 5 s; is its machine overloaded?"),
        ),
        false => fact("master", LinkStatus::Ok, text),
    }
}

/// How far a worker's clock is from the master's. What the question took on its way is not held against it.
fn clock(name: &str, answer: &ProbeResponse, sent_ms: i64, took_ms: f64) -> Link {
    let ahead = answer.now_ms as f64 - sent_ms as f64 - took_ms / 2.0;
    let to = format!("clock of {name}");
    let text = format!(
        "{:.0} ms {} the master's",
        ahead.abs(),
        if ahead < 0.0 { "behind" } else { "ahead of" }
    );
    match ahead.abs() - took_ms / 2.0 > SKEW_MS {
        true => fact(
            to,
            LinkStatus::Warning,
            format!("{text}: let both follow NTP"),
        ),
        false => fact(to, LinkStatus::Ok, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_by_more_than_the_way_explains() {
        let status = |now_ms, took_ms| {
            let answer = ProbeResponse {
                now_ms,
                ..ProbeResponse::default()
            };
            clock("w", &answer, 10_000, took_ms).status()
        };
        assert_eq!(status(10_003, 5.0), LinkStatus::Ok);
        assert_eq!(status(11_500, 5.0), LinkStatus::Warning);
        assert_eq!(status(8_500, 5.0), LinkStatus::Warning);
        assert_eq!(status(12_500, 4_000.0), LinkStatus::Ok);
    }
}
