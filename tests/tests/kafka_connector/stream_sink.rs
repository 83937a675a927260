//! Epochs into a topic: each once, whatever dies in between.

use crate::support::*;
use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::connector::{Connector, Sink, SinkRun, TableSpec};
use essaim_common::error::{Error, ErrorKind};
use essaim_common::options::Options;
use essaim_common::secret::Secret;
use essaim_common::sources::kafka::Kafka;
use essaim_common::stream::{OutputMode, StreamSink};
use essaim_tests::broker::PrivateBroker;
use essaim_tests::{SOON, wait_for};
use futures::StreamExt;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Rows of one epoch.
const ROWS: i64 = 50;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("epoch", DataType::Int64, false),
        Field::new("n", DataType::Int64, false),
        Field::new("s", DataType::Utf8, true),
    ]))
}

fn batch(epoch: u64, rows: i64) -> RecordBatch {
    let epoch = i64::try_from(epoch).unwrap();
    let texts = (0..rows).map(|n| format!("a text of some length {n}"));
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(Int64Array::from_iter_values((0..rows).map(|_| epoch))),
            Arc::new(Int64Array::from_iter_values(0..rows)),
            Arc::new(StringArray::from_iter_values(texts)),
        ],
    )
    .unwrap()
}

fn stream(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let batches = futures::stream::iter(batches.into_iter().map(Ok));
    Box::pin(RecordBatchStreamAdapter::new(schema(), batches))
}

/// Rows that come, and an end that comes when it is let go; the first signal says that the rows were taken.
fn hanging(
    batch: RecordBatch,
) -> (
    SendableRecordBatchStream,
    oneshot::Receiver<()>,
    oneshot::Sender<()>,
) {
    let (taken, is_taken) = oneshot::channel();
    let (release, released) = oneshot::channel::<()>();
    let end = async move {
        let _ = taken.send(());
        let _ = released.await;
        None
    };
    let rows = futures::stream::iter([Some(Ok(batch))])
        .chain(futures::stream::once(end))
        .filter_map(|item| async move { item });
    let rows = Box::pin(RecordBatchStreamAdapter::new(schema(), rows.boxed()));
    (rows, is_taken, release)
}

async fn table(brokers: &str, topic: &str, options: &[(&str, &str)]) -> Arc<dyn Sink> {
    let given: Vec<(String, String)> = options
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(format!("kafka://{brokers}/{topic}")),
        options: Options::new("t", given.iter().map(|(k, v)| (k, v))).unwrap(),
        primary_key: Vec::new(),
        unbounded: false,
    };
    Kafka.table(spec).await.unwrap().sink.unwrap()
}

/// A job's only INSERT.
struct Job {
    id: String,
    table: Arc<dyn Sink>,
}

impl Job {
    async fn new(brokers: &str, topic: &str, options: &[(&str, &str)]) -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            table: table(brokers, topic, options).await,
        }
    }

    /// Its sink, for one generation.
    async fn sink(&self, generation: u64) -> Arc<dyn StreamSink> {
        let run = SinkRun {
            job: self.id.clone(),
            query: 0,
            generation,
            epoch: 0,
        };
        self.table
            .stream(&schema(), OutputMode::Append, &run)
            .await
            .unwrap()
    }
}

fn superseded(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("superseded"), "{error}");
}

/// What a reader of committed records finds: how often each (epoch, n) is there.
fn committed(brokers: &str, topic: &str) -> Vec<(i64, i64)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let mut wanted = TopicPartitionList::new();
    let partitions = metadata.topics()[0].partitions();
    for partition in partitions {
        wanted
            .add_partition_offset(topic, partition.id(), Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&wanted).unwrap();
    let mut found = Vec::new();
    let mut ended = 0;
    let deadline = Instant::now() + TIMEOUT;
    while ended < partitions.len() {
        assert!(Instant::now() < deadline, "no end of {topic}");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{error}"),
            Some(Ok(message)) => {
                let row: serde_json::Value =
                    serde_json::from_slice(message.payload().unwrap()).unwrap();
                found.push((row["epoch"].as_i64().unwrap(), row["n"].as_i64().unwrap()));
            }
        }
    }
    found.sort_unstable();
    found
}

fn expected(epochs: impl IntoIterator<Item = u64>) -> Vec<(i64, i64)> {
    epochs
        .into_iter()
        .flat_map(|epoch| (0..ROWS).map(move |n| (i64::try_from(epoch).unwrap(), n)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_written_once_and_its_number_is_kept() {
    let topic = topic(3, &[]).await;
    let job = Job::new(&brokers(), &topic, &[("key", "n")]).await;
    let sink = job.sink(1).await;
    assert_eq!(sink.begin().await.unwrap(), None);
    for epoch in [0, 1, 4] {
        let rows = vec![batch(epoch, ROWS)];
        assert_eq!(sink.commit(epoch, stream(rows)).await.unwrap(), 50);
        let again = vec![batch(epoch, ROWS)];
        assert_eq!(sink.commit(epoch, stream(again)).await.unwrap(), 0);
    }
    // A generation that begins anew, and one that follows.
    assert_eq!(sink.begin().await.unwrap(), Some(4));
    let next = job.sink(2).await;
    assert_eq!(next.begin().await.unwrap(), Some(4));
    assert_eq!(
        next.commit(4, stream(vec![batch(4, ROWS)])).await.unwrap(),
        0
    );
    assert_eq!(
        next.commit(5, stream(vec![batch(5, ROWS)])).await.unwrap(),
        50
    );
    assert_eq!(committed(&brokers(), &topic), expected([0, 1, 4, 5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_generation_is_refused_and_does_no_harm() {
    let topic = topic(1, &[]).await;
    let job = Job::new(&brokers(), &topic, &[]).await;
    let (old, new) = (job.sink(1).await, job.sink(2).await);
    old.begin().await.unwrap();
    old.commit(0, stream(vec![batch(0, ROWS)])).await.unwrap();
    // The old one hangs in the middle of an epoch, with a transaction open.
    let (rows, taken, release) = hanging(batch(1, ROWS));
    let late = tokio::spawn({
        let old = old.clone();
        async move { old.commit(1, rows).await }
    });
    taken.await.unwrap();
    assert_eq!(new.begin().await.unwrap(), Some(0));
    release.send(()).unwrap();
    superseded(&late.await.unwrap().unwrap_err());
    // It is shut out for good, before the first epoch of the new one, and the new one goes on.
    superseded(&old.begin().await.unwrap_err());
    superseded(
        &old.commit(1, stream(vec![batch(1, ROWS)]))
            .await
            .unwrap_err(),
    );
    new.commit(1, stream(vec![batch(1, ROWS)])).await.unwrap();
    superseded(&job.sink(1).await.begin().await.unwrap_err());
    new.commit(2, stream(vec![batch(2, ROWS)])).await.unwrap();
    assert_eq!(committed(&brokers(), &topic), expected(0..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_epoch_leaves_nothing_and_the_next_try_writes_it() {
    let topic = topic(1, &[]).await;
    let job = Job::new(&brokers(), &topic, &[]).await;
    let sink = job.sink(1).await;
    sink.begin().await.unwrap();
    let failing = futures::stream::iter([
        Ok(batch(0, ROWS)),
        Err(Error::unavailable("a worker is gone").into()),
    ]);
    let failing = Box::pin(RecordBatchStreamAdapter::new(schema(), failing));
    let error = sink.commit(0, failing).await.unwrap_err();
    assert!(error.to_string().contains("a worker is gone"), "{error}");
    let large = StringArray::from(vec!["x".repeat(2_000_000)]);
    let large = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(Int64Array::from(vec![0])),
            Arc::new(Int64Array::from(vec![0])),
            Arc::new(large),
        ],
    );
    let error = sink
        .commit(0, stream(vec![large.unwrap()]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    sink.commit(0, stream(vec![batch(0, ROWS)])).await.unwrap();
    assert_eq!(committed(&brokers(), &topic), expected([0]));
}

/// Tries again while a producer that was given up still has its say, as a job does.
async fn again<T, C: Future<Output = essaim_common::Result<T>>>(call: impl Fn() -> C) -> T {
    let done = wait_for("the producer", SOON, async || match call().await {
        Err(error) if error.kind() == ErrorKind::Unavailable => Ok(None),
        done => Ok(Some(done?)),
    });
    done.await.unwrap()
}

async fn commit(sink: &Arc<dyn StreamSink>, epoch: u64) -> u64 {
    again(|| sink.commit(epoch, stream(vec![batch(epoch, ROWS)]))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_deaths_lose_and_repeat_nothing() {
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = topic(2, &[]).await;
        let job = Job::new(&brokers(), &topic, &[]).await;
        let mut generation = 1;
        let mut sink = job.sink(generation).await;
        let mut next = 0;
        let mut left_behind: Vec<BoxFuture<'static, ()>> = Vec::new();
        again(|| sink.begin()).await;
        for _ in 0..25 {
            match random.random_range(0..5) {
                // Its master dies after the commit, before it has noted it.
                0 => {
                    commit(&sink, next).await;
                    generation += 1;
                    sink = job.sink(generation).await;
                    assert_eq!(again(|| sink.begin()).await, Some(next));
                    assert_eq!(commit(&sink, next).await, 0);
                    next += 1;
                }
                // It dies in the middle, and comes back when its successor is at work.
                1 => {
                    let (rows, taken, release) = hanging(batch(next, ROWS));
                    let old = sink.clone();
                    let epoch = next;
                    let late = tokio::spawn(async move { old.commit(epoch, rows).await });
                    taken.await.unwrap();
                    left_behind.push(Box::pin(async move {
                        let _ = release.send(());
                        superseded(&late.await.unwrap().unwrap_err());
                    }));
                    generation += 1;
                    sink = job.sink(generation).await;
                    assert_eq!(again(|| sink.begin()).await, next.checked_sub(1));
                }
                // The epoch is given up in the middle.
                2 => {
                    let (rows, taken, _release) = hanging(batch(next, ROWS));
                    tokio::select! {
                        _ = sink.commit(next, rows) => panic!("it has no end"),
                        taken = taken => taken.unwrap(),
                    }
                }
                3 => assert_eq!(again(|| sink.begin()).await, next.checked_sub(1)),
                _ => {
                    assert_eq!(commit(&sink, next).await, 50);
                    next += 1;
                    if random.random_bool(0.5)
                        && let Some(late) = left_behind.pop()
                    {
                        late.await;
                    }
                }
            }
        }
        for late in left_behind {
            late.await;
        }
        commit(&sink, next).await;
        assert_eq!(
            committed(&brokers(), &topic),
            expected(0..=next),
            "seed {seed}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_takes_append_and_update() {
    let topic = topic(1, &[]).await;
    let sink = table(&brokers(), &topic, &[("key", "n")]).await;
    let run = SinkRun {
        job: uuid::Uuid::new_v4().to_string(),
        query: 0,
        generation: 1,
        epoch: 0,
    };
    for mode in [OutputMode::Append, OutputMode::Update] {
        let sink = sink.stream(&schema(), mode, &run).await.unwrap();
        assert!(sink.describe().contains("exactly once"));
    }
    let error = sink
        .stream(&schema(), OutputMode::Complete, &run)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("'complete'") && error.to_string().contains("'update'"),
        "{error}"
    );
}

/// Not a test of the clock: prints what an epoch costs, and fails only if it is out of all proportion.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_of_a_thousand_rows_takes_milliseconds() {
    let topic = topic(4, &[]).await;
    let job = Job::new(&brokers(), &topic, &[("key", "n")]).await;
    let sink = job.sink(1).await;
    let start = Instant::now();
    sink.begin().await.unwrap();
    println!("begin: {:?}", start.elapsed());
    let mut times = Vec::new();
    for epoch in 0..50 {
        let rows = stream(vec![batch(epoch, 1000)]);
        let start = Instant::now();
        sink.commit(epoch, rows).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("epoch: median {:?}, most {:?}", times[25], times[49]);
    assert!(times[25] < Duration::from_secs(1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_and_comes_back_loses_and_repeats_no_epoch() {
    let mut broker = PrivateBroker::start().await.unwrap();
    broker.create_topic("out", 2).await.unwrap();
    let address = broker.address();
    let job = Job::new(&address, "out", &[("request_timeout", "3 seconds")]).await;
    let job = Arc::new(job);
    let (progress, mut seen) = tokio::sync::watch::channel(0_u64);
    let (stop, mut stopped) = oneshot::channel::<()>();
    // As the engine does: an epoch is tried until it is there; after an error the sink begins again.
    let writer = tokio::spawn(async move {
        let sink = job.sink(1).await;
        let mut failures = Vec::new();
        let mut epoch = 0;
        while stopped.try_recv().is_err() {
            match sink.commit(epoch, stream(vec![batch(epoch, ROWS)])).await {
                Ok(_) => {
                    epoch += 1;
                    progress.send(epoch).unwrap();
                }
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    failures.push(error.to_string());
                    if let Ok(committed) = sink.begin().await {
                        let next = committed.map_or(0, |committed| committed + 1);
                        assert!(next == epoch || next == epoch + 1, "{next} after {epoch}");
                    }
                }
            }
        }
        (epoch, failures, job)
    });
    for round in 1..=2 {
        let goal = *seen.borrow() + 7 * round;
        let reached = seen.wait_for(|epoch| *epoch >= goal);
        tokio::time::timeout(Duration::from_secs(90), reached)
            .await
            .unwrap()
            .unwrap();
        broker.restart().unwrap();
    }
    let goal = *seen.borrow() + 5;
    let reached = seen.wait_for(|epoch| *epoch >= goal);
    tokio::time::timeout(Duration::from_secs(90), reached)
        .await
        .unwrap()
        .unwrap();
    stop.send(()).unwrap();
    let (epochs, failures, job) = writer.await.unwrap();
    println!("{epochs} epochs, failures: {failures:#?}");
    assert_eq!(committed(&address, "out"), expected(0..epochs));
    // The marker outlives the broker.
    broker.restart().unwrap();
    let next = begin_anew(&job).await;
    assert_eq!(next, Some(epochs - 1));
}

/// A new generation begins, as soon as the broker is there.
async fn begin_anew(job: &Job) -> Option<u64> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let run = SinkRun {
            job: job.id.clone(),
            query: 0,
            generation: 2,
            epoch: 0,
        };
        let input = schema();
        let begun = async {
            let sink = job.table.stream(&input, OutputMode::Append, &run);
            sink.await?.begin().await
        };
        match begun.await {
            Ok(committed) => return committed,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}
