//! An aggregate over all epochs so far: what an epoch adds is merged with the state of the groups that it touches.

use crate::stream::context::EpochContext;
use crate::stream::feed::{FeedExec, epoch_of, gather, millis};
use crate::stream::session::Sessions;
use crate::stream::state::Delta;
use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::kernels::cmp::lt_eq;
use arrow::compute::{concat, concat_batches, filter, filter_record_batch, not};
use arrow::datatypes::{FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Aggregate;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use essaim_common::Error;
use essaim_common::stream::OutputMode;
use essaim_common::windows::session::SessionColumns;
use futures::{StreamExt, TryStreamExt};
use std::fmt;
use std::sync::Arc;

/// The end of the window that starts at a time, ms; `None` if it is out of the calendar.
pub type WindowEnd = Arc<dyn Fn(i64) -> Option<i64> + Send + Sync>;

/// When a group is no longer kept.
#[derive(Clone)]
pub enum Expiry {
    Never,
    /// So many ms of wall-clock time after its last change.
    Ttl(i64),
    /// When the watermark reaches the end of its window.
    Window {
        /// The group column with the start of the window.
        column: usize,
        end: WindowEnd,
    },
    /// When the watermark reaches the end of its session. The input holds events, each with its gap for an end.
    Session(SessionColumns),
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Ttl(ms) => write!(f, "{ms} ms after its last change"),
            Self::Window { column, .. } => write!(f, "with window @{column}"),
            Self::Session(columns) => write!(f, "with session @{}", columns.start),
        }
    }
}

/// How an aggregate keeps state.
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// Its id in the job: `<query>/…`.
    pub op: String,
    /// The position of its INSERT in the job.
    pub query: u32,
    pub mode: OutputMode,
    pub expiry: Expiry,
    /// How far it lags behind the INSERT's watermark, ms.
    pub delay_ms: i64,
}

/// Merges partial aggregates with the state of their groups, and emits groups by output mode. One partition.
#[derive(Debug)]
pub struct StateAggregateExec {
    /// Partial aggregates: group columns, then the states of the aggregate functions.
    input: Arc<dyn ExecutionPlan>,
    core: Arc<Core>,
    properties: Arc<PlanProperties>,
}

#[derive(Debug)]
struct Core {
    options: StateOptions,
    /// How many of the columns of `partial` are grouped by.
    keys: usize,
    /// What the state is made of: the columns of the input.
    partial: SchemaRef,
    /// What comes out.
    output: SchemaRef,
    feed: FeedExec,
    /// Partial aggregates to fewer of them, over `feed`.
    merge: Arc<dyn ExecutionPlan>,
    /// Partial aggregates to results, over `feed`.
    finish: Arc<dyn ExecutionPlan>,
    /// Where `merge` runs: short of memory it would put out a group twice, so its memory is reserved beforehand.
    runtime: Arc<RuntimeEnv>,
}

impl StateAggregateExec {
    /// Does over all epochs what `template` does over one: the final half of an aggregate, or a whole one.
    ///
    /// # Errors
    /// GROUPING SETS; an output mode that does not go with the groups (kind `Invalid`).
    pub fn new(template: &AggregateExec, options: StateOptions) -> Result<Self> {
        let groups = template.group_expr();
        let grouping_id = Aggregate::INTERNAL_GROUPING_ID;
        if groups.has_grouping_set() || groups.expr().iter().any(|(_, name)| name == grouping_id) {
            return Err(Error::invalid(
                "GROUPING SETS, CUBE and ROLLUP keep no state over epochs: write an INSERT for each grouping",
            )
            .into());
        }
        let closes = matches!(options.expiry, Expiry::Window { .. } | Expiry::Session(_));
        if options.mode == OutputMode::Append && !closes {
            return Err(Error::invalid(
                "output mode 'append' needs groups that become final: group by window(...) of an event time with a \
                 watermark, or use SET essaim.output_mode = 'update' or 'complete'",
            )
            .into());
        }
        let (input, functions) = match template.mode() {
            AggregateMode::Final | AggregateMode::FinalPartitioned => {
                (Arc::clone(template.input()), template.aggr_expr().to_vec())
            }
            AggregateMode::Single | AggregateMode::SinglePartitioned => {
                let partial = AggregateExec::try_new(
                    AggregateMode::Partial,
                    groups.clone(),
                    template.aggr_expr().to_vec(),
                    template.filter_expr().to_vec(),
                    Arc::clone(template.input()),
                    template.input_schema(),
                )?;
                // For the sake of its input's order it may have turned some of them round.
                let functions = partial.aggr_expr().to_vec();
                (Arc::new(partial) as Arc<dyn ExecutionPlan>, functions)
            }
            mode => return internal_err!("a {mode:?} aggregate keeps no state"),
        };
        // Rows of several epochs meet in a state: none of its columns is free of NULLs by what one plan knows.
        let nullable = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
        let schema = input.schema();
        let fields: Vec<_> = schema.fields().iter().map(nullable).collect();
        let partial = Arc::new(Schema::new(fields));
        let feed = FeedExec::template(Arc::clone(&partial));
        let leaf = Arc::new(FeedExec::template(Arc::clone(&partial)));
        let over_partial = |mode| {
            let aggregate = AggregateExec::try_new(
                mode,
                groups.as_final(),
                functions.clone(),
                // FILTER has been applied by the partial aggregate.
                vec![None; functions.len()],
                Arc::clone(&leaf) as Arc<dyn ExecutionPlan>,
                template.input_schema(),
            )?;
            Ok::<_, datafusion::error::DataFusionError>(Arc::new(aggregate) as Arc<_>)
        };
        let core = Core {
            keys: groups.num_group_exprs(),
            output: template.schema(),
            merge: over_partial(AggregateMode::PartialReduce)?,
            finish: over_partial(AggregateMode::Final)?,
            runtime: Arc::new(RuntimeEnv::default()),
            options,
            partial,
            feed,
        };
        Ok(Self::of(input, Arc::new(core)))
    }

    fn of(input: Arc<dyn ExecutionPlan>, core: Arc<Core>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&core.output)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self {
            input,
            core,
            properties: Arc::new(properties),
        }
    }
}

/// Up to when groups are gone and going, ms.
struct Bounds {
    /// Groups that expire at this time or before are not there any more.
    gone: i64,
    /// Groups that expire at this time or before are final with this epoch, and then deleted.
    going: i64,
}

impl Core {
    fn bounds(&self, epoch: &EpochContext) -> Bounds {
        let watermarks = epoch.watermarks(self.options.query);
        let lagging = |watermark: i64| watermark.saturating_sub(self.options.delay_ms);
        match (&self.options.expiry, self.options.mode) {
            (Expiry::Ttl(_), _) => Bounds {
                gone: epoch.time_ms,
                going: epoch.time_ms,
            },
            (
                Expiry::Window { .. } | Expiry::Session(_),
                OutputMode::Append | OutputMode::Update,
            ) => Bounds {
                gone: lagging(watermarks.before),
                going: lagging(watermarks.now),
            },
            // All groups are emitted in every epoch, so all are kept.
            (Expiry::Window { .. } | Expiry::Session(_), OutputMode::Complete)
            | (Expiry::Never, _) => Bounds {
                gone: i64::MIN,
                going: i64::MIN,
            },
        }
    }

    /// When the groups of `rows` expire, ms. NULL for a group without a time.
    fn expiries(&self, rows: &RecordBatch, epoch: &EpochContext) -> Result<Int64Array> {
        let all = |ms| Ok(Int64Array::from_value(ms, rows.num_rows()));
        match (&self.options.expiry, self.options.mode) {
            (Expiry::Ttl(ttl_ms), _) => all(epoch.time_ms.saturating_add(*ttl_ms)),
            (Expiry::Window { column, end }, OutputMode::Append | OutputMode::Update) => {
                let Some(starts) = rows.columns().get(*column) else {
                    return internal_err!("there is no group column {column}");
                };
                let starts = millis(starts)?;
                let ends = starts.iter().map(|start| {
                    let Some(start) = start else { return Ok(None) };
                    // The last ms of time is for what never ends.
                    end(start)
                        .map(|end| Some(end.min(i64::MAX - 1)))
                        .ok_or_else(|| {
                            Error::data(format!(
                                "the window that starts at {start} ms is out of the calendar"
                            ))
                        })
                });
                Ok(ends.collect::<essaim_common::Result<_>>()?)
            }
            (Expiry::Session(columns), OutputMode::Append | OutputMode::Update) => {
                let Some(ends) = rows.columns().get(columns.end) else {
                    return internal_err!("there is no group column {}", columns.end);
                };
                millis(ends)
            }
            (Expiry::Window { .. } | Expiry::Session(_), OutputMode::Complete)
            | (Expiry::Never, _) => all(i64::MAX),
        }
    }

    /// The rows of `batch` that belong to groups which may still change.
    fn open(
        &self,
        batch: &RecordBatch,
        epoch: &EpochContext,
        bounds: &Bounds,
    ) -> Result<RecordBatch> {
        let batch = self.as_partial(batch)?;
        let expiries = self.expiries(&batch, epoch)?;
        let open = expiries
            .iter()
            .map(|ms| Some(ms.is_some_and(|ms| ms > bounds.gone)));
        let open = open.collect::<BooleanArray>();
        if open.true_count() == batch.num_rows() {
            return Ok(batch);
        }
        Ok(filter_record_batch(&batch, &open)?)
    }

    /// The same columns under the names of the state's.
    fn as_partial(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        relabel(batch, &self.partial)
    }

    /// The value of each group that the epoch touches, with all epochs so far.
    async fn merged(&self, batches: Vec<RecordBatch>, ctx: &TaskContext) -> Result<RecordBatch> {
        if batches.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.partial)));
        }
        let ctx = TaskContext::default()
            .with_session_config(ctx.session_config().clone())
            .with_runtime(Arc::clone(&self.runtime));
        let merged = self
            .feed
            .run(&self.merge, self.stream(batches), Arc::new(ctx))?;
        let merged: Vec<_> = merged.try_collect().await?;
        let merged = merged
            .iter()
            .map(|batch| self.as_partial(batch))
            .collect::<Result<Vec<_>>>()?;
        Ok(concat_batches(&self.partial, &merged)?)
    }

    fn keys_of(&self, batches: &[RecordBatch]) -> Result<Vec<ArrayRef>> {
        let key = |column: usize| {
            let pieces: Vec<_> = batches
                .iter()
                .map(|batch| batch.column(column).as_ref())
                .collect();
            Ok(concat(&pieces)?)
        };
        (0..self.keys).map(key).collect()
    }

    fn stream(&self, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
        // Not every aggregate function takes an empty batch of states.
        let batches = batches.into_iter().filter(|batch| batch.num_rows() > 0);
        let batches = futures::stream::iter(batches.map(Ok));
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.partial),
            batches,
        ))
    }

    /// One epoch: merges, puts the changes down, and emits.
    async fn run(
        self: Arc<Self>,
        input: Arc<dyn ExecutionPlan>,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let StateOptions { op, mode, .. } = &self.options;
        let epoch = epoch_of(&ctx)?;
        let bounds = self.bounds(&epoch);
        let state = epoch.state(op, &self.partial, self.keys)?;
        let memory =
            MemoryConsumer::new(format!("StateAggregateExec[{op}]")).register(ctx.memory_pool());
        let mut new = Vec::new();
        for batch in gather(&input, &ctx, &memory).await? {
            let batch = self.open(&batch, &epoch, &bounds)?;
            if batch.num_rows() > 0 {
                new.push(batch);
            }
        }
        let sessions = match &self.options.expiry {
            Expiry::Session(columns) => Some(Sessions::open(&epoch, op, &self.partial, columns)?),
            _ => None,
        };
        let old = if new.is_empty() {
            RecordBatch::new_empty(Arc::clone(&self.partial))
        } else {
            let keys = match &sessions {
                Some(sessions) => sessions.known(&new, bounds.gone)?,
                None => self.keys_of(&new)?,
            };
            let rows = keys.first().map_or(1, |column| column.len());
            state.read().get(&keys, rows, bounds.gone)?.rows
        };
        let deletes = sessions.is_some().then(|| old.clone());
        let batches = match &sessions {
            // Sessions that an event joins are one now: all of their keys change.
            Some(sessions) => vec![sessions.assign(old, new)?],
            // What came first goes first: some aggregates depend on it.
            None => std::iter::once(old).chain(new).collect(),
        };
        let merged = self.merged(batches, &ctx).await?;
        let expiries = self.expiries(&merged, &epoch)?;
        let going = lt_eq(&expiries, &Int64Array::new_scalar(bounds.going))?;
        let staying = not(&going)?;

        let mut delta = Delta::new(&self.partial, self.keys)?;
        delta.upserts = filter_record_batch(&merged, &staying)?;
        delta.expires_ms = filter(&expiries, &staying)?
            .as_primitive::<Int64Type>()
            .clone();
        delta.expire_before = (bounds.going > i64::MIN).then_some(bounds.going);
        let replaced = deletes.clone();
        if let (Some(sessions), Some(old)) = (&sessions, deletes) {
            let keys: Vec<_> = (0..self.keys).collect();
            delta.deletes = old.project(&keys)?;
            epoch.put_pending(&sessions.op, sessions.delta(&delta)?)?;
        }

        let emitted = match mode {
            OutputMode::Update => self.stream(vec![merged]),
            OutputMode::Append => {
                let mut touched = vec![merged.clone()];
                touched.extend(replaced);
                let rows = touched.iter().map(RecordBatch::num_rows).sum();
                let touched = self.keys_of(&touched)?;
                let closed = state.read().expired(bounds.going, &touched, rows)?;
                let mut closed: Vec<_> = closed.into_iter().map(|stored| stored.rows).collect();
                closed.push(filter_record_batch(&merged, &going)?);
                self.stream(closed)
            }
            OutputMode::Complete => {
                let mut after = state.read().fork();
                after.apply(&delta)?;
                let all = after.snapshot().batches();
                let all = all.map(|stored| Ok(stored?.rows));
                let all = futures::stream::iter(all);
                Box::pin(RecordBatchStreamAdapter::new(
                    Arc::clone(&self.partial),
                    all,
                ))
            }
        };
        epoch.put_pending(op, delta)?;
        self.results(emitted, memory, ctx)
    }

    /// The results of groups, each of which comes once.
    fn results(
        &self,
        groups: SendableRecordBatchStream,
        memory: MemoryReservation,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let output = Arc::clone(&self.output);
        let results = self.feed.run(&self.finish, groups, ctx)?;
        let results = results.map(move |batch| {
            // Held until the last row is out.
            let _held = &memory;
            relabel(&batch?, &output)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.output),
            results,
        )))
    }
}

/// The same columns under the names of `schema`.
fn relabel(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = batch.columns().to_vec();
    Ok(RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns,
        &options,
    )?)
}

impl DisplayAs for StateAggregateExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StateOptions {
            op,
            mode,
            expiry,
            delay_ms,
            ..
        } = &self.core.options;
        let keys: Vec<_> = self
            .core
            .partial
            .fields()
            .iter()
            .take(self.core.keys)
            .collect();
        let keys: Vec<_> = keys.iter().map(|field| field.name().as_str()).collect();
        write!(
            f,
            "StateAggregateExec: op={op}, mode={}, gby=[{}], expires={expiry:?}, delay={delay_ms} ms",
            mode.as_str(),
            keys.join(", ")
        )
    }
}

impl ExecutionPlan for StateAggregateExec {
    fn name(&self) -> &str {
        "StateAggregateExec"
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
            (Some(input), true) => Ok(Arc::new(Self::of(input, Arc::clone(&self.core)))),
            _ => internal_err!("a StateAggregateExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a StateAggregateExec has one partition");
        }
        let rows = Arc::clone(&self.core).run(Arc::clone(&self.input), ctx);
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::stream::once(rows).try_flatten(),
        )))
    }
}

#[cfg(test)]
mod tests;
