//! A schema of its own for each test, and the connector driven through its traits or through SQL.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use essaim_common::Result;
use essaim_common::connector::{
    Begin, Connector, ConnectorTable, Part, PlannedScan, PlannedSink, SinkRun, TableSpec,
};
use essaim_common::options::Options;
use essaim_common::scope::JobScope;
use essaim_common::secret::Secret;
use essaim_common::session;
use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use std::sync::Arc;

pub fn url() -> String {
    std::env::var("ESSAIM_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://essaim:essaim@127.0.0.1:54329/essaim".to_owned())
}

pub async fn connect() -> PgConnection {
    PgConnection::connect(&url()).await.unwrap()
}

/// A schema of the test's own.
pub struct Place {
    pub schema: String,
    pub sql: PgConnection,
}

impl Place {
    pub async fn new() -> Self {
        let schema = format!("test_{}", uuid::Uuid::new_v4().simple());
        let mut place = Self {
            sql: connect().await,
            schema,
        };
        let schema = place.schema.clone();
        place
            .run(&format!(
                "CREATE SCHEMA {schema}; SET search_path = {schema}"
            ))
            .await;
        place
    }

    pub async fn run(&mut self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut self.sql).await.unwrap();
    }

    /// The first column of all rows, as text.
    pub async fn texts(&mut self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(format!("SELECT q.c::text FROM ({sql}) AS q(c)"));
        let rows = sqlx::raw_sql(sql).fetch_all(&mut self.sql).await.unwrap();
        rows.iter()
            .map(|row| row.get::<Option<String>, _>(0).unwrap_or("NULL".to_owned()))
            .collect()
    }

    pub async fn text(&mut self, sql: &str) -> String {
        self.texts(sql).await.remove(0)
    }

    /// Removes the schema, and ends the sessions whose snapshots still hold its tables.
    pub async fn drop(mut self) {
        let schema = self.schema.clone();
        self.texts(&format!(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
             WHERE c.relnamespace = '{schema}'::regnamespace AND l.pid <> pg_backend_pid()"
        ))
        .await;
        self.run(&format!("DROP SCHEMA {schema} CASCADE")).await;
    }

    /// `CREATE EXTERNAL TABLE` over a table of this schema.
    pub fn declare(&self, name: &str, columns: &str, options: &str) -> String {
        let (url, schema) = (url(), &self.schema);
        format!(
            "CREATE EXTERNAL TABLE {name} {columns} STORED AS POSTGRES LOCATION '{url}' \
             OPTIONS (table '{schema}.{name}'{options})"
        )
    }

    pub async fn table(&self, name: &str, options: &[(&str, &str)]) -> Result<ConnectorTable> {
        self.table_with(name, None, options).await
    }

    pub async fn table_with(
        &self,
        name: &str,
        schema: Option<SchemaRef>,
        options: &[(&str, &str)],
    ) -> Result<ConnectorTable> {
        let mut options: Vec<(String, String)> = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        options.push(("table".to_owned(), format!("{}.{name}", self.schema)));
        let spec = TableSpec {
            name: name.to_owned(),
            schema,
            location: Secret::new(url()),
            options: Options::new(name, options.iter().map(|(k, v)| (k, v)))?,
            primary_key: Vec::new(),
            unbounded: false,
        };
        postgres().table(spec).await
    }
}

pub fn postgres() -> Arc<dyn Connector> {
    session::connector("POSTGRES").unwrap()
}

pub fn scope() -> Arc<JobScope> {
    JobScope::new(uuid::Uuid::new_v4().to_string(), 1, 2)
}

/// A session in which SQL works as on a master, with execution in this process.
pub fn sql_session() -> SessionContext {
    let config = session::config(2).with_extension(scope());
    let builder = SessionStateBuilder::new().with_config(config);
    SessionContext::new_with_state(session::with_essaim(builder).build())
}

pub async fn query(session: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>> {
    Ok(session.sql(sql).await?.collect().await?)
}

/// Rows as a table of text.
pub async fn shown(session: &SessionContext, sql: &str) -> String {
    let batches = query(session, sql).await.unwrap();
    pretty_format_batches(&batches).unwrap().to_string()
}

/// The error that a statement ends with.
pub async fn refused(session: &SessionContext, sql: &str) -> String {
    query(session, sql).await.unwrap_err().to_string()
}

pub fn task() -> Arc<TaskContext> {
    SessionContext::new_with_config(session::config(2)).task_ctx()
}

/// All rows of one split, by a reader that has travelled.
pub async fn read_split(scan: &PlannedScan, split: usize) -> Result<Vec<RecordBatch>> {
    let reader = postgres().reader(&scan.reader.encode(), scan.reader.schema())?;
    let metrics = ExecutionPlanMetricsSet::new();
    let stream = reader.read(&scan.splits[split], 0, &task(), &metrics)?;
    Ok(stream.try_collect().await?)
}

pub fn run(job: &str, generation: u64) -> SinkRun {
    SinkRun {
        job: job.to_owned(),
        query: 0,
        generation,
        epoch: 0,
    }
}

pub fn job() -> String {
    uuid::Uuid::now_v7().to_string()
}

pub fn stream(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let schema = batches[0].schema();
    let batches = futures::stream::iter(batches.into_iter().map(Ok));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// One partition's rows, by a writer that has travelled.
pub async fn write(planned: &PlannedSink, batches: Vec<RecordBatch>) -> Result<Part> {
    let writer = postgres().writer(&planned.writer.encode())?;
    writer.write(0, stream(batches), &task()).await
}

/// Plans, begins, writes each partition, commits.
pub async fn insert(
    table: &ConnectorTable,
    run: &SinkRun,
    overwrite: bool,
    partitions: Vec<RecordBatch>,
) -> Result<Begin> {
    let sink = table.sink.as_ref().unwrap();
    let planned = sink.plan(&partitions[0].schema(), overwrite, run).await?;
    let begun = planned.committer.begin().await?;
    if begun == Begin::AlreadyCommitted {
        return Ok(begun);
    }
    let mut parts = Vec::new();
    for partition in partitions {
        parts.push(write(&planned, vec![partition]).await?);
    }
    if let Err(error) = planned.committer.commit(parts).await {
        planned.committer.abort().await;
        return Err(error);
    }
    Ok(begun)
}
