//! Ten million groups within 2 GiB a process, and a thousand tasks of one row each.

use anyhow::{Context, Result, ensure};
use arrow::util::pretty::pretty_format_batches;
use essaim_bench::measure::Runs;
use essaim_bench::process::{FolderWatch, status_mib};
use essaim_bench::report::Report;
use essaim_tests::cluster::Cluster;
use essaim_tests::sql::numbers;

const GROUPS: u64 = 10_000_000;
const MEMORY: &str = "2GiB";
const MEMORY_MIB: f64 = 2048.0;
const TASKS: u64 = 1000;
const TASK_RUNS: usize = 10;
const TASK_MARK: f64 = 500.0;

/// What is asked of the groups, and what must stand in the answer.
const QUERIES: [(&str, &str, &str); 3] = [
    (
        "count of the groups",
        "SELECT count(*) AS groups, sum(n) AS all_rows FROM (SELECT value, count(*) AS n FROM numbers GROUP BY value)",
        "| 10000000 | 10000000 |",
    ),
    (
        "top 10 of the groups",
        "SELECT value, count(*) AS n, sum(value) AS s FROM numbers GROUP BY value ORDER BY n DESC, value DESC LIMIT 10",
        "| 9999999 | 1 | 9999999 |",
    ),
    (
        "count of the groups, text keys",
        "SELECT count(*) AS groups, sum(n) AS all_rows FROM \
         (SELECT concat('customer number ', value) AS customer, count(*) AS n FROM numbers GROUP BY customer)",
        "| 10000000 | 10000000 |",
    ),
];

#[tokio::main]
async fn main() -> Result<()> {
    let mut report = Report::new("wide");
    report.figure("groups", GROUPS, "");
    for (name, query, answer) in QUERIES {
        groups(&mut report, name, query, answer).await?;
    }
    tasks(&mut report).await?;
    report.print();
    Ok(())
}

/// Each query has a cluster of its own: the most memory that a process ever held cannot be reset.
async fn groups(report: &mut Report, name: &str, query: &str, answer: &str) -> Result<()> {
    let mut cluster = Cluster::start(0, 1).await?;
    for _ in 0..2 {
        cluster.add_worker(1, MEMORY).await?;
    }
    let client = cluster.client().await?;
    let spill = FolderWatch::start(cluster.dir().join("tmp"));
    let sql = format!("{}{query}", numbers("numbers", GROUPS));
    let mut runs = Runs::default();
    let batches = runs
        .time(client.query(&sql))
        .await
        .with_context(|| name.to_owned())?;
    let text = pretty_format_batches(&batches)?.to_string();
    ensure!(text.contains(answer), "{name}: not {answer} but\n{text}");
    report.runs(name, &runs, GROUPS, "rows");
    for (index, pid) in cluster.pids().into_iter().enumerate() {
        let process = match index {
            0 => "master".to_owned(),
            _ => format!("worker {index}"),
        };
        let peak = status_mib(pid, "VmHWM")?;
        report.below(&format!("{name}: {process}, peak"), peak, MEMORY_MIB, "MiB");
    }
    report.figure(
        &format!("{name}: spilled, MiB"),
        spill.most_mib().round(),
        "",
    );
    cluster.stop().await
}

/// From SQL text to result, so with planning and merging.
async fn tasks(report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client().await?;
    let sql = format!(
        "{}SET essaim.splits_per_slot = {};\nSELECT count(*) AS n, sum(value) AS s FROM numbers",
        numbers("numbers", TASKS),
        TASKS / 2
    );
    let mut runs = Runs::default();
    for _ in 0..TASK_RUNS {
        let started = client.start(&sql).await?;
        let (batches, job) = runs.time(started.finish()).await?;
        let text = pretty_format_batches(&batches)?.to_string();
        ensure!(text.contains("| 1000 | 499500 |"), "not 1000 rows:\n{text}");
        let (_, done) = essaim_tests::client::tasks(&job);
        ensure!(u64::from(done) == TASKS, "{done} tasks instead of {TASKS}");
    }
    report.runs("1000 tasks of one row", &runs, TASKS, "tasks");
    let rate = TASKS as f64 / runs.median();
    report.at_least("tasks a second", rate, TASK_MARK, "tasks/s");
    cluster.stop().await
}
