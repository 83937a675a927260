//! Who runs and who waits: jobs are let in as they came, a bounded number at a time.

use crate::jobs::handle::JobHandle;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A queue with its place in each waiting job's record.
#[derive(Debug)]
pub struct Queue {
    /// Jobs that run at a time.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    next_ticket: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    job: Arc<JobHandle>,
    admit: oneshot::Sender<()>,
}

/// A job's place in a queue, and its turn once it has come. Given up when dropped.
#[derive(Debug)]
pub struct Turn {
    queue: Arc<Queue>,
    ticket: u64,
    admitted: Option<oneshot::Receiver<()>>,
}

impl Queue {
    /// A queue that lets `limit` jobs run at a time.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::default(),
        })
    }

    /// Puts a job at the end. Its record says from now on which place it has.
    pub fn enter(self: &Arc<Self>, job: &Arc<JobHandle>) -> Turn {
        let (admit, admitted) = oneshot::channel();
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(Waiting {
            ticket,
            job: Arc::clone(job),
            admit,
        });
        self.advance(&mut state);
        Turn {
            queue: Arc::clone(self),
            ticket,
            admitted: Some(admitted),
        }
    }

    /// Lets in those whose turn it is, and numbers the others.
    fn advance(&self, state: &mut State) {
        while state.running < self.limit
            && let Some(next) = state.waiting.pop_front()
        {
            state.running += 1;
            place(&next.job, 0);
            // Its receiver goes with its turn, and that gives the place back.
            let _ = next.admit.send(());
        }
        for (before, waiting) in state.waiting.iter().enumerate() {
            place(&waiting.job, before as u32 + 1);
        }
    }
}

fn place(job: &JobHandle, position: u32) {
    if job.read(|record| record.queue_position) != position {
        job.update(|record| record.queue_position = position);
    }
}

impl Turn {
    /// Returns once the job may run.
    pub async fn come(&mut self) {
        if let Some(admitted) = self.admitted.take() {
            // The sender is not dropped unused: it stays in the queue for as long as this does.
            let _ = admitted.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        let waiting = &mut state.waiting;
        match waiting.iter().position(|w| w.ticket == self.ticket) {
            Some(position) => {
                if let Some(gone) = waiting.remove(position) {
                    place(&gone.job, 0);
                }
            }
            None => state.running -= 1,
        }
        self.queue.advance(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::model::{JobKind, JobRecord};
    use futures::FutureExt;

    fn job(id: &str) -> Arc<JobHandle> {
        let (id, sql) = (id.to_owned(), String::new());
        JobHandle::new(JobRecord::new(id.clone(), id, sql, JobKind::Batch))
    }

    #[test]
    fn jobs_run_in_the_order_in_which_they_came_and_know_their_places() {
        let queue = Queue::new(2);
        let jobs: Vec<_> = ["a", "b", "c", "d", "e"].map(job).into();
        let mut turns: Vec<_> = jobs.iter().map(|job| Some(queue.enter(job))).collect();
        let places = || -> Vec<u32> {
            let place = |job: &Arc<JobHandle>| job.read(|record| record.queue_position);
            jobs.iter().map(place).collect()
        };
        assert_eq!(places(), [0, 0, 1, 2, 3]);
        for (turn, runs) in turns.iter_mut().zip([true, true, false]) {
            let come = turn.as_mut().unwrap().come().now_or_never();
            assert_eq!(come.is_some(), runs);
        }
        // One in the middle does not want any more; then one ends.
        turns[3] = None;
        assert_eq!(places(), [0, 0, 1, 0, 2]);
        turns[0] = None;
        assert_eq!(places(), [0, 0, 0, 0, 1]);
        turns[2] = None;
        assert_eq!(places(), [0; 5]);
        turns.clear();
        assert_eq!(queue.state.lock().running, 0);
    }
}
