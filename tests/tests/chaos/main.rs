//! A loaded streaming job into Postgres, Kafka and a CSV file at once, while its parts die: each row is in each once.
//!
//! `make chaos ROUNDS=n SEED=s`. What goes wrong in a round, and all rows, follow from the seed.

mod faults;
mod load;
mod monitor;
mod oracle;
mod rows;
mod sinks;
mod stage;
mod topic;

use crate::faults::{Fault, Round};
use crate::load::Load;
use crate::oracle::Oracle;
use crate::sinks::{Reached, Sinks};
use crate::stage::{COPIED, COPY_PARTITIONS, EVENTS, Stage};
use crate::topic::Reading;
use anyhow::{Context, Result, anyhow, bail, ensure};
use essaim_proto::v1::JobState;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The rounds and the seed of `make test`.
const ROUNDS: u64 = 10;
const SEED: u64 = 7;

/// How long the job goes on after the last fault of a round, and altogether in a round without.
const AFTER: Duration = Duration::from_millis(500);
const QUIET: Duration = Duration::from_secs(4);
/// How long the sinks may take after that until they hold everything.
const CATCH_UP: Duration = Duration::from_secs(90);

/// What a round did.
#[derive(Debug)]
struct Report {
    faults: Vec<Fault>,
    /// Messages, and the late and malformed ones among them.
    messages: u64,
    late: u64,
    malformed: u64,
    epochs: u64,
    stalled: Duration,
    took: Duration,
}

/// A run.
struct Chaos {
    stage: Stage,
    load: Load,
    oracle: Oracle,
    sinks: Sinks,
}

impl Chaos {
    async fn start(seed: u64) -> Result<Self> {
        let stage = Stage::start().await?;
        let brokers = stage.broker.address();
        let copy = Reading::new(&brokers, COPIED, COPY_PARTITIONS);
        Ok(Self {
            load: Load::start(seed, &brokers, EVENTS)?,
            oracle: Oracle::new(seed, &brokers, EVENTS),
            sinks: Sinks::new(seed, copy, &stage.csv()),
            stage,
        })
    }

    /// Runs a round and verifies all sinks.
    async fn round(&mut self, plan: Round) -> Result<Report> {
        let started = Instant::now();
        let (messages, late) = (self.oracle.messages, self.oracle.late);
        let malformed = self.oracle.dead.len();
        self.load.run(self.oracle.settled())?;
        self.stage.monitor.begin();
        for (at, step) in &plan.steps {
            tokio::time::sleep_until((started + *at).into()).await;
            let applied = self.stage.apply(*step).await;
            applied.with_context(|| format!("{step:?}"))?;
        }
        let rest = if plan.steps.is_empty() { QUIET } else { AFTER };
        tokio::time::sleep(rest).await;
        let sent = self.load.pause().await?;
        tokio::task::block_in_place(|| self.oracle.learn())?;
        ensure!(
            self.oracle.messages == sent,
            "{sent} messages were sent, but {} are in the topic",
            self.oracle.messages
        );
        self.catch_up().await?;
        self.sinks
            .verify(&self.oracle, &self.stage.postgres, false)
            .await?;
        self.oracle.settle();
        let seen = self.stage.monitor.seen();
        Ok(Report {
            faults: plan.faults,
            messages: sent - messages,
            late: self.oracle.late - late,
            malformed: (self.oracle.dead.len() - malformed) as u64,
            epochs: seen.epochs,
            stalled: self.stage.monitor.longest(),
            took: started.elapsed(),
        })
    }

    /// Waits until the sinks hold as much as they must.
    async fn catch_up(&mut self) -> Result<()> {
        let goal = Reached::goal(&self.oracle);
        let deadline = Instant::now() + CATCH_UP;
        loop {
            if let Some(end) = self.stage.monitor.seen().ended {
                bail!("the job has ended, {end}");
            }
            let reached = self.sinks.reached(&self.stage.postgres).await;
            match &reached {
                Ok(reached) if reached.is_at(&goal) => return Ok(()),
                _ if Instant::now() < deadline => {}
                _ => {
                    let differs = self.sinks.verify(&self.oracle, &self.stage.postgres, false);
                    let differs = differs.await.err();
                    bail!(
                        "after {CATCH_UP:?} the sinks are at {reached:?} of {goal:?}; the job says {:?}\n{differs:#?}",
                        self.stage.monitor.seen().job.message
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Keeps what is needed to understand a failure, and says where it is.
    async fn keep(&mut self) -> String {
        let epochs = self.stage.cluster.dir().join("epochs.txt");
        let found = async {
            let client = self.stage.cluster.client().await?;
            client.epochs(&self.stage.job, 1_000).await
        };
        let found = tokio::time::timeout(Duration::from_secs(5), found).await;
        let _ = std::fs::write(&epochs, format!("{found:#?}"));
        format!(
            "epochs are in {}, logs and data in {}",
            epochs.display(),
            self.stage.keep()
        )
    }

    /// Ends the job and reads all sinks once more from their beginnings.
    async fn end(&mut self) -> Result<()> {
        let client = self.stage.cluster.client().await?;
        client.cancel(&self.stage.job).await?;
        let job = client.wait_job(&self.stage.job).await?;
        ensure!(job.state() == JobState::Cancelled, "{}", job.message);
        // What the job says of itself, beside what there was: the sinks are the judges, not this.
        let totals = job.totals.unwrap_or_default();
        println!(
            "the job counted {} rows of {}, {} late of {}, {} dead letters of {}, {} starts",
            totals.input_rows,
            self.oracle.messages,
            totals.late_rows,
            // Both INSERTs with windows count them.
            2 * self.oracle.late,
            totals.records_dead_lettered,
            self.oracle.dead.len(),
            job.generation
        );
        self.sinks
            .verify(&self.oracle, &self.stage.postgres, true)
            .await
    }
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{name}={text}")),
        _ => Ok(default),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_in_every_sink_once_whatever_dies() -> Result<()> {
    let rounds = number("CHAOS_ROUNDS", ROUNDS)?;
    let first = number("CHAOS_FIRST", 1)?;
    let seed = number("CHAOS_SEED", SEED)?;
    let mut chaos = Chaos::start(seed).await?;
    let mut reports = Vec::new();
    let mut outcome = Ok(());
    for number in std::iter::once(0).chain(first..first + rounds) {
        // The first one shows that all is well when nothing goes wrong.
        let plan = Round::of(seed, number, number > 0);
        let faults = names(&plan.faults);
        match chaos.round(plan).await {
            Ok(report) => {
                println!("round {number}: {}", report.line());
                reports.push(report);
            }
            Err(error) => {
                println!("round {number}: {faults}: FAILED");
                outcome = Err(error).context(format!("seed {seed}, round {number}: {faults}"));
                break;
            }
        }
    }
    if outcome.is_ok() {
        outcome = chaos.end().await.context("after the last round");
    }
    summary(&reports, outcome.is_err());
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(anyhow!("{error:?}\n{}", chaos.keep().await)),
    }
}

fn names(faults: &[Fault]) -> String {
    let names: Vec<_> = faults.iter().map(Fault::to_string).collect();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}

impl Report {
    fn line(&self) -> String {
        format!(
            "{} | {} rows ({} late, {} malformed), {} epochs, longest stall {:.1} s, {:.0} s: exact",
            names(&self.faults),
            self.messages,
            self.late,
            self.malformed,
            self.epochs,
            self.stalled.as_secs_f64(),
            self.took.as_secs_f64()
        )
    }
}

/// The account of the whole run.
fn summary(reports: &[Report], failed: bool) {
    let mut by_fault: BTreeMap<Fault, (u64, Duration)> = BTreeMap::new();
    for report in reports {
        for fault in &report.faults {
            let (count, longest) = by_fault.entry(*fault).or_default();
            *count += 1;
            *longest = report.stalled.max(*longest);
        }
    }
    println!(
        "\n{:<24} {:>6}  longest stall of a round with it",
        "fault", "times"
    );
    for (fault, (count, longest)) in by_fault {
        println!("{fault:<24} {count:>6}  {:.1} s", longest.as_secs_f64());
    }
    let longest = reports.iter().map(|report| report.stalled).max();
    println!(
        "{} rounds, {} rows checked in each sink, {} late, {} malformed, {} epochs, longest stall {:.1} s, {} failures",
        reports.len(),
        reports.iter().map(|report| report.messages).sum::<u64>(),
        reports.iter().map(|report| report.late).sum::<u64>(),
        reports.iter().map(|report| report.malformed).sum::<u64>(),
        reports.iter().map(|report| report.epochs).sum::<u64>(),
        longest.unwrap_or_default().as_secs_f64(),
        u64::from(failed)
    );
}
