//! A session against a scripted master: what it sends, what it prints, how it fails.

use super::*;
use crate::fake::Fake;
use essaim_proto::v1::Job;

async fn session(fake: &Fake, format: Format) -> Session {
    let mut session = Session::new(fake.client().await, format);
    session.timing = false;
    session
}

async fn say(session: &mut Session, line: &str) -> Result<String> {
    let mut out = Vec::new();
    session.line(line, &mut out).await?;
    Ok(String::from_utf8(out)?)
}

fn failure(result: Result<String>) -> Failure {
    result.unwrap_err().downcast().unwrap()
}

#[tokio::test]
async fn rows_come_back_from_chunks_that_end_anywhere() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    assert_eq!(
        say(&mut session, "SELECT n;").await.unwrap(),
        " n\n---\n 1\n 2\n(2 rows)\n"
    );
}

#[tokio::test]
async fn declarations_are_sent_along_with_later_statements() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    let said = say(
        &mut session,
        "SET a = 1; CREATE OR REPLACE VIEW w AS SELECT 1;",
    )
    .await
    .unwrap();
    assert_eq!(said, "SET\nCREATE VIEW\n");
    say(&mut session, "SELECT n;").await.unwrap();
    let (setup, sql) = fake.queries().pop().unwrap();
    assert_eq!(setup, ["SET a = 1", "CREATE OR REPLACE VIEW w AS SELECT 1"]);
    assert_eq!(sql, "SELECT n");
    assert_eq!(session.names(), ["w"]);
}

#[tokio::test]
async fn a_declaration_that_fails_is_not_remembered() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    let refused = say(&mut session, "CREATE VIEW w AS SELECT nonsense;").await;
    assert_eq!(failure(refused).exit_code(), 4);
    assert_eq!(session.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_view_that_another_one_reads_stays() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    say(&mut session, "CREATE VIEW v AS SELECT 1;")
        .await
        .unwrap();
    say(&mut session, "CREATE VIEW w AS SELECT 1 FROM v;")
        .await
        .unwrap();
    let refused = failure(say(&mut session, "DROP VIEW v;").await).to_string();
    assert_eq!(
        refused,
        "without v what was declared later does not stand: there is no table v"
    );
    assert_eq!(session.names(), ["v", "w"]);
    say(&mut session, "DROP VIEW w; DROP VIEW v;")
        .await
        .unwrap();
    assert_eq!(session.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_query_that_breaks_off_is_a_failure_after_its_first_rows() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Csv).await;
    let mut out = Vec::new();
    let error = session.line("SELECT broken;", &mut out).await.unwrap_err();
    assert_eq!(out, b"n\n1\n2\n");
    assert_eq!(
        error.downcast::<Failure>().unwrap(),
        Failure::Failed("toots[3] offset 7: no JSON".into())
    );
}

#[tokio::test]
async fn a_query_that_is_given_up_ends_on_the_master() {
    let fake = Fake::start(Job::default()).await;
    let session = session(&fake, Format::Csv).await;
    let mut out = Vec::new();
    {
        let mut query = Box::pin(session.query("SELECT endless", &mut out));
        // It has begun once the master has seen it.
        while fake.queries().is_empty() {
            assert!(futures::poll!(&mut query).is_pending());
            tokio::task::yield_now().await;
        }
    }
    tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while fake.dropped() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn commands_begin_with_a_backslash_between_statements() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    let secret = "CREATE EXTERNAL TABLE t STORED AS POSTGRES LOCATION 'postgres://a:pw@h/d';";
    say(&mut session, secret).await.unwrap();
    let listed = say(&mut session, "\\d\n").await.unwrap();
    assert!(listed.starts_with("table  t  CREATE"), "{listed}");
    assert!(listed.contains("postgres://a:***@h/d"), "{listed}");
    say(&mut session, "\\d t\n").await.unwrap();
    assert_eq!(fake.queries().pop().unwrap().1, "DESCRIBE t");
    assert_eq!(failure(say(&mut session, "\\x\n").await).exit_code(), 2);
    let mut out = Vec::new();
    assert_eq!(session.line("\\q\n", &mut out).await.unwrap(), Flow::Quit);
}

#[tokio::test]
async fn json_has_one_document_a_result_and_none_a_declaration() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Json).await;
    let said = say(&mut session, "SET a = 1; SELECT n;").await.unwrap();
    assert_eq!(said, "[{\"n\":1},\n{\"n\":2}]\n");
}
