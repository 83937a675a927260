//! From a streaming job's text to something that reads and finishes epochs: statements, sinks, checkpoint, state.

use crate::Shared;
use crate::jobs::handle::JobHandle;
use crate::plan::{Execution, Planner, Purpose, parse, purpose, shape};
use crate::stream::checkpoint::{Checkpoint, Restored, TableJournals};
use crate::stream::context::States;
use crate::stream::failures::InARow;
use crate::stream::finish::Finisher;
use crate::stream::forget::Forgetter;
use crate::stream::pace::Pace;
use crate::stream::plan::{self, Insert, InsertSettings, PlannedInsert, StreamPlan};
use crate::stream::read::{Job, Reader, Trigger};
use crate::stream::state::{Delta, Restore};
use crate::stream::statics::Tables;
use crate::stream::watermark::TableTimes;
use bytes::Bytes;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::{Distinct, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use essaim_common::options::duration_ms;
use essaim_common::scope::JobScope;
use essaim_common::session::Settings;
use essaim_common::sink::StreamInsertExec;
use essaim_common::stream::{OutputMode, StreamSink};
use essaim_common::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// One INSERT as it was submitted, which can be planned again.
#[derive(Debug, Clone)]
pub struct StreamingInsert {
    pub index: u32,
    logical: LogicalPlan,
    settings: InsertSettings,
}

impl StreamingInsert {
    /// The INSERT with what it is when it is planned now.
    ///
    /// # Errors
    /// A source is out of reach; what a stream cannot do.
    pub async fn plan(&self, planner: &Planner) -> Result<PlannedInsert> {
        let physical = planner.physical(&self.logical).await?;
        plan::insert(self.index, root(&physical)?, &self.settings)
    }
}

fn root(physical: &Arc<dyn ExecutionPlan>) -> Result<&StreamInsertExec> {
    physical
        .downcast_ref::<StreamInsertExec>()
        .ok_or_else(|| Error::internal("the root of a streaming INSERT is another node"))
}

/// An INSERT with what it reads besides streams, as it was first planned.
pub type StaticInsert = (StreamingInsert, Vec<plan::Static>);

/// A streaming job's statements, run and planned.
struct Planned {
    inserts: Vec<(StreamingInsert, PlannedInsert, Arc<dyn StreamSink>)>,
}

/// Plans INSERT number `index`, whose root is `physical`.
async fn plan_insert(
    planner: &Planner,
    index: u32,
    logical: LogicalPlan,
    physical: &Arc<dyn ExecutionPlan>,
) -> Result<(StreamingInsert, PlannedInsert, Arc<dyn StreamSink>)> {
    let settings = insert_settings(&planner.settings(), &logical)?;
    let root = root(physical)?;
    let planned = plan::insert(index, root, &settings)?;
    let sink = root
        .sink()
        .stream(&root.input().schema(), planned.mode, root.run())
        .await
        .map_err(|e| e.context(format!("table {}", root.table())))?;
    let insert = StreamingInsert {
        index,
        logical,
        settings,
    };
    Ok((insert, planned, sink))
}

/// Checks a streaming INSERT before its job is taken. Returns what each epoch would run for it.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn check(
    planner: &Planner,
    logical: LogicalPlan,
    physical: &Arc<dyn ExecutionPlan>,
) -> Result<PlannedInsert> {
    trigger(&planner.settings())?;
    let (_, planned, _) = plan_insert(planner, 0, logical, physical).await?;
    Ok(planned)
}

/// How a streaming INSERT would run, for EXPLAIN: `[plan_type, plan]`.
///
/// # Errors
/// As [`check`].
pub(crate) fn explain(
    planner: &Planner,
    logical: &LogicalPlan,
    physical: &Arc<dyn ExecutionPlan>,
) -> Result<Vec<(String, String)>> {
    let tree = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(false).to_string();
    let settings = insert_settings(&planner.settings(), logical)?;
    let planned = plan::insert(0, root(physical)?, &settings)?;
    let mut rows = vec![
        (
            "execution".to_owned(),
            format!(
                "stream: in each epoch the stages on the workers, then the rest on the master; output mode '{}'",
                planned.mode.as_str()
            ),
        ),
        ("master".to_owned(), tree(&planned.upper.plan)),
    ];
    for (stage, _) in &planned.stages {
        rows.push((format!("stage {}", stage.id), tree(&stage.plan)));
    }
    Ok(rows)
}

fn insert_settings(settings: &Settings, logical: &LogicalPlan) -> Result<InsertSettings> {
    let mode = match settings.output_mode.to_ascii_lowercase().as_str() {
        "auto" => None,
        "append" => Some(OutputMode::Append),
        "update" => Some(OutputMode::Update),
        "complete" => Some(OutputMode::Complete),
        other => {
            return Err(Error::invalid(format!(
                "essaim.output_mode is '{other}': write 'auto', 'append', 'update' or 'complete'"
            )));
        }
    };
    let ttl = interval("state_ttl", &settings.state_ttl)?;
    Ok(InsertSettings {
        mode,
        state_ttl_ms: (!ttl.is_zero()).then_some(ttl.as_millis() as i64),
        distinct_on: has_distinct_on(logical)?,
    })
}

/// Whether a query, as it was written, has a DISTINCT ON.
fn has_distinct_on(logical: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    logical.apply_with_subqueries(|node| {
        found |= matches!(node, LogicalPlan::Distinct(Distinct::On(_)));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

fn interval(name: &str, text: &str) -> Result<Duration> {
    let ms = if text.trim() == "0" {
        Some(0)
    } else {
        duration_ms(text)
    };
    ms.map(Duration::from_millis).ok_or_else(|| {
        Error::invalid(format!(
            "essaim.{name} is '{text}': write an interval such as '500 milliseconds' or '1 minute', or '0'"
        ))
    })
}

fn trigger(settings: &Settings) -> Result<Trigger> {
    if settings.trigger.eq_ignore_ascii_case("available_now") {
        return Ok(Trigger::AvailableNow);
    }
    let every = interval("trigger", &settings.trigger)
        .map_err(|e| Error::invalid(format!("{e}, or 'available_now'")))?;
    Ok(Trigger::Every(every))
}

/// Sets up a run of a streaming job: a new generation, which shuts out the ones before it, and goes on where they
/// stopped.
///
/// # Errors
/// The job is wrong; the checkpoint is of another query; a sink, a source or the state dir is out of reach.
pub(super) async fn start(
    shared: &Arc<Shared>,
    handle: &Arc<JobHandle>,
) -> Result<(Reader, Finisher)> {
    let generation = shared.jobs.begin(handle).await?;
    let sql = handle.read(|record| record.sql.clone());
    let scope = JobScope::new(handle.id(), generation, shared.registry.slots());
    let mut planner = Planner::new(
        Arc::clone(&shared.runtime),
        Arc::clone(&shared.registry),
        Arc::clone(&scope),
    );
    let mut planned = Planned {
        inserts: Vec::new(),
    };
    for statement in parse(&sql)? {
        match purpose(&statement) {
            Purpose::Setup | Purpose::Rows => planner.set_up(statement).await?,
            Purpose::Insert => {
                let index = planned.inserts.len() as u32;
                scope.set_query(index);
                let query = planner.query(statement).await?;
                let Execution::Stream(physical) = query.execution else {
                    return Err(Error::invalid(
                        "an INSERT of a streaming job reads no UNBOUNDED table: submit it as a job of its own",
                    ));
                };
                let insert = plan_insert(&planner, index, query.logical, &physical).await?;
                planned.inserts.push(insert);
            }
        }
    }
    // The sinks first: what older generations commit before this is seen below, and afterwards they commit nothing.
    let mut committed = BTreeMap::new();
    for (insert, planned, sink) in &planned.inserts {
        let last = sink
            .begin()
            .await
            .map_err(|e| e.context(format!("table {}", planned.table)))?;
        committed.extend(last.map(|epoch| (insert.index, epoch)));
    }
    let dir = shared.jobs.state_dir();
    let (checkpoint, restored) = Checkpoint::open(dir, &handle.id(), generation).await?;
    check_age(&restored, &committed)?;
    let settings = planner.settings();
    let planner = Arc::new(planner);
    let states = Arc::new(States::default());
    let (stream_plan, statics) = assemble(planned)?;
    show(handle, &stream_plan, &statics);
    let meaning = meaning(&stream_plan);
    match &restored.fingerprint {
        Some(known) if *known != meaning => return Err(incompatible(known, &meaning)),
        Some(_) => {}
        None => checkpoint.write_fingerprint(&meaning).await?,
    }
    restore(&states, restored.snapshot, restored.deltas).await?;
    shared.jobs.accept(handle).await?;
    let mut times: BTreeMap<String, TableTimes> = BTreeMap::new();
    let mut positions = BTreeMap::new();
    let mut next_epoch = 0;
    if let Some(last) = &restored.committed {
        restore_progress(handle, &last.progress);
        next_epoch = last.epoch + 1;
        positions = last.offsets.clone();
        for (table, latest) in &last.max_event_times {
            let known = times.entry(table.clone()).or_default();
            known.latest = latest.clone();
            known.watermark = last.watermarks.get(table).copied();
        }
    }
    let mut journaled = BTreeMap::new();
    for (table, source) in &stream_plan.sources {
        let journals = TableJournals::new(dir, &handle.id(), table, generation);
        source
            .open(&journals)
            .await
            .map_err(|e| e.context(format!("table {table}")))?;
        if journals.opened() {
            journaled.insert(table.clone(), Arc::clone(source));
        }
        if !positions.contains_key(table) && restored.planned.is_empty() {
            let start = source
                .start()
                .await
                .map_err(|e| e.context(format!("table {table}")))?;
            positions.insert(table.clone(), start);
        }
    }
    if let Some(plan) = restored.planned.first() {
        next_epoch = plan.epoch;
    }
    let trigger = trigger(&settings)?;
    let pace = Pace::new(match trigger {
        Trigger::Every(every) => every,
        Trigger::AvailableNow => Duration::ZERO,
    });
    let job = Arc::new(Job {
        handle: Arc::clone(handle),
        planner,
        plan: stream_plan,
    });
    handle.vitals().limit_state(settings.max_state_bytes);
    tracing::info!(job = %handle.id(), generation, next_epoch, replayed = restored.planned.len(), "streaming");
    let checkpoint = Arc::new(Mutex::new(checkpoint));
    let forgetter = Forgetter::new(journaled, Arc::clone(&checkpoint));
    let reader = Reader {
        shared: Arc::clone(shared),
        job: Arc::clone(&job),
        checkpoint: Arc::clone(&checkpoint),
        trigger,
        next_epoch,
        positions,
        times,
        idleness: BTreeMap::new(),
        planned: restored.planned.into(),
        pace,
        tables: Tables {
            inserts: statics,
            refresh: interval("table_refresh", &settings.table_refresh)?,
            held: None,
            outdated: false,
        },
        target: None,
        last_start: None,
        idle: Duration::ZERO,
        behind: false,
        trouble: None,
        failures: InARow::default(),
        stumbled: false,
    };
    let finisher = Finisher {
        shared: Arc::clone(shared),
        job,
        checkpoint,
        states,
        committed,
        max_state_bytes: settings.max_state_bytes,
        forgetter,
        saved: Instant::now(),
    };
    Ok((reader, finisher))
}

/// Tells what the job's INSERTs run.
fn show(handle: &JobHandle, plan: &StreamPlan, statics: &[StaticInsert]) {
    for insert in &plan.inserts {
        let held = statics.iter().find(|(held, _)| held.index == insert.index);
        let held = held.map_or(&[][..], |(_, held)| held);
        let shown = shape::of_insert(plan, insert, held);
        handle.update_query(insert.index as usize, |query| {
            query.execution = "stream".to_owned();
            query.sink = insert.table.clone();
            query.plan = shown;
        });
    }
}

/// A sink can be ahead of the checkpoint's commits, but not of its plans: they are written first.
fn check_age(restored: &Restored, committed: &BTreeMap<u32, u64>) -> Result<()> {
    let planned = restored.planned.last().map(|plan| plan.epoch);
    let known = planned.max(restored.committed.as_ref().map(|commit| commit.epoch));
    let Some(ahead) = committed
        .values()
        .max()
        .filter(|ahead| Some(**ahead) > known)
    else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "a sink of the job has committed epoch {ahead}, and the checkpoint knows of {}: the state dir holds an older state of the job than its sinks do, and going on would leave rows out. Put the newer state dir back, or start again with --from-scratch",
        known.map_or_else(
            || "none".to_owned(),
            |epoch| format!("epochs up to {epoch} only")
        )
    )))
}

/// What the last epoch told of itself, and of all before it.
fn restore_progress(handle: &JobHandle, progress: &serde_json::Value) {
    let epoch = serde_json::from_value(progress["epoch"].clone());
    let totals = serde_json::from_value(progress["totals"].clone());
    match (epoch, totals) {
        (Ok(epoch), Ok(totals)) => handle.update(|record| record.restore_epochs(epoch, totals)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(job = %handle.id(), %error, "the progress of the epochs before is not known");
        }
    }
}

/// State as the last epoch left it.
async fn restore(
    states: &Arc<States>,
    snapshot: Vec<(String, Vec<Bytes>)>,
    deltas: Vec<(u64, Vec<(String, Bytes)>)>,
) -> Result<()> {
    let states = Arc::clone(states);
    let work = move || -> Result<()> {
        for (operator, chunks) in snapshot {
            let mut restore = Restore::default();
            for chunk in chunks {
                restore.push(chunk)?;
            }
            states.put(&operator, restore.finish()?);
        }
        for (_, deltas) in deltas {
            let deltas = deltas
                .into_iter()
                .map(|(operator, delta)| Ok((operator, Delta::decode(delta)?)))
                .collect::<Result<_>>()?;
            states.apply(&deltas)?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(format!("the reading of state broke down: {e}")))?
}

/// Puts the INSERTs together: those that read one stream share its stage.
fn assemble(planned: Planned) -> Result<(StreamPlan, Vec<StaticInsert>)> {
    let mut sources = BTreeMap::new();
    let mut stages = Vec::new();
    let mut inserts = Vec::new();
    let mut statics = Vec::new();
    for (statement, planned, sink) in planned.inserts {
        sources.extend(planned.sources);
        stages.extend(planned.stages);
        inserts.push(Insert {
            index: statement.index,
            table: planned.table,
            mode: planned.mode,
            sink,
            upper: planned.upper,
            lates: planned.lates,
            tables: planned.tables,
        });
        if !planned.statics.is_empty() {
            statics.push((statement, planned.statics));
        }
    }
    if inserts.is_empty() {
        return Err(Error::invalid("the job has no INSERT"));
    }
    let plan = StreamPlan {
        sources,
        stages: plan::share(stages)?,
        inserts,
        has_statics: !statics.is_empty(),
    };
    Ok((plan, statics))
}

/// What the checkpoint's state is of.
fn meaning(plan: &StreamPlan) -> serde_json::Value {
    let inserts = plan.inserts.iter().map(|insert| {
        let operators: BTreeMap<&str, &str> = insert
            .upper
            .operators
            .iter()
            .map(|operator| (operator.id.as_str(), operator.meaning.as_str()))
            .collect();
        serde_json::json!({
            "table": insert.table,
            "output_mode": insert.mode,
            "operators": operators,
        })
    });
    serde_json::json!({
        "sources": plan.sources.keys().collect::<Vec<_>>(),
        "inserts": inserts.collect::<Vec<_>>(),
    })
}

fn incompatible(known: &serde_json::Value, now: &serde_json::Value) -> Error {
    let differs = ["sources", "inserts"]
        .into_iter()
        .find(|part| known[part] != now[part])
        .unwrap_or("sources");
    Error::invalid(format!(
        "the checkpoint of this job is of another query, so it cannot go on with it: {differs} were {}, and are {}. \
         Submit the query as it was, give the job another name, or start again with --from-scratch",
        known[differs], now[differs]
    ))
}
