//! The command line: one binary that is a master, a worker, a whole cluster or a client.

mod check;
mod client;
mod config;
mod demo;
mod doctor;
mod epoch_text;
#[cfg(test)]
mod fake;
mod health;
mod job_json;
mod job_text;
mod jobs;
mod logging;
mod progress;
mod security;
mod serve;
mod sql;
mod text;
mod watch;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

// Decodes and aggregates faster than the system's allocator and gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes:
  0    it worked
  1    the job or query failed or was cancelled; check found an error, doctor a broken link
  2    wrong usage
  3    the master cannot be reached
  4    the master refused the request: invalid SQL, no such job, not allowed
  130  interrupted";

/// SQL over Kafka, Postgres and files, on one master and many workers.
#[derive(Debug, Parser)]
#[command(name = "essaim", version = essaim_proto::VERSION.as_str(), after_help = EXIT_CODES)]
struct Cli {
    /// A TOML file with the tables [master], [worker] and [client]; its keys are their flags.
    #[arg(long, global = true, env = "ESSAIM_CONFIG", value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a master: it plans jobs and hands their tasks to workers.
    Master(serve::MasterArgs),
    /// Run a worker: it does the tasks that the master hands out.
    Worker(serve::WorkerArgs),
    /// Run a master and workers in this process, and SQL on them.
    #[command(after_help = EXIT_CODES)]
    Local(serve::LocalArgs),
    /// Run a job on a cluster, a broker and a database of its own, and kill a worker meanwhile.
    #[command(after_help = EXIT_CODES)]
    Demo(demo::DemoArgs),
    /// Ask whether a server on this machine serves: exit code 0 if one does, else 1.
    Health(health::HealthArgs),
    /// Run SQL: one statement, a file, or a shell.
    #[command(after_help = EXIT_CODES)]
    Sql(sql::SqlArgs),
    /// Hand a job file to the master and print the job's id.
    #[command(after_help = EXIT_CODES)]
    Submit(jobs::SubmitArgs),
    /// Look what is wrong with a job file, or may go wrong, without running it.
    #[command(after_help = EXIT_CODES)]
    Check(check::CheckArgs),
    /// Try which of the links between master, workers, brokers, databases and state dir are broken.
    #[command(after_help = EXIT_CODES)]
    Doctor(doctor::DoctorArgs),
    /// List the jobs, newest first.
    #[command(after_help = EXIT_CODES)]
    Jobs(jobs::JobsArgs),
    /// Show a job: its queries, stages and the attempts that failed; the last epoch of a streaming job.
    #[command(after_help = EXIT_CODES)]
    Status(jobs::StatusArgs),
    /// End a streaming job after its epoch: it goes on from there when it is submitted again under its name.
    #[command(after_help = EXIT_CODES)]
    Stop(jobs::StopArgs),
    /// End a job at once.
    #[command(after_help = EXIT_CODES)]
    Cancel(jobs::CancelArgs),
    /// Show which settings are in force, and whether they come from a file, the environment or a flag.
    Config(config::ConfigArgs),
}

fn main() -> ExitCode {
    let cli = match config::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(failure) => return client::report(&failure.into()),
    };
    let logging = cli.command.logging();
    let done = runtime(&cli.command)
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let _context = runtime.enter();
            let logging = logging::init(&logging);
            let done = runtime.block_on(cli.command.run());
            logging.end();
            done
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => client::report(&error),
    }
}

/// A server uses all cores; a client only waits for one.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if command.is_server() {
        // A worker decodes the plans of exchanges on these.
        builder.thread_stack_size(essaim_common::threads::STACK);
    } else {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

impl Command {
    fn is_server(&self) -> bool {
        matches!(self, Self::Master(_) | Self::Worker(_) | Self::Local(_))
    }

    fn logging(&self) -> logging::Logging {
        match self {
            Self::Master(args) => args.logging(),
            Self::Worker(args) => args.logging(),
            _ => logging::Logging::QUIET,
        }
    }

    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Master(args) => serve::master(args).await,
            Self::Worker(args) => serve::worker(args).await,
            Self::Demo(args) => demo::run(args).await,
            Self::Health(args) => health::health(args).await,
            // These two look after Ctrl-C themselves: a shell goes on after it.
            Self::Local(args) => serve::local(args).await,
            Self::Sql(args) => sql::run(args).await,
            Self::Submit(args) => jobs::submit(args).await,
            Self::Check(args) => client::interruptible(check::run(args)).await,
            Self::Doctor(args) => client::interruptible(doctor::run(args)).await,
            Self::Jobs(args) => client::interruptible(jobs::list(args)).await,
            Self::Status(args) => client::interruptible(jobs::status(args)).await,
            Self::Stop(args) => client::interruptible(jobs::stop(args)).await,
            Self::Cancel(args) => client::interruptible(jobs::cancel(args)).await,
            Self::Config(args) => config::show(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_is_given_with_a_unit() {
        let cli = Cli::try_parse_from(["essaim", "master", "--memory", "512MiB"]).unwrap();
        let Command::Master(args) = cli.command else {
            panic!("not a master");
        };
        assert_eq!(args.config().memory_bytes, 512 << 20);
    }
}
