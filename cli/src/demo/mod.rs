//! `essaim demo`: a cluster, a broker and a database of its own, a stream, a worker and the master killed, and an account
//! of every row.

mod account;
mod cluster;
mod job;
mod kafka;
mod latency;
mod postgres;
mod process;
mod produce;
mod screen;
mod toots;

use crate::client::Failure;
use crate::serve::Signals;
use account::Account;
use anyhow::{Result, ensure};
use cluster::Cluster;
use indicatif::HumanCount;
use job::{Outcome, Running, Scene};
use kafka::{Broker, PARTITIONS, TOPIC};
use latency::{Latencies, Produced, Seen};
use postgres::{Installation, Ledger, Postgres};
use process::{Group, private_folder};
use screen::Screen;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;
use toots::Author;

/// Toots a second, and for how long they come.
const PER_SECOND: u64 = 20_000;
const LENGTH: Duration = Duration::from_secs(20);
/// Toots that are sent so soon after the first, or so shortly before the first kill, are not among the undisturbed ones.
const WARM_UP: Duration = Duration::from_secs(2);
const BEFORE_KILL: Duration = Duration::from_secs(1);
/// Rows of the table that they are joined with.
const ACCOUNTS: u64 = 5_000;
const WORKERS: usize = 2;
/// Rows shown of each result table.
const ROWS_SHOWN: usize = 6;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    part: Option<Part>,
    /// Print the account as one line of JSON, the last line; all else goes to standard error.
    #[arg(long)]
    json: bool,
    /// Leave everything up until Ctrl-C, and say how to talk to it.
    #[arg(long)]
    keep: bool,
}

/// A part of the demo by itself, for clusters that have the rest.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Send toots to a topic, at a steady rate, until SIGTERM or Ctrl-C.
    Produce(produce::ProduceArgs),
}

/// Everything that runs. Stopped in this order when dropped, the folders last.
struct Stage {
    cluster: Cluster,
    broker: Broker,
    postgres: Postgres,
    _group: Group,
    folder: TempDir,
    _installation: Installation,
}

/// How it went, with the names that scripts read.
#[derive(Debug, Serialize)]
struct Summary {
    kafka_rows: u64,
    counted: u64,
    lost: u64,
    duplicated: u64,
    late_rows: u64,
    workers_killed: u32,
    masters_killed: u32,
    epochs: u64,
    /// From produced to visible in PostgreSQL, ms: of the toots between the first seconds and the first kill, and the
    /// longest of all.
    p50_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
    tables: Vec<&'static str>,
    seconds: f64,
}

/// How long toots took to be visible in PostgreSQL.
#[derive(Debug)]
struct Speed {
    /// Between the first seconds and the first kill.
    undisturbed: Latencies,
    all: Latencies,
}

/// Runs the demo, or the part of it that is named.
///
/// # Errors
/// Something does not start, the job fails, worker or master were not killed while it ran, or the account is not right.
pub async fn run(args: DemoArgs) -> Result<()> {
    if let Some(Part::Produce(args)) = args.part {
        return produce::produce(args).await;
    }
    let mut signals = Signals::new()?;
    let mut screen = Screen::new(args.json);
    let performed = tokio::select! {
        performed = perform(&mut screen, args.keep) => performed,
        () = signals.next() => return Err(Failure::Interrupted(String::new()).into()),
    };
    let (stage, account, outcome, speed) = performed?;
    let verdict = verdict(&account, &outcome);
    screen.print(&match &verdict {
        Ok(()) => format!(
            "Every row is counted exactly once, {:.1} s after the start.",
            screen.elapsed().as_secs_f64()
        ),
        Err(wrong) => format!("{wrong:#}"),
    });
    if args.keep {
        screen.print(&stage.how_to_talk());
    }
    if args.json {
        print_json(&Summary {
            kafka_rows: account.kafka_rows,
            counted: account.counted(),
            lost: account.lost(),
            duplicated: account.duplicated(),
            late_rows: late_rows(&outcome),
            workers_killed: outcome.workers_killed,
            masters_killed: outcome.masters_killed,
            epochs: epochs(&outcome),
            p50_ms: speed.undisturbed.quantile_ms(0.5),
            p99_ms: speed.undisturbed.quantile_ms(0.99),
            longest_ms: speed.all.quantile_ms(1.0),
            tables: account.lines.iter().map(|line| line.table).collect(),
            seconds: (screen.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        })?;
    }
    if args.keep {
        signals.next().await;
    }
    // It has been said, and the JSON is to be the last line.
    verdict.map_err(|_| Failure::Failed(String::new()).into())
}

/// The demo up to its account. With `keep` the killed worker is replaced at the end.
async fn perform(screen: &mut Screen, keep: bool) -> Result<(Stage, Account, Outcome, Speed)> {
    let folder = private_folder("essaim-demo-")?;
    let installation = Installation::find()?;
    let group = Group::new(&[folder.path(), installation.folder()])?;
    let postgres = Postgres::start(&installation, &group).await?;
    let broker = Broker::start()?;
    screen.say(&format!(
        "PostgreSQL {} is up at port {} of 127.0.0.1, a Kafka broker at {}",
        postgres.version,
        postgres.port,
        broker.address()
    ));
    let variables = vec![
        ("DEMO_KAFKA", broker.address()),
        ("DEMO_POSTGRES", postgres.url.clone()),
    ];
    let cluster = Cluster::start(WORKERS, variables, folder.path(), &group);
    let (mut cluster, ()) = tokio::try_join!(cluster, postgres.fill_accounts(ACCOUNTS))?;
    screen.say(&format!(
        "a master and its {} workers are up at {}",
        cluster.workers(),
        cluster.grpc()
    ));
    let running = Running::submit(&cluster.grpc()).await?;
    screen.say(&format!(
        "the job runs (examples/demo/job.sql); {} toots a second come for {} s, into the {PARTITIONS} partitions of topic {TOPIC}",
        HumanCount(PER_SECOND),
        LENGTH.as_secs()
    ));

    let (produced, seen) = (Arc::new(Produced::default()), Arc::new(Seen::default()));
    let ledger = Ledger::new(&postgres).await?;
    let author = Author::new(ACCOUNTS);
    let produce = kafka::produce(
        broker.address(),
        author,
        PER_SECOND,
        LENGTH,
        ledger,
        Arc::clone(&produced),
    );
    // Tasks of their own: neither waits for the other, or for the screen.
    let produce = AbortOnDropHandle::new(tokio::spawn(produce));
    let look = Arc::clone(&seen).look(postgres.url.clone(), account::LANGUAGES);
    let look = AbortOnDropHandle::new(tokio::spawn(look));
    let total = OnceLock::new();
    let produce = async {
        let kafka_rows = produce.await??;
        Ok(*total.get_or_init(|| kafka_rows))
    };
    let scene = Scene {
        cluster: &mut cluster,
        group: &group,
        postgres: &postgres,
        screen,
        produced: &produced,
        seen: &seen,
        total: &total,
    };
    let (kafka_rows, outcome) = tokio::select! {
        performed = async { tokio::try_join!(produce, running.perform(scene)) } => performed?,
        looked = look => match looked?? {},
    };
    screen.job_ended();
    screen.say("all toots are read; the job has stopped");
    postgres.run("ANALYZE toots_sent").await?;
    let account = Account::draw_up(&postgres, kafka_rows).await?;
    let (produced, seen) = (produced.all(), seen.all());
    let undisturbed = produced
        .first()
        .zip(outcome.first_kill)
        .and_then(|((first, _), kill)| Some(*first + WARM_UP..kill.checked_sub(BEFORE_KILL)?));
    let speed = Speed {
        undisturbed: Latencies::new(&produced, &seen, undisturbed),
        all: Latencies::new(&produced, &seen, None),
    };
    screen.print(&format!(
        "\n{}\n\nThe account:\n{}\n\n{}\n",
        job::newest(&postgres).await?,
        account.text(),
        speed.text(&outcome)
    ));
    if keep {
        cluster.add_worker(&group).await?;
    }
    let stage = Stage {
        cluster,
        broker,
        postgres,
        _group: group,
        folder,
        _installation: installation,
    };
    Ok((stage, account, outcome, speed))
}

/// What is not as it should be, if anything.
fn verdict(account: &Account, outcome: &Outcome) -> Result<()> {
    ensure!(
        account.is_right(),
        "The account is not right: {} toots were sent, {} counted, {} rows lost, {} counted twice.",
        account.kafka_rows,
        account.counted(),
        account.lost(),
        account.duplicated()
    );
    ensure!(
        late_rows(outcome) == 0,
        "{} rows came late.",
        late_rows(outcome)
    );
    ensure!(
        outcome.workers_killed > 0 && outcome.masters_killed > 0,
        "The toots were over before worker and master could be killed: run the demo again."
    );
    Ok(())
}

/// Rows that came behind the watermark, over both masters.
fn late_rows(outcome: &Outcome) -> u64 {
    outcome
        .job
        .totals
        .as_ref()
        .map_or(0, |totals| totals.late_rows)
}

/// Epochs that were committed: they are numbered from 0.
fn epochs(outcome: &Outcome) -> u64 {
    let last = outcome.job.last_epoch.as_ref();
    last.map_or(0, |epoch| epoch.epoch + 1)
}

impl Speed {
    fn text(&self, outcome: &Outcome) -> String {
        format!(
            "{} epochs, {} rows late. From produced to visible in PostgreSQL: p50 {} ms, p99 {} ms before the first kill\n\
             (without the first {} s); at most {} ms in all, with a worker and the master killed.",
            HumanCount(epochs(outcome)),
            HumanCount(late_rows(outcome)),
            self.undisturbed.quantile_ms(0.5),
            self.undisturbed.quantile_ms(0.99),
            WARM_UP.as_secs(),
            self.all.quantile_ms(1.0),
        )
    }
}

impl Stage {
    /// For `--keep`: where everything is, and what to paste into `essaim sql`.
    fn how_to_talk(&self) -> String {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("essaim"));
        let program = program.display();
        let (grpc, http) = (self.cluster.grpc(), self.cluster.http);
        // A query reads the topic as it stands now.
        let tables: String = job::SQL
            .split_inclusive('\n')
            .skip_while(|line| !line.starts_with("CREATE"))
            .take_while(|line| !line.starts_with("SET"))
            .map(|line| line.replacen("UNBOUNDED ", "", 1))
            .collect();
        format!(
            "\nEverything stays up until Ctrl-C.
  SQL:        {program} sql --master {grpc}
  the job:    {program} status --master {grpc} {}
  its epochs: http://{http}/api/v1/jobs/{}/epochs
  workers:    http://{http}/api/v1/cluster
  PostgreSQL: psql {}
  Kafka:      {}, topic {TOPIC}
  logs:       {}
To begin with, paste this into the SQL shell (the master knows what the variables stand for):

{tables}SELECT language, count(*) AS toots FROM toots GROUP BY language;
",
            job::NAME,
            job::NAME,
            self.postgres.url,
            self.broker.address(),
            self.folder.path().display(),
        )
    }
}

fn print_json(summary: &Summary) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(summary)?)?;
    Ok(out.flush()?)
}
