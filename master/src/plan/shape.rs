//! A plan as people see it, made of what runs: operators, the places where they run, and the way that rows flow.

use crate::events::shortened;
use crate::jobs::plan::{MAX_PLAN_NODES, Place, PlanEdge, PlanNode, PlanRecord};
use crate::plan::Execution;
use crate::plan::stage::{Stage, StageInputExec};
use crate::stream::input::{InputExec, InputId};
use crate::stream::plan::{Insert, Static, StreamPlan};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable};
use essaim_common::broadcast::BroadcastExec;
use essaim_common::outputs::{OutputsExec, SharedInputExec};
use essaim_common::secret::redact;
use std::collections::HashMap;
use std::sync::Arc;

/// The longest detail of a node, in characters.
const MAX_DETAIL: usize = 300;
/// The position of nodes whose rows nobody counts.
const UNCOUNTED: usize = usize::MAX;

/// The plan of a query that runs once.
pub(crate) fn of_query(execution: &Execution) -> PlanRecord {
    let mut draft = Draft::default();
    match execution {
        Execution::Tasks(cut) => {
            for broadcast in cut.stages.iter().flat_map(|stage| &stage.broadcasts) {
                draft
                    .broadcasts
                    .insert(broadcast.key.clone(), Arc::clone(&broadcast.plan));
            }
            draft.tree(&cut.upper, Place::Master);
        }
        Execution::Master(plan) | Execution::Stream(plan) => {
            draft.tree(plan, Place::Master);
        }
        Execution::Exchange { plan, .. } => {
            draft.tree(plan, Place::Exchange);
        }
    }
    draft.record
}

/// The plan of one INSERT of a streaming job, with `statics`, what it reads besides streams.
pub(crate) fn of_insert(plan: &StreamPlan, insert: &Insert, statics: &[Static]) -> PlanRecord {
    let mut draft = Draft::default();
    for (position, stage) in plan.stages.iter().enumerate() {
        for (output, input) in stage.inputs.iter().enumerate() {
            draft.inputs.insert(*input, (position, output));
        }
        draft.stages.push(Arc::clone(&stage.stage));
    }
    for held in statics {
        match held {
            Static::Broadcast(broadcast) => {
                let (key, plan) = (broadcast.key.clone(), Arc::clone(&broadcast.plan));
                draft.broadcasts.insert(key, plan);
            }
            Static::Upper(id, plan) => {
                draft.statics.insert(*id, Arc::clone(plan));
            }
        }
    }
    let root = draft.tree(&insert.upper.plan, Place::Master);
    let detail = format!("{}, mode={}", insert.table, insert.mode.as_str());
    let sink = draft.add("Sink", detail, Place::Master, SINK);
    draft.connect(root, sink);
    draft.record
}

/// The position of the sink of a streaming INSERT: behind all nodes of its plan.
const SINK: usize = UNCOUNTED - 1;

/// Counts what a streaming INSERT has handed to its sink in an epoch.
pub(crate) fn add_sink_rows(record: &mut PlanRecord, rows: u64) {
    let sink = record.nodes.iter_mut().find(|node| node.position == SINK);
    if let Some(sink) = sink {
        *sink.rows.get_or_insert(0) += rows;
    }
}

/// What the nodes of a plan have yielded, by position; `None` for those that do not count.
pub(crate) fn counted(plan: &Arc<dyn ExecutionPlan>) -> Vec<Option<u64>> {
    fn count(plan: &Arc<dyn ExecutionPlan>, rows: &mut Vec<Option<u64>>) {
        let yielded = plan.metrics().and_then(|metrics| metrics.output_rows());
        rows.push(yielded.map(|rows| rows as u64));
        for child in plan.children() {
            count(child, rows);
        }
    }
    let mut rows = Vec::new();
    count(plan, &mut rows);
    rows
}

/// What the nodes of a stage have yielded by one of its tasks, by position: a task says it of its own plan, which lacks
/// the inputs of unions that are not its own. Nothing if the task's plan has another shape.
pub(crate) fn of_task(stage: &Stage, partition: usize, rows: &[i64]) -> Vec<Option<u64>> {
    let (mut size, mut positions) = (0, Vec::new());
    positions_of(&stage.plan, Some(partition), &mut size, &mut positions);
    if positions.len() != rows.len() {
        return Vec::new();
    }
    let mut of_stage = vec![None; size];
    for (position, rows) in positions.into_iter().zip(rows) {
        of_stage[position] = u64::try_from(*rows).ok();
    }
    of_stage
}

/// The positions of the nodes that task `partition` has; none of a subtree without it.
fn positions_of(
    plan: &Arc<dyn ExecutionPlan>,
    partition: Option<usize>,
    next: &mut usize,
    found: &mut Vec<usize>,
) {
    let here = *next;
    *next += 1;
    if !plan.is::<UnionExec>() {
        found.extend(partition.map(|_| here));
        for child in plan.children() {
            positions_of(child, partition, next, found);
        }
        return;
    }
    let mut offset = 0;
    for child in plan.children() {
        let count = child.output_partitioning().partition_count();
        let local = partition.and_then(|partition| partition.checked_sub(offset));
        positions_of(child, local.filter(|local| *local < count), next, found);
        offset += count;
    }
}

/// A plan that is being drawn.
#[derive(Default)]
struct Draft {
    record: PlanRecord,
    /// What is computed on the master for all tasks, by key.
    broadcasts: HashMap<String, Arc<dyn ExecutionPlan>>,
    /// What a streaming INSERT reads besides streams.
    statics: HashMap<InputId, Arc<dyn ExecutionPlan>>,
    /// Stages of a streaming job, and which output of which stage an input is.
    stages: Vec<Arc<Stage>>,
    inputs: HashMap<InputId, (usize, usize)>,
    /// What yields the rows of an input, once it is drawn.
    drawn: HashMap<String, Option<u32>>,
}

/// A tree that is being walked.
struct Walk {
    place: Place,
    next: usize,
    /// Whether rows are counted by position.
    is_counted: bool,
    /// What yields the rows of a shared input.
    shared: Option<u32>,
}

impl Walk {
    fn new(place: Place) -> Self {
        Self {
            place,
            next: 0,
            is_counted: true,
            shared: None,
        }
    }

    fn step(&mut self) -> usize {
        self.next += 1;
        if self.is_counted {
            self.next - 1
        } else {
            UNCOUNTED
        }
    }

    fn skip(&mut self, plan: &Arc<dyn ExecutionPlan>) {
        self.next += 1;
        for child in plan.children() {
            self.skip(child);
        }
    }
}

impl Draft {
    fn add(&mut self, name: &str, detail: String, place: Place, position: usize) -> Option<u32> {
        let id = self.record.nodes.len();
        if id >= MAX_PLAN_NODES {
            return None;
        }
        self.record.nodes.push(PlanNode {
            id: id as u32,
            name: name.to_owned(),
            detail,
            place,
            rows: None,
            position,
        });
        Some(id as u32)
    }

    fn connect(&mut self, from: Option<u32>, to: Option<u32>) {
        if let (Some(from), Some(to)) = (from, to) {
            self.record.edges.push(PlanEdge { from, to });
        }
    }

    /// Draws a tree. Returns its root.
    fn tree(&mut self, plan: &Arc<dyn ExecutionPlan>, place: Place) -> Option<u32> {
        self.node(plan, &mut Walk::new(place))
    }

    /// Draws a tree on the master beside the one whose rows are counted, once.
    fn aside(&mut self, name: &str, plan: Option<Arc<dyn ExecutionPlan>>) -> Option<u32> {
        if let Some(root) = self.drawn.get(name) {
            return *root;
        }
        let mut walk = Walk::new(Place::Master);
        walk.is_counted = false;
        let root = plan.and_then(|plan| self.node(&plan, &mut walk));
        self.drawn.insert(name.to_owned(), root);
        root
    }

    fn node(&mut self, plan: &Arc<dyn ExecutionPlan>, walk: &mut Walk) -> Option<u32> {
        if let Some(input) = plan.downcast_ref::<StageInputExec>() {
            walk.step();
            let stage = Arc::clone(input.stage());
            return self.stage(&stage, 0);
        }
        if let Some(input) = plan.downcast_ref::<InputExec>() {
            walk.step();
            return self.input(input.id());
        }
        if let Some(broadcast) = plan.downcast_ref::<BroadcastExec>() {
            walk.step();
            let plan = self.broadcasts.get(broadcast.key()).cloned();
            return self.aside(broadcast.key(), plan);
        }
        if plan.is::<SharedInputExec>() {
            walk.step();
            return walk.shared;
        }
        // It only gives other tasks a turn.
        if plan.is::<CooperativeExec>()
            && let [child] = plan.children()[..]
        {
            walk.step();
            return self.node(child, walk);
        }
        let line = displayable(plan.as_ref()).one_line().to_string();
        let name = plan.name();
        let detail = line.trim().strip_prefix(name).unwrap_or(line.trim());
        let detail = redact(detail.trim_start_matches(':').trim());
        let node = self.add(
            name,
            shortened(detail, MAX_DETAIL),
            walk.place,
            walk.step(),
        );
        for child in plan.children() {
            let from = self.node(child, walk);
            self.connect(from, node);
        }
        node
    }

    fn input(&mut self, id: InputId) -> Option<u32> {
        match self.inputs.get(&id).copied() {
            Some((position, output)) => {
                let stage = self.stages.get(position).cloned()?;
                self.stage(&stage, output)
            }
            None => {
                let plan = self.statics.get(&id).cloned();
                self.aside(&format!("{id:?}"), plan)
            }
        }
    }

    /// Draws one output of a stage, once.
    fn stage(&mut self, stage: &Stage, output: usize) -> Option<u32> {
        let name = format!("stage {} output {output}", stage.id);
        if let Some(root) = self.drawn.get(&name) {
            return *root;
        }
        let mut walk = Walk::new(Place::Stage(stage.id));
        let root = if stage.plan.is::<OutputsExec>() {
            self.output(stage, output, &mut walk)
        } else {
            self.node(&stage.plan, &mut walk)
        };
        self.drawn.insert(name, root);
        root
    }

    /// One output of a stage that several INSERTs share, over the scan that they share.
    fn output(&mut self, stage: &Stage, output: usize, walk: &mut Walk) -> Option<u32> {
        walk.step();
        let children = stage.plan.children();
        let (scan, outputs) = children.split_first()?;
        let scan_name = format!("stage {} scan", stage.id);
        walk.shared = match self.drawn.get(&scan_name) {
            Some(root) => {
                walk.skip(scan);
                *root
            }
            None => {
                let root = self.node(scan, walk);
                self.drawn.insert(scan_name, root);
                root
            }
        };
        let mut root = None;
        for (number, plan) in outputs.iter().enumerate() {
            if number == output {
                root = self.node(plan, walk);
            } else {
                walk.skip(plan);
            }
        }
        root
    }
}
