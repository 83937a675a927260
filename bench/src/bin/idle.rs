//! What a cluster takes that does nothing, and how long the shortest query takes with all that it needs.

use anyhow::{Context, Result, ensure};
use essaim_bench::measure::Runs;
use essaim_bench::process::status_mib;
use essaim_bench::report::Report;
use essaim_tests::cluster::{Cluster, binary};
use std::process::Stdio;
use std::time::Duration;

const RUNS: usize = 10;
const MEMORY_MARK: f64 = 100.0;
const LOCAL_MARK: f64 = 0.5;
/// A few heartbeats, so that what is allocated late is seen too.
const SETTLE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<()> {
    let mut report = Report::new("idle");
    memory(&mut report).await?;
    local(&mut report).await?;
    report.print();
    Ok(())
}

async fn memory(report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(1, 2).await?;
    tokio::time::sleep(SETTLE).await;
    let pids = cluster.pids();
    for (name, pid) in ["fresh master, resident", "idle worker, resident"]
        .iter()
        .zip(pids)
    {
        report.below(name, status_mib(pid, "VmRSS")?, MEMORY_MARK, "MiB");
    }
    cluster.stop().await
}

/// From the start of the process to its end.
async fn local(report: &mut Report) -> Result<()> {
    let binary = binary()?;
    let mut runs = Runs::default();
    for _ in 0..RUNS {
        let output = tokio::process::Command::new(&binary)
            .args(["local", "-c", "SELECT 1", "--format", "csv"])
            .stdin(Stdio::null())
            .output();
        let output = runs.time(async { Ok(output.await?) }).await?;
        let text = String::from_utf8(output.stdout).context("the answer is no text")?;
        ensure!(
            output.status.success() && text.lines().last() == Some("1"),
            "essaim local ended with {} and answered {text:?}",
            output.status
        );
    }
    report.runs("essaim local -c 'SELECT 1'", &runs, 1, "queries");
    report.below("to its answer", runs.median(), LOCAL_MARK, "s");
    Ok(())
}
