//! Joins of two streams: what they must say of time, and the operator that they become.

use super::{Built, Operator, UpperBuilder, limit, single};
use crate::stream::join::{Bound, JoinOptions, StateJoinExec, event_times};
use crate::stream::late::{Late, LateColumn};
use crate::stream::plan::reads_stream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec, SymmetricHashJoinExec,
};
use essaim_common::stream::OutputMode;
use essaim_common::{Error, Result};
use std::sync::Arc;

/// Whether a node joins two streams.
pub(super) fn joins_streams(node: &Arc<dyn ExecutionPlan>) -> bool {
    let is_join = node.is::<HashJoinExec>()
        || node.is::<NestedLoopJoinExec>()
        || node.is::<CrossJoinExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<SymmetricHashJoinExec>();
    is_join && node.children().into_iter().all(reads_stream)
}

impl UpperBuilder<'_> {
    /// A join of two streams.
    pub(super) fn join(
        &mut self,
        node: &Arc<dyn ExecutionPlan>,
        mode: OutputMode,
    ) -> Result<Built> {
        let Some(join) = node.downcast_ref::<HashJoinExec>() else {
            return Err(Error::invalid(
                "two streams are joined by keys that are equal: ON a.id = b.id AND b.at BETWEEN a.at AND a.at + INTERVAL '10 minutes'",
            ));
        };
        if mode == OutputMode::Complete {
            return Err(Error::invalid(
                "output mode 'complete' would keep every row that a join of two streams ever made: SET essaim.output_mode = 'append'",
            ));
        }
        if join.fetch().is_some() {
            return Err(limit());
        }
        let times = [event_times(join.left()), event_times(join.right())];
        let bound = Bound::of(join, &times).ok_or_else(|| {
            Error::invalid(
                "a join of two streams keeps its rows until the watermark frees them: add a time bound such as `AND b.at BETWEEN a.at AND a.at + INTERVAL '10 minutes'` over the event_time of both",
            )
        })?;
        let mut side = |input: &Arc<dyn ExecutionPlan>| {
            self.late = Late::Allowance(0);
            self.late_column = LateColumn::Carried;
            let built = self.node(input, OutputMode::Append)?;
            if built.delay_ms == i64::MAX {
                return Err(Error::invalid(
                    "a row would wait without end for a session to match, as a session may be of any length: write the sessions to a table, and join that",
                ));
            }
            Ok((single(built.plan), built.delay_ms))
        };
        let (left, left_delay) = side(join.left())?;
        let (right, right_delay) = side(join.right())?;
        let options = JoinOptions {
            op: format!("{}/{}", self.index, self.operators.len()),
            query: self.index,
            bound,
            delays_ms: [left_delay, right_delay],
        };
        self.operators.push(Operator {
            id: options.op.clone(),
            shown: meaning(join, &bound),
            meaning: meaning(join, &bound),
            // The bound frees its rows.
            grows: false,
        });
        let delay_ms = bound.delay_ms(options.delays_ms);
        Ok(Built {
            plan: Arc::new(StateJoinExec::new(join, [left, right], options)?),
            delay_ms,
        })
    }
}

/// What the state of a join means.
fn meaning(join: &HashJoinExec, bound: &Bound) -> String {
    let on = join.on().iter();
    let on: Vec<_> = on
        .map(|(left, right)| format!("{left} = {right}"))
        .collect();
    let [left, right] = bound.columns;
    let [least, greatest] = bound.apart;
    format!(
        "{} join on {}, right @{right} - left @{left} in {least}..={greatest} ms",
        join.join_type(),
        on.join(", ")
    )
}
