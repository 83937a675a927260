//! From the INSERTs of a streaming job to what each of its epochs runs: stages that read the streams, shared where
//! INSERTs read the same one, and for each INSERT the half above the cut, its aggregates turned into stateful ones.

use crate::plan::cut::{self, Cut, rebuild};
use crate::plan::stage::{Broadcast, Stage, StageInputExec};
use crate::stream::input::{InputExec, InputId};
use crate::stream::late::Late;
use crate::stream::upper::{Upper, UpperBuilder};
use datafusion::common::internal_datafusion_err;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use essaim_common::broadcast::BroadcastExec;
use essaim_common::connector::Split;
use essaim_common::outputs::{OutputsExec, SharedInputExec};
use essaim_common::scan::ScanExec;
use essaim_common::sink::StreamInsertExec;
use essaim_common::stream::{OutputMode, StreamSink, StreamSource};
use essaim_common::table::is_stream;
use essaim_common::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a streaming job runs, planned once.
#[derive(Debug)]
pub struct StreamPlan {
    /// The UNBOUNDED tables that are read, by name.
    pub sources: BTreeMap<String, Arc<dyn StreamSource>>,
    pub stages: Vec<StreamStage>,
    pub inserts: Vec<Insert>,
    /// Whether a stream is joined with a table.
    pub has_statics: bool,
}

/// A stage that reads streams. Its splits come with each epoch.
#[derive(Debug)]
pub struct StreamStage {
    pub stage: Arc<Stage>,
    pub tables: BTreeSet<String>,
    /// Where the rows go: one input, or one for each output of an [`OutputsExec`].
    pub inputs: Vec<InputId>,
}

/// One INSERT.
#[derive(Debug)]
pub struct Insert {
    pub index: u32,
    /// The sink's table.
    pub table: String,
    pub mode: OutputMode,
    pub sink: Arc<dyn StreamSink>,
    pub upper: Upper,
    /// What keeps a row in time, by what it is read for.
    pub lates: Vec<Late>,
    /// The UNBOUNDED tables that it reads.
    pub tables: BTreeSet<String>,
}

impl Insert {
    /// The event time before which every row is too late, [`i64::MIN`] if none is.
    pub fn late_before(&self, watermark: i64) -> i64 {
        let bounds = self.lates.iter().map(|late| late.before(watermark));
        bounds.min().unwrap_or(i64::MIN)
    }
}

/// What an INSERT reads besides streams. Planned again, in the same order, each time the tables are read again.
#[derive(Debug)]
pub enum Static {
    /// Every task needs it whole.
    Broadcast(Arc<Broadcast>),
    /// The upper half needs it.
    Upper(InputId, Arc<dyn ExecutionPlan>),
}

/// One INSERT between its physical plan and the job's.
#[derive(Debug)]
pub struct PlannedInsert {
    pub table: String,
    pub mode: OutputMode,
    pub upper: Upper,
    pub stages: Vec<(Arc<Stage>, InputId)>,
    pub statics: Vec<Static>,
    pub lates: Vec<Late>,
    pub sources: BTreeMap<String, Arc<dyn StreamSource>>,
    pub tables: BTreeSet<String>,
}

/// Cuts the plan of INSERT number `index` and makes its upper half stateful.
///
/// # Errors
/// What a stream cannot do, and what to write instead.
pub fn insert(
    index: u32,
    root: &StreamInsertExec,
    settings: &InsertSettings,
) -> Result<PlannedInsert> {
    let Cut { upper, .. } = cut::cut(Arc::clone(root.input()))?;
    let mut tables = BTreeMap::new();
    find_sources(root.input(), &mut tables);
    let mut builder = UpperBuilder::new(index, root, settings, &tables)?;
    let upper = builder.build(upper)?;
    Ok(PlannedInsert {
        table: root.table().to_owned(),
        mode: builder.mode,
        upper,
        stages: builder.stages,
        statics: builder.statics,
        lates: builder.lates,
        tables: tables.keys().cloned().collect(),
        sources: tables,
    })
}

/// What is SET when an INSERT is planned.
#[derive(Debug, Clone, Default)]
pub struct InsertSettings {
    /// `None` for 'auto'.
    pub mode: Option<OutputMode>,
    /// How long a group without a window is kept, ms.
    pub state_ttl_ms: Option<i64>,
    /// Whether the query has a DISTINCT ON: an aggregate of nothing but first values is then taken for one.
    pub distinct_on: bool,
}

/// The UNBOUNDED tables below a plan.
pub fn find_sources(
    plan: &Arc<dyn ExecutionPlan>,
    found: &mut BTreeMap<String, Arc<dyn StreamSource>>,
) {
    if let Some(scan) = plan.downcast_ref::<ScanExec>()
        && let Some(stream) = scan.stream()
    {
        found.insert(scan.table().to_owned(), Arc::clone(stream));
    }
    if let Some(input) = plan.downcast_ref::<StageInputExec>() {
        find_sources(&input.stage().plan, found);
    }
    for child in plan.children() {
        find_sources(child, found);
    }
}

/// Puts the stages of all INSERTs together: those that read one and the same stream become one.
///
/// # Errors
/// None for plans that the cut made.
pub fn share(stages: Vec<(Arc<Stage>, InputId)>) -> Result<Vec<StreamStage>> {
    let mut alone = Vec::new();
    let mut by_table: BTreeMap<String, Vec<(Arc<Stage>, InputId)>> = BTreeMap::new();
    for (stage, input) in stages {
        let mut tables = BTreeMap::new();
        find_sources(&stage.plan, &mut tables);
        let tables: BTreeSet<String> = tables.into_keys().collect();
        match (tables.first(), scans(&stage.plan)) {
            (Some(table), 1) => by_table
                .entry(table.clone())
                .or_default()
                .push((stage, input)),
            _ => alone.push(StreamStage {
                stage,
                tables,
                inputs: vec![input],
            }),
        }
    }
    for (table, mut group) in by_table {
        let tables = BTreeSet::from([table]);
        if group.len() == 1 {
            let (stage, input) = group.remove(0);
            alone.push(StreamStage {
                stage,
                tables,
                inputs: vec![input],
            });
            continue;
        }
        let scan = shared_scan(&group)?;
        let mut outputs = Vec::with_capacity(group.len());
        let mut broadcasts = Vec::new();
        let mut inputs = Vec::with_capacity(group.len());
        for (stage, input) in group {
            outputs.push(over_shared(&stage.plan, &scan)?);
            broadcasts.extend(stage.broadcasts.iter().cloned());
            inputs.push(input);
        }
        alone.push(StreamStage {
            stage: Arc::new(Stage {
                id: 0,
                plan: Arc::new(OutputsExec::new(scan, outputs)),
                broadcasts,
            }),
            tables,
            inputs,
        });
    }
    let numbered = alone
        .into_iter()
        .enumerate()
        .map(|(id, stage)| StreamStage {
            stage: Arc::new(Stage {
                id: id as u32,
                plan: Arc::clone(&stage.stage.plan),
                broadcasts: stage.stage.broadcasts.clone(),
            }),
            ..stage
        });
    Ok(numbered.collect())
}

/// How many leaves of a plan read something other than a broadcast.
fn scans(plan: &Arc<dyn ExecutionPlan>) -> usize {
    if plan.children().is_empty() {
        return usize::from(!plan.is::<BroadcastExec>());
    }
    plan.children().into_iter().map(scans).sum()
}

fn find_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<&ScanExec> {
    match plan.downcast_ref::<ScanExec>() {
        Some(scan) => Some(scan),
        None => plan.children().into_iter().find_map(find_scan),
    }
}

/// One scan of all columns that any of the stages wants.
fn shared_scan(group: &[(Arc<Stage>, InputId)]) -> Result<Arc<dyn ExecutionPlan>> {
    let missing = || Error::internal("a stage over a stream has no scan");
    let mut wanted = BTreeSet::new();
    let mut first = None;
    for (stage, _) in group {
        let scan = find_scan(&stage.plan).ok_or_else(missing)?;
        let names = scan.schema();
        wanted.extend(names.fields().iter().map(|field| field.name().clone()));
        first = first.or(Some(scan));
    }
    let scan = first.ok_or_else(missing)?;
    let stream = scan.stream().ok_or_else(missing)?;
    let table = stream.schema();
    let columns = wanted
        .iter()
        .map(|name| table.index_of(name).map_err(|_| missing()))
        .collect::<Result<Vec<_>>>()?;
    let event_time = stream
        .options()
        .event_time
        .and_then(|wanted| columns.iter().position(|column| *column == wanted));
    let shared = ScanExec::new(
        scan.connector(),
        scan.table(),
        stream.reader(&columns)?,
        scan.partitions().to_vec(),
    );
    Ok(Arc::new(
        shared
            .with_stream(Arc::clone(stream))
            .with_event_time(event_time),
    ))
}

/// `plan` with its scan replaced by the shared one.
fn over_shared(
    plan: &Arc<dyn ExecutionPlan>,
    shared: &Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        let partitions = shared.output_partitioning().partition_count();
        let input = Arc::new(SharedInputExec::new(shared.schema(), partitions));
        let wanted = scan.schema();
        let columns = wanted
            .fields()
            .iter()
            .map(|field| {
                let index = shared
                    .schema()
                    .index_of(field.name())
                    .map_err(|e| internal_datafusion_err!("a shared scan lacks a column: {e}"))?;
                let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), index));
                Ok((column, field.name().clone()))
            })
            .collect::<datafusion::common::Result<Vec<_>>>()?;
        return Ok(Arc::new(ProjectionExec::try_new(columns, input)?));
    }
    if plan.children().is_empty() {
        return Ok(Arc::clone(plan));
    }
    let inputs = plan
        .children()
        .into_iter()
        .map(|child| over_shared(child, shared))
        .collect::<Result<_>>()?;
    Ok(rebuild(Arc::clone(plan), inputs)?)
}

impl StreamStage {
    /// The stage of one epoch: with its splits, and with the broadcasts that hold now (`keys`: from planned to held).
    ///
    /// # Errors
    /// None for plans that [`share`] made.
    pub fn of_epoch(
        &self,
        splits: &HashMap<String, Vec<Arc<[Split]>>>,
        broadcasts: &HashMap<String, Arc<Broadcast>>,
    ) -> Result<Arc<Stage>> {
        let plan = with_splits(&self.stage.plan, splits, broadcasts)?;
        let held = self
            .stage
            .broadcasts
            .iter()
            .map(|planned| Arc::clone(broadcasts.get(&planned.key).unwrap_or(planned)));
        Ok(Arc::new(Stage {
            id: self.stage.id,
            plan,
            broadcasts: held.collect(),
        }))
    }
}

fn with_splits(
    plan: &Arc<dyn ExecutionPlan>,
    splits: &HashMap<String, Vec<Arc<[Split]>>>,
    broadcasts: &HashMap<String, Arc<Broadcast>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        if scan.stream().is_none() {
            return Ok(Arc::clone(plan));
        }
        let groups = splits.get(scan.table()).cloned().unwrap_or_default();
        return Ok(Arc::new(scan.with_partitions(groups)));
    }
    if let Some(broadcast) = plan.downcast_ref::<BroadcastExec>() {
        return Ok(match broadcasts.get(broadcast.key()) {
            Some(held) => Arc::new(BroadcastExec::new(held.key.clone(), broadcast.schema())),
            None => Arc::clone(plan),
        });
    }
    if plan.is::<OutputsExec>() {
        let mut children = plan.children().into_iter();
        let missing = || Error::internal("an OutputsExec has no input");
        let input = with_splits(children.next().ok_or_else(missing)?, splits, broadcasts)?;
        let partitions = input.output_partitioning().partition_count();
        let mut inputs = vec![input];
        for output in children {
            let output = with_splits(output, splits, broadcasts)?;
            inputs.push(with_partitions(&output, partitions)?);
        }
        return Ok(rebuild(Arc::clone(plan), inputs)?);
    }
    if plan.children().is_empty() {
        return Ok(Arc::clone(plan));
    }
    let inputs = plan
        .children()
        .into_iter()
        .map(|child| with_splits(child, splits, broadcasts))
        .collect::<Result<_>>()?;
    Ok(rebuild(Arc::clone(plan), inputs)?)
}

/// The plan of an output when its shared input has so many partitions.
fn with_partitions(
    plan: &Arc<dyn ExecutionPlan>,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    if plan.is::<SharedInputExec>() {
        return Ok(Arc::new(SharedInputExec::new(plan.schema(), partitions)));
    }
    if plan.children().is_empty() {
        return Ok(Arc::clone(plan));
    }
    let inputs = plan
        .children()
        .into_iter()
        .map(|child| with_partitions(child, partitions))
        .collect::<Result<_>>()?;
    Ok(rebuild(Arc::clone(plan), inputs)?)
}

/// Whether a node above the cut reads a stream.
pub fn reads_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    match plan.downcast_ref::<StageInputExec>() {
        Some(input) => is_stream(&input.stage().plan),
        None => plan.children().into_iter().any(reads_stream),
    }
}

/// The leaf that stands for an input.
pub fn input(id: InputId, plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    Arc::new(InputExec::new(id, plan.schema()))
}
