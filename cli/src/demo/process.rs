//! Processes that die with the demo, however it ends.

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;

/// How long a process may take to say its first line.
const FIRST_LINE: Duration = Duration::from_secs(20);
/// What of a log goes into an error, in lines.
const TAIL: usize = 15;

/// Waits for the end of its input, which we hold open. Only a demo that was killed does not kill it first: then it
/// ends the whole process group, twice because a first SIGTERM asks politely, and removes the folders.
const GUARD: &str =
    "trap '' TERM; cat >/dev/null; kill 0; sleep 1; kill 0; sleep 1; rm -rf -- \"$@\"; kill -9 0";

/// A folder in the temporary one that nobody else may look into. Removed when dropped.
///
/// # Errors
/// It cannot be made.
pub fn private_folder(prefix: &str) -> Result<TempDir> {
    Ok(tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir()?)
}

/// The process group of the demo's children, away from the terminal's Ctrl-C.
#[derive(Debug)]
pub struct Group {
    guard: Child,
    _held_open: Option<ChildStdin>,
    pgid: i32,
}

impl Group {
    /// An empty group; `folders` are removed if this process is killed.
    ///
    /// # Errors
    /// There is no `sh`.
    pub fn new(folders: &[&Path]) -> Result<Self> {
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .args(folders)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        Ok(Self {
            pgid: i32::try_from(guard.id())?,
            _held_open: guard.stdin.take(),
            guard,
        })
    }

    /// Starts a process of the group; its log, from standard error, goes to `NAME.log` in `folder`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(
        &self,
        name: &str,
        mut command: Command,
        end: Signal,
        folder: &Path,
    ) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .process_group(self.pgid)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stdout = child.stdout.take().context("no standard output")?;
        Ok(Process {
            name: name.to_owned(),
            child,
            stdout: BufReader::new(ChildStdout::from_std(stdout)?),
            log,
            end,
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

/// One process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: PathBuf,
    end: Signal,
}

impl Process {
    /// The next line that it writes on standard output.
    ///
    /// # Errors
    /// It ended or says nothing; the end of its log is in the message.
    pub async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(FIRST_LINE, self.stdout.read_line(&mut line)).await;
        let failure = match read {
            Ok(Ok(length)) if length > 0 => return Ok(line.trim_end().to_owned()),
            Ok(Ok(_)) => anyhow!("the {} has ended", self.name),
            Ok(Err(error)) => anyhow!("the {}'s output: {error}", self.name),
            Err(_) => anyhow!(
                "the {} has not started within {} s",
                self.name,
                FIRST_LINE.as_secs()
            ),
        };
        Err(self.explain(failure))
    }

    /// The error with the end of the process's log.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut log = String::new();
        // Without a log the error stands alone.
        let _ = File::open(&self.log).and_then(|mut file| file.read_to_string(&mut log));
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        error.context(format!("the log of the {} ends with:\n{tail}\n", self.name))
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The system's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that was waited for is gone, and its id may be another's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Ok(pid) = i32::try_from(self.child.id()) {
                let _ = kill(Pid::from_raw(pid), self.end);
            }
            // Short: SIGKILL and PostgreSQL's immediate shutdown leave nothing to be done first.
            let _ = self.child.wait();
        }
    }
}
