//! Files outside of the roots are out of reach, by whatever path, on the master and on a worker for itself; so are
//! variables that are not for jobs.

use crate::refused;
use anyhow::Result;
use essaim_tests::cluster::{Cluster, MEMORY};
use essaim_tests::sql::integers;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;
use tonic::Code;

fn csv(name: &str, location: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE {name} STORED AS CSV LOCATION '{location}' OPTIONS (has_header 'true'); "
    )
}

fn write(path: &Path, rows: i64) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let rows: Vec<String> = (0..rows).map(|n| n.to_string()).collect();
    Ok(std::fs::write(path, format!("n\n{}\n", rows.join("\n")))?)
}

#[tokio::test]
async fn files_outside_of_the_roots_are_neither_read_nor_written() -> Result<()> {
    let dir = TempDir::new()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (root, outside) = (path("in"), path("out"));
    write(&dir.path().join("in/a/1.csv"), 10)?;
    write(&dir.path().join("in/mixed/1.csv"), 10)?;
    write(&dir.path().join("out/secret.csv"), 7)?;
    symlink(&outside, path("in/link"))?;
    symlink(path("out/secret.csv"), path("in/mixed/2.csv"))?;
    symlink(path("out/new.csv"), path("in/new.csv"))?;
    let cluster = Cluster::start_under(1, 2, &[("ESSAIM_FILE_ROOTS", &root)]).await?;
    let client = cluster.client().await?;

    let read = format!("{}SELECT count(*) FROM t", csv("t", &format!("{root}/a/")));
    assert_eq!(integers(&client.query(&read).await?, 0)?, [10]);
    let copy = format!(
        "{}{}INSERT INTO o SELECT n FROM t",
        csv("t", &format!("{root}/a/")),
        csv("o", &format!("{root}/made/"))
    );
    client.run_job(&copy, "copy").await?;
    let made = csv("made", &format!("{root}/made/"));
    let made = client
        .query(&format!("{made}SELECT count(*) FROM made"))
        .await?;
    assert_eq!(integers(&made, 0)?, [10]);

    for location in [
        format!("{outside}/secret.csv"),
        format!("{outside}/"),
        format!("{outside}/*.csv"),
        format!("{root}/../out/secret.csv"),
        format!("{root}/a/../../out/secret.csv"),
        format!("file://{outside}/secret.csv"),
        format!("file://{root}/%2e%2e/out/secret.csv"),
        format!("{root}/link/secret.csv"),
        format!("{root}/link/"),
        format!("{root}/mixed/2.csv"),
        "/etc/".to_owned(),
        "s3://bucket/x.csv".to_owned(),
    ] {
        let sql = format!("{}SELECT * FROM t", csv("t", &location));
        let status = refused(&client, &sql, "\n6", &["--file-roots"]).await?;
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{location}: {status:?}"
        );
    }
    // A folder inside with a link that leads out, and a pattern that finds it.
    for location in [format!("{root}/mixed/"), format!("{root}/mixed/*.csv")] {
        let sql = format!("{}SELECT * FROM t", csv("t", &location));
        refused(&client, &sql, "\n6", &["--file-roots"]).await?;
    }
    for location in [
        format!("{outside}/made/"),
        format!("{root}/../out/made.csv"),
        format!("{root}/link/made/"),
        format!("{root}/new.csv"),
    ] {
        let sql = format!(
            "{}CREATE EXTERNAL TABLE o (n BIGINT) STORED AS CSV LOCATION '{location}'; INSERT INTO o SELECT n FROM t",
            csv("t", &format!("{root}/a/"))
        );
        refused(&client, &sql, "\n6", &["--file-roots"]).await?;
    }
    let left: Vec<_> = std::fs::read_dir(&outside)?.flatten().collect();
    assert_eq!(left.len(), 1, "nothing was written there: {left:?}");
    Ok(())
}

#[tokio::test]
async fn a_worker_checks_the_files_of_its_tasks_for_itself() -> Result<()> {
    let dir = TempDir::new()?;
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write(&a.join("1.csv"), 10)?;
    write(&b.join("1.csv"), 10)?;
    let both = format!("{},{}", a.display(), b.display());
    let mut cluster = Cluster::start_under(0, 2, &[("ESSAIM_FILE_ROOTS", &both)]).await?;
    cluster.set_variable("ESSAIM_FILE_ROOTS", &a.display().to_string());
    cluster.add_worker(2, MEMORY).await?;
    let client = cluster.client().await?;
    let sql = |folder: &Path| {
        let table = csv("t", &format!("{}/", folder.display()));
        format!("SET essaim.execution = 'tasks'; {table}SELECT n, count(*) FROM t GROUP BY n")
    };
    assert_eq!(integers(&client.query(&sql(&a)).await?, 0)?.len(), 10);
    refused(&client, &sql(&b), "\n6", &["--file-roots"]).await?;
    Ok(())
}

#[tokio::test]
async fn only_variables_for_jobs_are_filled_in() -> Result<()> {
    let variables = [
        ("ESSAIM_VAR_ROWS", "7"),
        ("ESSAIM_VAR_SECRET", "hunter2222"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2222"),
    ];
    let cluster = Cluster::start_under(1, 1, &variables).await?;
    let client = cluster.client().await?;
    let sql = |variable: &str| {
        format!(
            "CREATE EXTERNAL TABLE t STORED AS GENERATOR LOCATION 'numbers' OPTIONS (number_of_rows '${{{variable}}}'); \
             SELECT count(*) FROM t"
        )
    };
    let rows = client.query(&sql("ESSAIM_VAR_ROWS")).await?;
    assert_eq!(integers(&rows, 0)?, [7]);
    for variable in ["AWS_SECRET_ACCESS_KEY", "PATH", "ESSAIM_TOKEN"] {
        let parts = [variable, "is not for jobs", "--env-prefixes"];
        refused(&client, &sql(variable), "hunter2222", &parts).await?;
    }
    // An error about a value does not show what the variable held.
    let parts = ["number_of_rows '${ESSAIM_VAR_SECRET}'"];
    refused(&client, &sql("ESSAIM_VAR_SECRET"), "hunter2222", &parts).await?;

    let cluster = Cluster::start_under(1, 1, &[("ESSAIM_ENV_PREFIXES", "MY_,PGPASSWORD")]).await?;
    let client = cluster.client().await?;
    refused(&client, &sql("ESSAIM_VAR_ROWS"), "7", &["MY_, PGPASSWORD"]).await?;
    Ok(())
}
