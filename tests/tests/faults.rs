//! Processes that die in the middle: the answer is right, or the job fails with a clear error and its sink is untouched.

use anyhow::{Context, Result, ensure};
use arrow::array::RecordBatch;
use essaim_proto::v1::{Job, JobState};
use essaim_tests::client::{RunningQuery, attempts, tasks};
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::postgres::{Database, PrivateServer, rows, run};
use essaim_tests::sql::{integers, numbers};
use essaim_tests::{LONG, SOON, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const ROWS: u64 = 10_000_000;
const GROUPS: u64 = 1000;

/// An aggregate over ten million rows in many small tasks, so that a death hits some of them and not others.
fn aggregate() -> String {
    format!(
        "SET essaim.splits_per_slot = 16; SET essaim.speculation = false;
         {}SELECT value % {GROUPS} AS key, count(*), sum(value), sum(length(CAST(value AS VARCHAR)))
         FROM numbers GROUP BY key ORDER BY key",
        numbers("numbers", ROWS)
    )
}

/// The answer to [`aggregate`], computed here.
fn assert_right(answer: &[RecordBatch]) -> Result<()> {
    let keys: Vec<i64> = (0..GROUPS as i64).collect();
    let mut sums = vec![0; GROUPS as usize];
    let mut lengths = vec![0; GROUPS as usize];
    for value in 0..ROWS {
        let group = (value % GROUPS) as usize;
        sums[group] += value as i64;
        lengths[group] += 1 + i64::from(value.checked_ilog10().unwrap_or(0));
    }
    assert_eq!(integers(answer, 0)?, keys);
    assert_eq!(
        integers(answer, 1)?,
        vec![(ROWS / GROUPS) as i64; GROUPS as usize]
    );
    assert_eq!(integers(answer, 2)?, sums);
    assert_eq!(integers(answer, 3)?, lengths);
    Ok(())
}

/// Each task has succeeded exactly once.
fn assert_each_task_counted_once(job: &Job) {
    let mut succeeded: BTreeMap<_, u32> = BTreeMap::new();
    for (task, attempt) in attempts(job) {
        *succeeded.entry(task).or_default() += u32::from(attempt.outcome == "succeeded");
    }
    assert!(succeeded.values().all(|count| *count == 1), "{succeeded:?}");
    let planned: u32 = job
        .queries
        .iter()
        .flat_map(|q| &q.stages)
        .map(|s| s.tasks)
        .sum();
    assert_eq!(succeeded.len(), planned as usize);
}

/// Starts [`aggregate`] and waits until some of its tasks are done and `worker` runs others.
async fn in_the_middle(cluster: &Cluster, worker: usize) -> Result<RunningQuery> {
    let mut query = cluster.client().await?.start(&aggregate()).await?;
    let id = &cluster.workers()[worker].id;
    query
        .until("the middle", |job| {
            let attempts = attempts(job);
            let mut on_it = attempts.iter().filter(|(_, a)| a.worker == *id);
            tasks(job).1 >= 2 && on_it.any(|(_, a)| a.outcome == "running")
        })
        .await?;
    Ok(query)
}

#[tokio::test]
async fn a_worker_killed_mid_query_costs_only_its_running_tasks() -> Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let query = in_the_middle(&cluster, 0).await?;
    cluster.kill_worker(0);
    let (answer, job) = query.finish().await?;
    assert_right(&answer)?;
    assert_each_task_counted_once(&job);

    let dead = &cluster.workers()[0].id;
    let attempts = attempts(&job);
    let again: BTreeSet<_> = attempts
        .iter()
        .filter(|(_, a)| a.attempt > 1)
        .map(|(t, _)| *t)
        .collect();
    let lost: BTreeSet<_> = attempts
        .iter()
        .filter(|(_, a)| a.outcome != "succeeded")
        .map(|(task, attempt)| {
            assert_eq!(attempt.worker, *dead, "{attempt:?}");
            assert_eq!(attempt.outcome, "lost", "{attempt:?}");
            *task
        })
        .collect();
    assert_eq!(again, lost);
    assert!(!lost.is_empty() && lost.len() <= 4, "{lost:?}");
    Ok(())
}

#[tokio::test]
async fn both_workers_killed_and_one_started_anew_still_answer() -> Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let query = in_the_middle(&cluster, 1).await?;
    cluster.kill_worker(0);
    cluster.kill_worker(1);
    wait_for("both to be given up", SOON, async || {
        Ok(cluster.registered().await?.is_empty().then_some(()))
    })
    .await?;
    cluster.add_worker(2, "768MiB").await?;
    let (answer, job) = query.finish().await?;
    assert_right(&answer)?;
    assert_each_task_counted_once(&job);
    Ok(())
}

#[tokio::test]
async fn a_worker_asked_to_stop_drains_and_leaves() -> Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let query = in_the_middle(&cluster, 0).await?;
    cluster.stop_worker(0)?;
    let (answer, job) = query.finish().await?;
    assert_right(&answer)?;
    assert_each_task_counted_once(&job);
    let status = cluster.worker_ended(0, SOON).await?;
    assert!(status.success(), "{status}");
    assert_eq!(
        cluster.registered().await?,
        [cluster.workers()[1].id.clone()]
    );
    Ok(())
}

#[tokio::test]
async fn a_stopped_worker_process_is_given_up_by_its_lease() -> Result<()> {
    // Stopped with SIGSTOP its connections stay open and silent, as those of a machine that lost its network.
    let mut cluster = Cluster::start(2, 2).await?;
    let query = in_the_middle(&cluster, 0).await?;
    cluster.freeze_worker(0)?;
    let (answer, job) = query.finish().await?;
    assert_right(&answer)?;
    assert_each_task_counted_once(&job);
    assert_eq!(
        cluster.registered().await?,
        [cluster.workers()[1].id.clone()]
    );
    cluster.kill_worker(0);
    Ok(())
}

#[tokio::test]
async fn a_master_killed_during_a_job_finishes_it_once_after_its_restart() -> Result<()> {
    const COPIED: u64 = 600_000;
    let database = Database::create().await?;
    let mut cluster = Cluster::start(2, 2).await?;
    let sql = format!(
        "SET essaim.splits_per_slot = 8;
         {}{}INSERT INTO copied SELECT value AS id, CAST(value AS VARCHAR) AS note FROM numbers",
        numbers("numbers", COPIED),
        database.declare("copied", "copied", ", mode 'append'"),
    );
    let client = cluster.client().await?;
    let id = client.submit(&sql, "copy").await?;
    let middle = client.wait_until(&id, |job| tasks(job).1 >= 1).await?;
    assert_eq!(middle.state(), JobState::Running);
    cluster.kill_master();
    cluster.restart_master().await?;

    let client = cluster.client().await?;
    let job = client.wait_job(&id).await?;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.message);
    assert!(job.generation >= 2, "{job:?}");
    let found = database
        .rows("SELECT count(*), count(DISTINCT id), sum(id), sum(length(note)) FROM copied")
        .await?;
    let lengths: u64 = (0..COPIED)
        .map(|v| 1 + u64::from(v.checked_ilog10().unwrap_or(0)))
        .sum();
    let sums = [COPIED, COPIED, COPIED * (COPIED - 1) / 2, lengths];
    assert_eq!(found, [sums.map(|sum| Some(sum.to_string())).to_vec()]);
    assert_eq!(
        database
            .value("SELECT count(*) FROM essaim_commits")
            .await?,
        "1"
    );
    assert_nothing_staged(&database).await
}

/// No table is left but those that the test knows.
async fn assert_nothing_staged(database: &Database) -> Result<()> {
    wait_for("staging tables to go", SOON, async || {
        let left = database
            .rows(
                "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                 WHERE relkind IN ('r', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema')
                   AND relname NOT IN ('copied', 'target', 'essaim_commits')",
            )
            .await?;
        ensure!(left.is_empty(), "left are {left:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_database_that_dies_mid_scan_fails_the_job_and_leaves_its_sink_untouched() -> Result<()> {
    let mut source = PrivateServer::start().await?;
    let mut connection = source.connect().await?;
    run(
        &mut connection,
        "CREATE FUNCTION slowly(i bigint) RETURNS bigint LANGUAGE plpgsql AS $$
           BEGIN PERFORM pg_sleep(0.001); RETURN i; END $$;
         CREATE VIEW slow AS
           SELECT slowly(i) AS id, repeat('x', 1000) AS note FROM generate_series(1, 1000000) AS i",
    )
    .await?;
    let target = Database::create().await?;
    target
        .execute("CREATE TABLE target (id bigint, note text); INSERT INTO target VALUES (1, 'a'), (2, 'b')")
        .await?;

    let sql = format!(
        "CREATE EXTERNAL TABLE slow STORED AS POSTGRES LOCATION '{}' OPTIONS (table 'slow');
         {}INSERT INTO target SELECT id, note FROM slow",
        source.url,
        target.declare("target", "target", ", mode 'append'"),
    );
    let client = shared().await?.client().await?;
    let id = client.submit(&sql, "").await?;
    wait_for("the scan", SOON, async || {
        let active =
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query ILIKE 'COPY%'";
        Ok((!rows(&mut connection, active).await?.is_empty()).then_some(()))
    })
    .await?;
    source.kill()?;

    let job = client.wait_job(&id).await?;
    assert_eq!(job.state(), JobState::Failed);
    assert!(job.message.contains("slow"), "{}", job.message);
    assert!(!job.message.contains("essaim:essaim"), "{}", job.message);
    let kept = target
        .rows("SELECT id, note FROM target ORDER BY id")
        .await?;
    let row = |id: &str, note: &str| vec![Some(id.to_owned()), Some(note.to_owned())];
    assert_eq!(kept, [row("1", "a"), row("2", "b")]);
    assert_nothing_staged(&target).await
}

#[tokio::test]
async fn a_broker_that_is_down_is_named_in_bounded_time() -> Result<()> {
    let client = shared().await?.client().await?;
    let began = Instant::now();
    let status = client
        .query_error(
            "CREATE EXTERNAL TABLE toots (id BIGINT) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/toots'
               OPTIONS (format 'json', starting_offsets 'earliest');
             SELECT count(*) FROM toots",
        )
        .await?;
    assert!(status.message().contains("127.0.0.1:1"), "{status}");
    assert!(status.message().contains("toots"), "{status}");
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_down_is_named_in_bounded_time() -> Result<()> {
    let client = shared().await?.client().await?;
    let began = Instant::now();
    let status = client
        .query_error(
            "CREATE EXTERNAL TABLE people STORED AS POSTGRES
               LOCATION 'postgres://app:hunter2@127.0.0.1:1/nowhere' OPTIONS (table 'people');
             SELECT count(*) FROM people",
        )
        .await?;
    assert!(status.message().contains("127.0.0.1"), "{status}");
    assert!(status.message().contains("people"), "{status}");
    assert!(!status.message().contains("hunter2"), "{status}");
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_record_that_fails_every_time_is_not_tried_for_ever() -> Result<()> {
    let client = shared().await?.client().await?;
    let sql = format!(
        "{}SELECT sum(CAST('x' || CAST(value AS VARCHAR) AS BIGINT)) FROM numbers",
        numbers("numbers", 1000)
    );
    let error = client.query(&sql).await.err().context("it ran")?;
    assert!(error.to_string().contains('x'), "{error}");
    let mut failed = None;
    for job in client.list().await? {
        let whole = client.get(&job.id).await?;
        failed = failed.or((whole.sql == sql).then_some(whole));
    }
    let failed = failed.context("the master remembers it")?;
    let job = client.wait_job(&failed.id).await?;
    assert_eq!(job.state(), JobState::Failed);
    assert!(
        attempts(&job).iter().all(|(_, a)| a.attempt == 1),
        "{job:?}"
    );
    Ok(())
}
