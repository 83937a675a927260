//! A join of two streams: what an epoch brings on one side is joined with the other side's rows, new and kept.

mod bound;
mod side;

pub use bound::{Bound, event_times};

use crate::stream::feed::{FeedExec, epoch_of, gather};
use crate::stream::join::side::{Side, SideOptions};
use arrow::array::{
    ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt64Array, new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinType, NullEquality, Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::joins::{HashJoinExec, HashJoinExecBuilder, PartitionMode};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use essaim_common::Error;
use futures::{StreamExt, TryStreamExt};
use std::fmt;
use std::sync::Arc;

/// How a join keeps state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinOptions {
    /// Its id in the job: `<query>/…`. Its states are below it.
    pub op: String,
    /// The position of its INSERT in the job.
    pub query: u32,
    /// How far apart in time rows match.
    pub bound: Bound,
    /// How much older than the watermark the rows of each side may be, ms.
    pub delays_ms: [i64; 2],
}

/// Joins two streams over all epochs. A row is kept until no row in time can match it any more. One partition.
#[derive(Debug)]
pub struct StateJoinExec {
    inputs: [Arc<dyn ExecutionPlan>; 2],
    core: Arc<Core>,
    properties: Arc<PlanProperties>,
}

#[derive(Debug)]
struct Core {
    options: JoinOptions,
    sides: [Side; 2],
    /// The rows that it is fed with: of a preserved side with their number as last column.
    feeds: [FeedExec; 2],
    /// The matches, over `feeds`; the last column is the number of the preserved side's row, if one is preserved.
    matches: HashJoinExec,
    /// Of the columns of both sides, those that come out.
    projection: Vec<usize>,
    output: SchemaRef,
}

impl StateJoinExec {
    /// Does over all epochs what `template` does over one.
    ///
    /// # Errors
    /// A kind of join that needs all rows of a side at once (kind `Invalid`).
    pub fn new(
        template: &HashJoinExec,
        inputs: [Arc<dyn ExecutionPlan>; 2],
        options: JoinOptions,
    ) -> Result<Self> {
        let preserved = match template.join_type() {
            JoinType::Inner => [false, false],
            JoinType::Left => [true, false],
            JoinType::Right => [false, true],
            other => {
                return Err(Error::invalid(format!(
                    "a {other} join of two streams is not there: write an inner join or a LEFT JOIN of them, also in \
                     place of EXISTS and IN"
                ))
                .into());
            }
        };
        let on = |side: usize| {
            let on = template.on().iter();
            on.map(|(left, right)| Arc::clone(if side == 0 { left } else { right }))
                .collect()
        };
        let [least, greatest] = options.bound.apart;
        let [left_delay, right_delay] = options.delays_ms;
        // As old as the watermark is not too late: hence 1 ms more.
        let wait = |apart: i64, delay: i64| apart.saturating_add(delay).saturating_add(1);
        let waits = [
            wait(greatest, right_delay),
            wait(least.saturating_neg(), left_delay),
        ];
        let side = |side: usize| {
            let name = ["left", "right"][side];
            let made_of = SideOptions {
                op: format!("{}/{name}", options.op),
                on: on(side),
                time: options.bound.columns[side],
                delay_ms: options.delays_ms[side],
                wait_ms: waits[side],
                is_preserved: preserved[side],
                are_nulls_equal: template.null_equality() == NullEquality::NullEqualsNull,
            };
            Side::new(&inputs[side].schema(), made_of)
        };
        let sides = [side(0)?, side(1)?];
        let widths = [0, 1].map(|side: usize| sides[side].schema.fields().len());
        let projection = match &template.projection {
            Some(projection) => projection.to_vec(),
            None => (0..widths[0] + widths[1]).collect(),
        };
        let feeds = [0, 1].map(|side: usize| FeedExec::template(fed(&sides[side])));
        // The number of a left row stands between the columns of the two sides.
        let shifted = |column: usize| {
            let is_behind = preserved[0] && column >= widths[0];
            column + usize::from(is_behind)
        };
        let number = match preserved {
            [true, _] => Some(widths[0]),
            [_, true] => Some(widths[0] + widths[1]),
            _ => None,
        };
        let columns = projection.iter().copied().map(shifted).chain(number);
        let [left, right] = [0, 1].map(|side: usize| feeds[side].leaf(None));
        let matches =
            HashJoinExecBuilder::new(left, right, template.on().to_vec(), JoinType::Inner)
                .with_filter(template.filter().cloned())
                .with_projection(Some(columns.collect()))
                .with_partition_mode(PartitionMode::CollectLeft)
                .with_null_equality(template.null_equality())
                .build()?;
        let core = Core {
            options,
            sides,
            feeds,
            matches,
            projection,
            output: template.schema(),
        };
        Ok(Self::of(inputs, Arc::new(core)))
    }

    fn of(inputs: [Arc<dyn ExecutionPlan>; 2], core: Arc<Core>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&core.output)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self {
            inputs,
            core,
            properties: Arc::new(properties),
        }
    }
}

/// What a side is fed with.
fn fed(side: &Side) -> SchemaRef {
    let number = side
        .is_preserved
        .then(|| Arc::new(Field::new("number", DataType::UInt64, false)));
    let fields = side.schema.fields().iter().cloned();
    Arc::new(Schema::new(fields.chain(number).collect::<Vec<_>>()))
}

impl Core {
    /// One epoch: finds the matches, puts down what is kept and what goes, and emits.
    async fn run(
        self: Arc<Self>,
        inputs: [Arc<dyn ExecutionPlan>; 2],
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let JoinOptions { op, query, .. } = &self.options;
        let epoch = epoch_of(&ctx)?;
        let marks = epoch.watermarks(*query);
        let memory =
            MemoryConsumer::new(format!("StateJoinExec[{op}]")).register(ctx.memory_pool());
        let (left, right) = futures::future::try_join(
            gather(&inputs[0], &ctx, &memory),
            gather(&inputs[1], &ctx, &memory),
        )
        .await?;
        let [left_side, right_side] = &self.sides;
        let left = left_side.arrived(&left, marks)?;
        let right = right_side.arrived(&right, marks)?;
        let old_left = left_side.known(&epoch, &left, &right, marks)?;
        let old_right = right_side.known(&epoch, &right, &left, marks)?;
        memory.try_grow(
            2 * (old_left.rows.get_array_memory_size() + old_right.rows.get_array_memory_size()),
        )?;

        let olds = [&old_left.rows, &old_right.rows];
        // Numbered on, from the known rows to those that arrived.
        let feed = |side: usize, rows: &RecordBatch, from: usize| self.numbered(side, rows, from);
        let new_left = feed(0, &left.rows, olds[0].num_rows())?;
        let new_right = feed(1, &right.rows, olds[1].num_rows())?;
        let (known_left, known_right) = (feed(0, olds[0], 0)?, feed(1, olds[1], 0)?);
        let pairs = [
            (vec![new_left], vec![known_right, new_right.clone()]),
            (vec![known_left], vec![new_right]),
        ];
        let mut streams = Vec::new();
        for (left, right) in pairs {
            let rows = |side: &[RecordBatch]| side.iter().map(RecordBatch::num_rows).sum::<usize>();
            if rows(&left) > 0 && rows(&right) > 0 {
                streams.push(self.matches(left, right, &ctx)?);
            }
        }
        let streams = futures::stream::iter(streams).flatten();
        let totals = [
            olds[0].num_rows() + left.rows.num_rows(),
            olds[1].num_rows() + right.rows.num_rows(),
        ];
        let preserved = self.sides.iter().position(|side| side.is_preserved);
        let Some(preserved) = preserved else {
            left_side.close(&epoch, &left, old_left, &[], marks)?;
            right_side.close(&epoch, &right, old_right, &[], marks)?;
            let output = Arc::clone(&self.output);
            let rows = streams.map(move |batch| {
                // Held until the last row is out.
                let _held = &memory;
                let batch = batch?;
                relabel(batch.columns(), batch.num_rows(), &output)
            });
            return Ok(self.stream(rows));
        };
        let mut matched = [vec![], vec![]];
        matched[preserved] = vec![false; totals[preserved]];
        let mut emitted = self.mark(streams, &mut matched[preserved], &memory).await?;
        let alone = [
            left_side.close(&epoch, &left, old_left, &matched[0], marks)?,
            right_side.close(&epoch, &right, old_right, &matched[1], marks)?,
        ];
        for rows in alone.into_iter().flatten() {
            emitted.push(self.padded(preserved, &rows)?);
        }
        let rows = futures::stream::iter(emitted).map(move |batch| {
            let _held = &memory;
            Ok(batch)
        });
        Ok(self.stream(rows))
    }

    fn stream(
        &self,
        rows: impl futures::Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> SendableRecordBatchStream {
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.output),
            rows,
        ))
    }

    /// Rows as the join is fed with them; those of a preserved side are numbered from `from` on.
    fn numbered(&self, side: usize, rows: &RecordBatch, from: usize) -> Result<RecordBatch> {
        let schema = fed(&self.sides[side]);
        let mut columns = rows.columns().to_vec();
        if self.sides[side].is_preserved {
            let numbers = from as u64..(from + rows.num_rows()) as u64;
            columns.push(Arc::new(UInt64Array::from_iter_values(numbers)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(
            schema, columns, &options,
        )?)
    }

    fn matches(
        &self,
        left: Vec<RecordBatch>,
        right: Vec<RecordBatch>,
        ctx: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let leaf = |side: usize, batches: Vec<RecordBatch>| {
            let batch_size = ctx.session_config().batch_size();
            let pieces = batches.into_iter().flat_map(move |batch| {
                let rows = batch.num_rows();
                (0..rows)
                    .step_by(batch_size)
                    .map(move |from| Ok(batch.slice(from, batch_size.min(rows - from))))
            });
            let rows = RecordBatchStreamAdapter::new(
                fed(&self.sides[side]),
                futures::stream::iter(pieces),
            );
            self.feeds[side].leaf(Some(Box::pin(rows)))
        };
        let children = vec![leaf(0, left), leaf(1, right)];
        let join = self.matches.builder().with_new_children(children)?;
        join.reset_state().build()?.execute(0, Arc::clone(ctx))
    }

    /// All matches; `matched` is set for the preserved rows among them.
    async fn mark(
        &self,
        mut rows: impl futures::Stream<Item = Result<RecordBatch>> + Unpin,
        matched: &mut [bool],
        memory: &MemoryReservation,
    ) -> Result<Vec<RecordBatch>> {
        let mut emitted = Vec::new();
        while let Some(batch) = rows.try_next().await? {
            memory.try_grow(batch.get_array_memory_size())?;
            let Some((numbers, columns)) = batch.columns().split_last() else {
                return internal_err!("the matches of a join have no numbers");
            };
            for number in numbers.as_primitive::<UInt64Type>().values() {
                if let Some(flag) = matched.get_mut(*number as usize) {
                    *flag = true;
                }
            }
            emitted.push(relabel(columns, batch.num_rows(), &self.output)?);
        }
        Ok(emitted)
    }

    /// Rows of one side with NULLs in place of the other's.
    fn padded(&self, side: usize, rows: &RecordBatch) -> Result<RecordBatch> {
        let start = if side == 0 {
            0
        } else {
            self.sides[0].schema.fields().len()
        };
        let own = start..start + rows.num_columns();
        let columns = self.projection.iter().zip(self.output.fields());
        let columns: Vec<ArrayRef> = columns
            .map(|(column, field)| {
                if own.contains(column) {
                    Arc::clone(rows.column(column - start))
                } else {
                    new_null_array(field.data_type(), rows.num_rows())
                }
            })
            .collect();
        relabel(&columns, rows.num_rows(), &self.output)
    }
}

fn relabel(columns: &[ArrayRef], rows: usize, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns.to_vec(),
        &options,
    )?)
}

impl DisplayAs for StateJoinExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let JoinOptions { op, bound, .. } = &self.core.options;
        let on: Vec<_> = self.core.matches.on().iter().collect();
        let on: Vec<_> = on.iter().map(|(l, r)| format!("{l} = {r}")).collect();
        let kind = match self.core.sides.iter().position(|side| side.is_preserved) {
            None => "Inner",
            Some(0) => "Left",
            Some(_) => "Right",
        };
        let [left, right] = bound.columns;
        let [least, greatest] = bound.apart;
        write!(
            f,
            "StateJoinExec: op={op}, {kind}, on=[{}], right @{right} - left @{left} in {least}..={greatest} ms",
            on.join(", ")
        )
    }
}

impl ExecutionPlan for StateJoinExec {
    fn name(&self) -> &str {
        "StateJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
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
        match <[_; 2]>::try_from(children) {
            Ok(inputs) => Ok(Arc::new(Self::of(inputs, Arc::clone(&self.core)))),
            Err(_) => internal_err!("a StateJoinExec has two children"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        ctx: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a StateJoinExec has one partition");
        }
        let rows = Arc::clone(&self.core).run(self.inputs.clone(), ctx);
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::stream::once(rows).try_flatten(),
        )))
    }
}

#[cfg(test)]
mod tests;
