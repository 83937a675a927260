//! The job, and the worker that is killed in the middle of it.

use super::cluster::Cluster;
use super::kafka::TOPIC;
use super::screen::Screen;
use crate::client::{self, Failure};
use crate::jobs::has_ended;
use anyhow::{Context, Result};
use essaim_proto::v1::{Job, JobState, StageStatus, SubmitRequest, TaskAttempt, WatchRequest};
use std::collections::BTreeMap;

/// The job file.
pub const SQL: &str = include_str!("../../../examples/demo/job.sql");
/// What the job is called.
pub const NAME: &str = "demo";

/// How the job went.
#[derive(Debug)]
pub struct Outcome {
    /// The worker that was killed.
    pub killed: Option<String>,
    /// Tasks that the killed worker took with it and that ran again, one line each.
    pub ran_again: Vec<String>,
}

/// Runs the job and kills the worker that has the youngest of the running tasks once others are done.
///
/// # Errors
/// The job does not succeed.
pub async fn run(cluster: &mut Cluster, screen: &mut Screen) -> Result<Outcome> {
    let mut client = client::connect(&cluster.grpc).await?;
    let submit = SubmitRequest {
        sql: SQL.to_owned(),
        name: NAME.to_owned(),
        from_scratch: false,
    };
    let job_id = client::answer(client.submit(submit)).await?.job_id;
    let mut reports = client::answer(client.watch(WatchRequest { job_id })).await?;
    let mut killed = None;
    let mut last = None;
    while let Some(job) = reports.message().await.map_err(Failure::from)? {
        if killed.is_none()
            && let Some(attempt) = victim(&job)
        {
            let pid = cluster.kill_worker(&attempt.worker)?;
            screen.say(&format!(
                "killed a worker (process {pid}) with SIGKILL while it ran task {} ({})",
                attempt.task, attempt.split
            ));
            killed = Some(attempt.worker.clone());
        }
        screen.progress(&job);
        let ended = has_ended(job.state());
        last = Some(job);
        if ended {
            break;
        }
    }
    let job = last.context("the master does not report on the job")?;
    if job.state() != JobState::Succeeded {
        return Err(Failure::Failed(format!("the job failed: {}", job.message)).into());
    }
    let ran_again = killed
        .as_deref()
        .map(|worker| ran_again(&job, worker))
        .unwrap_or_default();
    Ok(Outcome { killed, ran_again })
}

/// The youngest running attempt of the first stage over the topic that is in its middle: some tasks done, some to come.
fn victim(job: &Job) -> Option<&TaskAttempt> {
    let stages = job.queries.iter().flat_map(|query| &query.stages);
    let reads_topic = |attempt: &TaskAttempt| attempt.split.contains(&format!("{TOPIC}["));
    stages
        .filter(|stage| stage.tasks_done > 0)
        .filter(|stage| stage.tasks_done + stage.tasks_running < stage.tasks)
        .flat_map(|stage| &stage.attempts)
        .filter(|attempt| attempt.outcome == "running" && reads_topic(attempt))
        .max_by_key(|attempt| attempt.started_ms)
}

/// The tasks that `worker` lost, and how they ended elsewhere.
fn ran_again(job: &Job, worker: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for query in &job.queries {
        for stage in &query.stages {
            for (task, attempts) in by_task(stage) {
                let Some(lost) = attempts
                    .iter()
                    .find(|a| a.worker == worker && a.outcome == "lost")
                else {
                    continue;
                };
                let Some(won) = attempts.iter().find(|a| a.outcome == "succeeded") else {
                    continue;
                };
                lines.push(format!(
                    "task {task} of {} ({}): attempt {} lost on {}, attempt {} succeeded on {}",
                    query.sink, lost.split, lost.attempt, lost.worker, won.attempt, won.worker
                ));
            }
        }
    }
    lines
}

fn by_task(stage: &StageStatus) -> BTreeMap<u32, Vec<&TaskAttempt>> {
    let mut tasks: BTreeMap<u32, Vec<&TaskAttempt>> = BTreeMap::new();
    for attempt in &stage.attempts {
        tasks.entry(attempt.task).or_default().push(attempt);
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::v1::QueryStatus;

    fn attempt(task: u32, number: u32, worker: &str, outcome: &str) -> TaskAttempt {
        TaskAttempt {
            task,
            attempt: number,
            worker: worker.into(),
            outcome: outcome.into(),
            started_ms: i64::from(task),
            split: format!("toots toots[{task}] 0..9"),
            ..TaskAttempt::default()
        }
    }

    fn job(tasks: u32, tasks_done: u32, attempts: Vec<TaskAttempt>) -> Job {
        let running = attempts.iter().filter(|a| a.outcome == "running").count();
        let stage = StageStatus {
            tasks,
            tasks_done,
            tasks_running: running as u32,
            attempts,
            ..StageStatus::default()
        };
        let query = QueryStatus {
            sink: "t".into(),
            stages: vec![stage],
            ..QueryStatus::default()
        };
        Job {
            queries: vec![query],
            ..Job::default()
        }
    }

    #[test]
    fn the_victim_has_the_youngest_task_of_a_stage_in_its_middle() {
        let attempts = || {
            vec![
                attempt(0, 1, "a", "succeeded"),
                attempt(1, 1, "a", "running"),
                attempt(2, 1, "b", "running"),
            ]
        };
        let job_in_the_middle = job(4, 1, attempts());
        assert_eq!(victim(&job_in_the_middle).unwrap().worker, "b");
        assert_eq!(victim(&job(3, 1, attempts())), None);
        assert_eq!(victim(&job(4, 0, attempts()[1..].to_vec())), None);
    }

    #[test]
    fn a_task_that_ran_again_is_told_with_both_workers() {
        let job = job(
            2,
            2,
            vec![
                attempt(0, 1, "a", "succeeded"),
                attempt(1, 1, "b", "lost"),
                attempt(1, 2, "a", "succeeded"),
            ],
        );
        assert_eq!(
            ran_again(&job, "b"),
            ["task 1 of t (toots toots[1] 0..9): attempt 1 lost on b, attempt 2 succeeded on a"]
        );
        assert!(ran_again(&job, "a").is_empty());
    }
}
