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
    assert_eq!(
        listed,
        "-- table t\nCREATE EXTERNAL TABLE t STORED AS POSTGRES LOCATION 'postgres://a:***@h/d';\n"
    );
    say(&mut session, "\\d t\n").await.unwrap();
    assert_eq!(fake.queries().pop().unwrap().1, "DESCRIBE t");
    assert_eq!(failure(say(&mut session, "\\e\n").await).exit_code(), 2);
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

#[tokio::test]
async fn declarations_are_listed_as_they_were_typed() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    let table = "CREATE EXTERNAL TABLE t (a INT, -- the number\n  b INT)\nSTORED AS POSTGRES \
        LOCATION 'postgres://a:${PGPASSWORD}@h/d' OPTIONS (table 'x  y')";
    let view = "CREATE VIEW v AS\nSELECT 1";
    say(&mut session, &format!("{table};{view};\n"))
        .await
        .unwrap();
    let (table, view) = (
        format!("-- table t\n{table};\n"),
        format!("-- view v\n{view};\n"),
    );
    for (command, shown) in [
        ("\\d", format!("{table}{view}")),
        ("\\dt", table),
        ("\\dv;", view),
    ] {
        assert_eq!(say(&mut session, command).await.unwrap(), shown);
    }
}

#[tokio::test]
async fn the_words_of_psql_are_understood_between_statements_only() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    let mut out = Vec::new();
    for word in ["quit\n", "EXIT;\n", "\\q"] {
        let flow = session.line(word, &mut out).await.unwrap();
        assert_eq!(flow, Flow::Quit, "{word}");
    }
    let help = say(&mut session, "help\n").await.unwrap();
    assert!(help.contains("\\timing [on|off]"), "{help}");
    for line in ["SELECT n AS\n", "quit\n", ";\n"] {
        say(&mut session, line).await.unwrap();
    }
    assert_eq!(fake.queries().pop().unwrap().1, "SELECT n AS\nquit");
}

#[tokio::test]
async fn switches_are_turned_or_set() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    for (command, state) in [
        ("\\timing off", "Timing is off.\n"),
        ("\\timing on", "Timing is on.\n"),
        ("\\timing on;", "Timing is on.\n"),
        ("\\timing", "Timing is off.\n"),
        ("\\x", "Expanded display is on.\n"),
        (
            "\\pset null '(it''s null)'",
            "NULL is shown as \"(it's null)\".\n",
        ),
    ] {
        assert_eq!(say(&mut session, command).await.unwrap(), state);
    }
    for wrong in ["\\timing maybe", "\\pset border 2", "\\i", "\\o |less"] {
        let failure = failure(say(&mut session, wrong).await);
        assert_eq!(failure.exit_code(), 2, "{failure}");
    }
    assert_eq!(
        say(&mut session, "SELECT n;").await.unwrap(),
        "-[ RECORD 1 ]-\nn | 1\n-[ RECORD 2 ]-\nn | 2\n(2 rows)\n"
    );
}

#[tokio::test]
async fn files_are_run_and_results_are_written_to_files() {
    let fake = Fake::start(Job::default()).await;
    let mut session = session(&fake, Format::Table).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (inner, outer, results) = (path("inner.sql"), path("it's outer.sql"), path("results"));
    std::fs::write(&inner, "CREATE VIEW v AS\nSELECT 1;\n\\q\nnonsense").unwrap();
    let outer_sql = format!("-- runs another\n\\i {inner}\n\nSELECT n\n;\n\nnonsense");
    std::fs::write(&outer, outer_sql).unwrap();
    let said = say(&mut session, &format!("\\o {results}")).await.unwrap();
    assert_eq!(said, "");
    let run = format!("\\i '{}'\n", outer.replace('\'', "''"));
    let failed = failure(say(&mut session, &run).await);
    assert_eq!(
        failed.to_string(),
        format!("{outer}, statement of line 7: there is no nonsense")
    );
    assert_eq!(session.names(), ["v"]);
    say(&mut session, "\\o\n").await.unwrap();
    let here = say(&mut session, "SELECT n;").await.unwrap();
    assert_eq!(
        std::fs::read_to_string(&results).unwrap(),
        format!("CREATE VIEW\n{here}")
    );

    std::fs::write(&inner, format!("\n\\i {inner}\n")).unwrap();
    let endless = failure(say(&mut session, &format!("\\i {inner}")).await);
    assert!(
        endless.to_string().contains("files run each other"),
        "{endless}"
    );
    let missing = failure(say(&mut session, "\\i /no/such/file.sql").await);
    assert!(
        missing.to_string().contains("/no/such/file.sql"),
        "{missing}"
    );
}
