//! INSERTs whose rows do not fit their table.

use super::{assert_says, client};
use anyhow::Result;
use essaim_proto::v1::JobState;
use essaim_tests::postgres::Database;
use essaim_tests::sql::numbers;
use essaim_tests::unique;
use tonic::{Code, Status};

#[tokio::test]
async fn columns_that_do_not_fit_the_sink_are_named_before_anything_runs() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE target (id bigint NOT NULL, name text); INSERT INTO target VALUES (1, 'kept')")
        .await?;
    let client = client().await?;
    let cases: [(&str, &[&str]); 2] = [
        ("(id, nome) SELECT value, 'x' FROM numbers", &["nome"]),
        (
            "SELECT 'x' AS id, 'y' AS name FROM numbers",
            &["'x'", "Int64", "target"],
        ),
    ];
    for (select, parts) in cases {
        // Without declared columns, so that they are the table's own.
        let sql = format!(
            "{}{}INSERT INTO target {select}",
            numbers("numbers", 10),
            database.declare("target", "target", ", mode 'append'")
        );
        // Refused at submit, or, where only values tell, failed later: never half written.
        let message = match client.submit(&sql, "").await {
            Err(error) => error.downcast::<Status>()?.message().to_owned(),
            Ok(id) => {
                let job = client.wait_job(&id).await?;
                assert_eq!(job.state(), JobState::Failed, "{select}");
                job.message
            }
        };
        for part in parts {
            assert!(
                message.contains(part),
                "{select}: no {part:?} in {message:?}"
            );
        }
    }
    assert_eq!(database.rows("SELECT id, name FROM target").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_insert_whose_names_say_another_order_than_the_table_is_refused() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE t (k text, amount numeric(12, 2), orders bigint)")
        .await?;
    let client = client().await?;
    let declared = database.declare("t", "t", "");
    let select = "SELECT 'a' AS k, 7 AS orders, 1753.99 AS amount";
    let refused: [(String, &[&str]); 4] = [
        (
            format!("INSERT INTO t {select}"),
            &[
                "column 2 of the SELECT is named orders and goes into amount",
                "INSERT INTO t (k, orders, amount)",
            ],
        ),
        (
            "INSERT INTO t SELECT 'a', count(*) AS orders, 0 AS x".to_owned(),
            &["column 2 of the SELECT is named orders", "(…, orders, …)"],
        ),
        (
            "INSERT INTO t SELECT 'a' AS k, 7 AS orders".to_owned(),
            &[
                "table t has 3 columns (k, amount, orders)",
                "the SELECT yields 2 (k, orders)",
            ],
        ),
        (
            "INSERT INTO t (k, orders) SELECT 'a' AS k".to_owned(),
            &["INSERT INTO t names 2 columns (k, orders)", "yields 1 (k)"],
        ),
    ];
    for (insert, parts) in refused {
        let status: Status = match client.submit(&format!("{declared}{insert}"), "").await {
            Ok(id) => panic!("{insert}: it was taken as {id}"),
            Err(error) => error.downcast()?,
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{insert}");
        assert_says(&status, parts);
    }

    // Names that are no columns, a column twice, and the table's own order are what they always were.
    for (insert, wanted) in [
        (
            format!("INSERT INTO t (k, orders, amount) {select}"),
            "a 1753.99 7",
        ),
        (
            "INSERT INTO t SELECT 'b' AS x, 1.5 AS y, 2 AS z".to_owned(),
            "b 1.50 2",
        ),
        (
            "INSERT INTO t SELECT k, orders AS amount, orders FROM t WHERE k = 'b'".to_owned(),
            "b 2.00 2",
        ),
        (
            "INSERT INTO t SELECT * FROM t WHERE k = 'a'".to_owned(),
            "a 1753.99 7",
        ),
        ("INSERT INTO t VALUES ('c', 3.25, 4)".to_owned(), "c 3.25 4"),
    ] {
        let job = client
            .run_job(&format!("{declared}{insert}"), &unique("order"))
            .await?;
        assert_eq!(
            job.state(),
            JobState::Succeeded,
            "{insert}: {}",
            job.message
        );
        let newest = "SELECT k || ' ' || amount || ' ' || orders FROM t ORDER BY ctid DESC LIMIT 1";
        assert_eq!(database.value(newest).await?, wanted, "{insert}");
    }
    Ok(())
}

#[tokio::test]
async fn a_text_that_does_not_fit_is_named_with_its_column() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE t (k text, day date)")
        .await?;
    let sql = format!(
        "{}INSERT INTO t SELECT 'a', 'shop'",
        database.declare("t", "t", "")
    );
    let status: Status = match client().await?.submit(&sql, "").await {
        Ok(id) => panic!("it was taken as {id}"),
        Err(error) => error.downcast()?,
    };
    assert_says(
        &status,
        &[
            "INSERT INTO t",
            "'shop'",
            "column 2 of the SELECT is text and goes into day",
        ],
    );
    Ok(())
}

#[tokio::test]
async fn rows_that_the_sink_refuses_fail_the_job_and_change_nothing() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE target (id bigint CHECK (id < 500)); INSERT INTO target VALUES (1)")
        .await?;
    let client = client().await?;
    let sql = format!(
        "{}{}INSERT INTO target SELECT value AS id FROM numbers",
        numbers("numbers", 1000),
        database.declare("target", "target", ", mode 'append'")
    );
    let id = client.submit(&sql, "").await?;
    let job = client.wait_job(&id).await?;
    assert_eq!(job.state(), JobState::Failed);
    assert!(job.message.contains("target"), "{}", job.message);
    assert!(job.message.contains("check"), "{}", job.message);
    assert_eq!(database.rows("SELECT id FROM target").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_upsert_without_a_key_is_refused() -> Result<()> {
    let database = Database::create().await?;
    let sql = format!(
        "{}{}INSERT INTO target SELECT value AS id FROM numbers",
        numbers("numbers", 10),
        database.declare("target", "target", ", mode 'upsert'")
    );
    let status: Status = match client().await?.submit(&sql, "").await {
        Ok(id) => panic!("it was taken as {id}"),
        Err(error) => error.downcast()?,
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["target", "upsert", "key"]);
    Ok(())
}
