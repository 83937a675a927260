//! The half above the cut of a streaming INSERT: which output mode fits, which nodes become stateful, what a stream
//! cannot do.

mod joins;
mod shape;
mod shown;

use crate::plan::cut::rebuild;
use crate::plan::stage::{Stage, StageInputExec};
use crate::stream::aggregate::{Expiry, StateAggregateExec, StateOptions};
use crate::stream::dedup::{DedupOptions, StateDedupExec};
use crate::stream::input::InputId;
use crate::stream::late::{Late, LateColumn};
use crate::stream::plan::{InsertSettings, Static, find_sources, input, reads_stream};
use crate::stream::upper::shape::{Shape, is_dedup, session_of, window_of};
use datafusion::common::JoinType;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use essaim_common::sink::StreamInsertExec;
use essaim_common::stream::{OutputMode, StreamSource};
use essaim_common::windows::expand::WindowExpandExec;
use essaim_common::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the master runs for an INSERT in each epoch.
#[derive(Debug, Clone)]
pub struct Upper {
    /// Its leaves are inputs.
    pub plan: Arc<dyn ExecutionPlan>,
    /// The stateful operators.
    pub operators: Vec<Operator>,
}

/// A stateful operator, as the checkpoint knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// `INSERT/position`.
    pub id: String,
    /// What its state means: a job whose operators say something else cannot go on with it.
    pub meaning: String,
    /// What it keeps, for people: as it was written in SQL, as far as the plan still tells.
    pub shown: String,
    /// Whether nothing ever closes what it keeps, so that its state grows with every new key.
    pub grows: bool,
}

/// Makes the upper half of one INSERT.
pub struct UpperBuilder<'a> {
    index: u32,
    pub mode: OutputMode,
    settings: &'a InsertSettings,
    sources: &'a BTreeMap<String, Arc<dyn StreamSource>>,
    pub stages: Vec<(Arc<Stage>, InputId)>,
    pub statics: Vec<Static>,
    /// What keeps a row of each stage in time.
    pub lates: Vec<Late>,
    /// What keeps a row of the next stage in time.
    late: Late,
    /// The column with the time that makes rows late.
    late_column: LateColumn,
    operators: Vec<Operator>,
}

/// What a node yields, as far as those above it must know.
struct Built {
    plan: Arc<dyn ExecutionPlan>,
    /// How long after its watermark a row may still come, ms.
    delay_ms: i64,
}

impl<'a> UpperBuilder<'a> {
    /// Decides on the output mode.
    ///
    /// # Errors
    /// None fits, or the one that was asked for does not.
    pub fn new(
        index: u32,
        root: &StreamInsertExec,
        settings: &'a InsertSettings,
        sources: &'a BTreeMap<String, Arc<dyn StreamSource>>,
    ) -> Result<Self> {
        let shape = Shape::of(root.input(), settings.distinct_on);
        let is_timed = sources.values().all(|s| s.options().event_time.is_some());
        let mode = shape
            .mode(settings.mode, root.sink().prefers_update(), is_timed)
            .map_err(|e| e.context(format!("INSERT INTO {}", root.table())))?;
        Ok(Self {
            index,
            mode,
            settings,
            sources,
            stages: Vec::new(),
            statics: Vec::new(),
            lates: Vec::new(),
            late: Late::Never,
            late_column: LateColumn::Group(0),
            operators: Vec::new(),
        })
    }

    /// Turns the half above the cut into what an epoch runs.
    ///
    /// # Errors
    /// A node that needs the whole stream at once.
    pub fn build(&mut self, upper: Arc<dyn ExecutionPlan>) -> Result<Upper> {
        let built = if reads_stream(&upper) {
            self.node(&upper, self.mode)?.plan
        } else {
            return Err(Error::internal("an INSERT that reads no stream"));
        };
        Ok(Upper {
            plan: single(built),
            operators: std::mem::take(&mut self.operators),
        })
    }

    /// `mode` is what the nodes above want: below a stateful node only final rows will do.
    fn node(&mut self, node: &Arc<dyn ExecutionPlan>, mode: OutputMode) -> Result<Built> {
        if !reads_stream(node) {
            let id = InputId::Static(self.index, self.statics.len());
            let leaf = input(id, node);
            self.statics.push(Static::Upper(id, Arc::clone(node)));
            return Ok(Built {
                plan: leaf,
                delay_ms: 0,
            });
        }
        if let Some(stage) = node.downcast_ref::<StageInputExec>() {
            return Ok(Built {
                plan: self.stage(stage, node)?,
                delay_ms: 0,
            });
        }
        if node.is::<RepartitionExec>()
            || node.is::<CoalescePartitionsExec>()
            || node.is::<SortPreservingMergeExec>()
        {
            if node.fetch().is_some() && mode != OutputMode::Complete {
                return Err(limit());
            }
            let built = self.node(only_child(node)?, mode)?;
            let plan = single(built.plan);
            let plan = match node.fetch() {
                Some(rows) => Arc::new(GlobalLimitExec::new(plan, 0, Some(rows))),
                None => plan,
            };
            return Ok(Built { plan, ..built });
        }
        // The first half of an aggregate that has not been cut is over the rows of one epoch.
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>()
            && *aggregate.mode() != AggregateMode::Partial
        {
            return self.aggregate(node, aggregate, mode);
        }
        if joins::joins_streams(node) {
            return self.join(node, mode);
        }
        self.check(node, mode)?;
        let mut delay_ms = 0;
        let mut inputs = Vec::new();
        let (late, late_column) = (self.late.clone(), self.late_column.clone());
        for child in node.children() {
            self.late.clone_from(&late);
            self.late_column.clone_from(&late_column);
            let built = self.node(child, mode)?;
            delay_ms = built.delay_ms.max(delay_ms);
            inputs.push(if node.is::<UnionExec>() || has_one_input(node) {
                built.plan
            } else {
                single(built.plan)
            });
        }
        let plan = rebuild(Arc::clone(node), inputs)?;
        let plan = if node.is::<UnionExec>() {
            single(plan)
        } else {
            plan
        };
        Ok(Built { plan, delay_ms })
    }

    fn stage(
        &mut self,
        leaf: &StageInputExec,
        node: &Arc<dyn ExecutionPlan>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let stage = leaf.stage();
        for broadcast in &stage.broadcasts {
            if reads_stream(&broadcast.plan) {
                return Err(Error::invalid(
                    "a join would send a whole stream to every worker: join on equal keys, the stream with a table",
                ));
            }
            self.statics.push(Static::Broadcast(Arc::clone(broadcast)));
        }
        if is_limited(&stage.plan) {
            return Err(limit());
        }
        let id = InputId::Tasks(self.index, self.stages.len());
        let plan = self
            .late
            .filter(&stage.plan, self.index, &self.late_column)?;
        let stage = Stage {
            id: stage.id,
            plan,
            broadcasts: stage.broadcasts.clone(),
        };
        self.lates.push(self.late.clone());
        self.stages.push((Arc::new(stage), id));
        Ok(input(id, node))
    }

    fn aggregate(
        &mut self,
        node: &Arc<dyn ExecutionPlan>,
        aggregate: &AggregateExec,
        mode: OutputMode,
    ) -> Result<Built> {
        let window = window_of(aggregate)?;
        let dedup = self.dedup(aggregate);
        let session = session_of(aggregate)?;
        if let Some(session) = &session {
            if mode == OutputMode::Update {
                return Err(Error::invalid(
                    "sessions grow into one another, so rows written before would stay behind: SET essaim.output_mode = 'append' for an INSERT that groups by session_window()",
                ));
            }
            // A session is closed once the watermark has reached its end.
            self.late = Late::Allowance(session.gap_ms - 1);
            self.late_column = LateColumn::Group(session.columns.start);
        }
        // The aggregate next to the stream decides: it comes last on the way down.
        if let Some((column, spec)) = &window {
            self.late = Late::Window(*spec);
            self.late_column = LateColumn::Group(*column);
        } else if let Some(name) = dedup.as_ref().and_then(|dedup| dedup.name.clone()) {
            self.late = Late::Allowance(0);
            self.late_column = LateColumn::Named(name);
        }
        let input = session
            .as_ref()
            .map_or(aggregate.input(), |session| &session.events);
        let times = window.as_ref().map(|(column, _)| *column);
        let times = times.or(session.as_ref().map(|session| session.columns.start));
        if let Some(column) = times {
            self.check_time(input, column)?;
        }
        let below = self.node(input, OutputMode::Append)?;
        if below.delay_ms == i64::MAX {
            return Err(Error::invalid(
                "an aggregate over sessions has no end to wait for, as a session may be of any length: write the sessions to a table, and aggregate that",
            ));
        }
        let op = format!("{}/{}", self.index, self.operators.len());
        let template = rebuild(Arc::clone(node), vec![single(below.plan)])?;
        self.operators.push(Operator {
            id: op.clone(),
            meaning: meaning(aggregate),
            shown: shown::aggregate(aggregate, dedup.is_some()),
            grows: self.grows(aggregate, dedup.as_ref(), times.is_some()),
        });
        if let Some(dedup) = dedup {
            let options = DedupOptions {
                op,
                query: self.index,
                keys: (0..aggregate.group_expr().expr().len()).collect(),
                event_time: dedup.event_time,
                delay_ms: below.delay_ms,
                ttl_ms: self.settings.state_ttl_ms,
            };
            return Ok(Built {
                plan: Arc::new(StateDedupExec::new(template, options)?),
                delay_ms: below.delay_ms,
            });
        }
        let (expiry, delay_ms) = match window {
            _ if let Some(session) = session => (Expiry::Session(session.columns), i64::MAX),
            Some((column, spec)) => (
                Expiry::Window {
                    column,
                    end: Arc::new(move |start| spec.end(start)),
                },
                below.delay_ms.saturating_add(spec.longest_ms()),
            ),
            None => match self.settings.state_ttl_ms {
                Some(ttl) => (Expiry::Ttl(ttl), below.delay_ms),
                None => (Expiry::Never, below.delay_ms),
            },
        };
        let options = StateOptions {
            op,
            query: self.index,
            mode,
            expiry,
            delay_ms: below.delay_ms,
        };
        let template = template
            .downcast_ref::<AggregateExec>()
            .ok_or_else(|| Error::internal("an aggregate became another node"))?;
        Ok(Built {
            plan: Arc::new(StateAggregateExec::new(template, options)?),
            delay_ms,
        })
    }

    /// What may stand above the cut of a stream: what looks at each row by itself, and what has the whole result.
    fn check(&self, node: &Arc<dyn ExecutionPlan>, mode: OutputMode) -> Result<()> {
        let limits =
            node.fetch().is_some() || node.is::<GlobalLimitExec>() || node.is::<LocalLimitExec>();
        if limits {
            return match mode {
                OutputMode::Complete => Ok(()),
                OutputMode::Append | OutputMode::Update => Err(limit()),
            };
        }
        let row_by_row = node.is::<FilterExec>()
            || node.is::<ProjectionExec>()
            || node.is::<UnnestExec>()
            || node.is::<UnionExec>()
            || node.is::<SortExec>()
            || node.is::<WindowExpandExec>()
            // The first half of one that has not been cut.
            || node.is::<AggregateExec>()
            || node.name() == "CooperativeExec";
        if row_by_row {
            return Ok(());
        }
        if let Some((join_type, sides)) = table_join(node) {
            let stream_is_left = sides.first().is_some_and(|side| reads_stream(side));
            return keeps_stream(join_type, stream_is_left);
        }
        Err(Error::invalid(format!(
            "a stream cannot be read by {}: window functions (OVER), large sorts and merge joins need all rows at once; GROUP BY window(…) instead",
            node.name()
        )))
    }

    /// The watermark tells when windows close, so they must be of the time that it is made of. `column` is the group
    /// column with the window, in the first half of the aggregate at or below a node.
    fn check_time(&self, node: &Arc<dyn ExecutionPlan>, column: usize) -> Result<()> {
        let node = match node.downcast_ref::<StageInputExec>() {
            Some(leaf) => &leaf.stage().plan,
            None => node,
        };
        let Some(aggregate) = node.downcast_ref::<AggregateExec>() else {
            let mut children = node.children().into_iter();
            return children.try_for_each(|child| self.check_time(child, column));
        };
        let group = aggregate.group_expr().expr().get(column);
        let name = group.and_then(|(expr, _)| {
            let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
            let time = function.args().first()?.downcast_ref::<Column>()?;
            Some(time.name().to_owned())
        });
        let mut sources = BTreeMap::new();
        find_sources(aggregate.input(), &mut sources);
        for (table, source) in sources {
            let schema = source.schema();
            let event_time = source.options().event_time;
            let event_time = event_time.map(|column| schema.field(column).name().clone());
            if let (Some(name), Some(event_time)) = (&name, event_time)
                && *name != event_time
                && schema.field_with_name(name).is_ok()
            {
                return Err(Error::invalid(format!(
                    "window() goes by column {name}, but the watermark of table {table} by {event_time}: make {name} its event_time, or window by {event_time}"
                )));
            }
        }
        Ok(())
    }

    /// Whether an aggregate keeps every key that it has ever seen.
    fn grows(&self, aggregate: &AggregateExec, dedup: Option<&Dedup>, is_window: bool) -> bool {
        let is_timed = self
            .sources
            .values()
            .all(|s| s.options().event_time.is_some());
        let by_watermark = match dedup {
            Some(dedup) => dedup.event_time.is_some(),
            None => is_window,
        };
        let is_closed = by_watermark && is_timed;
        let is_grouped = !aggregate.group_expr().expr().is_empty();
        // The time to live is for groups that no window closes.
        let is_forgotten = !is_window && self.settings.state_ttl_ms.is_some();
        is_grouped && !is_closed && !is_forgotten
    }

    /// How an aggregate that only tells first rows apart does so; `None` for others.
    fn dedup(&self, aggregate: &AggregateExec) -> Option<Dedup> {
        if !is_dedup(aggregate, self.settings.distinct_on) {
            return None;
        }
        let times: Vec<String> = self
            .sources
            .values()
            .filter_map(|source| {
                let column = source.options().event_time?;
                Some(source.schema().field(column).name().clone())
            })
            .collect();
        let is_time = |expr: &Arc<dyn PhysicalExpr>| {
            expr.downcast_ref::<Column>()
                .is_some_and(|column| times.iter().any(|time| time == column.name()))
        };
        let groups = aggregate.group_expr().expr();
        let grouped = groups.iter().position(|(expr, _)| is_time(expr));
        let first = || {
            let position = aggregate
                .aggr_expr()
                .iter()
                .position(|function| function.expressions().first().is_some_and(is_time));
            position.map(|position| groups.len() + position)
        };
        let event_time = grouped.or_else(first);
        Some(Dedup {
            event_time,
            name: event_time.and_then(|_| times.into_iter().next()),
        })
    }
}

/// How duplicates are told apart.
struct Dedup {
    /// The column of the aggregate's output with the event time.
    event_time: Option<usize>,
    /// Its name below.
    name: Option<String>,
}

fn limit() -> Error {
    Error::invalid(
        "LIMIT over a stream would end with its first rows: leave it out, or aggregate and SET essaim.output_mode = 'complete' for the first rows of the whole result",
    )
}

/// Whether the tasks of a stage yield only their first rows.
fn is_limited(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.fetch().is_some() || plan.children().into_iter().any(is_limited)
}

/// What the state of an aggregate means.
fn meaning(aggregate: &AggregateExec) -> String {
    let groups: Vec<_> = aggregate
        .group_expr()
        .expr()
        .iter()
        .map(|(_, name)| name.clone())
        .collect();
    let functions: Vec<_> = aggregate
        .aggr_expr()
        .iter()
        .map(|f| f.name().to_owned())
        .collect();
    format!("{} by {}", functions.join(", "), groups.join(", "))
}

/// The type and the sides of a join with a table, above the cut.
fn table_join(node: &Arc<dyn ExecutionPlan>) -> Option<(JoinType, Vec<&Arc<dyn ExecutionPlan>>)> {
    let join_type = if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        *join.join_type()
    } else if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
        *join.join_type()
    } else if node.is::<CrossJoinExec>() {
        JoinType::Inner
    } else {
        return None;
    };
    Some((join_type, node.children()))
}

/// Whether a join yields rows of the stream only when they come, and none of the table for want of a match: what has no
/// match in this epoch may have one in the next.
fn keeps_stream(join_type: JoinType, stream_is_left: bool) -> Result<()> {
    let keeps = match join_type {
        JoinType::Inner => true,
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
            stream_is_left
        }
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            !stream_is_left
        }
        JoinType::Full => false,
    };
    if keeps {
        return Ok(());
    }
    Err(Error::invalid(
        "this join asks which rows of the table have no match in the stream, which is never known: write stream JOIN table, stream LEFT JOIN table, or WHERE … IN (SELECT … FROM table)",
    ))
}

fn only_child(node: &Arc<dyn ExecutionPlan>) -> Result<&Arc<dyn ExecutionPlan>> {
    node.children()
        .into_iter()
        .next()
        .ok_or_else(|| Error::internal(format!("{} has no input", node.name())))
}

fn has_one_input(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.children().len() == 1
}

fn single(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    if plan.output_partitioning().partition_count() > 1 {
        Arc::new(CoalescePartitionsExec::new(plan))
    } else {
        plan
    }
}
