//! `essaim sql`: statements from the command line, a file, a pipe or a person.

mod commands;
mod declared;
mod place;
mod print;
mod session;
mod shell;
mod split;

use crate::client::{self, Failure, MasterAddress};
use anyhow::Result;
use print::Format;
use session::{Flow, Session};
use std::io::IsTerminal;
use tokio::sync::mpsc;

/// Lines that may wait between standard input and the statements they are part of.
const LINES_AHEAD: usize = 64;

#[derive(Debug, clap::Args)]
pub struct SqlArgs {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    address: MasterAddress,
}

/// What to run and how to show it.
#[derive(Debug, Clone, clap::Args)]
pub struct Input {
    /// Run these statements; may be given several times.
    #[arg(short = 'c', long, value_name = "SQL")]
    command: Vec<String>,
    /// Run the statements of a file; - for standard input.
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "command")]
    file: Option<String>,
    /// How rows are written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// `essaim sql`.
///
/// # Errors
/// What the first statement that fails ends with; a shell has none.
pub async fn run(args: SqlArgs) -> Result<()> {
    run_at(&args.address, args.input, "").await
}

/// Runs SQL on the master at `address`. A shell begins with `greeting`, or the address if that is empty.
///
/// # Errors
/// As for [`run`].
pub async fn run_at(address: &MasterAddress, input: Input, greeting: &str) -> Result<()> {
    let format = if input.json {
        Format::Json
    } else {
        input.format
    };
    let client = client::interruptible(async { Ok(client::connect(address).await?) }).await?;
    let mut session = Session::new(client, format);
    if !input.command.is_empty() {
        return client::interruptible(commands(&mut session, &input.command)).await;
    }
    match input.file.as_deref() {
        None if std::io::stdin().is_terminal() => {
            let greeting = match greeting {
                "" => &address.master,
                greeting => greeting,
            };
            shell::run(&mut session, greeting).await
        }
        None | Some("-") => client::interruptible(standard_input(&mut session)).await,
        Some(file) => {
            let mut out = std::io::stdout().lock();
            client::interruptible(session.include(file, 0, &mut out)).await
        }
    }
}

async fn commands(session: &mut Session, commands: &[String]) -> Result<()> {
    for command in commands {
        let flow = session.line(command, &mut std::io::stdout().lock()).await?;
        if flow == Flow::Quit {
            break;
        }
        session.finish(&mut std::io::stdout().lock()).await?;
    }
    Ok(())
}

/// Runs statements as their lines come in, so that a pipe need not end.
async fn standard_input(session: &mut Session) -> Result<()> {
    let (sender, mut lines) = mpsc::channel(LINES_AHEAD);
    // Reading blocks and cannot be cancelled: a thread that nobody waits for does not hold up Ctrl-C.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let broken = line.is_err();
            if sender.blocking_send(line.map(|line| line + "\n")).is_err() || broken {
                break;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let line = line.map_err(|e| Failure::Usage(format!("standard input: {e}")))?;
        let flow = session.line(&line, &mut std::io::stdout().lock()).await;
        if session.placed(flow, "standard input")? == Flow::Quit {
            return Ok(());
        }
    }
    let finished = session.finish(&mut std::io::stdout().lock()).await;
    session.placed(finished, "standard input")
}
