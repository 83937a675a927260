//! How jobs share the slots: who waits for one, who holds some, and who gets the next.
//!
//! The next slot goes to the job that holds the fewest; among equals to the one that has used the least time so far.
//! A streaming job goes first while such jobs together hold less than three quarters of all slots. While batch tasks
//! hold slots of a worker, a streaming task may take a place beside them, one for every four of its slots: so no batch
//! job, however long its tasks, keeps an epoch waiting.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Slots for which a worker has one place beside them.
const SLOTS_A_SPARE: usize = 4;

/// Where a task may run.
#[derive(Debug, Clone)]
pub enum Place {
    /// Anywhere, but on these workers only if there is no other.
    Avoiding(Vec<String>),
    /// On this worker: its part of an exchange.
    On(String),
}

/// What somebody wants a slot for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The job's id.
    pub job: String,
    /// Whether it is a streaming job.
    pub streaming: bool,
    /// Slots that the job may hold at a time.
    pub limit: usize,
    /// Where the task may run.
    pub place: Place,
}

/// The slots of one worker.
#[derive(Debug, Default, Clone)]
pub(crate) struct Lanes {
    pub(crate) slots: usize,
    /// Slots that batch jobs hold.
    pub(crate) batch: usize,
    /// Slots that streaming jobs hold.
    pub(crate) streaming: usize,
    /// Places beside the slots that streaming jobs hold.
    pub(crate) spare: usize,
    /// Takes no more tasks.
    pub(crate) closed: bool,
}

/// Which of a worker's places a task has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Batch,
    Streaming,
    Spare,
}

impl Lanes {
    /// Slots that are held.
    pub(crate) fn used(&self) -> usize {
        self.batch + self.streaming
    }

    /// Tasks that the worker was given.
    pub(crate) fn tasks(&self) -> usize {
        self.used() + self.spare
    }

    fn free(&self) -> usize {
        self.slots - self.used().min(self.slots)
    }

    /// The lane that a task of this kind would get.
    fn open(&self, streaming: bool) -> Option<Lane> {
        if self.closed {
            return None;
        }
        match (self.free() > 0, streaming) {
            (true, true) => Some(Lane::Streaming),
            (true, false) => Some(Lane::Batch),
            (false, true) => {
                let spares = self.slots.div_ceil(SLOTS_A_SPARE).min(self.batch);
                (self.spare < spares).then_some(Lane::Spare)
            }
            (false, false) => None,
        }
    }

    pub(crate) fn count(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Batch => &mut self.batch,
            Lane::Streaming => &mut self.streaming,
            Lane::Spare => &mut self.spare,
        }
    }
}

/// A job's part in the cluster, while it holds or wants something.
#[derive(Debug)]
struct Share<T> {
    streaming: bool,
    /// First come, first served.
    waiting: VecDeque<(Wanted, T)>,
    held: usize,
    /// Seconds that its slots were held, those that are held still counted from their starts.
    used: f64,
    /// The sum of those starts.
    starts: f64,
}

impl<T> Share<T> {
    fn used(&self, now: f64) -> f64 {
        self.used + self.held as f64 * now - self.starts
    }

    /// Whether it has begun to gather the slots of an exchange: until it has all of them those that it holds idle.
    fn gathers(&self) -> bool {
        let next = self.waiting.front();
        self.held > 0 && next.is_some_and(|(wanted, _)| matches!(wanted.place, Place::On(_)))
    }
}

/// All jobs that hold or want slots. `T` is how a waiter is told.
#[derive(Debug)]
pub(crate) struct Shares<T> {
    jobs: BTreeMap<String, Share<T>>,
    origin: Instant,
}

impl<T> Default for Shares<T> {
    fn default() -> Self {
        Self {
            jobs: BTreeMap::new(),
            origin: Instant::now(),
        }
    }
}

/// A slot for somebody.
#[derive(Debug)]
pub(crate) struct Grant<T> {
    pub(crate) job: String,
    pub(crate) waiter: T,
    pub(crate) worker: String,
    pub(crate) lane: Lane,
    /// When: what [`Shares::give_back`] is to be told.
    pub(crate) start: f64,
}

impl<T> Shares<T> {
    fn now(&self) -> f64 {
        self.origin.elapsed().as_secs_f64()
    }

    /// Takes in somebody who waits.
    pub(crate) fn wait(&mut self, wanted: Wanted, waiter: T) {
        let now = self.now();
        // A newcomer has no claim on what others used before it came.
        let least = self.jobs.values().map(|share| share.used(now));
        let least = least.min_by(f64::total_cmp).unwrap_or_default();
        let share = self
            .jobs
            .entry(wanted.job.clone())
            .or_insert_with(|| Share {
                streaming: wanted.streaming,
                waiting: VecDeque::new(),
                held: 0,
                used: least,
                starts: 0.0,
            });
        share.waiting.push_back((wanted, waiter));
    }

    /// The next one to get a slot, if there is one for it. The job holds it from now on; the worker's lanes are the
    /// caller's to count.
    pub(crate) fn next(&mut self, workers: &BTreeMap<String, Lanes>) -> Option<Grant<T>> {
        let open = |streaming| {
            workers
                .values()
                .any(|lanes| lanes.open(streaming).is_some())
        };
        let (batch_open, streaming_open) = (open(false), open(true));
        if !streaming_open {
            return None;
        }
        let slots = workers.values().filter(|lanes| !lanes.closed);
        let slots: usize = slots.map(|lanes| lanes.slots).sum();
        let streaming: usize = workers.values().map(|lanes| lanes.streaming).sum();
        let streams_first = streaming < slots * 3 / 4;
        let now = self.now();
        let mut order: Vec<(bool, usize, f64, &String)> = self
            .jobs
            .iter()
            .filter(|(_, share)| share.streaming || batch_open)
            .map(|(job, share)| {
                let first = share.gathers() || (share.streaming && streams_first);
                (!first, share.held, share.used(now), job)
            })
            .collect();
        order.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
        let (job, position, worker, lane) = order.into_iter().find_map(|(_, held, _, job)| {
            let waiting = self.jobs[job].waiting.iter().enumerate();
            let mut within = waiting.filter(|(_, (wanted, _))| held < wanted.limit);
            let (position, (worker, lane)) =
                within.find_map(|(at, (wanted, _))| Some((at, best(workers, wanted)?)))?;
            Some((job.clone(), position, worker, lane))
        })?;
        let share = self.jobs.get_mut(&job)?;
        let (_, waiter) = share.waiting.remove(position)?;
        share.held += 1;
        share.starts += now;
        Some(Grant {
            job,
            waiter,
            worker,
            lane,
            start: now,
        })
    }

    /// A job gives back the slot that it has had since `start`.
    pub(crate) fn give_back(&mut self, job: &str, start: f64) {
        let now = self.now();
        if let Some(share) = self.jobs.get_mut(job) {
            share.held -= 1;
            share.starts -= start;
            share.used += now - start;
        }
        self.tidy(job);
    }

    /// Lets go of those who wait for this worker and no other.
    pub(crate) fn close(&mut self, worker: &str) {
        for share in self.jobs.values_mut() {
            share
                .waiting
                .retain(|(wanted, _)| !matches!(&wanted.place, Place::On(on) if on == worker));
        }
        self.jobs
            .retain(|_, share| share.held > 0 || !share.waiting.is_empty());
    }

    fn tidy(&mut self, job: &str) {
        let idle = |share: &Share<T>| share.held == 0 && share.waiting.is_empty();
        if self.jobs.get(job).is_some_and(idle) {
            self.jobs.remove(job);
        }
    }

    /// How many wait; one that has given up is still there until its turn comes.
    pub(crate) fn waiting(&self, is_there: impl Fn(&T) -> bool) -> usize {
        let waiting = self.jobs.values().flat_map(|share| &share.waiting);
        waiting.filter(|(_, waiter)| is_there(waiter)).count()
    }
}

/// The worker with the most free slots that suits, or else one with a place beside them.
fn best(workers: &BTreeMap<String, Lanes>, wanted: &Wanted) -> Option<(String, Lane)> {
    // A worker to be avoided is better than none, but not better than waiting for another.
    let suits = |id: &String| match &wanted.place {
        Place::On(worker) => id == worker,
        Place::Avoiding(avoid) => {
            let mut others = workers.iter().filter(|(_, lanes)| !lanes.closed);
            !avoid.contains(id) || others.all(|(id, _)| avoid.contains(id))
        }
    };
    workers
        .iter()
        .filter(|(id, _)| suits(id))
        .filter_map(|(id, lanes)| Some((id, lanes, lanes.open(wanted.streaming)?)))
        .max_by_key(|(_, lanes, _)| (lanes.free(), std::cmp::Reverse(lanes.spare)))
        .map(|(id, _, lane)| (id.clone(), lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers, shares, and what is held: as the registry keeps them.
    struct Cluster {
        workers: BTreeMap<String, Lanes>,
        shares: Shares<()>,
        held: Vec<Grant<()>>,
    }

    impl Cluster {
        fn new(workers: &[usize]) -> Self {
            let lanes = workers.iter().enumerate().map(|(id, slots)| {
                let lanes = Lanes {
                    slots: *slots,
                    ..Lanes::default()
                };
                (format!("w{id}"), lanes)
            });
            Self {
                workers: lanes.collect(),
                shares: Shares::default(),
                held: Vec::new(),
            }
        }

        fn want(&mut self, job: &str, count: usize) {
            self.want_at(job, count, usize::MAX, Place::Avoiding(Vec::new()));
        }

        fn want_at(&mut self, job: &str, count: usize, limit: usize, place: Place) {
            for _ in 0..count {
                let wanted = Wanted {
                    job: job.to_owned(),
                    streaming: job.starts_with('s'),
                    limit,
                    place: place.clone(),
                };
                self.shares.wait(wanted, ());
            }
            self.dispatch();
        }

        fn dispatch(&mut self) {
            loop {
                let Some(grant) = self.shares.next(&self.workers) else {
                    return;
                };
                let lanes = self.workers.get_mut(&grant.worker).unwrap();
                *lanes.count(grant.lane) += 1;
                self.held.push(grant);
            }
        }

        /// One task of `job` ends, after so many seconds.
        fn end(&mut self, job: &str, seconds: f64) {
            let at = self.held.iter().position(|held| held.job == job).unwrap();
            let held = self.held.remove(at);
            *self.workers.get_mut(&held.worker).unwrap().count(held.lane) -= 1;
            self.shares.jobs.get_mut(job).unwrap().used += seconds;
            self.shares.give_back(job, held.start);
            self.dispatch();
        }

        fn holds(&self, job: &str) -> usize {
            self.held.iter().filter(|held| held.job == job).count()
        }
    }

    #[test]
    fn jobs_come_to_hold_as_many_slots_each() {
        let mut cluster = Cluster::new(&[2, 2]);
        cluster.want("a", 20);
        assert_eq!(cluster.holds("a"), 4);
        cluster.want("b", 20);
        cluster.end("a", 1.0);
        cluster.end("a", 1.0);
        assert_eq!((cluster.holds("a"), cluster.holds("b")), (2, 2));
        cluster.end("b", 1.0);
        assert_eq!((cluster.holds("a"), cluster.holds("b")), (2, 2));
    }

    #[test]
    fn one_slot_is_shared_by_time_whatever_the_tasks_length() {
        let mut cluster = Cluster::new(&[1]);
        cluster.want("a", 1000);
        cluster.want("b", 1000);
        // A task of `a` takes ten times as long as one of `b`.
        let (mut a, mut b) = (0.0_f64, 0.0_f64);
        while a + b < 300.0 {
            if cluster.holds("a") == 1 {
                a += 10.0;
                cluster.end("a", 10.0);
            } else {
                b += 1.0;
                cluster.end("b", 1.0);
            }
        }
        assert!((a - b).abs() <= 20.0, "{a} s and {b} s");
    }

    #[test]
    fn a_newcomer_waits_for_nobodys_past() {
        let mut cluster = Cluster::new(&[1]);
        cluster.want("a", 100);
        for _ in 0..10 {
            cluster.end("a", 10.0);
        }
        cluster.want("b", 100);
        cluster.end("a", 10.0);
        let mut of_b = 0;
        for _ in 0..20 {
            if cluster.holds("b") == 1 {
                of_b += 1;
                cluster.end("b", 10.0);
            } else {
                cluster.end("a", 10.0);
            }
        }
        assert!((9..=12).contains(&of_b), "{of_b} of 20");
    }

    #[test]
    fn a_job_holds_no_more_than_its_limit() {
        let mut cluster = Cluster::new(&[4]);
        cluster.want_at("a", 10, 3, Place::Avoiding(Vec::new()));
        assert_eq!(cluster.holds("a"), 3);
        cluster.end("a", 1.0);
        assert_eq!(cluster.holds("a"), 3);
        cluster.want("b", 10);
        assert_eq!(cluster.holds("b"), 1);
    }

    #[test]
    fn a_streaming_task_runs_beside_batch_tasks_that_never_end() {
        let mut cluster = Cluster::new(&[1, 1]);
        cluster.want("batch", 100);
        assert_eq!(cluster.holds("batch"), 2);
        cluster.want("stream", 4);
        assert_eq!(cluster.holds("stream"), 2);
        cluster.end("stream", 0.01);
        cluster.end("stream", 0.01);
        assert_eq!(cluster.holds("stream"), 2);
        // Places beside the slots are for streaming tasks only, and only while there is need for them.
        cluster.want("other batch", 1);
        assert_eq!(cluster.holds("other batch"), 0);
        let mut alone = Cluster::new(&[1, 1]);
        alone.want("stream", 4);
        assert_eq!(alone.holds("stream"), 2);
    }

    #[test]
    fn a_streaming_job_takes_the_next_slots_but_leaves_some() {
        let mut cluster = Cluster::new(&[8]);
        cluster.want("batch", 100);
        cluster.want("stream", 100);
        // Two beside the slots at once.
        assert_eq!(cluster.holds("stream"), 2);
        for _ in 0..20 {
            cluster.end("batch", 1.0);
        }
        let (batch, stream) = (cluster.holds("batch"), cluster.holds("stream"));
        assert!(batch >= 2, "{batch} and {stream}");
        assert!(stream > batch, "{batch} and {stream}");
        assert!(stream + batch <= 10, "{batch} and {stream}");
    }

    #[test]
    fn an_exchange_that_has_begun_to_gather_goes_first() {
        let mut cluster = Cluster::new(&[1, 1, 1]);
        cluster.want("a", 100);
        cluster.want_at("b", 1, usize::MAX, Place::On("w0".to_owned()));
        let mut next = 1;
        for _ in 0..6 {
            let had = cluster.holds("b");
            cluster.end("a", 1.0);
            if cluster.holds("b") > had && next < 3 {
                cluster.want_at("b", 1, usize::MAX, Place::On(format!("w{next}")));
                next += 1;
            }
            if cluster.holds("b") == 3 {
                return;
            }
        }
        panic!("it holds {}", cluster.holds("b"));
    }

    #[test]
    fn nobody_waits_for_a_worker_that_has_gone() {
        let mut cluster = Cluster::new(&[1]);
        cluster.want("a", 1);
        cluster.want_at("b", 1, usize::MAX, Place::On("w0".to_owned()));
        cluster.shares.close("w0");
        assert_eq!(cluster.shares.waiting(|_| true), 0);
        assert_eq!(cluster.shares.jobs.len(), 1);
    }
}
