//! A replay in steps of every size: together they are all rows, wherever a file ends.

use super::super::csv::CsvFormat;
use super::super::plan::{FILE, FilePlan, MODIFIED, OnError, REPLAYED_AT, metadata_fields};
use super::*;
use crate::options::Options;
use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::{StreamExt, TryStreamExt};
use std::path::{Path, PathBuf};

async fn gzip(text: &str) -> Vec<u8> {
    let text = Bytes::from(text.to_owned());
    let text = futures::stream::once(async move { Ok(text) }).boxed();
    let pieces = FileCompressionType::GZIP.convert_to_compress_stream(text);
    let pieces: Vec<Bytes> = pieces.unwrap().try_collect().await.unwrap();
    pieces.concat()
}

/// A replay of CSV files with one column, `id`.
fn replay(folder: &Path, rows_per_second: f64) -> Replay {
    let place = Place::new(&folder.display().to_string(), false, &Options::default()).unwrap();
    let mut fields = vec![Field::new("id", DataType::Int64, true)];
    fields.extend(metadata_fields(&[FILE, MODIFIED, REPLAYED_AT]));
    let declared = Declared {
        schema: Arc::new(Schema::new(fields)),
        columns: 1,
        plan: FilePlan {
            base: place.storage.base.clone(),
            format: FileFormat::Csv(CsvFormat {
                has_header: true,
                delimiter: b',',
                quote: b'"',
                escape: None,
                columns: 0,
                wanted: Vec::new(),
            }),
            compression: None,
            on_error: OnError::Fail,
            ignore_missing_files: false,
            ignore_corrupt_files: false,
        },
    };
    Replay::new(declared, StreamOptions::default(), place, rows_per_second)
}

async fn read(stream: &Replay, from: u64, to: u64) -> Vec<i64> {
    let mut ids = Vec::new();
    let reader = stream.reader(&[0, 3]).unwrap();
    for split in stream.splits(&at(from), &at(to), 4).unwrap() {
        let ctx = Arc::new(TaskContext::default());
        let metrics = ExecutionPlanMetricsSet::new();
        let mut rows = reader.read(&split, 0, &ctx, &metrics).unwrap();
        while let Some(batch) = rows.try_next().await.unwrap() {
            assert_eq!(batch.column(1).null_count(), 0, "_replayed_at");
            ids.extend(batch.column(0).as_primitive::<Int64Type>().values().iter());
        }
    }
    ids
}

/// Ten rows in files of 3, 0, 2 (compressed), 1 and 4; the last without an end of its line.
async fn files() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("essaim-replay-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(folder.join(name), content).unwrap();
    put("1.csv", b"id\n0\n1\n2\n");
    put("2.csv", b"");
    put("3.csv.gz", &gzip("id\n3\n4\n").await);
    put("4.csv", b"id\r\n5\r\n");
    put("5.csv", b"id\n6\n7\n\n8\n9");
    folder
}

#[tokio::test]
async fn steps_of_every_size_make_all_rows() {
    let folder = files().await;
    for step in 1..=11 {
        let stream = replay(&folder, 1e7);
        let mut found = Vec::new();
        let mut from = 0;
        while from < 10 {
            // All of it is due at this rate; what is read along is bounded by what is asked for.
            while row(&stream.available(&at(from)).await.unwrap().latest).unwrap() < 10 {
                tokio::task::yield_now().await;
            }
            let to = (from + step).min(10);
            found.extend(read(&stream, from, to).await);
            from = to;
        }
        assert_eq!(found, (0..10).collect::<Vec<i64>>(), "in steps of {step}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn what_is_known_of_where_rows_begin_changes_nothing() {
    let folder = files().await;
    for known in 0..=10 {
        let replay = replay(&folder, 1.0);
        // The master has read along up to every row until this one, one by one.
        for to in 0..=known {
            assert_eq!(replay.read_to(to).await.unwrap(), to);
        }
        for from in 0..10 {
            for to in from + 1..=10 {
                let wanted: Vec<i64> = (from as i64..to as i64).collect();
                let found = read(&replay, from, to).await;
                assert_eq!(found, wanted, "{from} to {to}, {known} known");
            }
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
