//! The leaf of every plan over a connector: reads the splits of one partition after the other.

use crate::connector::{Split, SplitReader};
use crate::stream::StreamSource;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::kernels::aggregate::max;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{
    Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a scan counts, the same for every connector.
#[derive(Debug, Clone)]
pub struct ScanMetrics {
    /// Records read, before `on_error` and before any filter of ours.
    pub rows_in: Count,
    /// Payload bytes read.
    pub bytes_in: Count,
    /// Records dropped by `on_error = 'skip'`.
    pub records_skipped: Count,
    /// Records put aside by `on_error = 'dead_letter'`.
    pub records_dead_lettered: Count,
    /// Rows put aside because they came too late, by `late_rows = 'dead_letter'`.
    pub late_rows: Count,
}

impl ScanMetrics {
    /// The counters of one partition.
    pub fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let counter = |name| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            rows_in: counter("rows_in"),
            bytes_in: counter("bytes_in"),
            records_skipped: counter("records_skipped"),
            records_dead_lettered: counter("records_dead_lettered"),
            late_rows: counter("late_rows"),
        }
    }
}

/// The rows that a stream is taken to have while it is planned: more than any table that it may be joined with.
const STREAM_ROWS: usize = 1 << 40;

/// By partition of the source: the latest event time read, ms since the epoch.
pub type EventTimes = BTreeMap<String, i64>;

/// Yields the rows of a table's splits, one output partition for each group of splits.
#[derive(Debug, Clone)]
pub struct ScanExec {
    connector: &'static str,
    table: String,
    reader: Arc<dyn SplitReader>,
    partitions: Vec<Arc<[Split]>>,
    /// On the master: where the splits of each epoch come from, if the table is UNBOUNDED.
    stream: Option<Arc<dyn StreamSource>>,
    /// The column with the event time, if it is to be watched.
    event_time: Option<usize>,
    event_times: Arc<Mutex<EventTimes>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ScanExec {
    /// A scan by `connector`'s reader. There is at least one partition, if need be an empty one.
    pub fn new(
        connector: &'static str,
        table: impl Into<String>,
        reader: Arc<dyn SplitReader>,
        mut partitions: Vec<Arc<[Split]>>,
    ) -> Self {
        if partitions.is_empty() {
            partitions.push(Arc::from([]));
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(reader.schema()),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self {
            connector,
            table: table.into(),
            reader,
            partitions,
            stream: None,
            event_time: None,
            event_times: Arc::default(),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The same scan of an UNBOUNDED table, whose splits come with each epoch.
    pub fn with_stream(self, stream: Arc<dyn StreamSource>) -> Self {
        Self {
            stream: Some(stream),
            ..self
        }
    }

    /// The same scan, which notes the latest event time of each partition.
    pub fn with_event_time(self, column: Option<usize>) -> Self {
        Self {
            event_time: column,
            ..self
        }
    }

    /// Where the splits of each epoch come from, if the table is UNBOUNDED.
    pub fn stream(&self) -> Option<&Arc<dyn StreamSource>> {
        self.stream.as_ref()
    }

    /// The column with the event time, if it is watched.
    pub fn event_time(&self) -> Option<usize> {
        self.event_time
    }

    /// The latest event time of each partition, as far as they have been read.
    pub fn event_times(&self) -> EventTimes {
        self.event_times.lock().clone()
    }

    /// The connector's name.
    pub fn connector(&self) -> &'static str {
        self.connector
    }

    /// The table's name in the query.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What reads each split.
    pub fn reader(&self) -> &Arc<dyn SplitReader> {
        &self.reader
    }

    /// The splits of each output partition.
    pub fn partitions(&self) -> &[Arc<[Split]>] {
        &self.partitions
    }

    /// The same scan over other splits.
    pub fn with_partitions(&self, partitions: Vec<Arc<[Split]>>) -> Self {
        let scan = Self::new(
            self.connector,
            self.table.clone(),
            Arc::clone(&self.reader),
            partitions,
        );
        Self {
            stream: self.stream.clone(),
            event_time: self.event_time,
            ..scan
        }
    }

    fn estimate(&self, partition: Option<usize>) -> Statistics {
        let splits = || {
            self.partitions
                .iter()
                .enumerate()
                .filter(move |(index, _)| partition.is_none_or(|wanted| wanted == *index))
                .flat_map(|(_, splits)| splits.iter())
        };
        let sum = |of: fn(&Split) -> Option<u64>| {
            splits()
                .map(of)
                .sum::<Option<u64>>()
                .map_or(Precision::Absent, |sum| Precision::Inexact(sum as usize))
        };
        let mut statistics = Statistics::new_unknown(&self.schema());
        if self.stream.is_some() {
            statistics.num_rows = Precision::Inexact(STREAM_ROWS);
            return statistics;
        }
        statistics.num_rows = sum(|split| split.rows);
        statistics.total_byte_size = sum(|split| split.bytes);
        statistics
    }
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let splits: usize = self.partitions.iter().map(|group| group.len()).sum();
        write!(
            f,
            "ScanExec: {} table={}, splits={splits}, {}",
            self.connector,
            self.table,
            self.reader.describe()
        )?;
        if matches!(t, DisplayFormatType::Verbose) {
            for split in self.partitions.iter().flat_map(|group| group.iter()) {
                write!(f, ", [{}]", split.label)?;
            }
        }
        Ok(())
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &str {
        "ScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() {
            Ok(self)
        } else {
            internal_err!("a ScanExec has no children")
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let Some(splits) = self.partitions.get(partition).cloned() else {
            return internal_err!("ScanExec has no partition {partition}");
        };
        let reader = Arc::clone(&self.reader);
        let metrics = self.metrics.clone();
        let (event_time, event_times) = (self.event_time, Arc::clone(&self.event_times));
        // A split's stream is made when the one before has ended: a partition holds one connection at a time.
        let rows = futures::stream::iter(0..splits.len())
            .map(move |index| {
                let rows = reader
                    .read(&splits[index], partition, &ctx, &metrics)
                    .map_err(DataFusionError::from)?;
                let (times, from) = (Arc::clone(&event_times), splits[index].partition.clone());
                Ok::<_, DataFusionError>(rows.inspect_ok(move |batch| {
                    if let Some(latest) = event_time.and_then(|column| latest(batch, column)) {
                        let mut times = times.lock();
                        match times.get_mut(&from) {
                            Some(known) => *known = latest.max(*known),
                            None => {
                                times.insert(from.clone(), latest);
                            }
                        }
                    }
                }))
            })
            .try_flatten();
        let rows = RecordBatchStreamAdapter::new(self.schema(), rows);
        // A split that is always ready must not keep a cancelled task, or its neighbours, from the runtime's threads.
        Ok(make_cooperative(Box::pin(rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        Ok(Arc::new(self.estimate(partition)))
    }
}

/// The latest time of a column of timestamps, ms since the epoch, rounded down.
fn latest(batch: &RecordBatch, column: usize) -> Option<i64> {
    let times = batch.column(column);
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            max(times.as_primitive::<TimestampSecondType>()).map(|t| t.saturating_mul(1000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            max(times.as_primitive::<TimestampMillisecondType>())
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            max(times.as_primitive::<TimestampMicrosecondType>()).map(|t| t.div_euclid(1000))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            max(times.as_primitive::<TimestampNanosecondType>()).map(|t| t.div_euclid(1_000_000))
        }
        _ => None,
    }
}

/// A column of timestamps as ms since the epoch, rounded down; all null if it is none.
pub fn event_times(times: &ArrayRef) -> Vec<Option<i64>> {
    fn of<T: ArrowPrimitiveType<Native = i64>>(
        times: &ArrayRef,
        ms: impl Fn(i64) -> i64,
    ) -> Vec<Option<i64>> {
        let times = times.as_primitive::<T>();
        times.iter().map(|time| time.map(&ms)).collect()
    }
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            of::<TimestampSecondType>(times, |t| t.saturating_mul(1000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            of::<TimestampMillisecondType>(times, |t| t)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            of::<TimestampMicrosecondType>(times, |t| t.div_euclid(1000))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            of::<TimestampNanosecondType>(times, |t| t.div_euclid(1_000_000))
        }
        _ => vec![None; times.len()],
    }
}

/// The columns of a reader whose schema travels beside it, until they are put in.
pub(crate) fn no_columns() -> SchemaRef {
    SchemaRef::new(Schema::empty())
}

/// The schema of a projection; an empty one keeps only the number of rows.
pub fn project_schema(schema: &SchemaRef, projection: &[usize]) -> Result<SchemaRef> {
    Ok(Arc::new(schema.project(projection)?))
}
