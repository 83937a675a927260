//! What is known of a topic before a job reads or writes it: its settings, and whether its newest records decode.

use super::client::{Connection, Context, IsolationLevel};
use super::dead_letter::DeadLetterTarget;
use super::offsets::{OffsetRange, OffsetSpec};
use super::reader::{Format, KafkaReader, OnError, ReaderPlan, split_of};
use super::records::METADATA_COLUMNS;
use super::source::KafkaSource;
use crate::bad_records::BadRecords;
use crate::check::Finding;
use crate::connector::SplitReader;
use crate::error::{Error, ErrorKind, Result};
use crate::scan::project_schema;
use crate::scope::Warm;
use arrow::array::{Array, RecordBatch};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::prelude::SessionConfig;
use essaim_proto::v1;
use futures::TryStreamExt;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::FromClientConfigAndContext;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long the brokers may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Newest records of a partition that are decoded, and partitions that are looked at.
const SAMPLE: (i64, usize) = (20, 8);
/// From so many records on, a column that is NULL in all of them is suspicious.
const ENOUGH: usize = 5;
/// A topic that keeps records for less is a danger to a job that is stopped over night.
const SHORT_RETENTION_MS: i64 = 24 * 3_600_000;

/// The settings of a topic, by name, e.g. `retention.ms`.
///
/// # Errors
/// The brokers do not answer, or do not tell this login.
pub async fn topic_settings(
    connection: &Connection,
    topic: &str,
) -> Result<HashMap<String, String>> {
    let failed = |e| connection.failed(format!("the settings of topic {topic}"), &e);
    let config = connection.config_over(&[])?;
    let admin: AdminClient<Context> =
        AdminClient::from_config_and_context(&config, Context::default()).map_err(failed)?;
    let wanted = [ResourceSpecifier::Topic(topic)];
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    let described = admin
        .describe_configs(&wanted, &options)
        .await
        .map_err(failed)?;
    let mut settings = HashMap::new();
    for resource in described {
        let resource =
            resource.map_err(|code| failed(rdkafka::error::KafkaError::AdminOp(code)))?;
        let entries = resource.entries.into_iter().filter(|e| !e.is_sensitive);
        settings.extend(entries.filter_map(|entry| Some((entry.name, entry.value?))));
    }
    Ok(settings)
}

/// What is wrong with a table's topics, or worth knowing, before they are read.
///
/// # Errors
/// The brokers are out of reach; there is no such topic.
pub async fn source(source: &KafkaSource, unbounded: bool) -> Result<Vec<Finding>> {
    let plan = &source.reader;
    let mut found = Vec::new();
    for topic in source.planner.topics() {
        if unbounded {
            found.extend(retention(&plan.connection, topic).await);
        }
        found.extend(dead_letters(plan, topic).await);
    }
    if unbounded && plan.format == Format::Json && plan.on_error == OnError::Fail {
        found.push(Finding::warning(
            "on_error is 'fail': the first record that does not decode ends the job",
            "set on_error 'dead_letter' or 'skip', or keep it if that is what you want",
        ));
    }
    match tokio::time::timeout(2 * ANSWER, sample(source)).await {
        Ok(sampled) => found.extend(sampled?),
        Err(_) => found.push(Finding::warning(
            format!(
                "the newest records could not be read within {} s",
                2 * ANSWER.as_secs()
            ),
            "look with `essaim doctor` whether every broker can be reached",
        )),
    }
    Ok(found)
}

async fn retention(connection: &Connection, topic: &str) -> Option<Finding> {
    let settings = match topic_settings(connection, topic).await {
        Ok(settings) => settings,
        Err(error) => {
            return Some(Finding::note(
                format!("{error}, so how long it keeps records is not known"),
                "",
            ));
        }
    };
    let deletes = settings.get("cleanup.policy")?.contains("delete");
    let ms: i64 = settings.get("retention.ms")?.parse().ok()?;
    (deletes && (0..SHORT_RETENTION_MS).contains(&ms)).then(|| {
        Finding::warning(
            format!(
                "topic {topic} keeps records for {} only (retention.ms): what arrives while the job is stopped for longer is lost",
                in_words(ms)
            ),
            "give the topic a longer retention.ms",
        )
    })
}

fn in_words(ms: i64) -> String {
    match ms {
        _ if ms >= 3_600_000 => format!("{} h", ms / 3_600_000),
        _ if ms >= 60_000 => format!("{} min", ms / 60_000),
        _ => format!("{} s", ms as f64 / 1000.0),
    }
}

/// Bad records need a place to go before the first of them comes.
async fn dead_letters(plan: &ReaderPlan, topic: &str) -> Option<Finding> {
    let DeadLetterTarget::Topic(own) = plan.dead_letters.as_ref()? else {
        return None;
    };
    let name = own
        .clone()
        .unwrap_or_else(|| format!("{topic}_dead_letter"));
    let connection = plan.connection.clone();
    let asked = name.clone();
    let there = tokio::task::spawn_blocking(move || has_topic(&connection, &asked)).await;
    match there {
        Ok(Ok(false)) => Some(Finding::warning(
            format!(
                "there is no topic {name} for bad records yet: unless the brokers make topics by themselves, the first one fails the job"
            ),
            format!("create topic {name}, or name another with dead_letter_topic"),
        )),
        // A broker out of reach is told of by what reads.
        _ => None,
    }
}

/// Whether the brokers know a topic. Blocks.
fn has_topic(connection: &Connection, topic: &str) -> Result<bool> {
    let connection = asked_within(connection, ANSWER);
    let client = connection.metadata_client(IsolationLevel::ReadCommitted)?;
    let metadata = connection.topic(&client, topic)?;
    let mut topics = metadata.topics().iter();
    Ok(topics.any(|found| found.name() == topic && found.error().is_none()))
}

/// The same brokers, which have so long to answer.
fn asked_within(connection: &Connection, deadline: Duration) -> Connection {
    Connection {
        timeout_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        ..connection.clone()
    }
}

/// Decodes the newest records as the job would: that finds a login that may not read, columns of a wrong type, and
/// names that no record has.
async fn sample(source: &KafkaSource) -> Result<Vec<Finding>> {
    let (records, partitions) = SAMPLE;
    let mut ranges = source
        .offsets(&OffsetSpec::Earliest, &OffsetSpec::Latest)
        .await?;
    ranges.truncate(partitions);
    let declared: Vec<usize> = (0..source.schema.fields().len())
        .filter(|index| !METADATA_COLUMNS.contains(&source.schema.field(*index).name().as_str()))
        .collect();
    let reader = KafkaReader {
        schema: project_schema(&source.schema, &declared)?,
        plan: ReaderPlan {
            // Nothing is put aside by a check, and a bad record hides no other.
            on_error: OnError::Skip,
            dead_letters: None,
            ..source.reader.clone()
        },
    };
    let noted = Arc::new(BadRecords::default());
    let config = SessionConfig::new()
        .with_extension(Arc::new(Warm::default()))
        .with_extension(Arc::clone(&noted));
    let ctx = Arc::new(TaskContext::default().with_session_config(config));
    let metrics = ExecutionPlanMetricsSet::new();
    let mut batches: Vec<RecordBatch> = Vec::new();
    for range in ranges {
        let newest = OffsetRange {
            start: range.start.max(range.end - records),
            ..range
        };
        let rows = reader.read(&split_of(&newest)?, 0, &ctx, &metrics)?;
        let rows: std::result::Result<Vec<RecordBatch>, _> = rows.try_collect().await;
        batches.extend(rows.map_err(Error::from)?);
    }
    let skipped = metrics
        .clone_inner()
        .sum_by_name("records_skipped")
        .map_or(0, |skipped| skipped.as_usize());
    let bad = bad_records(source.reader.on_error, &noted.noted(), skipped);
    Ok(bad.into_iter().chain(unused(&reader, &batches)).collect())
}

/// What the first record that is no row is refused for, and what becomes of such records.
fn bad_records(on_error: OnError, noted: &[v1::BadRecord], bad: usize) -> Option<Finding> {
    let first = noted.first()?;
    let what = format!(
        "{bad} of the newest records {}: {}[{}] offset {}: the record does not decode: {}",
        match on_error {
            OnError::Fail => "would end the job",
            OnError::Skip => "would be skipped",
            OnError::DeadLetter => "would go to the dead letters",
        },
        first.topic,
        first.partition,
        first.offset,
        first.reason
    );
    Some(match on_error {
        OnError::Fail => Finding::error(
            what,
            "correct the columns, or set on_error 'skip' or 'dead_letter'",
        ),
        OnError::Skip | OnError::DeadLetter => {
            Finding::warning(what, "correct the columns if such records are to be rows")
        }
    })
}

/// Columns that no record fills.
fn unused(reader: &KafkaReader, batches: &[RecordBatch]) -> Option<Finding> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if rows < ENOUGH || reader.plan.format == Format::Raw {
        return None;
    }
    let is_null = |index: usize| {
        let mut columns = batches.iter().map(|batch| batch.column(index));
        columns.all(|column| column.logical_null_count() == column.len())
    };
    let fields = reader.schema.fields().iter().enumerate();
    let empty = fields.filter(|(index, _)| is_null(*index));
    let empty: Vec<String> = empty.map(|(_, field)| field.name().clone()).collect();
    (!empty.is_empty()).then(|| {
        Finding::note(
            format!(
                "none of the {rows} newest records has a value for {}",
                empty.join(", ")
            ),
            "compare the names with those in the messages: upper and lower case differ, and a name without quotes is folded to lower case",
        )
    })
}

/// What keeps records from a topic that is there.
///
/// # Errors
/// The brokers are out of reach.
pub async fn sink(connection: &Connection, topic: &str, has_key: bool) -> Result<Vec<Finding>> {
    let settings = match topic_settings(connection, topic).await {
        Ok(settings) => settings,
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => return Ok(vec![Finding::note(error.to_string(), "")]),
    };
    let policy = settings.get("cleanup.policy");
    if !has_key && policy.is_some_and(|policy| policy.contains("compact")) {
        return Ok(vec![Finding::error(
            format!(
                "topic {topic} is compacted (cleanup.policy), and the brokers refuse records without a key there"
            ),
            "set the option key 'a,b' to the columns that the records are kept by",
        )]);
    }
    Ok(Vec::new())
}

/// Asks for topics, and looks whether each broker can be reached where it says that it is. Returns what was found.
///
/// # Errors
/// No broker answers; a topic is not there; a broker is out of reach at its advertised address.
pub async fn reach(
    connection: Connection,
    topics: Vec<String>,
    deadline: Duration,
) -> Result<String> {
    // The caller's deadline ends everything: ours come before it, so that the error tells which link it was.
    let part = deadline.mul_f64(0.45);
    let asked = asked_within(&connection, part);
    let look = move || -> Result<(Vec<(i32, String)>, usize)> {
        let client = asked.metadata_client(IsolationLevel::ReadCommitted)?;
        let mut brokers = Vec::new();
        let mut partitions = 0;
        for topic in &topics {
            let metadata = asked.topic(&client, topic).map_err(|e| match e.kind() {
                ErrorKind::Unavailable => {
                    e.with_hint("is a broker running there, and is its port open from here?")
                }
                _ => e,
            })?;
            let known = metadata.topics().iter().find(|found| found.name() == topic);
            match known.filter(|found| found.error().is_none()) {
                Some(found) => partitions += found.partitions().len(),
                None => {
                    return Err(Error::invalid(format!(
                        "the brokers {} have no topic {topic}, or do not show it to this login: create it, or allow DESCRIBE",
                        asked.brokers
                    )));
                }
            }
            let addresses = metadata.brokers().iter();
            brokers = addresses
                .map(|b| (b.id(), format!("{}:{}", b.host(), b.port())))
                .collect();
        }
        Ok((brokers, partitions))
    };
    let (brokers, partitions) = tokio::task::spawn_blocking(look)
        .await
        .map_err(|e| Error::internal(format!("the look-up of brokers broke down: {e}")))??;
    let count = brokers.len();
    let connects = brokers.into_iter().map(|(id, address)| async move {
        let wrong = |why: String| {
            Error::unavailable(format!(
                "broker {id} says that it is at {address}, which cannot be reached from here: {why}; correct its advertised.listeners, or open the way"
            ))
        };
        match tokio::time::timeout(part, TcpStream::connect(&address)).await {
            Ok(connected) => connected.map(drop).map_err(|e| wrong(e.to_string())),
            Err(_) => Err(wrong(format!("no answer within {:.1} s", part.as_secs_f64()))),
        }
    });
    futures::future::try_join_all(connects).await?;
    Ok(format!(
        "{count} broker{}, {partitions} partitions",
        if count == 1 { "" } else { "s" }
    ))
}
