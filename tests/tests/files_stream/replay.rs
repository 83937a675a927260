//! Files that are played: each row once, in its turn, at the rate asked for.

use super::{copy, gzip};
use anyhow::Result;
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use essaim_proto::v1::JobState;
use essaim_tests::cluster::{Cluster, shared};
use essaim_tests::folder::Folders;
use essaim_tests::unique;
use std::sync::Arc;

#[tokio::test]
async fn a_replay_hands_out_each_row_once_in_its_turn_though_the_master_dies() -> Result<()> {
    let folders = Folders::new()?;
    let mut cluster = Cluster::start(1, 2).await?;
    let cars: String = (0..3000).map(|n| format!("{n},\"model\n{n}\"\n")).collect();
    folders.put("1.csv", 1, format!("id,model\n{cars}"))?;
    folders.put("2.csv.gz", 2, gzip("id,model\n3000,x\n3001,y\n")?)?;
    folders.put("3.csv", 3, "id,model\n3002,z\n")?;
    // Its columns are those of the files.
    let table = format!(
        "STORED AS CSV LOCATION '{}' OPTIONS (rows_per_second '1000', event_time '_replayed_at')",
        folders.input().display()
    );
    let columns = "id, length(model) AS length, date_part('epoch', _replayed_at) * 1000 AS at";
    let id = cluster
        .client()
        .await?
        .submit(&copy(&folders, &table, columns), &unique("replay"))
        .await?;
    folders.until(500).await?;
    cluster.kill_master();
    cluster.restart_master().await?;
    let records = folders.until(3003).await?;
    let fields: Vec<Vec<f64>> = records
        .iter()
        .map(|record| {
            record
                .split(',')
                .filter_map(|field| field.parse().ok())
                .collect()
        })
        .collect();
    let ids: Vec<f64> = fields.iter().map(|fields| fields[0]).collect();
    assert_eq!(ids, (0..3003).map(f64::from).collect::<Vec<_>>());
    assert_eq!(fields[1234][1], 10.0);
    let times: Vec<f64> = fields.iter().map(|fields| fields[2]).collect();
    assert!(times.is_sorted(), "{times:?}");
    // A row a millisecond, but for the time without a master.
    assert!(
        times[3002] - times[0] >= 3000.0,
        "{} to {}",
        times[0],
        times[3002]
    );
    let steady = times
        .windows(2)
        .filter(|pair| pair[1] - pair[0] <= 2.0)
        .count();
    assert!(
        steady > 2900,
        "{steady} of 3002 rows came a millisecond after the one before"
    );
    // It was played, not read at once.
    assert!(
        folders.epochs()?.len() >= 5,
        "{} epochs",
        folders.epochs()?.len()
    );
    let client = cluster.client().await?;
    assert_eq!(client.get(&id).await?.state(), JobState::Running);
    client.cancel(&id).await?;
    cluster.stop().await
}

#[tokio::test]
async fn parquet_and_documents_are_played_too() -> Result<()> {
    let client = shared().await?.client().await?;
    let source = Folders::new()?;
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..300));
    let ids = RecordBatch::try_from_iter([("id", ids)])?;
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(100));
    let mut parquet = ArrowWriter::try_new(Vec::new(), ids.schema(), Some(properties.build()))?;
    parquet.write(&ids)?;
    source.put("all.parquet", 1, parquet.into_inner()?)?;
    let documents: Vec<String> = (0..300).map(|id| format!("{{\"id\":\n {id}}}")).collect();
    source.put("all.json", 1, format!("[{}]", documents.join(",")))?;
    for (format, file, options) in [
        ("PARQUET", "all.parquet", ""),
        ("JSON", "all.json", ", multi_line 'true'"),
    ] {
        let folders = Folders::new()?;
        let table = format!(
            "STORED AS {format} LOCATION '{}' OPTIONS (rows_per_second '500'{options})",
            source.input().join(file).display()
        );
        let job = client
            .submit(&copy(&folders, &table, "id"), &unique("replay"))
            .await?;
        let records = folders.until(300).await?;
        assert_eq!(
            records,
            (0..300).map(|id| id.to_string()).collect::<Vec<_>>(),
            "{format}"
        );
        client.cancel(&job).await?;
        client.wait_job(&job).await?;
    }
    Ok(())
}
