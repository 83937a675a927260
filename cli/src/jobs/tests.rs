//! Jobs against a scripted master.

use super::*;
use crate::fake::Fake;

fn ended(state: JobState) -> Job {
    Job {
        id: "0190".into(),
        state: state.into(),
        message: "table t is gone".into(),
        ..Job::default()
    }
}

fn address(fake: &Fake) -> MasterAddress {
    MasterAddress::plain(&fake.address)
}

fn job_file(sql: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(sql.as_bytes()).unwrap();
    file
}

async fn submit_and_wait(fake: &Fake, sql: &str) -> Result<()> {
    let file = job_file(sql);
    submit(SubmitArgs {
        file: file.path().to_string_lossy().into_owned(),
        name: String::new(),
        from_scratch: false,
        wait: true,
        json: false,
        address: address(fake),
    })
    .await
}

fn failure(result: Result<()>) -> Failure {
    result.unwrap_err().downcast().unwrap()
}

#[tokio::test]
async fn a_watch_that_is_cut_off_goes_on() {
    let fake = Fake::start(ended(JobState::Succeeded)).await;
    submit_and_wait(&fake, "INSERT").await.unwrap();
    assert_eq!(fake.watches(), 2);
}

#[tokio::test]
async fn waiting_for_a_job_that_fails_is_a_failure() {
    let fake = Fake::start(ended(JobState::Failed)).await;
    assert_eq!(
        failure(submit_and_wait(&fake, "INSERT").await),
        Failure::Failed("job 0190 failed: table t is gone".into())
    );
    let fake = Fake::start(ended(JobState::Cancelled)).await;
    assert_eq!(
        failure(submit_and_wait(&fake, "INSERT").await).exit_code(),
        1
    );
}

#[tokio::test]
async fn a_job_that_is_refused_says_why() {
    let fake = Fake::start(Job::default()).await;
    assert_eq!(
        failure(submit_and_wait(&fake, "nonsense").await),
        Failure::Refused("line 1, column 1: nonsense".into())
    );
}

#[tokio::test]
async fn a_job_file_that_is_not_there_is_wrong_usage() {
    let failure = read_file("/no/such/job.sql").unwrap_err();
    assert_eq!(failure.exit_code(), 2);
    assert!(failure.to_string().contains("/no/such/job.sql"));
}

#[tokio::test]
async fn a_job_that_nobody_knows_is_refused() {
    let fake = Fake::start(Job::default()).await;
    let result = status(StatusArgs {
        job: "unknown".into(),
        watch: false,
        json: false,
        address: address(&fake),
    })
    .await;
    assert_eq!(
        failure(result),
        Failure::Refused("there is no job unknown".into())
    );
}

async fn stop_job(fake: &Fake, job: &str, no_wait: bool) -> Result<()> {
    stop(StopArgs {
        job: job.to_owned(),
        no_wait,
        json: false,
        address: address(fake),
    })
    .await
}

#[tokio::test]
async fn stopping_a_job_waits_until_it_has_stopped() {
    let fake = Fake::start(ended(JobState::Stopped)).await;
    stop_job(&fake, "0190", false).await.unwrap();
    assert_eq!(fake.watches(), 2);
    let fake = Fake::start(ended(JobState::Failed)).await;
    assert_eq!(
        failure(stop_job(&fake, "0190", false).await),
        Failure::Failed("job 0190 failed: table t is gone".into())
    );
}

#[tokio::test]
async fn nobody_waits_for_a_job_that_has_stopped_or_against_their_will() {
    let fake = Fake::start(ended(JobState::Stopped)).await;
    stop_job(&fake, "0190", true).await.unwrap();
    stop_job(&fake, "ended", false).await.unwrap();
    assert_eq!(fake.watches(), 0);
}

#[tokio::test]
async fn a_batch_job_is_not_stopped() {
    let fake = Fake::start(Job::default()).await;
    assert_eq!(
        failure(stop_job(&fake, "batch", false).await).exit_code(),
        4
    );
}
