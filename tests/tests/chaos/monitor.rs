//! Watches the job's epochs: how long there was no new one, and whether the job has ended.

use essaim_proto::v1::Job;
use essaim_tests::client::{Client, ended};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

const EVERY: Duration = Duration::from_millis(50);
/// A master that does not answer within this time makes no progress.
const ANSWER: Duration = Duration::from_millis(500);

/// What was seen of the job last.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The highest epoch, and since when it has been that.
    pub epoch: u64,
    since: Instant,
    /// The longest time between two epochs, since [`Monitor::begin`].
    longest: Duration,
    /// Since [`Monitor::begin`].
    pub epochs: u64,
    pub job: Job,
    /// How the job ended: it should not.
    pub ended: Option<String>,
}

/// Asks the master that there is now, twenty times a second.
#[derive(Debug)]
pub struct Monitor {
    seen: Arc<watch::Sender<Seen>>,
    master: watch::Sender<String>,
    _asking: AbortOnDropHandle<()>,
}

impl Monitor {
    /// Watches a job of the master at this URL.
    pub fn start(master: String, job: String) -> Self {
        let (seen, _) = watch::channel(Seen {
            epoch: 0,
            since: Instant::now(),
            longest: Duration::ZERO,
            epochs: 0,
            job: Job::default(),
            ended: None,
        });
        let seen = Arc::new(seen);
        let (master, url) = watch::channel(master);
        let asking = tokio::spawn(ask(job, url, Arc::clone(&seen)));
        Self {
            seen,
            master,
            _asking: AbortOnDropHandle::new(asking),
        }
    }

    /// The master is at another place now.
    pub fn follow(&self, master: String) {
        self.master.send_replace(master);
    }

    /// Counts from now on.
    pub fn begin(&self) {
        self.seen.send_modify(|seen| {
            seen.since = Instant::now();
            seen.longest = Duration::ZERO;
            seen.epochs = 0;
        });
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// The longest time without a new epoch since [`Self::begin`]. The time since the last one does not count: there
    /// may be nothing to read.
    pub fn longest(&self) -> Duration {
        self.seen.borrow().longest
    }

    /// Waits for another epoch, for a while.
    pub async fn next_epoch(&self, deadline: Duration) -> bool {
        let mut seen = self.seen.subscribe();
        let now = seen.borrow().epochs;
        let grown = seen.wait_for(|seen| seen.epochs > now);
        tokio::time::timeout(deadline, grown).await.is_ok()
    }
}

async fn ask(job: String, url: watch::Receiver<String>, seen: Arc<watch::Sender<Seen>>) {
    let mut client: Option<(String, Client)> = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let wanted = url.borrow().clone();
        let known = client.take().filter(|(master, _)| *master == wanted);
        let answer = tokio::time::timeout(ANSWER, async {
            let (url, known) = match known {
                Some(known) => known,
                None => (wanted.clone(), Client::connect(&wanted).await?),
            };
            let answer = known.get(&job).await?;
            client = Some((url, known));
            anyhow::Ok(answer)
        });
        let Ok(Ok(answer)) = answer.await else {
            continue;
        };
        seen.send_modify(|seen| {
            let epoch = answer.last_epoch.as_ref().map_or(0, |last| last.epoch);
            if epoch > seen.epoch {
                seen.longest = seen.longest.max(seen.since.elapsed());
                seen.since = Instant::now();
                seen.epochs += epoch - seen.epoch;
                seen.epoch = epoch;
            }
            seen.ended =
                ended(&answer).then(|| format!("{:?}: {}", answer.state(), answer.message));
            seen.job = answer;
        });
    }
}
