//! The command line as scripts use it: what it prints and the code it ends with.

use anyhow::{Context, Result, ensure};
use essaim_tests::cluster::shared;
use essaim_tests::command::{self, Ended, essaim_reads};
use essaim_tests::postgres::Database;
use essaim_tests::sql::numbers;
use essaim_tests::unique;
use serde_json::json;
use std::path::PathBuf;

async fn essaim(arguments: &[&str]) -> Result<Ended> {
    let cluster = shared().await?;
    cluster.show_logs();
    command::essaim(&cluster.url(), arguments).await
}

/// The command's output; it must have ended with 0.
async fn succeeds(arguments: &[&str]) -> Result<Ended> {
    let ended = essaim(arguments).await?;
    ensure!(ended.code == 0, "{arguments:?}: {ended:?}");
    Ok(ended)
}

/// Writes a job file into the cluster's folder.
async fn job_file(sql: &str) -> Result<PathBuf> {
    let path = shared()
        .await?
        .dir()
        .join(unique("job"))
        .with_extension("sql");
    std::fs::write(&path, sql)?;
    Ok(path)
}

#[tokio::test]
async fn sql_prints_a_table_csv_or_json() -> Result<()> {
    let select = format!(
        "{}SELECT value AS number, NULLIF('n,' || CAST(value AS VARCHAR), 'n,1') AS name
         FROM numbers ORDER BY value",
        numbers("numbers", 3)
    );
    let csv = succeeds(&["sql", "--format", "csv", "-c", &select]).await?;
    assert_eq!(csv.out, "number,name\n0,\"n,0\"\n1,\n2,\"n,2\"\n");

    let expected = json!([
        {"number": 0, "name": "n,0"}, {"number": 1, "name": null}, {"number": 2, "name": "n,2"}
    ]);
    let rows = succeeds(&["sql", "--format", "json", "-c", &select]).await?;
    assert_eq!(rows.json()?, expected);
    let rows = succeeds(&["sql", "--json", "-c", &select]).await?;
    assert_eq!(rows.json()?, expected);

    let table = succeeds(&["sql", "-c", &select]).await?;
    for part in ["number", "name", "n,2", "(3 rows"] {
        assert!(table.out.contains(part), "{table:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_one_statement_declares_the_next_one_sees() -> Result<()> {
    let declare = numbers("numbers", 10);
    let view = "CREATE VIEW odd AS SELECT value FROM numbers WHERE value % 2 = 1";
    let sum = "SELECT sum(value) AS s FROM odd";
    let ended = succeeds(&[
        "sql", "--format", "csv", "-c", &declare, "-c", view, "-c", sum,
    ])
    .await?;
    assert_eq!(ended.out, "s\n25\n");

    let text = format!("-- Comments; are no statements.\n{declare}{view};\n{sum};\n");
    let file = job_file(&text).await?;
    let file = file.to_string_lossy();
    let ended = succeeds(&["sql", "--format", "csv", "-f", &file]).await?;
    assert_eq!(ended.out, "s\n25\n");
    let piped = essaim_reads(&shared().await?.url(), &["sql", "--format", "csv"], &text).await?;
    assert_eq!(
        (piped.code, piped.out.as_str()),
        (0, "s\n25\n"),
        "{piped:?}"
    );
    Ok(())
}

#[tokio::test]
async fn exit_codes_tell_failed_unreachable_and_refused_apart() -> Result<()> {
    let declare = numbers("numbers", 10);
    let fails = "SELECT CAST('x' || CAST(value AS VARCHAR) AS BIGINT) FROM numbers";
    let failed = essaim(&["sql", "-c", &declare, "-c", fails]).await?;
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(failed.err.starts_with("error: "), "{failed:?}");

    let usage = essaim(&["sql", "--no-such-flag"]).await?;
    assert_eq!(usage.code, 2, "{usage:?}");
    let missing = essaim(&["submit", "/no/such/file.sql"]).await?;
    assert_eq!(missing.code, 2, "{missing:?}");
    assert!(missing.err.contains("/no/such/file.sql"), "{missing:?}");

    let unreachable = command::essaim("http://127.0.0.1:1", &["sql", "-c", "SELECT 1"]).await?;
    assert_eq!(unreachable.code, 3, "{unreachable:?}");
    assert!(unreachable.err.contains("127.0.0.1:1"), "{unreachable:?}");
    let unreachable = command::essaim("http://127.0.0.1:1", &["jobs"]).await?;
    assert_eq!(unreachable.code, 3, "{unreachable:?}");

    for arguments in [
        ["sql", "-c", "SELEC 1"],
        ["sql", "-c", "SELECT * FROM no_such_table"],
        ["status", "--json", "no-such-job"],
        ["cancel", "--json", "no-such-job"],
    ] {
        let refused = essaim(&arguments).await?;
        assert_eq!(refused.code, 4, "{arguments:?}: {refused:?}");
        assert_eq!(refused.out, "", "{arguments:?}: {refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_submitted_job_is_waited_for_listed_and_shown() -> Result<()> {
    let database = Database::create().await?;
    let sql = [
        numbers("numbers", 1000),
        database.declare("target", "target", ", mode 'append'"),
        "INSERT INTO target SELECT value % 10 AS key, count(*) AS n FROM numbers GROUP BY 1;\n"
            .to_owned(),
    ]
    .concat();
    let file = job_file(&sql).await?;
    let file = file.to_string_lossy();
    let name = unique("listed");
    let ended = succeeds(&["submit", &file, "--name", &name, "--wait", "--json"]).await?;
    let job = ended.json()?;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["queries"][0]["rows_out"], 10, "{job}");
    assert_eq!(database.value("SELECT sum(n) FROM target").await?, "1000");

    let listed = succeeds(&["jobs", "--json"]).await?.json()?;
    let jobs = listed["jobs"].as_array().context("jobs")?;
    let found = jobs.iter().find(|listed| listed["id"] == job["id"]);
    assert_eq!(found.context("it is not listed")?["name"], name.as_str());
    assert!(succeeds(&["jobs"]).await?.out.contains(&name));

    let id = job["id"].as_str().context("id")?;
    assert_eq!(succeeds(&["status", id, "--json"]).await?.json()?, job);
    let shown = succeeds(&["status", &name]).await?;
    for part in [id, "succeeded", "target"] {
        assert!(shown.out.contains(part), "{shown:?}");
    }
    assert!(!shown.out.contains("essaim:essaim"), "{shown:?}");
    // A job that has ended is not cancelled, and that is no error.
    let cancelled = succeeds(&["cancel", id, "--json"]).await?;
    assert_eq!(cancelled.json()?["state"], "succeeded");
    Ok(())
}

#[tokio::test]
async fn queries_that_have_ended_are_listed_only_when_they_are_asked_for() -> Result<()> {
    let select = format!("{}SELECT count(*) FROM numbers", numbers("numbers", 3));
    succeeds(&["sql", "-c", &select]).await?;
    let database = Database::create().await?;
    let cluster = shared().await?;
    let endless = [
        numbers("numbers", 1_000_000_000_000),
        database.declare("target", "target", ", mode 'append'"),
        "INSERT INTO target SELECT sum(value % 7) AS s FROM numbers".to_owned(),
    ]
    .concat();
    let name = unique("runs");
    let submitted = ["submit", "-", "--name", &name];
    let submitted = essaim_reads(&cluster.url(), &submitted, &endless).await?;
    let client = cluster.client().await?;
    let id = submitted.out.trim();
    client
        .wait_until(id, |job| essaim_tests::client::tasks(job).0 > 0)
        .await?;
    // It came later, and wants no slot: the job may have them all.
    succeeds(&["sql", "-c", "SELECT 1"]).await?;

    let listed = async |more: &[&str]| {
        let arguments = [&["jobs", "--json"][..], more].concat();
        succeeds(&arguments).await?.json()
    };
    let ids = |page: &serde_json::Value, is_wanted: fn(&serde_json::Value) -> bool| {
        let jobs = page["jobs"].as_array().context("jobs")?;
        let wanted = jobs.iter().filter(|job| is_wanted(job));
        let ids = wanted.filter_map(|job| job["id"].as_str().map(str::to_owned));
        anyhow::Ok(ids.collect::<Vec<String>>())
    };
    let all = listed(&["--limit", "10000", "--all"]).await?;
    let ended = ids(&all, |job| {
        job["name"] == "query" && job["state"] == "succeeded"
    })?;
    assert!(!ended.is_empty(), "{all}");
    let page = cluster
        .json("/api/v1/jobs?limit=1000&queries=false")
        .await?;
    let shown = [
        listed(&["--limit", "10000"]).await?,
        listed(&["--limit", "1"]).await?,
        page,
    ];
    for shown in shown {
        let shown = ids(&shown, |_| true)?;
        assert!(!shown.iter().any(|id| ended.contains(id)), "{shown:?}");
        // It is in sight however many came after it.
        assert!(shown.iter().any(|shown| shown == id), "{shown:?}");
    }
    let page = cluster.json("/api/v1/jobs?limit=1000").await?;
    assert!(ids(&page, |_| true)?.contains(&ended[0]), "{page}");
    succeeds(&["cancel", &name]).await?;
    Ok(())
}

#[tokio::test]
async fn an_error_shows_the_line_and_its_column() -> Result<()> {
    let refused = essaim(&["sql", "-c", "SELECT 1,\n  SELEC 2 3 FROM t"]).await?;
    assert_eq!(refused.code, 4, "{refused:?}");
    let end = "\nLINE 2:   SELEC 2 3 FROM t\n                ^\n";
    assert!(refused.err.ends_with(end), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn sql_that_stands_alone_is_told_where_it_goes() -> Result<()> {
    let bare = essaim(&["sql", "select 1"]).await?;
    assert_eq!(bare.code, 2, "{bare:?}");
    assert!(bare.err.contains("essaim sql -c"), "{bare:?}");
    let file = job_file("SELECT 1").await?;
    let file = file.to_string_lossy();
    let bare = essaim(&["sql", &file]).await?;
    assert_eq!(bare.code, 2, "{bare:?}");
    let tip = format!("essaim sql -f {file}");
    assert!(bare.err.contains(&tip), "{bare:?}");
    Ok(())
}

#[tokio::test]
async fn a_setting_that_is_refused_is_named() -> Result<()> {
    for (sql, named) in [
        ("SET essaim.max_attempts = 'x'", "essaim.max_attempts = 'x'"),
        ("SET TIME ZONE LOCAL", "SET TIME ZONE 'Europe/Berlin'"),
    ] {
        let refused = essaim(&["sql", "-c", sql]).await?;
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.err.contains(named), "{refused:?}");
        assert!(!refused.err.contains("caused by"), "{refused:?}");
        assert!(!refused.err.contains("Span"), "{refused:?}");
    }
    let sql = "SET TIME ZONE '+02:00'; SHOW timezone";
    let zone = succeeds(&["sql", "--format", "csv", "-c", sql]).await?;
    assert!(zone.out.ends_with(",+02:00\n"), "{zone:?}");
    Ok(())
}

#[tokio::test]
async fn a_job_that_fails_ends_submit_with_one() -> Result<()> {
    let database = Database::create().await?;
    database
        .execute("CREATE TABLE target (id bigint CHECK (id < 5))")
        .await?;
    let sql = [
        numbers("numbers", 10),
        database.declare("target", "target", ", mode 'append'"),
        "INSERT INTO target SELECT value AS id FROM numbers".to_owned(),
    ]
    .concat();
    let cluster = shared().await?;
    let ended = essaim_reads(&cluster.url(), &["submit", "-", "--wait"], &sql).await?;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains("target"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_running_job_is_cancelled_by_its_name() -> Result<()> {
    let database = Database::create().await?;
    let sql = [
        numbers("numbers", 1_000_000_000_000),
        database.declare("target", "target", ", mode 'append'"),
        "INSERT INTO target SELECT sum(value % 7) AS s FROM numbers".to_owned(),
    ]
    .concat();
    let cluster = shared().await?;
    let name = unique("endless");
    let submitted = essaim_reads(
        &cluster.url(),
        &["submit", "-", "--name", &name, "--json"],
        &sql,
    )
    .await?;
    let id = submitted.json()?["job_id"]
        .as_str()
        .context("job_id")?
        .to_owned();
    let client = cluster.client().await?;
    client
        .wait_until(&id, |job| essaim_tests::client::tasks(job).0 > 0)
        .await?;

    let cancelled = succeeds(&["cancel", &name, "--json"]).await?;
    assert_eq!(cancelled.json()?["state"], "running");
    let watched = essaim(&["status", &id, "--watch", "--json"]).await?;
    assert_eq!(watched.code, 1, "{watched:?}");
    assert_eq!(watched.json()?["state"], "cancelled");
    let rows = "SELECT coalesce(to_regclass('target')::text, 'absent')";
    if database.value(rows).await? != "absent" {
        assert_eq!(database.value("SELECT count(*) FROM target").await?, "0");
    }
    Ok(())
}

#[tokio::test]
async fn local_is_a_whole_cluster_in_one_process() -> Result<()> {
    let select = format!(
        "{}SELECT sum(value) AS s FROM numbers",
        numbers("numbers", 1000)
    );
    let ended = essaim_reads(
        "http://127.0.0.1:1",
        &["local", "--format", "csv", "-c", &select],
        "",
    )
    .await?;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "s\n499500\n"),
        "{ended:?}"
    );
    Ok(())
}
