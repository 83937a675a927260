//! Log lines in JSON say whose they are, on the master and on the worker.

use crate::{COUNT_EVENTS, declare_events, event};
use anyhow::{Context, Result};
use essaim_proto::v1::JobState;
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::{SOON, unique, wait_for};
use serde_json::Value;
use std::path::Path;

/// The lines of a log, each of which must be a JSON object with time, level and message.
fn lines(log: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(log)?;
    // The last line may be half written.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            for field in ["timestamp", "level", "target", "message"] {
                line[field].as_str().with_context(|| format!("{line}"))?;
            }
            Ok(line)
        })
        .collect()
}

/// The first line with this message that belongs to this job.
fn find(lines: &[Value], job: &str, message: &str) -> Option<Value> {
    let wanted = |line: &&Value| line["job"] == job && line["message"] == message;
    lines.iter().find(wanted).cloned()
}

#[tokio::test]
async fn lines_of_a_failing_task_carry_job_epoch_task_and_attempt() -> Result<()> {
    let cluster = Cluster::start_under(1, 1, &[("ESSAIM_LOG_FORMAT", "json")]).await?;
    let client = cluster.client().await?;
    let (topic, database) = (Topic::create(1).await?, Database::create().await?);
    topic.produce((0..10).map(event)).await?;
    let sql = [
        declare_events(&topic, "fail"),
        database.declare(
            "per_minute",
            "per_minute",
            ", mode 'upsert', key 'window_start,kind'",
        ),
        COUNT_EVENTS.to_owned(),
    ]
    .concat();
    let job = client.submit(&sql, &unique("logged")).await?;
    client
        .wait_until(&job, |job| job.last_epoch.is_some())
        .await?;
    topic.produce(["broken".to_owned()].into_iter()).await?;
    assert_eq!(client.wait_job(&job).await?.state(), JobState::Failed);

    let (master, worker) = (cluster.log_of_master(1), cluster.log_of_worker(0));
    let failed = wait_for("the worker's line", SOON, async || {
        Ok(find(&lines(&worker)?, &job, "failed"))
    })
    .await?;
    assert!(failed["epoch"].as_u64() > Some(0), "{failed}");
    assert!(failed["stage"].is_u64(), "{failed}");
    assert_eq!(failed["task"], 0, "{failed}");
    assert_eq!(failed["attempt"], 1, "{failed}");
    assert_eq!(failed["level"], "WARN", "{failed}");
    assert!(failed["error"].as_str().is_some(), "{failed}");

    let lines = lines(&master)?;
    let ended = find(&lines, &job, "an attempt at a task ended").context("the attempt's line")?;
    assert_eq!(ended["epoch"], failed["epoch"], "{ended}");
    assert_eq!(ended["stage"], failed["stage"], "{ended}");
    assert_eq!(ended["task"], 0, "{ended}");
    assert_eq!(ended["attempt"], 1, "{ended}");
    assert_eq!(ended["worker"], cluster.workers()[0].id, "{ended}");
    assert_eq!(ended["outcome"], "Failed", "{ended}");
    let last = find(&lines, &job, "ended").context("the job's last line")?;
    assert_eq!(last["state"], "Failed", "{last}");
    // The filter takes lines, never the fields of others.
    assert!(find(&lines, &job, "streaming").is_some());
    Ok(())
}
