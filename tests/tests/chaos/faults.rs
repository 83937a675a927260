//! What goes wrong in a round, and when: all of it follows from the seed.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::fmt;
use std::time::Duration;

/// A connection that can be cut or stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Broker,
    Database,
    Master,
}

/// Something that goes wrong, and is put right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillWorker,
    KillMaster,
    KillMasterAndWorker,
    KillBroker,
    KillDatabase,
    CutBroker,
    CutDatabase,
    CutMaster,
    StallBroker,
    StallDatabase,
    StallMaster,
    /// The master is stopped, a second one takes over, and the first one wakes up.
    TakeOver,
}

impl Fault {
    pub const ALL: [Self; 12] = [
        Self::KillWorker,
        Self::KillMaster,
        Self::KillMasterAndWorker,
        Self::KillBroker,
        Self::KillDatabase,
        Self::CutBroker,
        Self::CutDatabase,
        Self::CutMaster,
        Self::StallBroker,
        Self::StallDatabase,
        Self::StallMaster,
        Self::TakeOver,
    ];

    /// Two faults of one round have nothing in common here: what is killed is not killed again before it is back.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::KillWorker => &["worker"],
            Self::KillMaster | Self::TakeOver => &["master"],
            Self::KillMasterAndWorker => &["master", "worker"],
            Self::KillBroker => &["broker"],
            Self::KillDatabase => &["database"],
            Self::CutBroker | Self::StallBroker => &["link to the broker"],
            Self::CutDatabase | Self::StallDatabase => &["link to the database"],
            Self::CutMaster | Self::StallMaster => &["link to the master"],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KillWorker => "kill a worker",
            Self::KillMaster => "kill the master",
            Self::KillMasterAndWorker => "kill master and worker",
            Self::KillBroker => "kill the broker",
            Self::KillDatabase => "kill the database",
            Self::CutBroker => "cut off the broker",
            Self::CutDatabase => "cut off the database",
            Self::CutMaster => "cut off the master",
            Self::StallBroker => "stall the broker",
            Self::StallDatabase => "stall the database",
            Self::StallMaster => "stall the master",
            Self::TakeOver => "wake an old master",
        })
    }
}

/// What is done at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The living worker at this position, modulo their number.
    KillWorker(usize),
    StartWorker,
    KillMaster,
    StartMaster,
    KillBroker,
    StartBroker,
    KillDatabase,
    StartDatabase,
    Cut(Link),
    Stall(Link),
    Restore(Link),
    FreezeMaster,
    TakeOver,
    /// The master that was frozen goes on; before that, its successor has finished an epoch.
    WakeOld,
    KillOld,
}

/// One round: 1 to 3 faults, and their steps in the order of time.
#[derive(Debug)]
pub struct Round {
    pub faults: Vec<Fault>,
    pub steps: Vec<(Duration, Step)>,
}

impl Round {
    /// Round number `round`, or one in which nothing goes wrong.
    pub fn of(seed: u64, round: u64, faulty: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(round));
        let wanted = match faulty {
            true => random.random_range(1..=3),
            false => 0,
        };
        let mut faults: Vec<Fault> = Vec::new();
        while faults.len() < wanted {
            if let Some(fault) = Fault::ALL.choose(&mut random) {
                let parts = fault.parts();
                let taken = |other: &Fault| other.parts().iter().any(|part| parts.contains(part));
                if !faults.iter().any(taken) {
                    faults.push(*fault);
                }
            }
        }
        let mut steps = Vec::new();
        for fault in &faults {
            let mut at = Duration::ZERO;
            for (step, least, most) in steps_of(*fault, &mut random) {
                at += Duration::from_millis(random.random_range(least..=most));
                steps.push((at, step));
            }
        }
        // An old master wakes when all else is well again, so that its successor can be seen to commit first.
        let last = |step: &Step| matches!(step, Step::WakeOld | Step::KillOld);
        steps.sort_by_key(|(at, step)| (last(step), *at));
        Self { faults, steps }
    }
}

/// A fault's steps, and how long after the one before each comes, ms: at least and at most.
fn steps_of(fault: Fault, random: &mut StdRng) -> Vec<(Step, u64, u64)> {
    let worker = random.random_range(0..100);
    let link = |step: fn(Link) -> Step, link| {
        vec![(step(link), 300, 4_000), (Step::Restore(link), 500, 5_000)]
    };
    match fault {
        Fault::KillWorker => vec![
            (Step::KillWorker(worker), 300, 4_000),
            (Step::StartWorker, 0, 1_500),
        ],
        Fault::KillMaster => vec![
            (Step::KillMaster, 300, 4_000),
            (Step::StartMaster, 0, 1_500),
        ],
        Fault::KillMasterAndWorker => vec![
            (Step::KillMaster, 300, 4_000),
            (Step::KillWorker(worker), 0, 300),
            (Step::StartWorker, 0, 1_500),
            (Step::StartMaster, 0, 1_500),
        ],
        Fault::KillBroker => vec![
            (Step::KillBroker, 300, 4_000),
            (Step::StartBroker, 0, 1_000),
        ],
        Fault::KillDatabase => vec![
            (Step::KillDatabase, 300, 4_000),
            (Step::StartDatabase, 0, 2_000),
        ],
        Fault::CutBroker => link(Step::Cut, Link::Broker),
        Fault::CutDatabase => link(Step::Cut, Link::Database),
        Fault::CutMaster => link(Step::Cut, Link::Master),
        Fault::StallBroker => link(Step::Stall, Link::Broker),
        Fault::StallDatabase => link(Step::Stall, Link::Database),
        Fault::StallMaster => link(Step::Stall, Link::Master),
        Fault::TakeOver => vec![
            (Step::FreezeMaster, 300, 4_000),
            (Step::TakeOver, 100, 1_000),
            (Step::WakeOld, 0, 500),
            (Step::KillOld, 1_000, 3_000),
        ],
    }
}
