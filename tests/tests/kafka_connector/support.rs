//! Topics of their own for each test, producers, and a session that runs SQL over them in this process.

use arrow::array::RecordBatch;
use arrow::json::LineDelimitedWriter;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use essaim_common::connector::{Connector, PlannedScan, ScanRequest, TableSpec};
use essaim_common::options::Options;
use essaim_common::scope::JobScope;
use essaim_common::secret::Secret;
use essaim_common::session;
use essaim_common::sources::kafka::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use std::time::Duration;

pub const TIMEOUT: Duration = Duration::from_secs(30);

pub fn brokers() -> String {
    std::env::var("ESSAIM_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:29092".to_owned())
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    client().create().unwrap()
}

pub fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers())
        .set("message.timeout.ms", "30000");
    config
}

/// A new topic of a name of its own.
pub async fn topic(partitions: i32, settings: &[(&str, &str)]) -> String {
    let name = format!("essaim-test-{}", uuid::Uuid::new_v4());
    named_topic(&name, partitions, settings).await;
    name
}

pub async fn named_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let made = admin().create_topics([&new], &options).await.unwrap();
    made.into_iter().for_each(|result| {
        result.unwrap();
    });
}

/// A record to produce.
#[derive(Debug, Clone, Default)]
pub struct Record {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub timestamp: Option<i64>,
    pub headers: Option<OwnedHeaders>,
}

impl Record {
    pub fn json(text: &str) -> Self {
        Self::bytes(text.as_bytes())
    }

    pub fn bytes(value: &[u8]) -> Self {
        Self {
            value: Some(value.to_vec()),
            ..Self::default()
        }
    }

    pub fn tombstone() -> Self {
        Self::default()
    }

    pub fn at(mut self, partition: i32) -> Self {
        self.partition = partition;
        self
    }
}

pub fn send(producer: &BaseProducer, topic: &str, records: &[Record]) {
    for record in records {
        let mut message = BaseRecord::<[u8], [u8]>::to(topic).partition(record.partition);
        message.key = record.key.as_deref();
        message.payload = record.value.as_deref();
        message.timestamp = record.timestamp;
        message.headers = record.headers.clone();
        while let Err((_, back)) = producer.send(message) {
            producer.poll(Duration::from_millis(10));
            message = back;
        }
    }
    producer.flush(TIMEOUT).unwrap();
}

pub fn produce(topic: &str, records: &[Record]) {
    let producer: BaseProducer = client().create().unwrap();
    send(&producer, topic, records);
}

/// A transactional producer that is ready to begin.
pub fn transactional() -> BaseProducer {
    let producer: BaseProducer = client()
        .set("transactional.id", uuid::Uuid::new_v4().to_string())
        .create()
        .unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer
}

pub fn session() -> SessionContext {
    session_of(4)
}

pub fn session_of(slots: usize) -> SessionContext {
    let scope = JobScope::new(uuid::Uuid::new_v4().to_string(), 0, slots);
    let config = session::config(2).with_extension(scope);
    let builder = SessionStateBuilder::new().with_config(config);
    SessionContext::new_with_state(session::with_essaim(builder).build())
}

/// Declares table `t` over a topic. `columns` and `options` as in SQL, without their parentheses.
pub async fn declare(
    ctx: &SessionContext,
    columns: &str,
    topic: &str,
    options: &str,
) -> anyhow::Result<()> {
    declare_as(ctx, "t", columns, topic, options).await
}

pub async fn declare_as(
    ctx: &SessionContext,
    name: &str,
    columns: &str,
    topic: &str,
    options: &str,
) -> anyhow::Result<()> {
    let columns = match columns {
        "" => String::new(),
        columns => format!("({columns})"),
    };
    let options = match options {
        "" => "format 'json'".to_owned(),
        options => options.to_owned(),
    };
    let text = format!(
        "CREATE EXTERNAL TABLE {name} {columns} STORED AS KAFKA LOCATION 'kafka://{}/{topic}' OPTIONS ({options})",
        brokers()
    );
    ctx.sql(&text).await?.collect().await?;
    Ok(())
}

pub async fn batches(ctx: &SessionContext, sql: &str) -> anyhow::Result<Vec<RecordBatch>> {
    let rows = async { Ok(ctx.sql(sql).await?.collect().await?) };
    tokio::time::timeout(Duration::from_secs(60), rows).await?
}

/// The rows as JSON objects, nulls left out.
pub async fn rows(ctx: &SessionContext, sql: &str) -> anyhow::Result<Vec<Value>> {
    let batches = batches(ctx, sql).await?;
    let mut writer = LineDelimitedWriter::new(Vec::new());
    for batch in &batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    let lines = String::from_utf8(writer.into_inner())?;
    Ok(lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?)
}

pub async fn count(ctx: &SessionContext, sql: &str) -> i64 {
    let counted = rows(ctx, sql).await.unwrap();
    let first = counted[0].as_object().unwrap().values().next().unwrap();
    let counted = first.as_i64().unwrap();
    if let Some(rest) = sql.strip_prefix("INSERT INTO ") {
        let table = rest.split(' ').next().unwrap();
        until_visible(ctx, table, counted).await;
    }
    counted
}

/// Waits until so many rows can be read: the broker answers a commit before it has told the partitions of it.
async fn until_visible(ctx: &SessionContext, table: &str, rows: i64) {
    let look = format!("SELECT count(*) AS n FROM {table}");
    let there = essaim_tests::wait_for(&look, essaim_tests::SOON, async || {
        let found = self::rows(ctx, &look).await?;
        Ok((found[0]["n"].as_i64() >= Some(rows)).then_some(()))
    });
    there.await.unwrap();
}

pub async fn error(ctx: &SessionContext, sql: &str) -> String {
    essaim_common::Error::from(
        batches(ctx, sql)
            .await
            .unwrap_err()
            .downcast::<datafusion::error::DataFusionError>()
            .unwrap(),
    )
    .to_string()
}

/// A raw table's scan, planned for about so many splits.
pub async fn plan(
    topic: &str,
    options: &[(&str, &str)],
    target_splits: usize,
) -> essaim_common::Result<PlannedScan> {
    let mut given = vec![("format".to_owned(), "raw".to_owned())];
    given.extend(
        options
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
    );
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(format!("kafka://{}/{topic}", brokers())),
        options: Options::new("t", given.iter().map(|(k, v)| (k, v)))?,
        primary_key: Vec::new(),
        unbounded: false,
    };
    let table = Kafka.table(spec).await?;
    let scope = JobScope::new("job", 0, 1);
    table
        .source
        .unwrap()
        .plan(ScanRequest {
            projection: &[5],
            filters: &[],
            limit: None,
            target_splits,
            scope: &scope,
        })
        .await
}
