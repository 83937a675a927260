//! Files as a stream: each is read once, whole and in its turn, whatever dies; and a file played as one.

#[path = "files_stream/replay.rs"]
mod replay;

use anyhow::{Result, ensure};
use arrow::array::RecordBatch;
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, MEMORY, shared};
use essaim_tests::folder::{Folders, list};
use essaim_tests::sql::{Row, rows};
use essaim_tests::{SOON, unique, wait_for};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A job that copies a stream of files, declared as `CREATE UNBOUNDED EXTERNAL TABLE files <table>`, to the output.
fn copy(folders: &Folders, table: &str, columns: &str) -> String {
    format!(
        "SET essaim.trigger = '20 milliseconds';
         CREATE UNBOUNDED EXTERNAL TABLE files {table};
         CREATE EXTERNAL TABLE out STORED AS CSV LOCATION '{}/';
         INSERT INTO out SELECT {columns} FROM files;",
        folders.output().display()
    )
}

/// JSON lines with the ids of a file of twenty.
fn twenty(file: usize) -> String {
    let line = |row| format!("{{\"id\": {}, \"file\": {file}}}\n", file * 20 + row);
    (0..20).map(line).collect()
}

fn gzip(content: &str) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = gzip.stdin.take() {
        stdin.write_all(content.as_bytes())?;
    }
    Ok(gzip.wait_with_output()?.stdout)
}

/// All rows of an answer.
fn shown(batches: &[RecordBatch]) -> Result<String> {
    let row = |row: Row| {
        let values = row
            .into_iter()
            .map(|value| value.unwrap_or_else(|| "NULL".to_owned()));
        values.collect::<Vec<_>>().join("|")
    };
    Ok(rows(batches)?
        .into_iter()
        .map(row)
        .collect::<Vec<_>>()
        .join("\n"))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = list(folder)?
        .iter()
        .filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn each_file_is_read_once_and_oldest_first_though_worker_and_master_die() -> Result<()> {
    let folders = Folders::new()?;
    let mut cluster = Cluster::start(2, 2).await?;
    let client = cluster.client().await?;
    // By name they come the other way round than by time, and two have the same time.
    let put = |file: usize| {
        let name = format!("{:03}.json", 500 - file);
        folders.put(&name, file as u64 / 2 * 2 + 10, twenty(file))
    };
    for file in 0..60 {
        put(file)?;
    }
    fs::write(folders.input().join("_SUCCESS"), "")?;
    fs::write(folders.input().join(".part.json"), "half a fi")?;
    let table = format!(
        "(id BIGINT, file BIGINT) STORED AS JSON LOCATION '{}'
         OPTIONS (max_files_per_trigger '3', monitor_interval '20 milliseconds')",
        folders.input().display()
    );
    let name = unique("files");
    let id = client
        .submit(&copy(&folders, &table, "file, id"), &name)
        .await?;
    folders.until(10 * 20).await?;
    cluster.kill_worker(0);
    for file in 60..80 {
        put(file)?;
    }
    folders.until(30 * 20).await?;
    cluster.kill_master();
    for file in 80..90 {
        put(file)?;
    }
    cluster.restart_master().await?;
    cluster.add_worker(2, MEMORY).await?;
    folders.until(90 * 20).await?;
    // A file with the name of another is that file.
    put(5)?;
    folders.put("new.json", 1000, twenty(90))?;
    folders.until(91 * 20).await?;

    let epochs = folders.epochs()?;
    let mut ids = Vec::new();
    let mut last = 0;
    for epoch in &epochs {
        let rows: Vec<(usize, usize)> = epoch
            .iter()
            .filter_map(|record| {
                let (file, id) = record.split_once(',')?;
                Some((file.parse().ok()?, id.parse().ok()?))
            })
            .collect();
        // Of two files of the same time the one with the smaller name, which has the larger number, comes first.
        let turn = |file: usize| if file < 90 { file ^ 1 } else { file };
        let turns: Vec<usize> = rows.iter().map(|(file, _)| turn(*file)).collect();
        ensure!(
            turns.iter().all(|turn| *turn >= last),
            "{turns:?} after {last}"
        );
        last = turns.iter().max().copied().unwrap_or(last);
        ensure!(epoch.len() <= 3 * 20, "{} rows in an epoch", epoch.len());
        ids.extend(rows.iter().map(|(_, id)| *id));
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..91 * 20).collect::<Vec<_>>());
    let client = cluster.client().await?;
    assert_eq!(client.get(&id).await?.state(), JobState::Running);
    client.cancel(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn files_are_archived_or_deleted_once_they_are_committed() -> Result<()> {
    let client = shared().await?.client().await?;
    for (clean_up, archived) in [("archive", true), ("delete", false)] {
        let folders = Folders::new()?;
        let input = folders.input();
        fs::create_dir(input.join("day=1"))?;
        for file in 0..5 {
            folders.put(&format!("day=1/{file}.json"), file as u64, twenty(file))?;
        }
        folders.put("day=1/other.txt", 0, "not of the pattern")?;
        let archive = folders.path("archive");
        let archive_option = match archived {
            true => format!(", source_archive_dir '{}'", archive.display()),
            false => String::new(),
        };
        let table = format!(
            "(id BIGINT) STORED AS JSON LOCATION '{}/day=*/*.json' OPTIONS (clean_source '{clean_up}',
             monitor_interval '20 milliseconds'{archive_option})",
            input.display()
        );
        let job = client
            .submit(&copy(&folders, &table, "id"), &unique("clean"))
            .await?;
        folders.until(100).await?;
        // The last epoch is known to be committed when the next one is.
        folders.put("day=1/last.json", 100, twenty(5))?;
        folders.until(120).await?;
        wait_for("the files to be gone", SOON, async || {
            Ok(names(&input.join("day=1"))?
                .iter()
                .all(|name| name == "last.json" || name == "other.txt")
                .then_some(()))
        })
        .await?;
        let below = archive.join(input.strip_prefix("/")?).join("day=1");
        let found = names(&below)?;
        let found: Vec<_> = found.iter().filter(|name| *name != "last.json").collect();
        match archived {
            true => assert_eq!(found, ["0.json", "1.json", "2.json", "3.json", "4.json"]),
            false => assert!(found.is_empty(), "{found:?}"),
        }
        client.cancel(&job).await?;
        assert_eq!(client.wait_job(&job).await?.state(), JobState::Cancelled);
    }
    Ok(())
}

#[tokio::test]
async fn documents_of_several_lines_are_rows() -> Result<()> {
    let folders = Folders::new()?;
    let client = shared().await?.client().await?;
    folders.put(
        "a.json",
        1,
        "[\n  {\"id\": 1, \"coin\": {\"name\": \"bit]{coin\"},\n   \"roi\": null},\n  {\"id\": 2, \"roi\": {\"times\": 1.5}}\n]\n",
    )?;
    folders.put(
        "b.json",
        2,
        "{\n  \"id\": 3,\n  \"coin\": {\"name\": \"eth\"}\n}",
    )?;
    folders.put("c.json.gz", 3, gzip("[{\"id\": 4},\n{\"id\": 5}]")?)?;
    folders.put("empty.json", 4, "")?;
    let columns = "(id BIGINT, coin STRUCT<name VARCHAR>, roi STRUCT<times DOUBLE>)";
    let stored = format!(
        "STORED AS JSON LOCATION '{}/' OPTIONS (multi_line 'true'",
        folders.input().display()
    );
    let batch = format!(
        "CREATE EXTERNAL TABLE files {columns} {stored});
         SELECT id, coin['name'] AS name, roi['times'] AS times FROM files ORDER BY id"
    );
    let wanted = "1|bit]{coin|NULL\n2|NULL|1.5\n3|eth|NULL\n4|NULL|NULL\n5|NULL|NULL";
    assert_eq!(shown(&client.query(&batch).await?)?, wanted);
    let inferred = format!(
        "CREATE EXTERNAL TABLE files {stored});
         SELECT id, coin['name'] AS name, roi['times'] AS times FROM files ORDER BY id"
    );
    assert_eq!(shown(&client.query(&inferred).await?)?, wanted);
    let counted =
        format!("CREATE EXTERNAL TABLE files {columns} {stored}); SELECT count(*) FROM files");
    assert_eq!(shown(&client.query(&counted).await?)?, "5");

    let table = format!("{columns} {stored}, event_time '_modified')");
    let columns = "id, coin['name'] AS name, _modified, regexp_replace(_file, '^.*/', '') AS file";
    let job = client
        .submit(&copy(&folders, &table, columns), &unique("documents"))
        .await?;
    let mut records = folders.until(5).await?;
    records.sort();
    assert_eq!(
        records,
        [
            "1,bit]{coin,2026-01-01T00:00:01,a.json",
            "2,,2026-01-01T00:00:01,a.json",
            "3,eth,2026-01-01T00:00:02,b.json",
            "4,,2026-01-01T00:00:03,c.json.gz",
            "5,,2026-01-01T00:00:03,c.json.gz",
        ]
    );
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}

#[tokio::test]
async fn a_broken_file_ends_the_job_or_is_passed_over_as_the_table_says() -> Result<()> {
    let folders = Folders::new()?;
    let client = shared().await?.client().await?;
    folders.put("1.csv", 1, "id,name\n1,\"a\nb\"\ntwo,c\n3,d,e\n4,f\n")?;
    let stored = |options: &str| {
        format!(
            "(id BIGINT, name VARCHAR) STORED AS CSV LOCATION '{}' OPTIONS (monitor_interval '20 milliseconds'{options})",
            folders.input().display()
        )
    };
    let job = client
        .submit(&copy(&folders, &stored(""), "id, name"), &unique("broken"))
        .await?;
    let failed = client.wait_job(&job).await?;
    assert_eq!(failed.state(), JobState::Failed);
    let message = &failed.message;
    assert!(
        message.contains("1.csv record 2") && message.contains("on_error 'skip'"),
        "{message}"
    );
    assert!(folders.records()?.is_empty());

    let skip = copy(
        &folders,
        &stored(", on_error 'skip', ignore_corrupt_files 'true'"),
        "id, length(name)",
    );
    let job = client.submit(&skip, &unique("broken")).await?;
    assert_eq!(folders.until(2).await?, ["1,3", "4,1"]);
    let whole = gzip("id,name\n5,g\n")?;
    folders.put("2.csv.gz", 2, &whole[..whole.len() - 9])?;
    folders.put("3.csv", 3, "id,name\n6,h\n")?;
    wait_for("the last row", SOON, async || {
        Ok(folders.records()?.contains(&"6,1".to_owned()).then_some(()))
    })
    .await?;
    // Two records of the first file, and what is left of the second one.
    let mut skipped = 0;
    let counted = wait_for("three records to be counted", SOON, async || {
        let epochs = client.epochs(&job, 100).await?;
        skipped = epochs
            .iter()
            .map(|epoch| epoch.records_skipped)
            .sum::<u64>();
        Ok((skipped >= 3).then_some(()))
    });
    counted.await?;
    assert_eq!(skipped, 3);
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}

/// Waits until so many epochs of a job are written down as committed.
async fn committed(cluster: &Cluster, job: &str, epochs: usize) -> Result<()> {
    let commits = cluster
        .dir()
        .join("state/checkpoint")
        .join(job)
        .join("commits");
    wait_for("the commits", SOON, async || {
        // One that is being written has a # in its name, and a master that is killed now has not committed.
        let written = list(&commits)?;
        let written = written
            .iter()
            .filter(|file| !file.to_string_lossy().contains('#'));
        Ok((written.count() >= epochs).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_file_that_was_found_and_is_gone_is_an_error_unless_missing_files_are_ignored()
-> Result<()> {
    for (ignore, wanted) in [("false", JobState::Failed), ("true", JobState::Running)] {
        let folders = Folders::new()?;
        let mut cluster = Cluster::start(1, 2).await?;
        for file in 0..3 {
            folders.put(&format!("{file}.json"), file as u64, twenty(file))?;
        }
        let table = format!(
            "(id BIGINT) STORED AS JSON LOCATION '{}' OPTIONS (max_files_per_trigger '1', ignore_missing_files '{ignore}')",
            folders.input().display()
        );
        // The first epoch comes at once, the next one not before a new start.
        let sql = copy(&folders, &table, "id").replace("20 milliseconds", "1 hour");
        let id = cluster
            .client()
            .await?
            .submit(&sql, &unique("gone"))
            .await?;
        folders.until(20).await?;
        // An epoch that is only planned would come again, and the next one an hour later.
        committed(&cluster, &id, 1).await?;
        cluster.kill_master();
        fs::remove_file(folders.input().join("1.json"))?;
        fs::write(folders.input().join("2.json"), "{\"id\": 1000}")?;
        cluster.restart_master().await?;
        let client = cluster.client().await?;
        if wanted == JobState::Failed {
            let failed = client.wait_job(&id).await?;
            assert_eq!(failed.state(), wanted);
            assert!(
                failed.message.contains("1.json: the file is gone"),
                "{}",
                failed.message
            );
            continue;
        }
        // The epoch of the file that is gone has no rows; the one after it finds a file that has changed.
        committed(&cluster, &id, 2).await?;
        assert_eq!(client.get(&id).await?.state(), wanted);
        cluster.kill_master();
        cluster.restart_master().await?;
        let failed = cluster.client().await?.wait_job(&id).await?;
        assert_eq!(failed.state(), JobState::Failed);
        assert!(
            failed.message.contains("2.json: the file has changed"),
            "{}",
            failed.message
        );
        assert_eq!(folders.records()?.len(), 20);
    }
    Ok(())
}

#[tokio::test]
async fn parquet_comes_as_a_stream_too() -> Result<()> {
    let folders = Folders::new()?;
    let client = shared().await?.client().await?;
    let write = |number: i64| {
        format!(
            "CREATE EXTERNAL TABLE numbers STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '1000');
             CREATE EXTERNAL TABLE new STORED AS PARQUET LOCATION '{}/';
             INSERT INTO new SELECT value + {} AS id, 'row ' || value AS name,
               named_struct('half', value / 2.0) AS more FROM numbers;",
            folders.input().display(),
            number * 1000
        )
    };
    client.run_job(&write(0), &unique("write")).await?;
    let table = format!(
        "(name VARCHAR, id BIGINT, later DOUBLE, more STRUCT<half DOUBLE>) STORED AS PARQUET LOCATION '{}/'
         OPTIONS (monitor_interval '20 milliseconds')",
        folders.input().display()
    );
    let job = client
        .submit(
            &copy(&folders, &table, "id, later, more['half'] AS half"),
            &unique("parquet"),
        )
        .await?;
    folders.until(1000).await?;
    client.run_job(&write(1), &unique("write")).await?;
    let mut records = folders.until(2000).await?;
    records.sort_by_key(|record| {
        record
            .split(',')
            .next()
            .and_then(|id| id.parse::<i64>().ok())
    });
    let wanted: Vec<String> = (0..2000)
        .map(|id| format!("{id},,{:?}", (id % 1000) as f64 / 2.0))
        .collect();
    assert_eq!(records, wanted);
    client.cancel(&job).await?;
    client.wait_job(&job).await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_declaration_is_refused_with_what_to_write() -> Result<()> {
    let folders = Folders::new()?;
    let client = shared().await?.client().await?;
    folders.put("a.json", 1, "{\"id\": 1}")?;
    let place = folders.input().display().to_string();
    let column = "(id BIGINT)";
    for (columns, format, location, options, wanted) in [
        ("", "JSON", "", "", "needs its columns declared"),
        (column, "JSON", "/a.json", "", "is a file: name the folder"),
        (
            column,
            "JSON",
            "",
            "clean_source 'archive'",
            "needs source_archive_dir",
        ),
        (
            column,
            "JSON",
            "",
            "max_files_per_triger '2'",
            "did you mean max_files_per_trigger?",
        ),
        (
            column,
            "JSON",
            "",
            "max_offsets_per_trigger '2'",
            "write max_files_per_trigger",
        ),
        (
            column,
            "JSON",
            "",
            "on_error 'dead_letter'",
            "write 'fail' or 'skip'",
        ),
        (
            column,
            "PARQUET",
            "",
            "on_error 'skip'",
            "ignore_corrupt_files",
        ),
        (column, "JSON", "", "rows_per_second '0'", "above 0"),
        (
            column,
            "JSON",
            "",
            "event_time 'id'",
            "declare it TIMESTAMP",
        ),
        (
            "(_file VARCHAR)",
            "JSON",
            "",
            "",
            "is filled in by the table itself",
        ),
        ("(a STRUCT<b INT>)", "CSV", "", "", "which CSV cannot hold"),
    ] {
        let options = match options {
            "" => String::new(),
            options => format!("OPTIONS ({options})"),
        };
        let declared = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE files {columns} STORED AS {format} LOCATION '{place}{location}' {options}; SELECT 1"
        );
        let error = client.query_error(&declared).await?;
        assert!(error.message().contains(wanted), "{}", error.message());
        assert!(
            error.message().contains("table files"),
            "{}",
            error.message()
        );
    }
    let inside = format!(
        "CREATE UNBOUNDED EXTERNAL TABLE files {column} STORED AS JSON LOCATION '{place}'
         OPTIONS (clean_source 'archive', source_archive_dir '{place}/done'); SELECT 1"
    );
    let error = client.query_error(&inside).await?;
    assert!(
        error
            .message()
            .contains("lies in the folder that is watched"),
        "{}",
        error.message()
    );
    Ok(())
}
