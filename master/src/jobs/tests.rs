//! Names, restarts and the forgetting of jobs, on a state dir of their own.

use super::*;
use crate::jobs::model::{EpochProgress, MAX_EPOCHS_KEPT, QueryProgress, SourceProgress};
use futures::FutureExt;

struct Catalogue {
    jobs: Jobs,
    dir: tempfile::TempDir,
}

impl Catalogue {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (jobs, open) = opened(&dir).await;
        assert!(open.is_empty());
        Self { jobs, dir }
    }

    /// The catalogue as the next master on the state dir has it, and the jobs that had not ended.
    async fn restarted(&self) -> (Jobs, Vec<Arc<JobHandle>>) {
        opened(&self.dir).await
    }

    async fn submit(&self, name: &str, sql: &str, kind: JobKind) -> Result<Arc<JobHandle>> {
        let submission = Submission {
            name: name.to_owned(),
            sql: sql.to_owned(),
            kind,
            from_scratch: false,
        };
        self.jobs.submit(submission).await
    }

    async fn stream(&self, name: &str, sql: &str) -> Result<Arc<JobHandle>> {
        self.submit(name, sql, JobKind::Streaming).await
    }

    /// A streaming job that ran, was accepted, and ended in `state`.
    async fn ended(&self, name: &str, sql: &str, state: JobState) -> Arc<JobHandle> {
        let job = self.stream(name, sql).await.unwrap();
        self.jobs.begin(&job).await.unwrap();
        self.jobs.accept(&job).await.unwrap();
        self.jobs.advance(&job, state, "as the test says").await;
        job
    }
}

async fn opened(dir: &tempfile::TempDir) -> (Jobs, Vec<Arc<JobHandle>>) {
    let events = Arc::new(Events::default());
    let opened = Jobs::open(dir.path().to_str().unwrap(), events).await;
    opened.unwrap()
}

fn new_job(name: &str, kind: JobKind) -> Arc<JobHandle> {
    let id = uuid::Uuid::now_v7().to_string();
    let record = JobRecord::new(id, name.to_owned(), String::new(), kind);
    JobHandle::new(record, Arc::default())
}

/// Jobs that are submitted from now on are newer by the clock, which counts whole milliseconds.
fn tick() {
    let now = now_ms();
    while now_ms() <= now {
        std::thread::yield_now();
    }
}

fn epoch(number: u64) -> EpochProgress {
    let source = SourceProgress {
        lost: 1,
        ..SourceProgress::default()
    };
    let query = QueryProgress {
        output_rows: 2,
        late_rows: 3,
        ..QueryProgress::default()
    };
    EpochProgress {
        epoch: number,
        input_rows: 10,
        sources: vec![source],
        queries: vec![query.clone(), query],
        ..EpochProgress::default()
    }
}

fn numbers(job: &JobHandle, after: Option<u64>, limit: usize) -> Vec<u64> {
    let epochs = job.epochs(after, limit);
    epochs.iter().map(|epoch| epoch.epoch).collect()
}

#[tokio::test]
async fn a_streaming_job_that_has_ended_is_taken_up_again_by_its_name() {
    let catalogue = Catalogue::new().await;
    for state in [
        JobState::Stopped,
        JobState::Cancelled,
        JobState::Failed,
        JobState::Succeeded,
    ] {
        let name = format!("{state:?}");
        let first = catalogue.ended(&name, "old", state).await;
        first.record_epoch(epoch(1));
        let second = catalogue.stream(&name, "new").await.unwrap();
        assert_eq!(second.id(), first.id());
        assert_eq!(catalogue.jobs.begin(&second).await.unwrap(), 2);
        second.read(|record| {
            assert_eq!(record.state, JobState::Running);
            assert_eq!((record.sql.as_str(), record.message.as_str()), ("new", ""));
            assert_eq!(record.totals.epochs, 1);
        });
        // Who looked at the ended job still sees its end.
        assert_eq!(first.read(|record| record.state), state);
    }
}

#[tokio::test]
async fn a_restarted_master_still_tells_how_the_last_job_of_a_name_ended() {
    let catalogue = Catalogue::new().await;
    for name in ["failed", "mended"] {
        let job = catalogue.submit(name, "sql", JobKind::Batch).await.unwrap();
        catalogue.jobs.advance(&job, JobState::Failed, "no").await;
        tick();
    }
    let open = catalogue.submit("mended", "sql", JobKind::Batch).await;
    let (jobs, _) = catalogue.restarted().await;
    let told: Vec<_> = jobs
        .all()
        .iter()
        .map(|job| job.meter().label.clone())
        .collect();
    assert_eq!(told.iter().filter(|label| *label == "failed").count(), 1);
    let mended = jobs.find(&open.unwrap().id()).unwrap();
    assert_eq!(mended.meter().label, "mended");
    assert_eq!(told.iter().filter(|label| *label == "mended").count(), 1);
}

#[tokio::test]
async fn a_name_that_is_no_label_is_refused() {
    let catalogue = Catalogue::new().await;
    for name in ["n".repeat(129).as_str(), "a\nb", "\u{1b}[2J"] {
        let refused = catalogue.stream(name, "sql").await.unwrap_err();
        assert!(refused.to_string().contains("--name"), "{refused}");
    }
    catalogue.stream(&"é".repeat(128), "sql").await.unwrap();
}

#[tokio::test]
async fn the_name_of_a_streaming_job_that_has_not_ended_is_refused() {
    let catalogue = Catalogue::new().await;
    let job = catalogue.stream("toots", "sql").await.unwrap();
    for _ in 0..2 {
        let error = catalogue.stream("toots", "sql").await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&job.id()) && text.contains("essaim stop toots"),
            "{text}"
        );
        catalogue.jobs.begin(&job).await.unwrap();
    }
    catalogue.stream("boosts", "sql").await.unwrap();
    catalogue
        .submit("toots", "sql", JobKind::Batch)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_job_from_scratch_takes_the_name_over() {
    let catalogue = Catalogue::new().await;
    let first = catalogue.ended("toots", "old", JobState::Stopped).await;
    let submission = Submission {
        name: "toots".to_owned(),
        sql: "new".to_owned(),
        kind: JobKind::Streaming,
        from_scratch: true,
    };
    let second = catalogue.jobs.submit(submission.clone()).await.unwrap();
    assert_ne!(second.id(), first.id());
    assert_eq!(catalogue.jobs.find("toots").unwrap().id(), second.id());
    assert_eq!(catalogue.jobs.begin(&second).await.unwrap(), 1);
    // It has not ended: it is not pushed aside either.
    assert!(catalogue.jobs.submit(submission).await.is_err());
    let state = JobState::Stopped;
    catalogue.jobs.advance(&second, state, "").await;
    let third = catalogue.stream("toots", "newer").await.unwrap();
    assert_eq!(third.id(), second.id());
}

#[tokio::test]
async fn jobs_without_a_name_are_not_taken_for_each_other() {
    let catalogue = Catalogue::new().await;
    let first = catalogue.ended("", "old", JobState::Stopped).await;
    let second = catalogue.stream("", "new").await.unwrap();
    assert_ne!(second.id(), first.id());
    // But an id is a name.
    let again = catalogue.stream(&first.id(), "newer").await.unwrap();
    assert_eq!(again.id(), first.id());
}

#[tokio::test]
async fn sql_that_does_not_fit_the_checkpoint_gives_way_to_the_sql_before() {
    let catalogue = Catalogue::new().await;
    catalogue.ended("toots", "good", JobState::Stopped).await;
    let refused = catalogue.stream("toots", "bad").await.unwrap();
    catalogue.jobs.begin(&refused).await.unwrap();
    let message = "the state is of other SQL";
    catalogue
        .jobs
        .advance(&refused, JobState::Failed, message)
        .await;
    assert_eq!(refused.read(|record| record.sql.clone()), "good");

    // The same if the master dies in between.
    catalogue.stream("toots", "bad").await.unwrap();
    let (jobs, open) = catalogue.restarted().await;
    assert_eq!(open[0].read(|record| record.sql.clone()), "bad");
    jobs.advance(&open[0], JobState::Failed, message).await;
    assert_eq!(open[0].read(|record| record.sql.clone()), "good");
}

#[tokio::test]
async fn sql_that_was_accepted_stays_when_the_job_fails() {
    let catalogue = Catalogue::new().await;
    catalogue.ended("toots", "old", JobState::Stopped).await;
    let job = catalogue.ended("toots", "new", JobState::Failed).await;
    assert_eq!(job.read(|record| record.sql.clone()), "new");
    let (jobs, _) = catalogue.restarted().await;
    let stored = jobs.find("toots").unwrap();
    assert_eq!(stored.read(|record| record.sql.clone()), "new");
}

#[tokio::test]
async fn a_restarted_master_knows_generation_totals_and_the_wish_to_stop() {
    let catalogue = Catalogue::new().await;
    let job = catalogue.stream("toots", "sql").await.unwrap();
    catalogue.jobs.begin(&job).await.unwrap();
    job.record_epoch(epoch(1));
    assert!(!job.is_stop_requested());
    assert!(job.stop_requested().now_or_never().is_none());
    let found = catalogue.jobs.stop(&job).await.unwrap();
    assert_eq!(found, JobState::Running);
    job.stop_requested().await;

    let (jobs, open) = catalogue.restarted().await;
    let taken_up = &open[0];
    taken_up.read(|record| {
        assert_eq!((record.kind, record.generation), (JobKind::Streaming, 1));
        assert_eq!(record.totals.input_rows, 10);
        assert!(record.epochs.is_empty());
    });
    assert!(taken_up.is_stop_requested());
    assert_eq!(jobs.begin(taken_up).await.unwrap(), 2);
    jobs.advance(taken_up, JobState::Stopped, "").await;
    // The wish is fulfilled.
    let submission = Submission {
        name: "toots".to_owned(),
        sql: "sql".to_owned(),
        kind: JobKind::Streaming,
        from_scratch: false,
    };
    assert!(!jobs.submit(submission).await.unwrap().is_stop_requested());
}

#[tokio::test]
async fn a_batch_job_is_not_stopped_and_one_that_has_ended_stays_as_it_was() {
    let catalogue = Catalogue::new().await;
    let batch = catalogue.submit("b", "sql", JobKind::Batch).await.unwrap();
    let error = catalogue.jobs.stop(&batch).await.unwrap_err();
    assert!(error.to_string().contains("essaim cancel"), "{error}");
    assert!(!batch.is_stop_requested());
    let ended = catalogue.ended("s", "sql", JobState::Cancelled).await;
    let found = catalogue.jobs.stop(&ended).await.unwrap();
    assert_eq!(found, JobState::Cancelled);
}

#[tokio::test]
async fn a_generation_that_cannot_be_stored_does_not_begin() {
    let catalogue = Catalogue::new().await;
    let job = catalogue.stream("toots", "sql").await.unwrap();
    // A file in the place of the folder.
    std::fs::remove_dir_all(catalogue.dir.path().join("jobs")).unwrap();
    std::fs::write(catalogue.dir.path().join("jobs"), "").unwrap();
    assert!(catalogue.jobs.begin(&job).await.is_err());
}

#[tokio::test]
async fn the_handle_of_an_earlier_run_does_not_overwrite_the_stored_job() {
    let catalogue = Catalogue::new().await;
    let first = catalogue.ended("toots", "old", JobState::Stopped).await;
    let second = catalogue.stream("toots", "new").await.unwrap();
    catalogue.jobs.save(&first).await.unwrap();
    let (_, open) = catalogue.restarted().await;
    assert_eq!(open[0].id(), second.id());
}

#[tokio::test]
async fn a_job_that_was_taken_up_again_is_listed_as_the_newest() {
    let catalogue = Catalogue::new().await;
    let stream = catalogue.ended("toots", "old", JobState::Stopped).await;
    tick();
    let batch = catalogue.submit("b", "sql", JobKind::Batch).await.unwrap();
    tick();
    let first = |jobs: Vec<Arc<JobHandle>>| jobs[0].id();
    assert_eq!(first(catalogue.jobs.list(10)), batch.id());
    catalogue.stream("toots", "new").await.unwrap();
    assert_eq!(first(catalogue.jobs.list(1)), stream.id());
}

#[tokio::test]
async fn only_a_forgotten_streaming_job_loses_its_checkpoint() {
    let catalogue = Catalogue::new().await;
    // The one that was submitted first ended last.
    let late = catalogue.stream("late", "sql").await.unwrap();
    let early = catalogue.ended("early", "sql", JobState::Stopped).await;
    early.update(|record| record.ended_ms = 1);
    {
        let mut known = catalogue.jobs.known.lock();
        let kept = [
            (JobKind::Batch, MAX_ENDED_BATCH_JOBS),
            (JobKind::Streaming, MAX_ENDED_STREAMING_JOBS),
        ];
        for (kind, kept) in kept {
            for _ in 1..kept {
                let job = new_job("", kind);
                job.update(|record| {
                    record.state = JobState::Succeeded;
                    record.ended_ms = 2;
                });
                known.insert(Entry::new(job, true));
            }
        }
    }
    // A checkpoint of each.
    let dir = catalogue.jobs.state_dir();
    let checkpoint = |id: &str| format!("checkpoint/{id}/fingerprint");
    for job in [&late, &early] {
        let content = vec![bytes::Bytes::from("{}")];
        let name = checkpoint(&job.id());
        dir.put(&name, content).await.unwrap();
    }
    let kept = async |job: &Arc<JobHandle>| dir.exists(&checkpoint(&job.id())).await.unwrap();
    let batch = catalogue.submit("b", "sql", JobKind::Batch).await.unwrap();
    let state = JobState::Succeeded;
    catalogue.jobs.advance(&batch, state, "").await;
    assert!(kept(&early).await && kept(&late).await);
    catalogue.jobs.advance(&late, JobState::Stopped, "").await;
    assert!(!kept(&early).await && kept(&late).await);
    assert!(catalogue.jobs.find("early").is_err());
    let stored = catalogue
        .dir
        .path()
        .join(format!("jobs/{}.json", early.id()));
    assert!(!stored.exists());
    assert_eq!(catalogue.jobs.find("late").unwrap().id(), late.id());
}

#[tokio::test]
async fn an_end_that_could_not_be_stored_is_stored_later() {
    let catalogue = Catalogue::new().await;
    let job = catalogue
        .submit("b", "INSERT", JobKind::Batch)
        .await
        .unwrap();
    let (dir, away) = (
        catalogue.dir.path(),
        catalogue.dir.path().with_extension("away"),
    );
    std::fs::rename(dir, &away).unwrap();
    catalogue.jobs.advance(&job, JobState::Succeeded, "").await;
    catalogue.jobs.save_again().await;
    std::fs::rename(&away, dir).unwrap();
    let stored = std::fs::read_to_string(dir.join(format!("jobs/{}.json", job.id()))).unwrap();
    assert!(!stored.contains("succeeded"), "{stored}");
    catalogue.jobs.save_again().await;
    let (jobs, open) = catalogue.restarted().await;
    assert!(open.is_empty());
    let state = jobs.find(&job.id()).unwrap().read(|record| record.state);
    assert_eq!(state, JobState::Succeeded);
}

#[test]
fn the_last_epochs_are_kept_and_all_are_counted() {
    let job = new_job("toots", JobKind::Streaming);
    let mut changes = job.watch();
    changes.mark_unchanged();
    let last = MAX_EPOCHS_KEPT as u64 + 5;
    for number in 1..=last {
        job.record_epoch(epoch(number));
    }
    assert!(changes.has_changed().unwrap());
    let all = numbers(&job, None, usize::MAX);
    assert_eq!((all.len(), all[0]), (MAX_EPOCHS_KEPT, 6));
    assert_eq!(numbers(&job, None, 2), [last - 1, last]);
    assert_eq!(numbers(&job, Some(last - 3), 2), [last - 1, last]);
    assert_eq!(numbers(&job, Some(last - 1), 2), [last]);
    assert!(numbers(&job, Some(last), 2).is_empty());
    job.read(|record| {
        let totals = record.totals;
        assert_eq!((totals.epochs, totals.input_rows), (last, 10 * last));
        assert_eq!((totals.output_rows, totals.late_rows), (4 * last, 6 * last));
        assert_eq!(totals.lost, last);
        let shown = record.to_proto(false);
        assert_eq!(shown.last_epoch.unwrap().epoch, last);
    });
    // A generation that begins behind the last stored epoch.
    job.record_epoch(epoch(last - 1));
    assert_eq!(numbers(&job, None, 2), [last - 2, last - 1]);
}

#[test]
fn a_record_of_an_earlier_version_is_a_batch_job() {
    let stored = r#"{"id":"1","name":"n","sql":"s","state":"running","message":"","submitted_ms":1,
        "started_ms":2,"ended_ms":0,"generation":1}"#;
    let record: JobRecord = serde_json::from_str(stored).unwrap();
    assert_eq!(record.kind, JobKind::Batch);
    assert!(record.to_proto(true).totals.is_none());
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_or_a_job_twice() {
    let catalogue = Catalogue::new().await;
    {
        let mut known = catalogue.jobs.known.lock();
        for number in 0..1_000 {
            let kind = match number % 2 {
                0 => JobKind::Batch,
                _ => JobKind::Streaming,
            };
            let job = new_job(&format!("Job {number}"), kind);
            // Many were submitted in the same millisecond.
            job.update(|record| record.submitted_ms = number / 100);
            known.insert(Entry::new(job, true));
        }
    }
    let pages = |wanted: &list::Wanted, limit: usize| {
        let (mut names, mut counts, mut at) = (Vec::new(), Vec::new(), None);
        loop {
            let page = catalogue.jobs.page(wanted, limit, at);
            let shown = page.jobs.iter().map(|job| job.read(|r| r.name.clone()));
            names.extend(shown);
            counts.push(page.jobs.len());
            at = page.next;
            if at.is_none() {
                return (names, counts);
            }
        }
    };
    let newest_first: Vec<String> = (0..1_000).rev().map(|n| format!("Job {n}")).collect();
    let (names, counts) = pages(&list::Wanted::default(), 300);
    assert_eq!(names, newest_first);
    assert_eq!(counts, [300, 300, 300, 100]);
    // The last page is known to be the last, also if it is full.
    assert_eq!(pages(&list::Wanted::default(), 500).1, [500, 500]);
    let wanted = list::Wanted {
        kind: Some(JobKind::Streaming),
        name: Some("job 99".to_owned()),
        state: Some(JobState::Queued),
        no_ended_queries: true,
    };
    let (names, counts) = pages(&wanted, 4);
    let odd = [
        "Job 999", "Job 997", "Job 995", "Job 993", "Job 991", "Job 99",
    ];
    assert_eq!(
        (names, counts),
        (odd.map(str::to_owned).to_vec(), vec![4, 2])
    );
    assert_eq!(catalogue.jobs.counts()[&JobState::Queued], 1_000);
}

#[tokio::test]
async fn what_runs_is_in_sight_below_any_number_of_ended_queries_and_jobs() {
    let catalogue = Catalogue::new().await;
    {
        let mut known = catalogue.jobs.known.lock();
        let mut add = |name: &str, at: i64, stored: bool, state: JobState| {
            let job = new_job(name, JobKind::Batch);
            job.update(|record| (record.submitted_ms, record.state) = (at, state));
            known.insert(Entry::new(job, stored));
        };
        add("running", 1, true, JobState::Running);
        add("running query", 2, false, JobState::Running);
        for number in 10..20 {
            add(&format!("job {number}"), number, true, JobState::Succeeded);
        }
        for number in 20..30 {
            add("query", number, false, JobState::Succeeded);
        }
    }
    let names = |jobs: Vec<Arc<JobHandle>>| -> Vec<String> {
        jobs.iter()
            .map(|job| job.read(|r| r.name.clone()))
            .collect()
    };
    let wanted = list::Wanted {
        no_ended_queries: true,
        ..list::Wanted::default()
    };
    let all = list::Wanted::default();
    let jobs = &catalogue.jobs;
    let expected = ["job 19", "job 18", "running query", "running"];
    assert_eq!(names(jobs.with_open(&wanted, 2)), expected);
    assert_eq!(jobs.with_open(&wanted, 100).len(), 12);
    let expected = ["query", "running query", "running"];
    assert_eq!(names(jobs.with_open(&all, 1)), expected);
    assert_eq!(names(jobs.list(2)), ["query", "query"]);
}

#[tokio::test]
async fn a_master_whose_state_dir_was_taken_over_says_so() {
    let catalogue = Catalogue::new().await;
    catalogue.jobs.check_fence().await.unwrap();
    assert_eq!(catalogue.jobs.state_dir_trouble(), None);
    let _new = catalogue.restarted().await;
    catalogue.jobs.check_fence().await.unwrap_err();
    let trouble = catalogue.jobs.state_dir_trouble().unwrap();
    assert!(trouble.is_lost);
    assert!(trouble.message.contains("another master"), "{trouble:?}");
    let told = catalogue.jobs.events.after(0, 10, |_| true);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind, EventKind::StateDirLost);
}

#[tokio::test]
async fn the_life_of_a_job_is_told_in_events() {
    let catalogue = Catalogue::new().await;
    let job = catalogue.ended("toots", "sql", JobState::Failed).await;
    let query = catalogue.jobs.add_query("SELECT 1".to_owned()).unwrap();
    let state = JobState::Succeeded;
    catalogue.jobs.advance(&query, state, "").await;
    let events = catalogue.jobs.events.after(0, 10, |_| true);
    let told: Vec<_> = events.iter().map(|event| event.kind).collect();
    let life = [
        EventKind::JobSubmitted,
        EventKind::JobStarted,
        EventKind::JobEnded,
    ];
    assert_eq!(told, life);
    let last = &events[2];
    assert_eq!(last.job, Some(job.id()));
    assert_eq!(last.severity, Severity::Error);
    assert_eq!(last.message, "job toots failed: as the test says");
    let errors = job.read(|record| record.errors.clone());
    assert_eq!(errors[0].message, "as the test says");
}

#[test]
fn the_last_errors_are_kept() {
    let job = new_job("toots", JobKind::Streaming);
    for number in 0..150 {
        job.record_error(JobError::now(number.to_string()));
    }
    let errors = job.read(|record| record.errors.clone());
    assert_eq!(errors.len(), 100);
    assert_eq!(errors[0].message, "50");
    assert_eq!(errors[99].message, "149");
}

#[tokio::test]
async fn what_a_list_does_not_show_of_an_old_batch_job_is_in_the_state_dir() {
    let catalogue = Catalogue::new().await;
    let job = catalogue.submit("b", "sql", JobKind::Batch).await.unwrap();
    job.record_error(JobError::now("it was tried again"));
    let state = JobState::Succeeded;
    catalogue.jobs.advance(&job, state, "").await;
    let (jobs, _) = catalogue.restarted().await;
    let old = jobs.find("b").unwrap();
    old.read(|record| {
        assert_eq!((record.sql.as_str(), record.errors.len()), ("", 0));
        assert_eq!(record.state, JobState::Succeeded);
    });
    let whole = |record: &JobRecord| (record.sql.clone(), record.errors.len());
    let (sql, errors) = jobs.look(&old, whole).await.unwrap();
    assert_eq!((sql.as_str(), errors), ("sql", 1));
}
