//! The first row of each key over all epochs: `SELECT DISTINCT` and `DISTINCT ON`, within the watermark.

use crate::stream::feed::{epoch_of, gather, millis};
use crate::stream::state::Delta;
use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::kernels::cmp::gt;
use arrow::compute::{concat_batches, filter, filter_record_batch, take_record_batch};
use arrow::datatypes::{FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::TryStreamExt;
use std::fmt;
use std::sync::Arc;

/// What is a duplicate, and how long it is known for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupOptions {
    /// Its id in the job: `<query>/…`.
    pub op: String,
    /// The position of its INSERT in the job.
    pub query: u32,
    /// The columns in which duplicates agree.
    pub keys: Vec<usize>,
    /// The column with the time of the event: a key is forgotten when the watermark has passed its first row's, as
    /// later rows with that time come too late. A key without a time is forgotten after `ttl_ms`.
    pub event_time: Option<usize>,
    /// For how much longer than that a key is known, ms of event time.
    pub delay_ms: i64,
    /// Without an event time, the ms of wall-clock time that a key is known for; for ever if there is none.
    pub ttl_ms: Option<i64>,
}

/// Passes the first row of each key, in the order of the input. One partition.
#[derive(Debug)]
pub struct StateDedupExec {
    options: DedupOptions,
    input: Arc<dyn ExecutionPlan>,
    /// The columns in which duplicates agree, which are the state.
    keys: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl StateDedupExec {
    /// Passes the first rows of `input`.
    ///
    /// # Errors
    /// Columns that are not there.
    pub fn new(input: Arc<dyn ExecutionPlan>, options: DedupOptions) -> Result<Self> {
        let schema = input.schema();
        if options.keys.is_empty()
            || options
                .event_time
                .is_some_and(|c| c >= schema.fields().len())
        {
            return internal_err!("no columns tell duplicates apart: {options:?} of {schema}");
        }
        let keys = schema.project(&options.keys)?;
        let nullable = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
        let keys: Vec<_> = keys.fields().iter().map(nullable).collect();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Ok(Self {
            options,
            input,
            keys: Arc::new(Schema::new(keys)),
            properties: Arc::new(properties),
        })
    }
}

impl DedupOptions {
    /// Until when the key of each row is known, in ms of the clock that `until` reads.
    fn expiries(&self, rows: &RecordBatch, time_ms: i64) -> Result<Int64Array> {
        let Some(event_time) = self.event_time else {
            let expiry = self
                .ttl_ms
                .map_or(i64::MAX, |ttl| time_ms.saturating_add(ttl));
            return Ok(Int64Array::from_value(expiry, rows.num_rows()));
        };
        let times = millis(rows.column(event_time))?;
        // A row as old as the watermark is not late yet.
        let known = self.delay_ms.saturating_add(1);
        let expiries = times.iter().map(|time| match time {
            Some(time) => time.saturating_add(known).min(i64::MAX - 1),
            None => i64::MAX,
        });
        Ok(Int64Array::from_iter_values(expiries))
    }
}

/// One epoch: finds the first rows, and puts their keys down.
async fn first_rows(
    options: DedupOptions,
    keys: SchemaRef,
    input: Arc<dyn ExecutionPlan>,
    ctx: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let epoch = epoch_of(&ctx)?;
    let state = epoch.state(&options.op, &keys, keys.fields().len())?;
    let watermarks = epoch.watermarks(options.query);
    // By which clock keys are forgotten: what is gone already, and what goes with this epoch.
    let (gone, going) = match (options.event_time, options.ttl_ms) {
        (Some(_), _) => (watermarks.before, watermarks.now),
        (None, Some(_)) => (epoch.time_ms, epoch.time_ms),
        (None, None) => (i64::MIN, i64::MIN),
    };
    let consumer = MemoryConsumer::new(format!("StateDedupExec[{}]", options.op));
    let memory = consumer.register(ctx.memory_pool());
    let schema = input.schema();
    let batches = gather(&input, &ctx, &memory).await?;
    let rows = concat_batches(&schema, &batches)?;
    drop(batches);
    let key_columns = |rows: &RecordBatch| -> Vec<ArrayRef> {
        let columns = options.keys.iter().map(|key| Arc::clone(rows.column(*key)));
        columns.collect()
    };
    // Of a row that came too late it is not known any more whether it is the first.
    let expiries = options.expiries(&rows, epoch.time_ms)?;
    let rows = filter_record_batch(&rows, &gt(&expiries, &Int64Array::new_scalar(gone))?)?;
    let first = state
        .read()
        .missing(&key_columns(&rows), rows.num_rows(), gone)?;
    let rows = take_record_batch(&rows, &first)?;

    let expiries = options.expiries(&rows, epoch.time_ms)?;
    let staying = gt(&expiries, &Int64Array::new_scalar(going))?;
    let upserts = RecordBatch::try_new(Arc::clone(&keys), key_columns(&rows))?;
    let mut delta = Delta::new(&keys, keys.fields().len())?;
    delta.upserts = filter_record_batch(&upserts, &staying)?;
    delta.expires_ms = filter(&expiries, &staying)?
        .as_primitive::<Int64Type>()
        .clone();
    delta.expire_before = (going > i64::MIN).then_some(going);
    epoch.put_pending(&options.op, delta)?;

    let batch_size = ctx.session_config().batch_size();
    let pieces = (0..rows.num_rows()).step_by(batch_size).map(move |from| {
        // Held until the last row is out.
        let _held = &memory;
        Ok(rows.slice(from, batch_size.min(rows.num_rows() - from)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(
        schema,
        futures::stream::iter(pieces),
    )))
}

impl DisplayAs for StateDedupExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.fields().iter().collect();
        let keys: Vec<_> = keys.iter().map(|field| field.name().as_str()).collect();
        write!(
            f,
            "StateDedupExec: op={}, keys=[{}]",
            self.options.op,
            keys.join(", ")
        )?;
        match (self.options.event_time, self.options.ttl_ms) {
            (Some(column), _) => write!(f, ", expires=@{column} + {} ms", self.options.delay_ms),
            (None, Some(ttl_ms)) => write!(f, ", expires after {ttl_ms} ms"),
            (None, None) => f.write_str(", never expires"),
        }
    }
}

impl ExecutionPlan for StateDedupExec {
    fn name(&self) -> &str {
        "StateDedupExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.options.clone())?)),
            _ => internal_err!("a StateDedupExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a StateDedupExec has one partition");
        }
        let rows = first_rows(
            self.options.clone(),
            Arc::clone(&self.keys),
            Arc::clone(&self.input),
            ctx,
        );
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::stream::once(rows).try_flatten(),
        )))
    }
}

#[cfg(test)]
mod tests;
