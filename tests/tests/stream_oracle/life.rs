//! From submission to the end and back: stopped and taken up again, available_now, new partitions, deleted offsets.

use crate::events::{Event, FORWARD, Feed, SECOND};
use crate::run::{Run, same};
use anyhow::{Result, anyhow, ensure};
use essaim_proto::v1::JobState;
use essaim_tests::kafka::brokers;
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

fn events(partitions: usize, ids: std::ops::Range<i64>) -> Vec<(usize, Event)> {
    ids.map(|id| (id as usize % partitions, Event::new(id, FORWARD + id * SECOND)))
        .collect()
}

/// All rows into `raw`, and counts by window into `counted` (appended) and `updated`.
fn sql(feed: &Feed, database: &Database, options: &str, settings: &str) -> String {
    let count = |table: &str| {
        format!("INSERT INTO {table} SELECT window_start, count(*) AS n FROM events GROUP BY window(at, '10 seconds');")
    };
    [
        feed.declare(2 * SECOND, options),
        database.declare("raw", "raw", ""),
        database.declare("counted", "counted", ""),
        database.declare("updated", "updated", ", mode 'upsert', key 'window_start'"),
        settings.to_owned(),
        "INSERT INTO raw SELECT id, at, v FROM events;".to_owned(),
        count("counted"),
        count("updated"),
    ]
    .concat()
}

/// Compares all three tables with what was sent, in every partition a row for every second up to about the last.
async fn check(feed: &Feed, database: &Database) -> Result<()> {
    let table = unique("events");
    feed.load(database, &table).await?;
    let all = format!("SELECT id, at, v FROM {table}");
    same(database, "SELECT id, at, v FROM raw", &all).await?;
    let bin = format!("SELECT date_bin('10 seconds', at, timestamp '1970-01-01') w, count(*) FROM {table} GROUP BY w");
    same(database, "SELECT window_start, n FROM updated", &bin).await?;
    let latest = feed.sent.iter().filter_map(|sent| sent.iter().filter_map(|event| event.at).max());
    let watermark = latest.min().unwrap_or(0) - 2 * SECOND;
    let closed = format!(
        "SELECT * FROM ({bin}) c WHERE w + interval '10 seconds' <= timestamp '1970-01-01' + interval '1 ms' * {watermark}"
    );
    same(database, "SELECT window_start, n FROM counted", &closed).await
}

#[tokio::test]
async fn a_stopped_job_goes_on_without_loss_or_repeat() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    let text = sql(&feed, &database, ", max_offsets_per_trigger '13'", "");
    feed.send(events(2, 0..50)).await?;
    let mut run = Run::start(&text).await?;
    for round in 1..6 {
        feed.send(events(2, 50 * round..50 * (round + 1))).await?;
        // In the middle of the rows, as far as they have been read.
        run.until(|job| job.last_epoch.is_some() && job.state() == JobState::Running)
            .await?;
        run.stop().await?;
        let before = run.id.clone();
        run = run.resubmit(&text, false).await?;
        ensure!(run.id == before, "the job keeps its id");
    }
    let job = run.drained(&feed).await?;
    check(&feed, &database).await?;
    let read = job.totals.unwrap_or_default().input_rows;
    ensure!(read == 300, "{read} rows were read");
    run.stop().await
}

#[tokio::test]
async fn available_now_reads_everything_and_succeeds() -> Result<()> {
    let mut feed = Feed::create(3).await?;
    let database = Database::create().await?;
    let now = "SET essaim.trigger = 'available_now';";
    let text = sql(&feed, &database, ", max_offsets_per_trigger '40'", now);
    feed.send(events(3, 0..200)).await?;
    let mut run = Run::start(&text).await?;
    for round in 1..4 {
        let job = run.client.wait_job(&run.id).await?;
        ensure!(job.state() == JobState::Succeeded, "{job:?}");
        check(&feed, &database).await?;
        if round < 3 {
            feed.send(events(3, 200 * round..200 * round + 200)).await?;
        }
        // The last time there is nothing new.
        run = run.resubmit(&text, false).await?;
    }
    let job = run.client.wait_job(&run.id).await?;
    ensure!(job.state() == JobState::Succeeded, "{job:?}");
    check(&feed, &database).await
}

fn admin() -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers()).create()?)
}

#[tokio::test]
async fn a_partition_added_to_the_topic_is_read() -> Result<()> {
    let mut feed = Feed::create(1).await?;
    let database = Database::create().await?;
    feed.send(events(1, 0..30)).await?;
    let run = Run::start(&sql(&feed, &database, "", "")).await?;
    run.drained(&feed).await?;
    let options = AdminOptions::new();
    let grown = admin()?
        .create_partitions(&[NewPartitions::new(&feed.topic.name, 3)], &options)
        .await?;
    grown.into_iter().try_for_each(|result| result.map(drop).map_err(|(_, e)| anyhow!(e)))?;
    feed.sent.resize(3, Vec::new());
    // What is new is found after a while: partition 0 must not run ahead of it.
    let new = events(2, 30..60).into_iter();
    feed.send(new.map(|(partition, event)| (partition + 1, event)).collect())
        .await?;
    run.drained(&feed).await?;
    feed.send(events(3, 60..150)).await?;
    run.drained(&feed).await?;
    check(&feed, &database).await?;
    run.cancel().await
}

/// Deletes the records of partition 0 before `offset`.
async fn delete_before(feed: &Feed, offset: i64) -> Result<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&feed.topic.name, 0, Offset::Offset(offset))?;
    let deleted = admin()?.delete_records(&list, &AdminOptions::new()).await?;
    for element in deleted.elements() {
        element.error()?;
    }
    Ok(())
}

#[tokio::test]
async fn deleted_offsets_end_the_job_or_are_passed_over_and_counted() -> Result<()> {
    let mut feed = Feed::create(2).await?;
    let database = Database::create().await?;
    let strict = sql(&feed, &database, "", "");
    feed.send(events(2, 0..40)).await?;
    let run = Run::start(&strict).await?;
    run.drained(&feed).await?;
    run.stop().await?;
    // Partition 0 has read 20 records; 20 to 34 are lost.
    feed.send(events(2, 40..120)).await?;
    delete_before(&feed, 35).await?;
    let failed = run.resubmit(&strict, false).await?;
    let message = failed.failure().await?;
    let partition = format!("{}[0] offset 20", feed.topic.name);
    ensure!(
        message.contains(&partition) && message.contains("fail_on_data_loss"),
        "{message}"
    );
    let lenient = sql(&feed, &database, ", fail_on_data_loss 'false'", "");
    let run = run.resubmit(&lenient, false).await?;
    let job = run.drained(&feed).await?;
    let lost = job.totals.unwrap_or_default().lost;
    ensure!(lost == 15, "{lost} offsets are lost");
    run.stop().await?;
    let whole = std::mem::take(&mut feed.sent[0]);
    feed.sent[0] = [&whole[..20], &whole[35..]].concat();
    check(&feed, &database).await
}
