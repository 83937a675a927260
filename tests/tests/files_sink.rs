//! Files are read by DataFusion and written by Essaim's sink: complete or absent, once.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

use anyhow::Result;
use arrow::util::pretty::pretty_format_batches;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::SessionContext;
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec,
};
use essaim_common::codec::EssaimCodec;
use essaim_common::scope::JobScope;
use essaim_common::session;
use essaim_common::table::Table;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use uuid::Uuid;

fn context_of(job: &str, generation: u64) -> Result<SessionContext> {
    let scope = JobScope::new(job, generation, 2);
    let builder = SessionStateBuilder::new()
        .with_config(session::config(4).with_extension(scope))
        .with_runtime_env(session::runtime(256 << 20)?);
    let state = session::with_essaim(builder).build();
    Ok(SessionContext::new_with_state(state))
}

fn context() -> Result<SessionContext> {
    context_of(&Uuid::new_v4().to_string(), 1)
}

async fn run(context: &SessionContext, sql: &str) -> Result<String> {
    let rows = context.sql(sql).await?.collect().await?;
    Ok(pretty_format_batches(&rows)?.to_string())
}

async fn count(context: &SessionContext, table: &str) -> Result<i64> {
    let frame = context
        .sql(&format!("SELECT CAST(value AS VARCHAR) FROM {table}"))
        .await?;
    Ok(frame.count().await? as i64)
}

fn declare(format: &str, location: &Path, options: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE out (value BIGINT, name VARCHAR) STORED AS {format} LOCATION '{}' {options}",
        location.display()
    )
}

/// All files below a folder, those that readers do not see too.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn parts(folder: &Path) -> Vec<PathBuf> {
    files(folder)
        .into_iter()
        .filter(|file| file.parent() == Some(folder))
        .collect()
}

const TWO_ROWS: &str = "VALUES (1, 'a'), (2, NULL)";

#[tokio::test]
async fn every_format_is_read_back_as_it_was_written() -> Result<()> {
    for (format, options) in [
        ("PARQUET", ""),
        ("PARQUET", "OPTIONS ('parquet.compression' 'snappy')"),
        ("CSV", ""),
        ("CSV", "OPTIONS (has_header 'false', delimiter ';')"),
        ("CSV", "OPTIONS (compression 'gzip')"),
        ("JSON", ""),
        ("JSON", "OPTIONS (compression 'zstd')"),
    ] {
        let folder = TempDir::new()?;
        let location = folder.path().join("out");
        let first = context()?;
        run(&first, &declare(format, &location, options)).await?;
        run(&first, &format!("INSERT INTO out {TWO_ROWS}")).await?;
        let second = context()?;
        run(&second, &declare(format, &location, options)).await?;
        run(&second, "INSERT INTO out VALUES (3, 'c')").await?;
        assert_eq!(
            run(&second, "SELECT * FROM out ORDER BY value").await?,
            "+-------+------+\n\
             | value | name |\n\
             +-------+------+\n\
             | 1     | a    |\n\
             | 2     |      |\n\
             | 3     | c    |\n\
             +-------+------+",
            "{format} {options}"
        );
        assert_eq!(parts(&location).len(), 2, "{format} {options}");
        assert!(!location.join("_essaim_staging").exists());
    }
    Ok(())
}

#[tokio::test]
async fn times_in_parquet_are_microseconds_which_every_reader_knows() -> Result<()> {
    let folder = TempDir::new()?;
    let declare = |columns: &str| {
        format!(
            "CREATE EXTERNAL TABLE out {columns} STORED AS PARQUET LOCATION '{}/'",
            folder.path().display()
        )
    };
    let columns = "(at TIMESTAMP, visits STRUCT<at TIMESTAMP>[])";
    let first = context()?;
    run(&first, &declare(columns)).await?;
    run(
        &first,
        "INSERT INTO out SELECT at, [named_struct('at', at)] \
         FROM (SELECT TIMESTAMP '2024-02-29T12:34:56.789012345' AS at)",
    )
    .await?;
    let types = "SELECT arrow_typeof(at) AS a, arrow_typeof(visits[1]['at']) AS v, at FROM out";
    let found = context()?;
    run(&found, &declare("")).await?;
    assert_eq!(
        run(&found, types).await?,
        "+---------------+---------------+----------------------------+\n\
         | a             | v             | at                         |\n\
         +---------------+---------------+----------------------------+\n\
         | Timestamp(µs) | Timestamp(µs) | 2024-02-29T12:34:56.789012 |\n\
         +---------------+---------------+----------------------------+"
    );
    let declared = context()?;
    run(&declared, &declare(columns)).await?;
    let read = run(
        &declared,
        &format!("{types} WHERE at > TIMESTAMP '2024-02-29T12:34:56.789'"),
    )
    .await?;
    assert!(read.contains("| Timestamp(ns) | Timestamp(ns) |"), "{read}");
    Ok(())
}

#[tokio::test]
async fn a_time_beyond_nanoseconds_names_the_type_that_holds_it() -> Result<()> {
    let folder = TempDir::new()?;
    let declare = |columns: &str| {
        format!(
            "CREATE EXTERNAL TABLE out {columns} STORED AS PARQUET LOCATION '{}/'",
            folder.path().display()
        )
    };
    let first = context()?;
    run(&first, &declare("(at TIMESTAMP(6))")).await?;
    run(
        &first,
        "INSERT INTO out VALUES (arrow_cast('9999-12-31T00:00:00', 'Timestamp(Microsecond, None)'))",
    )
    .await?;
    let second = context()?;
    run(&second, &declare("(at TIMESTAMP)")).await?;
    let rows = second.sql("SELECT at FROM out").await?.collect().await;
    let error = essaim_common::Error::from(rows.unwrap_err()).to_string();
    assert!(
        error.contains("declare or CAST it as TIMESTAMP(6)"),
        "{error}"
    );
    let third = context()?;
    run(&third, &declare("(at TIMESTAMP(6))")).await?;
    assert!(
        run(&third, "SELECT at FROM out")
            .await?
            .contains("9999-12-31")
    );
    Ok(())
}

#[tokio::test]
async fn overwrite_replaces_what_was_there() -> Result<()> {
    let folder = TempDir::new()?;
    let first = context()?;
    run(&first, &declare("PARQUET", folder.path(), "")).await?;
    run(&first, &format!("INSERT INTO out {TWO_ROWS}")).await?;
    let second = context()?;
    run(
        &second,
        &declare("PARQUET", folder.path(), "OPTIONS (mode 'overwrite')"),
    )
    .await?;
    run(&second, "INSERT INTO out VALUES (7, 'g')").await?;
    assert_eq!(count(&second, "out").await?, 1);
    let third = context()?;
    run(&third, &declare("PARQUET", folder.path(), "")).await?;
    run(&third, &format!("INSERT OVERWRITE out {TWO_ROWS}")).await?;
    assert_eq!(count(&third, "out").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_failed_write_leaves_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    let context = context()?;
    run(&context, &declare("CSV", folder.path(), "")).await?;
    let error = run(
        &context,
        "INSERT INTO out SELECT 1 / (value - 2), 'x' FROM (SELECT 1 AS value UNION ALL SELECT 2) AS t",
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("Divide by zero"), "{error}");
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn a_committed_run_is_not_written_again_and_an_older_start_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let job = Uuid::new_v4().to_string();
    let insert = |generation| {
        let (job, declare) = (job.clone(), declare("JSON", folder.path(), ""));
        async move {
            let context = context_of(&job, generation)?;
            run(&context, &declare).await?;
            run(&context, &format!("INSERT INTO out {TWO_ROWS}")).await
        }
    };
    assert!(insert(2).await?.contains("| 2 "));
    assert!(insert(3).await?.contains("| 0 "), "committed already");
    assert_eq!(parts(folder.path()).len(), 1);
    let error = insert(1).await.unwrap_err().to_string();
    assert!(
        error.contains("a newer start of the job has taken over"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_commit_that_was_interrupted_between_renames_is_finished() -> Result<()> {
    let folder = TempDir::new()?;
    let job = Uuid::new_v4();
    let root = folder.path().display().to_string();
    let root = root.trim_start_matches('/');
    // As a master leaves it that dies after the first of two renames.
    let run_name = format!("{}_0_0", job.simple());
    let staging = folder.path().join("_essaim_staging").join(&run_name);
    std::fs::create_dir_all(&staging)?;
    std::fs::write(folder.path().join("part-00000-r.csv"), "value,name\n1,a\n")?;
    std::fs::write(staging.join("b.csv"), "value,name\n2,b\n")?;
    std::fs::write(folder.path().join("old.csv"), "value,name\n9,z\n")?;
    let manifest = serde_json::json!({
        "renames": [
            [format!("{root}/_essaim_staging/{run_name}/a.csv"), format!("{root}/part-00000-r.csv")],
            [format!("{root}/_essaim_staging/{run_name}/b.csv"), format!("{root}/part-00001-r.csv")],
        ],
        "deletes": [format!("{root}/old.csv")],
    });
    std::fs::write(staging.join("manifest"), manifest.to_string())?;

    let context = context_of(&job.to_string(), 2)?;
    run(&context, &declare("CSV", folder.path(), "")).await?;
    let counted = run(&context, &format!("INSERT INTO out {TWO_ROWS}")).await?;
    assert!(counted.contains("| 0 "), "{counted}");
    assert_eq!(count(&context, "out").await?, 2);
    assert!(!folder.path().join("old.csv").exists());
    assert!(!staging.exists());
    Ok(())
}

#[tokio::test]
async fn a_late_master_leaves_what_its_successor_staged() -> Result<()> {
    let folder = TempDir::new()?;
    let job = Uuid::new_v4();
    let staging = folder
        .path()
        .join("_essaim_staging")
        .join(format!("{}_0_0", job.simple()));
    // As it is while generation 10 writes: 8 is dead, 9 comes back late.
    for generation in ["8", "10"] {
        std::fs::create_dir_all(staging.join(generation))?;
        std::fs::write(staging.join(generation).join("a.csv"), "value,name\n1,a\n")?;
    }
    let late = context_of(&job.to_string(), 9)?;
    run(&late, &declare("CSV", folder.path(), "")).await?;
    let failing = "INSERT INTO out SELECT 1 / (value - 2), 'x' FROM (SELECT 1 AS value UNION ALL SELECT 2) AS t";
    let error = run(&late, failing).await.unwrap_err();
    assert!(error.to_string().contains("Divide by zero"), "{error}");
    assert_eq!(files(folder.path()), [staging.join("10/a.csv")]);
    assert!(!staging.join("8").exists());
    Ok(())
}

#[tokio::test]
async fn a_location_that_does_not_exist_takes_the_columns_of_its_insert() -> Result<()> {
    let folder = TempDir::new()?;
    let location = folder.path().join("out");
    let context = context()?;
    let create = format!(
        "CREATE EXTERNAL TABLE out STORED AS PARQUET LOCATION '{}'",
        location.display()
    );
    run(&context, &create).await?;
    let provider = context.table_provider("out").await?;
    let table = provider.downcast_ref::<Table>().unwrap();
    assert!(table.is_open());
    let error = run(&context, "SELECT * FROM out").await.unwrap_err();
    assert!(error.to_string().contains("does not exist yet"), "{error}");

    let rows = context.sql("SELECT 5 AS five, 'x' AS letter").await?;
    let schema = Arc::new(rows.schema().as_arrow().clone());
    context.deregister_table("out")?;
    context.register_table("out", Arc::new(table.with_schema(schema)))?;
    run(&context, "INSERT INTO out SELECT 5, 'x'").await?;
    context.deregister_table("out")?;
    run(&context, &create).await?;
    let rows = run(&context, "SELECT five, letter FROM out").await?;
    assert!(rows.contains("| 5    | x      |"), "{rows}");
    Ok(())
}

#[tokio::test]
async fn an_empty_result_keeps_its_columns() -> Result<()> {
    for format in ["PARQUET", "CSV"] {
        let folder = TempDir::new()?;
        let location = folder.path().join("out");
        let context = context()?;
        run(&context, &declare(format, &location, "")).await?;
        run(&context, "INSERT INTO out SELECT 1, 'a' WHERE false").await?;
        assert_eq!(parts(&location).len(), 1, "{format}");
        run(&context, "DROP TABLE out").await?;
        let create = format!(
            "CREATE EXTERNAL TABLE out STORED AS {format} LOCATION '{}'",
            location.display()
        );
        run(&context, &create).await?;
        assert_eq!(count(&context, "out").await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_location_with_an_extension_is_one_file() -> Result<()> {
    let folder = TempDir::new()?;
    let location = folder.path().join("out.csv");
    let context = context()?;
    run(&context, &declare("CSV", &location, "")).await?;
    run(
        &context,
        "CREATE EXTERNAL TABLE numbers STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '1000')",
    )
    .await?;
    run(&context, "INSERT INTO out SELECT value, 'x' FROM numbers").await?;
    assert_eq!(std::fs::read_to_string(&location)?.lines().count(), 1001);
    assert_eq!(parts(folder.path()), [location]);
    Ok(())
}

#[tokio::test]
async fn plans_over_files_travel_to_workers() -> Result<()> {
    for format in ["PARQUET", "CSV", "JSON"] {
        let folder = TempDir::new()?;
        let context = context()?;
        run(&context, &declare(format, folder.path(), "")).await?;
        run(&context, &format!("INSERT INTO out {TWO_ROWS}")).await?;
        for (sql, columns) in [
            (
                "SELECT name, sum(value) FROM out WHERE value > 0 GROUP BY name",
                2,
            ),
            ("INSERT INTO out SELECT value, name FROM out", 2),
        ] {
            let plan = context.sql(sql).await?.create_physical_plan().await?;
            // The commit stays on the master.
            let plan = match plan.name() {
                "SinkCommitExec" => Arc::clone(plan.children()[0]),
                _ => plan,
            };
            let bytes =
                physical_plan_to_bytes_with_extension_codec(Arc::clone(&plan), &EssaimCodec)?;
            let back = physical_plan_from_bytes_with_extension_codec(
                &bytes,
                &context.task_ctx(),
                &EssaimCodec,
            )?;
            assert_eq!(
                displayable(back.as_ref()).indent(true).to_string(),
                displayable(plan.as_ref()).indent(true).to_string()
            );
            let rows = collect(back, context.task_ctx()).await?;
            assert_eq!(rows[0].num_columns(), columns, "{format} {sql}");
        }
    }
    Ok(())
}
