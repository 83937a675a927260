//! The nodes of an INSERT: one that writes (on the workers, or above the cut), one that commits (on the master); and
//! for a streaming job one that only says where the rows of each epoch go.

use crate::connector::{Begin, Part, Sink, SinkCommitter, SinkRun, SinkWriter};
use crate::error::Error;
use arrow::array::{Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_datafusion_err, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, Partitioning, PlanProperties,
};
use datafusion_distributed::DistributedTaskContext;
use futures::TryStreamExt;
use std::fmt;
use std::sync::{Arc, LazyLock};

static PART_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("rows", DataType::UInt64, false),
        Field::new("part", DataType::Utf8, false),
    ]))
});

static COUNT_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![Field::new(
        "count",
        DataType::UInt64,
        false,
    )]))
});

fn properties(schema: &SchemaRef, partitions: usize) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(Arc::clone(schema)),
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Final,
        Boundedness::Bounded,
    ))
}

/// Writes each input partition to the sink's staging place; yields one row a partition: `[rows, part]`.
#[derive(Debug)]
pub struct SinkWriteExec {
    connector: &'static str,
    table: String,
    writer: Arc<dyn SinkWriter>,
    /// All rows go to one writer: the planner merges the partitions below.
    one_writer: bool,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SinkWriteExec {
    /// Writes the rows of `input` with `connector`'s writer.
    pub fn new(
        connector: &'static str,
        table: impl Into<String>,
        writer: Arc<dyn SinkWriter>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self {
            connector,
            table: table.into(),
            writer,
            one_writer: false,
            input,
            properties: properties(&PART_SCHEMA, partitions),
        }
    }

    /// The same with all rows going to one writer.
    pub fn with_one_writer(self) -> Self {
        let mut one = Self {
            one_writer: true,
            ..self
        };
        if one.input.output_partitioning().partition_count() > 1 {
            one.input = Arc::new(CoalescePartitionsExec::new(one.input));
            one.properties = properties(&PART_SCHEMA, 1);
        }
        one
    }

    /// The connector's name.
    pub fn connector(&self) -> &'static str {
        self.connector
    }

    /// The sink table's name in the job.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What writes.
    pub fn writer(&self) -> &Arc<dyn SinkWriter> {
        &self.writer
    }
}

impl DisplayAs for SinkWriteExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SinkWriteExec: {} table={}, {}",
            self.connector,
            self.table,
            self.writer.describe()
        )
    }
}

impl ExecutionPlan for SinkWriteExec {
    fn name(&self) -> &str {
        "SinkWriteExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![if self.one_writer {
            Distribution::SinglePartition
        } else {
            Distribution::UnspecifiedDistribution
        }])
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("a SinkWriteExec has one child");
        };
        let mut write = Self::new(
            self.connector,
            self.table.clone(),
            Arc::clone(&self.writer),
            input,
        );
        write.one_writer = self.one_writer;
        Ok(Arc::new(write))
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, Arc::clone(&ctx))?;
        let writer = Arc::clone(&self.writer);
        // In an exchange each task counts its partitions from 0; a writer is told its number in the whole stage.
        let task = DistributedTaskContext::from_ctx(&ctx).task_index;
        let partition = task * self.properties.output_partitioning().partition_count() + partition;
        let part = async move {
            let part = writer.write(partition, rows, &ctx).await?;
            Ok(RecordBatch::try_new(
                Arc::clone(&PART_SCHEMA),
                vec![
                    Arc::new(UInt64Array::from(vec![part.rows])),
                    Arc::new(StringArray::from(vec![part.payload])),
                ],
            )?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&PART_SCHEMA),
            futures::stream::once(part),
        )))
    }
}

/// Begins the run, lets the writers write, commits what they left; yields one row: `[count]`.
#[derive(Debug)]
pub struct SinkCommitExec {
    table: String,
    committer: Arc<dyn SinkCommitter>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SinkCommitExec {
    /// Commits what the [`SinkWriteExec`] below wrote.
    pub fn new(
        table: impl Into<String>,
        committer: Arc<dyn SinkCommitter>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        let input = if input.output_partitioning().partition_count() > 1 {
            Arc::new(CoalescePartitionsExec::new(input)) as _
        } else {
            input
        };
        Self {
            table: table.into(),
            committer,
            input,
            properties: properties(&COUNT_SCHEMA, 1),
        }
    }

    /// The sink table's name in the job.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Whether the run may be started anew after its master died, and its tasks run twice at once.
    pub fn is_restartable(&self) -> bool {
        self.committer.restartable()
    }
}

impl DisplayAs for SinkCommitExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SinkCommitExec: table={}", self.table)
    }
}

impl ExecutionPlan for SinkCommitExec {
    fn name(&self) -> &str {
        "SinkCommitExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("a SinkCommitExec has one child");
        };
        Ok(Arc::new(Self::new(
            self.table.clone(),
            Arc::clone(&self.committer),
            input,
        )))
    }

    fn execute(
        &self,
        _partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let input = Arc::clone(&self.input);
        let committer = Arc::clone(&self.committer);
        let table = self.table.clone();
        let count = async move {
            let rows = run(input, &committer, ctx)
                .await
                .map_err(|e| Error::from(e).context(format!("sink {table}")))?;
            let count = Arc::new(UInt64Array::from(vec![rows]));
            Ok(RecordBatch::try_new(
                Arc::clone(&COUNT_SCHEMA),
                vec![count],
            )?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&COUNT_SCHEMA),
            futures::stream::once(count),
        )))
    }
}

/// Aborts the run if it is dropped before it has ended, as a cancelled query is.
struct AbortOnDrop {
    committer: Option<Arc<dyn SinkCommitter>>,
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let (Some(committer), Ok(runtime)) =
            (self.committer.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move { committer.abort().await });
        }
    }
}

/// One run: begin, write, commit. Returns the rows committed.
async fn run(
    input: Arc<dyn ExecutionPlan>,
    committer: &Arc<dyn SinkCommitter>,
    ctx: Arc<TaskContext>,
) -> Result<u64> {
    if committer.begin().await? == Begin::AlreadyCommitted {
        return Ok(0);
    }
    let mut guard = AbortOnDrop {
        committer: Some(Arc::clone(committer)),
    };
    let outcome = async {
        let batches: Vec<RecordBatch> = input.execute(0, ctx)?.try_collect().await?;
        let mut parts = Vec::new();
        for batch in &batches {
            parts.extend(read_parts(batch)?);
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        committer.commit(parts).await?;
        Ok(rows)
    }
    .await;
    guard.committer = None;
    if outcome.is_err() {
        committer.abort().await;
    }
    outcome
}

fn read_parts(batch: &RecordBatch) -> Result<Vec<Part>> {
    let wrong = || internal_datafusion_err!("a sink writer yielded {:?}", batch.schema());
    let rows = batch
        .column(0)
        .as_any()
        .downcast_ref::<UInt64Array>()
        .ok_or_else(wrong)?;
    let parts = batch
        .column(1)
        .as_any()
        .downcast_ref::<StringArray>()
        .ok_or_else(wrong)?;
    Ok((0..parts.len())
        .map(|row| Part {
            rows: rows.value(row),
            payload: parts.value(row).to_owned(),
        })
        .collect())
}

/// The root of a streaming INSERT. It is not run: each epoch runs its input and hands the rows to the sink.
#[derive(Debug)]
pub struct StreamInsertExec {
    table: String,
    sink: Arc<dyn Sink>,
    run: SinkRun,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl StreamInsertExec {
    /// Sends the rows of `input` to `table`, which `sink` writes.
    pub fn new(
        table: impl Into<String>,
        sink: Arc<dyn Sink>,
        run: SinkRun,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        Self {
            table: table.into(),
            sink,
            run,
            input,
            properties: properties(&COUNT_SCHEMA, 1),
        }
    }

    /// The sink table's name in the job.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What writes.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// The name of its commits, with epoch 0.
    pub fn run(&self) -> &SinkRun {
        &self.run
    }

    /// What yields the rows.
    pub fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }
}

impl DisplayAs for StreamInsertExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamInsertExec: table={}", self.table)
    }
}

impl ExecutionPlan for StreamInsertExec {
    fn name(&self) -> &str {
        "StreamInsertExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("a StreamInsertExec has one child");
        };
        let sink = Arc::clone(&self.sink);
        Ok(Arc::new(Self::new(
            self.table.clone(),
            sink,
            self.run.clone(),
            input,
        )))
    }

    fn execute(
        &self,
        _partition: usize,
        _ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        Err(Error::invalid("an INSERT that reads a stream does not end by itself: submit it as a job (`essaim submit`)").into())
    }
}
