//! A streaming INSERT into files is planned as one, whether they exist or not.

use anyhow::Result;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::prelude::SessionContext;
use essaim_common::Error;
use essaim_common::connector::{
    ConnectorTable, PlannedScan, ScanRequest, Source, Split, SplitReader,
};
use essaim_common::scope::JobScope;
use essaim_common::session;
use essaim_common::sink::StreamInsertExec;
use essaim_common::stream::{Available, Offsets, OutputMode, StreamOptions, StreamSource};
use essaim_common::table::Table;
use std::sync::Arc;
use tempfile::TempDir;

/// A stream that is only planned.
#[derive(Debug, Clone)]
struct Planned;

#[async_trait]
impl Source for Planned {
    async fn plan(&self, _request: ScanRequest<'_>) -> Result<PlannedScan, Error> {
        Err(Error::internal("not read"))
    }

    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        Some(Arc::new(Self))
    }
}

#[async_trait]
impl StreamSource for Planned {
    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::empty())
    }

    fn options(&self) -> StreamOptions {
        StreamOptions::default()
    }

    async fn start(&self) -> Result<Offsets, Error> {
        Ok(Offsets::default())
    }

    async fn available(&self, _from: &Offsets) -> Result<Available, Error> {
        Ok(Available::default())
    }

    fn splits(&self, _: &Offsets, _: &Offsets, _: usize) -> Result<Vec<Split>, Error> {
        Ok(Vec::new())
    }

    fn reader(&self, _projection: &[usize]) -> Result<Arc<dyn SplitReader>, Error> {
        Ok(Arc::new(Self))
    }
}

impl SplitReader for Planned {
    fn schema(&self) -> SchemaRef {
        super::schema()
    }

    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn read(
        &self,
        _split: &Split,
        _partition: usize,
        _ctx: &Arc<TaskContext>,
        _metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream, Error> {
        Err(Error::internal("not read"))
    }
}

fn context() -> Result<SessionContext> {
    let scope = JobScope::new(super::JOB, 3, 2);
    let builder = SessionStateBuilder::new()
        .with_config(session::config(2).with_extension(scope))
        .with_runtime_env(session::runtime(64 << 20)?);
    let context = SessionContext::new_with_state(session::with_essaim(builder).build());
    let table = ConnectorTable {
        schema: Some(super::schema()),
        source: Some(Arc::new(Planned)),
        sink: None,
    };
    let table = Table::new("events".to_owned(), "PLANNED", true, table);
    context.register_table("events", Arc::new(table))?;
    Ok(context)
}

#[tokio::test]
async fn a_streaming_insert_reaches_the_sink_of_files_that_exist_and_of_those_that_do_not()
-> Result<()> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("old.csv"), "value,name\n1,a\n")?;
    let existing = folder.path().display().to_string();
    for (location, columns) in [
        (format!("{existing}/"), ""),
        (format!("{existing}/new/"), "(value BIGINT, name VARCHAR)"),
    ] {
        let context = context()?;
        let create =
            format!("CREATE EXTERNAL TABLE out {columns} STORED AS CSV LOCATION '{location}'");
        context.sql(&create).await?.collect().await?;
        let insert = context.sql("INSERT INTO out SELECT * FROM events").await?;
        let plan = insert.create_physical_plan().await?;
        let insert = plan.downcast_ref::<StreamInsertExec>().unwrap();
        assert_eq!(insert.run().generation, 3);
        let input = insert.input().schema();
        let sink = insert.sink();
        assert!(!sink.prefers_update());
        let stream = sink
            .stream(&input, OutputMode::Append, insert.run())
            .await?;
        assert_eq!(stream.begin().await?, None);

        let frame = context
            .sql("INSERT OVERWRITE out SELECT * FROM events")
            .await?;
        let error = frame.create_physical_plan().await.unwrap_err();
        assert!(error.to_string().contains("reads a stream"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_files_is_not_written() -> Result<()> {
    let context = context()?;
    let create = "CREATE UNBOUNDED EXTERNAL TABLE out (value BIGINT) STORED AS CSV LOCATION '/tmp/essaim-never-made/'";
    context.sql(create).await?;
    let insert = context.sql("INSERT INTO out SELECT 1").await?;
    let error = insert.create_physical_plan().await.unwrap_err().to_string();
    let wanted = "an UNBOUNDED table of FILES is only a source";
    assert!(error.contains(wanted), "{error}");
    Ok(())
}
