//! Wrong jobs are refused with a message that names what is wrong and where, and says what to write instead.

#[path = "bad_input/inserts.rs"]
mod inserts;

use anyhow::Result;
use essaim_proto::v1::JobState;
use essaim_tests::client::Client;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::kafka::{Topic, brokers};
use essaim_tests::postgres::{Database, server};
use essaim_tests::sql::{integers, numbers};
use essaim_tests::unique;
use tonic::{Code, Status};
use url::Url;

async fn client() -> Result<Client> {
    shared().await?.client().await
}

/// All of `parts` are in the message, in any case.
fn assert_says(status: &Status, parts: &[&str]) {
    let message = status.message().to_lowercase();
    for part in parts {
        assert!(
            message.contains(&part.to_lowercase()),
            "no {part:?} in {status:?}"
        );
    }
}

#[tokio::test]
async fn an_unknown_table_is_named() -> Result<()> {
    let status = client()
        .await?
        .query_error("SELECT * FROM no_such_table")
        .await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["there is no table no_such_table: declare it"]);
    let sql = format!("{}SELECT * FROM nubmers", numbers("numbers", 10));
    let status = client().await?.query_error(&sql).await?;
    assert_says(&status, &["no table nubmers: did you mean numbers?"]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_column_of_another_case_is_to_be_quoted_and_nothing_else() -> Result<()> {
    let sql = "CREATE VIEW t AS SELECT 1 AS \"orderId\", named_struct('deepKey', 1) AS s; ";
    let client = client().await?;
    let status = client
        .query_error(&format!("{sql}SELECT orderId FROM t"))
        .await?;
    assert_says(&status, &["use double quotes", "\"orderId\""]);
    assert!(!status.message().contains("normalization"), "{status}");
    let status = client
        .query_error(&format!("{sql}SELECT s.deepKey FROM t"))
        .await?;
    assert_says(&status, &["no field deepkey", "did you mean \"deepKey\"?"]);
    Ok(())
}

#[tokio::test]
async fn what_other_systems_have_is_told_with_what_to_write_here() -> Result<()> {
    let client = client().await?;
    for (sql, parts) in [
        ("SELECT explode([1, 2])", ["explode", "unnest(list)"]),
        (
            "SELECT tumble_start(1, 2)",
            ["tumble_start", "GROUP BY window("],
        ),
        (
            "SELECT get_json_object('{}', 'a')",
            ["get_json_object", "json_tuple"],
        ),
        ("SELECT uper('a')", ["uper", "did you mean upper?"]),
        (
            "SELECT * FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE))",
            ["syntax error", "GROUP BY window("],
        ),
        (
            "CREATE TABLE t (ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND); SELECT 1",
            ["syntax error", "watermark_delay '10 seconds'"],
        ),
        (
            "SELECT sum('x')",
            ["there is no sum(VARCHAR)", "CAST(… AS BIGINT)"],
        ),
        (
            "UPDATE t SET a = 1",
            ["UPDATE is not there", "mode 'upsert'"],
        ),
        ("DELETE FROM t", ["DELETE is not there", "INSERT OVERWRITE"]),
    ] {
        let status = client.query_error(sql).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{sql}");
        assert_says(&status, &parts);
        let message = status.message();
        assert!(message.lines().count() == 1, "{sql}: {message}");
        assert!(!message.contains("bug report"), "{sql}: {message}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_column_is_named_with_those_that_there_are() -> Result<()> {
    let sql = format!("{}SELECT valeu FROM numbers", numbers("numbers", 10));
    let status = client().await?.query_error(&sql).await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["valeu", "numbers.value"]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_function_is_named() -> Result<()> {
    let status = client()
        .await?
        .query_error("SELECT no_such_function(1)")
        .await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["no_such_function"]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_type_is_named() -> Result<()> {
    let client = client().await?;
    let status = client.query_error("SELECT CAST(1 AS FROBNICATE)").await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["FROBNICATE"]);
    let status = client
        .query_error(
            "CREATE EXTERNAL TABLE t (a FROBNICATE) STORED AS KAFKA LOCATION 'kafka://127.0.0.1:1/t';
             SELECT * FROM t",
        )
        .await?;
    assert_says(&status, &["FROBNICATE"]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_connector_is_named() -> Result<()> {
    let status = client()
        .await?
        .query_error(
            "CREATE EXTERNAL TABLE t STORED AS CARRIER_PIGEON LOCATION 'x'; SELECT * FROM t",
        )
        .await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["CARRIER_PIGEON"]);
    Ok(())
}

#[tokio::test]
async fn a_mistyped_option_gets_a_suggestion() -> Result<()> {
    let status = client()
        .await?
        .query_error(
            "CREATE EXTERNAL TABLE n STORED AS GENERATOR LOCATION 'numbers'
               OPTIONS (number_of_rows '10', number_of_row '10');
             SELECT * FROM n",
        )
        .await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(
        &status,
        &[
            "table n",
            "unknown option number_of_row",
            "did you mean number_of_rows?",
        ],
    );
    Ok(())
}

#[tokio::test]
async fn an_unknown_setting_is_named() -> Result<()> {
    let status = client()
        .await?
        .query_error("SET essaim.no_such_setting = 1; SELECT 1")
        .await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["there is no setting essaim.no_such_setting"]);
    for sql in ["SET essaim.triger = '0'", "RESET essaim.triger"] {
        let status = client()
            .await?
            .query_error(&format!("{sql}; SELECT 1"))
            .await?;
        assert_says(&status, &["did you mean essaim.trigger?"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_variable_that_is_not_set_is_named() -> Result<()> {
    let status = client()
        .await?
        .query_error(
            "CREATE EXTERNAL TABLE people STORED AS POSTGRES
               LOCATION 'postgres://app:${ESSAIM_VAR_NO_SUCH}@127.0.0.1/db' OPTIONS (table 'people');
             SELECT * FROM people",
        )
        .await?;
    assert_says(&status, &["people", "${ESSAIM_VAR_NO_SUCH}"]);
    Ok(())
}

#[tokio::test]
async fn a_syntax_error_has_its_line_and_column() -> Result<()> {
    let client = client().await?;
    let job = "-- A job file.\nSET essaim.max_attempts = 2;\n\n  SELEC 1;\n";
    let refused = client
        .submit(job, "")
        .await
        .err()
        .map(|e| e.downcast::<Status>());
    let Some(Ok(refused)) = refused else {
        panic!("{refused:?}");
    };
    let asked = client.query_error(job).await?;
    for status in [refused, asked] {
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_says(&status, &["SELEC", "Line: 4, Column: 3"]);
    }
    let status = client.query_error("SELECT (1 +\n       2 FROM t").await?;
    assert_says(&status, &["FROM", "Line: 2, Column: 10"]);
    Ok(())
}

#[tokio::test]
async fn a_job_without_an_insert_is_refused() -> Result<()> {
    let client = client().await?;
    for job in ["", "SET essaim.max_attempts = 2", "SELECT 1"] {
        let status: Status = match client.submit(job, "").await {
            Ok(id) => panic!("{job:?} was taken as {id}"),
            Err(error) => error.downcast()?,
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{job:?}: {status:?}");
    }
    let status: Status = match client.submit("SET essaim.max_attempts = 2", "").await {
        Ok(id) => panic!("it was taken as {id}"),
        Err(error) => error.downcast()?,
    };
    assert_says(&status, &["INSERT"]);
    Ok(())
}

#[tokio::test]
async fn a_setting_with_an_unknown_value_names_the_known_ones() -> Result<()> {
    let sql = format!(
        "SET essaim.execution = 'sideways'; {}SELECT sum(value) FROM numbers",
        numbers("numbers", 10)
    );
    let status = client().await?.query_error(&sql).await?;
    assert_says(
        &status,
        &["essaim.execution", "sideways", "'tasks'", "'exchange'"],
    );
    Ok(())
}

#[tokio::test]
async fn an_unknown_topic_is_named() -> Result<()> {
    let topic = unique("no-such-topic");
    let sql = format!(
        "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{}/{topic}'
           OPTIONS (format 'json', starting_offsets 'earliest');
         SELECT count(*) FROM t",
        brokers()
    );
    let status = client().await?.query_error(&sql).await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &[&topic]);
    Ok(())
}

#[tokio::test]
async fn a_record_that_does_not_decode_is_named_by_its_offset() -> Result<()> {
    let topic = Topic::create(1).await?;
    let payloads = ["{\"id\": 1}", "{\"id\": 2}", "{\"id\": tw"];
    topic
        .produce(payloads.map(str::to_owned).into_iter())
        .await?;
    let sql = format!("{}SELECT sum(id) FROM t", topic.declare("t", "id BIGINT"));
    let status = client().await?.query_error(&sql).await?;
    assert_eq!(status.code(), Code::DataLoss);
    assert_says(&status, &[&topic.name, "2", "on_error"]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_postgres_table_is_named() -> Result<()> {
    let database = Database::create().await?;
    let sql = format!(
        "{}SELECT * FROM people",
        database.declare("people", "no_such_people", "")
    );
    let status = client().await?.query_error(&sql).await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["has no table no_such_people", &database.name]);

    database
        .execute("CREATE TABLE accounts (id bigint)")
        .await?;
    for (columns, select) in [("", "id"), ("", "count(*)"), ("(id BIGINT)", "id")] {
        let sql = format!(
            "CREATE EXTERNAL TABLE a {columns} STORED AS POSTGRES LOCATION '{}' OPTIONS (table 'acounts');
             SELECT {select} FROM a",
            database.url
        );
        let status = client().await?.query_error(&sql).await?;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_says(&status, &["has no table acounts: did you mean accounts?"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named_with_its_path() -> Result<()> {
    let cluster = shared().await?;
    let folder = cluster.dir().join(unique("files"));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("accounts.csv"), "id\n1\n")?;
    let path = folder.join("acounts.csv").display().to_string();
    let sql = format!("CREATE EXTERNAL TABLE a STORED AS CSV LOCATION '{path}'; SELECT id FROM a");
    let status = cluster.client().await?.query_error(&sql).await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["table a", &path, "did you mean accounts.csv?"]);
    Ok(())
}

#[tokio::test]
async fn a_table_that_an_earlier_insert_makes_is_there_for_a_later_one() -> Result<()> {
    let database = Database::create().await?;
    database.execute("CREATE TABLE target (id bigint)").await?;
    let sql = format!(
        "CREATE EXTERNAL TABLE made (id BIGINT) STORED AS POSTGRES LOCATION '{}' OPTIONS (table 'made');
         {}INSERT INTO made SELECT 7 AS id;
         INSERT INTO target SELECT id FROM made;",
        database.url,
        database.declare("target", "target", "")
    );
    let job = client().await?.run_job(&sql, &unique("made")).await?;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.message);
    assert_eq!(database.value("SELECT id FROM target").await?, "7");
    Ok(())
}

#[tokio::test]
async fn a_declared_column_that_the_table_lacks_is_named() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE people (id bigint, name text)")
        .await?;
    let sql = format!(
        "CREATE EXTERNAL TABLE people (id BIGINT, age BIGINT) STORED AS POSTGRES LOCATION '{}' OPTIONS (table 'people');
         SELECT * FROM people",
        database.url
    );
    let status = client().await?.query_error(&sql).await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_says(&status, &["age", "id", "name"]);
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_said_and_never_shown() -> Result<()> {
    let mut url = Url::parse(&server())?;
    url.set_password(Some("not-the-password-7")).ok();
    let sql = format!(
        "CREATE EXTERNAL TABLE people STORED AS POSTGRES LOCATION '{url}' OPTIONS (table 'people');
         SELECT * FROM people"
    );
    let client = client().await?;
    let status = client.query_error(&sql).await?;
    assert_says(&status, &["people", "password", url.username()]);
    assert!(!status.message().contains("not-the-password-7"), "{status}");
    let shown = format!("{:?}", client.list().await?);
    assert!(!shown.contains("not-the-password-7"));
    Ok(())
}

#[tokio::test]
async fn a_query_that_needs_more_memory_than_there_is_names_the_setting() -> Result<()> {
    let mut cluster = Cluster::start(0, 0).await?;
    // With one worker there would be no exchange, and the master would join.
    cluster.add_worker(1, "64MiB").await?;
    cluster.add_worker(1, "64MiB").await?;
    let client = cluster.client().await?;
    // One side of a join between two large tables is held as a hash table: it cannot be spilled.
    let sql = format!(
        "SET essaim.execution = 'exchange';
         {}SELECT count(*) FROM numbers a JOIN numbers b ON a.value = b.value * 3",
        numbers("numbers", 20_000_000)
    );
    let status = client.query_error(&sql).await?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_says(&status, &["--memory"]);

    // The worker lives and has its memory back.
    let sql = format!(
        "{}SELECT sum(value) FROM numbers",
        numbers("numbers", 1_000_000)
    );
    assert_eq!(integers(&client.query(&sql).await?, 0)?, [499_999_500_000]);
    Ok(())
}
