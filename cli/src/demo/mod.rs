//! `essaim demo`: a cluster, a broker and a database of its own, one job, one worker killed, and an account of every row.

mod account;
mod cluster;
mod job;
mod kafka;
mod postgres;
mod process;
mod screen;
mod toots;

use crate::client::Failure;
use crate::serve::Signals;
use account::Account;
use anyhow::{Result, ensure};
use cluster::Cluster;
use indicatif::HumanCount;
use job::Outcome;
use kafka::{Broker, PARTITIONS, TOPIC};
use postgres::{Installation, Ledger, Postgres};
use process::{Group, private_folder};
use screen::Screen;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use tempfile::TempDir;

/// Toots in the topic.
const TOOTS: u64 = 300_000;
/// Rows of the table that they are joined with.
const ACCOUNTS: u64 = 1_000_000;
const WORKERS: usize = 2;
/// Rows shown of each result table.
const ROWS_SHOWN: usize = 6;

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Print the account as one line of JSON, the last line; all else goes to standard error.
    #[arg(long)]
    json: bool,
    /// Leave everything up until Ctrl-C, and say how to talk to it.
    #[arg(long)]
    keep: bool,
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
    workers_killed: u32,
    tables: Vec<&'static str>,
    seconds: f64,
}

/// Runs the demo.
///
/// # Errors
/// Something does not start, the job fails, no worker was killed while it ran, or the account is not right.
pub async fn run(args: DemoArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::new(args.json);
    let performed = tokio::select! {
        performed = perform(&mut screen, args.keep) => performed,
        () = signals.next() => return Err(Failure::Interrupted(String::new()).into()),
    };
    let (stage, account, outcome) = performed?;
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
            workers_killed: outcome.killed.iter().count() as u32,
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
async fn perform(screen: &mut Screen, keep: bool) -> Result<(Stage, Account, Outcome)> {
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
    screen.say("a master and its workers start, topic and table are filled");
    let address = broker.address();
    let variables = [
        ("DEMO_KAFKA", address.as_str()),
        ("DEMO_POSTGRES", postgres.url.as_str()),
    ];
    let cluster = Cluster::start(WORKERS, &variables, folder.path(), &group);
    let fill = async {
        let ledger = Ledger::new(&postgres).await?;
        broker.fill(toots::toots(TOOTS, ACCOUNTS), ledger).await
    };
    let (mut cluster, kafka_rows, ()) =
        tokio::try_join!(cluster, fill, postgres.fill_accounts(ACCOUNTS))?;
    screen.say(&format!(
        "the master and its {} workers are up at {}",
        cluster.workers.len(),
        cluster.grpc
    ));
    screen.say(&format!(
        "{} toots are in the {PARTITIONS} partitions of topic {TOPIC}, {} rows in table accounts",
        HumanCount(kafka_rows),
        HumanCount(ACCOUNTS)
    ));

    screen.say("the job begins (examples/demo/job.sql)");
    let outcome = job::run(&mut cluster, screen).await?;
    screen.say("the job has succeeded");
    screen.job_ended();
    postgres.run("ANALYZE toots_sent").await?;
    let account = Account::draw_up(&postgres, kafka_rows).await?;
    for line in &account.lines {
        let rows = account::first_rows(&postgres, line.table, ROWS_SHOWN).await?;
        screen.print(&format!("\n{rows}"));
    }
    screen.print(&format!(
        "\nTasks that ran again:\n  {}\n\nThe account:\n{}\n",
        outcome.ran_again.join("\n  "),
        account.text()
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
    Ok((stage, account, outcome))
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
        outcome.killed.is_some(),
        "The job ended before a worker could be killed: run the demo again."
    );
    ensure!(
        !outcome.ran_again.is_empty(),
        "The worker that was killed had just finished its tasks: run the demo again."
    );
    Ok(())
}

impl Stage {
    /// For `--keep`: where everything is, and what to paste into `essaim sql`.
    fn how_to_talk(&self) -> String {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("essaim"));
        let program = program.display();
        let (grpc, http) = (&self.cluster.grpc, self.cluster.http);
        let tables: String = job::SQL
            .split_inclusive('\n')
            .skip_while(|line| !line.starts_with("CREATE"))
            .take_while(|line| !line.starts_with("--"))
            .collect();
        format!(
            "\nEverything stays up until Ctrl-C.
  SQL:        {program} sql --master {grpc}
  the job:    {program} status --master {grpc} {}
  its tasks:  http://{http}/api/v1/jobs/{}
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
