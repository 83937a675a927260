//! A streaming job's epochs are in the files once each, whatever breaks and whichever master comes back.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

#[path = "files_sink_stream/plan.rs"]
mod plan;
#[path = "files_sink_stream/store.rs"]
mod store;

use anyhow::Result;
use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::object_store::path::Path as StorePath;
use datafusion::object_store::{ObjectStore, ObjectStoreExt};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::connector::{Sink, SinkRun};
use essaim_common::options::Options;
use essaim_common::sinks::files::{FileSink, Format, Layout, is_visible};
use essaim_common::stream::{OutputMode, StreamSink};
use essaim_common::{Error, ErrorKind};
use futures::{StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use store::Faulty;
use tempfile::TempDir;

const JOB: &str = "0191f0c8-0000-7000-8000-000000000001";

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("value", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
    ]))
}

fn sink(format: Format, location: &str, single_file: bool) -> FileSink {
    let mut options = Options::default();
    FileSink {
        name: "out".to_owned(),
        location: location.to_owned(),
        layout: Layout::new(format, &mut options).unwrap(),
        overwrite: false,
        single_file,
    }
}

async fn open(
    sink: &FileSink,
    mode: OutputMode,
    generation: u64,
) -> Result<Arc<dyn StreamSink>, Error> {
    let run = SinkRun {
        job: JOB.to_owned(),
        query: 0,
        generation,
        epoch: 0,
    };
    sink.stream(&schema(), mode, &run).await
}

/// The rows of an epoch: always the same.
fn values(epoch: u64) -> Vec<i64> {
    (0..1 + epoch as i64 % 3)
        .map(|row| epoch as i64 * 10 + row)
        .collect()
}

fn stream(batches: Vec<Result<RecordBatch, DataFusionError>>) -> SendableRecordBatchStream {
    let batches = futures::stream::iter(batches).then(|batch| async move {
        tokio::task::yield_now().await;
        batch
    });
    Box::pin(RecordBatchStreamAdapter::new(schema(), batches))
}

fn batch(values: &[i64]) -> RecordBatch {
    let names: StringArray = values
        .iter()
        .map(|value| (value % 2 == 0).then(|| format!("n, \"{value}\"")))
        .collect();
    let values = Int64Array::from(values.to_vec());
    RecordBatch::try_new(schema(), vec![Arc::new(values), Arc::new(names)]).unwrap()
}

/// One batch a row, so that an epoch may stop between its rows.
fn rows(epoch: u64) -> SendableRecordBatchStream {
    stream(values(epoch).iter().map(|v| Ok(batch(&[*v]))).collect())
}

fn expected(last: Option<u64>) -> Vec<i64> {
    let Some(last) = last else { return Vec::new() };
    (0..=last).flat_map(values).collect()
}

fn read_csv(bytes: &[u8]) -> Vec<i64> {
    let reader = csv::ReaderBuilder::new(schema())
        .with_header(true)
        .build(bytes)
        .unwrap();
    let mut found = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let names = batch.column(1).as_string::<i32>();
        for (value, name) in batch
            .column(0)
            .as_primitive::<Int64Type>()
            .values()
            .iter()
            .zip(names)
        {
            let name = name.filter(|name| !name.is_empty()).map(str::to_owned);
            assert_eq!(name, (value % 2 == 0).then(|| format!("n, \"{value}\"")));
            found.push(*value);
        }
    }
    found
}

fn assert_superseded(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("has taken over"), "{error}");
}

/// What a reader of the folder finds, and that the log says the same.
async fn read_folder(store: &dyn ObjectStore, folder: &StorePath) -> Vec<i64> {
    let files: Vec<_> = store
        .list(Some(folder))
        .map_ok(|file| file.location)
        .try_collect()
        .await
        .unwrap();
    let mut found = Vec::new();
    let mut visible = Vec::new();
    let mut logged = BTreeMap::new();
    for file in files {
        let bytes = store.get(&file).await.unwrap().bytes().await.unwrap();
        if is_visible(folder, &file) {
            found.extend(read_csv(&bytes));
            visible.push(file.to_string());
        } else if file.as_ref().contains("/epochs/") || file.as_ref().contains("/compacted/") {
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            let entries = match json.get("entries") {
                Some(entries) => entries.as_array().unwrap().clone(),
                None => vec![json],
            };
            for entry in entries {
                let path = entry["file"]["path"].as_str().unwrap().to_owned();
                logged.insert(path, entry["epoch"].as_u64().unwrap());
            }
        }
    }
    visible.sort();
    assert_eq!(logged.into_keys().collect::<Vec<_>>(), visible);
    found.sort_unstable();
    found
}

/// Ends a future unfinished after so many polls, as a process ends.
struct Dies<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> Future for Dies<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.future.as_mut().poll(cx).map(Some)
    }
}

fn dies<F: Future>(future: F, polls: usize) -> Dies<F> {
    Dies {
        future: Box::pin(future),
        polls,
    }
}

#[tokio::test]
async fn epochs_are_there_once_whatever_call_fails() -> Result<()> {
    for seed in 0..150 {
        let mut random = StdRng::seed_from_u64(seed);
        let name = format!("s3://faulty-{seed}");
        let store = Faulty::register(&name, seed);
        let sink = sink(Format::Csv, &format!("{name}/out/"), false);
        let folder = StorePath::from("out");
        let mut acknowledged = None;
        let mut generation = 0;
        for _ in 0..12 {
            generation += random.random_range(1..3);
            let master = open(&sink, OutputMode::Append, generation).await?;
            store.fail_after(random.random_range(0..60), random.random_bool(0.5));
            let mut begun = None;
            for _ in 0..random.random_range(1..12) {
                let Some(last) = begun else {
                    match master.begin().await {
                        Ok(last) => {
                            assert!(last >= acknowledged, "seed {seed}: an epoch is lost");
                            assert_eq!(
                                read_folder(store.whole(), &folder).await,
                                expected(last),
                                "seed {seed}"
                            );
                            begun = Some(last);
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                            store.heal();
                        }
                    }
                    continue;
                };
                let epoch = last.map_or(0, |last| last + 1);
                let polls = match random.random_bool(0.2) {
                    true => random.random_range(0..40),
                    false => usize::MAX,
                };
                match dies(master.commit(epoch, rows(epoch)), polls).await {
                    Some(Ok(count)) => {
                        assert_eq!(count, values(epoch).len() as u64);
                        acknowledged = Some(epoch);
                        begun = Some(acknowledged);
                    }
                    Some(Err(error)) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                        store.heal();
                        // Asked again at once, or begun again.
                        if random.random_bool(0.5) {
                            begun = None;
                        }
                    }
                    None => {}
                }
            }
            store.heal();
        }
        let master = open(&sink, OutputMode::Append, generation + 1).await?;
        let last = master.begin().await?;
        assert!(last >= acknowledged);
        assert_eq!(read_folder(store.whole(), &folder).await, expected(last));
        assert!(
            !store.names().await.iter().any(|n| n.contains("/staging/")),
            "seed {seed}: left over"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_master_that_commits_while_its_successor_begins_is_counted_or_refused() -> Result<()> {
    let (mut counted, mut refused) = (0, 0);
    for seed in 0..400 {
        let name = format!("s3://racing-{seed}");
        let store = Faulty::register(&name, seed);
        let sink = sink(Format::Csv, &format!("{name}/out/"), false);
        let folder = StorePath::from("out");
        let old = open(&sink, OutputMode::Append, 1).await?;
        assert_eq!(old.begin().await?, None);
        assert_eq!(old.commit(0, rows(0)).await?, 1);
        let new = open(&sink, OutputMode::Append, 2).await?;
        let late = async {
            for _ in 0..seed % 20 {
                tokio::task::yield_now().await;
            }
            old.commit(1, rows(1)).await
        };
        // The commit takes more calls than the fence: it needs a lead of any length.
        let next = async {
            for _ in 0..seed / 20 * 3 {
                tokio::task::yield_now().await;
            }
            new.begin().await
        };
        let (late, begun) = futures::join!(late, next);
        let last = begun?;
        match late {
            Ok(_) => {
                assert_eq!(last, Some(1), "seed {seed}: an acknowledged epoch is lost");
                counted += 1;
            }
            Err(error) => {
                assert_superseded(&error);
                refused += 1;
            }
        }
        assert_eq!(read_folder(store.whole(), &folder).await, expected(last));
        for epoch in last.unwrap() + 1..5 {
            new.commit(epoch, rows(epoch)).await?;
        }
        assert_superseded(&old.commit(2, rows(2)).await.unwrap_err());
        assert_superseded(&old.begin().await.unwrap_err());
        assert_eq!(read_folder(store.whole(), &folder).await, expected(Some(4)));
        let third = open(&sink, OutputMode::Append, 3).await?;
        assert_eq!(third.begin().await?, Some(4));
        assert_eq!(read_folder(store.whole(), &folder).await, expected(Some(4)));
    }
    assert!(counted > 10 && refused > 10, "{counted} {refused}");
    Ok(())
}

#[tokio::test]
async fn the_log_stays_short() -> Result<()> {
    let store = Faulty::register("s3://long", 0);
    let sink = sink(Format::Csv, "s3://long/out/", false);
    for generation in 1..4 {
        let master = open(&sink, OutputMode::Append, generation).await?;
        let first = master.begin().await?.map_or(0, |last| last + 1);
        for epoch in first..first + 130 {
            master.commit(epoch, rows(epoch)).await?;
        }
    }
    let entries = store.names().await;
    let entries = entries.iter().filter(|name| name.contains("/epochs/"));
    assert!(entries.count() <= 100);
    let found = read_folder(store.whole(), &StorePath::from("out")).await;
    assert_eq!(found, expected(Some(389)));
    Ok(())
}

#[tokio::test]
async fn complete_replaces_all_rows_in_every_kind_of_target() -> Result<()> {
    for (format, single_file) in [(Format::Csv, false), (Format::Csv, true)] {
        let folder = TempDir::new()?;
        let location = match single_file {
            true => folder.path().join("all.csv").display().to_string(),
            false => format!("{}/", folder.path().display()),
        };
        let sink = sink(format, &location, single_file);
        let mut generation = 0;
        for epoch in 0..5 {
            generation += 1;
            let master = open(&sink, OutputMode::Complete, generation).await?;
            assert_eq!(master.begin().await?, u64::checked_sub(epoch, 1));
            master.commit(epoch, rows(epoch)).await?;
            let visible: Vec<_> = std::fs::read_dir(folder.path())?
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_file())
                .collect();
            assert_eq!(visible.len(), 1);
            assert_eq!(read_csv(&std::fs::read(&visible[0])?), values(epoch));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_local_folder_holds_one_parquet_file_an_epoch() -> Result<()> {
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let folder = TempDir::new()?;
    let location = format!("{}/", folder.path().display());
    let sink = sink(Format::Parquet, &location, false);
    let master = open(&sink, OutputMode::Append, 1).await?;
    assert_eq!(master.begin().await?, None);
    for epoch in [0, 1, 4] {
        master.commit(epoch, rows(epoch)).await?;
        assert_eq!(
            master.commit(epoch, rows(9)).await?,
            values(epoch).len() as u64
        );
    }
    let mut found = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path())? {
        let path = entry?.path();
        if path.is_file() {
            files += 1;
            let reader = std::fs::File::open(path)?;
            for batch in ParquetRecordBatchReaderBuilder::try_new(reader)?.build()? {
                found.extend_from_slice(batch?.column(0).as_primitive::<Int64Type>().values());
            }
        }
    }
    found.sort_unstable();
    assert_eq!(found, [0, 10, 11, 40, 41]);
    assert_eq!(files, 3);
    Ok(())
}

#[tokio::test]
async fn the_times_of_an_epoch_are_microseconds_in_parquet() -> Result<()> {
    use arrow::array::TimestampNanosecondArray;
    use arrow::datatypes::{TimeUnit, TimestampMicrosecondType};
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let folder = TempDir::new()?;
    let sink = sink(
        Format::Parquet,
        &format!("{}/", folder.path().display()),
        false,
    );
    let times = TimestampNanosecondArray::from(vec![1_700_000_000_123_456_789]);
    let nanos = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let schema = Arc::new(Schema::new(vec![Field::new("at", nanos, true)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(times)])?;
    let run = SinkRun {
        job: JOB.to_owned(),
        query: 0,
        generation: 1,
        epoch: 0,
    };
    let master = sink.stream(&schema, OutputMode::Append, &run).await?;
    master.begin().await?;
    let rows = futures::stream::iter([Ok(batch)]);
    let rows = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
    assert_eq!(master.commit(0, rows).await?, 1);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.path())? {
        let path = entry?.path();
        if path.is_file() {
            let file = std::fs::File::open(path)?;
            for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
                let batch = batch?;
                let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
                found.extend_from_slice(times.values());
            }
        }
    }
    assert_eq!(found, [1_700_000_000_123_456]);
    Ok(())
}

async fn read_file(path: &Path) -> Vec<i64> {
    let text = tokio::fs::read_to_string(path).await.unwrap();
    assert_eq!(text.matches("value,name").count(), 1, "{text}");
    read_csv(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_growing_file_holds_each_epoch_once_whenever_its_master_dies() -> Result<()> {
    for seed in 0..100 {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = TempDir::new()?;
        let path = folder.path().join("out.csv");
        let sink = sink(Format::Csv, &path.display().to_string(), true);
        let mut acknowledged = None;
        let mut generation = 0;
        let mut old: Option<Arc<dyn StreamSink>> = None;
        for _ in 0..8 {
            generation += 1;
            let master = open(&sink, OutputMode::Append, generation).await?;
            let last = master.begin().await?;
            assert!(last >= acknowledged, "seed {seed}: an epoch is lost");
            if last.is_some() {
                assert_eq!(read_file(&path).await, expected(last), "seed {seed}");
            }
            if let Some(old) = old {
                let epoch = last.map_or(0, |last| last + 1);
                assert_superseded(&old.commit(epoch, rows(epoch)).await.unwrap_err());
                assert_superseded(&old.begin().await.unwrap_err());
            }
            let mut epoch = last.map_or(0, |last| last + 1);
            let mut given_up = false;
            for _ in 0..random.random_range(0..5) {
                let polls = match random.random_bool(0.4) {
                    true => random.random_range(0..25),
                    false => usize::MAX,
                };
                if random.random_bool(0.2) {
                    let torn = vec![
                        Ok(batch(&[7, 7, 7])),
                        Err(DataFusionError::Execution("the rows end here".to_owned())),
                    ];
                    match master.commit(epoch, stream(torn)).await {
                        Err(error) => {
                            assert!(error.to_string().contains("the rows end here"), "{error}");
                        }
                        // The commit that was given up had come so far that it went through.
                        Ok(count) => {
                            assert!(given_up, "seed {seed}: torn rows were taken");
                            assert_eq!(count, values(epoch).len() as u64);
                            assert_eq!(read_file(&path).await, expected(Some(epoch)));
                        }
                    }
                }
                if let Some(done) = dies(master.commit(epoch, rows(epoch)), polls).await {
                    done?;
                    given_up = false;
                    acknowledged = Some(epoch);
                    assert_eq!(read_file(&path).await, expected(acknowledged));
                    epoch += 1;
                } else {
                    given_up = true;
                }
            }
            old = Some(master);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_growing_file_is_cut_back_and_one_that_was_changed_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("out.csv");
    let sink = sink(Format::Csv, &path.display().to_string(), true);
    let master = open(&sink, OutputMode::Append, 1).await?;
    assert_eq!(master.begin().await?, None);
    master.commit(0, rows(0)).await?;
    master.commit(1, rows(1)).await?;
    let whole = std::fs::read(&path)?;
    // As a process leaves it that was killed while it wrote.
    std::fs::write(&path, [whole.as_slice(), b"20,\"n, \"\"2"].concat())?;
    let master = open(&sink, OutputMode::Append, 2).await?;
    assert_eq!(master.begin().await?, Some(1));
    assert_eq!(std::fs::read(&path)?, whole);

    std::fs::write(&path, "value,name\n")?;
    let error = open(&sink, OutputMode::Append, 3)
        .await?
        .begin()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(
        error.to_string().contains("somebody has changed it"),
        "{error}"
    );

    let foreign = folder.path().join("foreign.csv");
    std::fs::write(&foreign, "a,b\n")?;
    let sink = self::sink(Format::Csv, &foreign.display().to_string(), true);
    let error = open(&sink, OutputMode::Append, 1)
        .await?
        .begin()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read(&foreign)?, b"a,b\n");
    Ok(())
}

#[tokio::test]
async fn what_files_cannot_do_is_refused_with_what_to_write() -> Result<()> {
    let folder = sink(Format::Csv, "/tmp/essaim-never-made/", false);
    let error = open(&folder, OutputMode::Update, 1).await.unwrap_err();
    assert!(error.to_string().contains("cannot replace rows"), "{error}");
    for (format, location, why) in [
        (Format::Parquet, "/tmp/essaim-never-made.parquet", "Parquet"),
        (Format::Csv, "s3://bucket/out.csv", "only a local file"),
    ] {
        let one = sink(format, location, true);
        let error = open(&one, OutputMode::Append, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.to_string().contains("name a folder"), "{error}");
    }
    Ok(())
}
