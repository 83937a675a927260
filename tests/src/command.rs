//! `essaim` run as a command: what it prints and the code that it ends with.

use crate::LONG;
use crate::cluster::binary;
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// The one document on standard output.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{self:?}"))
    }
}

/// Runs `essaim` against the master at `master`.
///
/// # Errors
/// It does not end within [`LONG`].
pub async fn essaim(master: &str, arguments: &[&str]) -> Result<Ended> {
    essaim_reads(master, arguments, "").await
}

/// As [`essaim`], with `input` on its standard input.
///
/// # Errors
/// As [`essaim`].
pub async fn essaim_reads(master: &str, arguments: &[&str], input: &str) -> Result<Ended> {
    let mut child = Command::new(binary()?)
        .args(arguments)
        .env("ESSAIM_MASTER", master)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A command that does not read it may have ended before.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(LONG, child.wait_with_output())
        .await
        .with_context(|| format!("{arguments:?}"))??;
    Ok(Ended {
        code: output.status.code().context("killed by a signal")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}
