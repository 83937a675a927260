//! Who is still there: leases that end without heartbeats, and probes of those who are suspected.

use super::{HEARTBEAT, LEASE, Registry, client};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// How long a worker may take to accept a connection when its death is suspected.
const PROBE: Duration = Duration::from_secs(1);

/// Whether silence says anything of the one who is silent: after a pause of the master's own (a machine that was suspended
/// or overloaded) heartbeats may be waiting to be read, or on their way.
struct Hearing {
    last: Instant,
    good_from: Instant,
}

impl Hearing {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            good_from: now,
        }
    }

    /// Asked several times a heartbeat.
    fn is_good(&mut self, now: Instant) -> bool {
        let paused = now.duration_since(self.last) > HEARTBEAT;
        self.last = now;
        if paused {
            self.good_from = now + 2 * HEARTBEAT;
        }
        now >= self.good_from
    }
}

impl Registry {
    /// Gives up workers whose lease is over. Runs until dropped.
    pub async fn watch_leases(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(HEARTBEAT / 4);
        let mut hearing = Hearing::new(Instant::now());
        loop {
            ticks.tick().await;
            if !hearing.is_good(Instant::now()) {
                continue;
            }
            let dead: Vec<String> = {
                let state = self.state.lock();
                state
                    .members
                    .iter()
                    .filter(|(_, member)| member.last_heartbeat.elapsed() > LEASE)
                    .map(|(id, _)| id.clone())
                    .collect()
            };
            for worker in dead {
                self.lose(&worker, "no heartbeat for 5 s");
            }
        }
    }

    /// Whether a worker still takes connections; one that does not is given up at once, before its lease ends.
    pub async fn probe(self: &Arc<Self>, worker: &str) -> bool {
        let Some(address) = self
            .state
            .lock()
            .members
            .get(worker)
            .map(|member| member.address.clone())
        else {
            return false;
        };
        // A dying process may still accept connections: only an answer counts.
        let reached = async {
            let link = self.peers.connect(&address).await.ok()?;
            let mut health = HealthClient::new(link.clone());
            health.check(HealthCheckRequest::default()).await.ok()?;
            Some(link)
        };
        if let Ok(Some(link)) = tokio::time::timeout(PROBE, reached).await {
            // The one before may be broken for good, as when its certificate has been renewed.
            if let Some(member) = self.state.lock().members.get_mut(worker) {
                member.client = client(link);
            }
            return true;
        }
        self.lose(worker, "its connection broke and it takes no other");
        false
    }

    /// Probes every worker: after a failure that does not tell which one it was.
    pub async fn probe_all(self: &Arc<Self>) {
        let workers: Vec<String> = self.state.lock().members.keys().cloned().collect();
        futures::future::join_all(workers.iter().map(|worker| self.probe(worker))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_during_a_pause_of_the_masters_own_is_not_held_against_workers() {
        let start = Instant::now();
        let mut hearing = Hearing::new(start);
        assert!(hearing.is_good(start + HEARTBEAT / 4));
        let back = start + LEASE * 2;
        assert!(!hearing.is_good(back));
        assert!(!hearing.is_good(back + HEARTBEAT));
        assert!(hearing.is_good(back + 2 * HEARTBEAT));
    }
}
