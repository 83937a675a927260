//! Aggregates over many epochs against the same aggregates over all rows at once.

use super::{Expiry, StateAggregateExec, StateOptions};
use crate::stream::context::{EpochContext, States, Watermarks};
use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::array_value_to_string;
use datafusion::catalog::MemTable;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{Accumulator, Volatility, create_udaf};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use essaim_common::stream::OutputMode;
use std::collections::BTreeMap;
use std::sync::Arc;

const WINDOW_MS: i64 = 1000;
/// How far rows come out of order, ms.
const DISORDER_MS: i64 = 2500;

/// Every aggregate function that DataFusion and a user bring, by the order of rows where they depend on it.
const FUNCTIONS: [&str; 28] = [
    "count(*)",
    "count(v)",
    "sum(n)",
    "sum(v) FILTER (WHERE n > 10)",
    "avg(v)",
    "avg(CAST(n AS DECIMAL(10, 2)))",
    "min(v)",
    "max(s)",
    "count(DISTINCT s)",
    "sum(DISTINCT n)",
    "approx_distinct(s)",
    "corr(v, n)",
    "covar_samp(v, n)",
    "regr_slope(v, n)",
    "stddev(v)",
    "var_pop(v)",
    "median(v)",
    "median(DISTINCT n)",
    "percentile_cont(v, 0.3)",
    "array_agg(n ORDER BY id)",
    "array_agg(DISTINCT n ORDER BY n)",
    "first_value(s ORDER BY id)",
    "last_value(v ORDER BY id)",
    "nth_value(n, 2 ORDER BY id)",
    "string_agg(s, '-' ORDER BY id DESC)",
    "bool_and(n > 1)",
    "bit_xor(n)",
    "sum_of_squares(v)",
];

/// A function of a user's own.
#[derive(Debug, Default)]
struct SumOfSquares(f64);

impl Accumulator for SumOfSquares {
    fn update_batch(&mut self, values: &[ArrayRef]) -> datafusion::common::Result<()> {
        let values = values[0].as_primitive::<Float64Type>();
        self.0 += values.iter().flatten().map(|v| v * v).sum::<f64>();
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> datafusion::common::Result<()> {
        self.0 += states[0]
            .as_primitive::<Float64Type>()
            .iter()
            .flatten()
            .sum::<f64>();
        Ok(())
    }

    fn state(&mut self) -> datafusion::common::Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> datafusion::common::Result<ScalarValue> {
        Ok(self.0.into())
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }
}

/// Random enough, and the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Epochs of rows: `id` counts them, `w` is the start of their window, `g` a group with NULLs. Windows come and go.
fn epochs(random: &mut Random) -> Vec<RecordBatch> {
    let mut id = 0;
    let mut epoch = |number: i64| {
        let rows = random.below(60) as usize;
        let ids: Vec<i64> = (0..rows)
            .map(|_| {
                id += 1;
                id
            })
            .collect();
        let mut number_of = |limit: u64| -> Vec<Option<i64>> {
            let number =
                |random: &mut Random| (random.below(9) > 0).then(|| random.below(limit) as i64);
            (0..rows).map(|_| number(random)).collect()
        };
        let g = number_of(6);
        let n = number_of(40);
        let v = number_of(1000)
            .into_iter()
            .map(|v| v.map(|v| v as f64 / 7.0));
        let s = number_of(30)
            .into_iter()
            .map(|s| s.map(|s| format!("s{s}")));
        let (v, s) = (v.collect::<Float64Array>(), s.collect::<StringArray>());
        let w = (0..rows).map(|_| {
            let time = number * 700 + DISORDER_MS - random.below(DISORDER_MS as u64) as i64;
            time / WINDOW_MS * WINDOW_MS
        });
        let w = TimestampMillisecondArray::from_iter_values(w);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Int64Array::from(ids))),
            ("w", Arc::new(w)),
            ("g", Arc::new(Int64Array::from(g))),
            ("n", Arc::new(Int64Array::from(n))),
            ("v", Arc::new(v)),
            ("s", Arc::new(s)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)))
            .unwrap()
    };
    (0..12).map(&mut epoch).collect()
}

/// One epoch, not an empty one.
fn some_rows() -> RecordBatch {
    let mut epochs = epochs(&mut Random(4)).into_iter();
    epochs.find(|rows| rows.num_rows() > 1).unwrap()
}

async fn session(rows: &[RecordBatch], partitions: usize) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(partitions);
    // The answer must not come from statistics, which a stream has none of.
    let mut rules = PhysicalOptimizer::new().rules;
    rules.retain(|rule| rule.name() != "aggregate_statistics");
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_physical_optimizer_rules(rules)
        .build();
    let ctx = SessionContext::new_with_state(state);
    // As for every streaming job.
    ctx.remove_optimizer_rule("single_distinct_aggregation_to_group_by");
    let pieces = rows.iter().map(|batch| vec![batch.clone()]).collect();
    let table = MemTable::try_new(rows[0].schema(), pieces).unwrap();
    ctx.register_table("rows", Arc::new(table)).unwrap();
    ctx.register_udaf(create_udaf(
        "sum_of_squares",
        vec![DataType::Float64],
        Arc::new(DataType::Float64),
        Volatility::Immutable,
        Arc::new(|_| Ok(Box::new(SumOfSquares::default()))),
        Arc::new(vec![DataType::Float64]),
    ));
    ctx
}

/// The topmost aggregate of a query.
async fn aggregate(ctx: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
    let mut plan = ctx
        .sql(sql)
        .await
        .unwrap()
        .create_physical_plan()
        .await
        .unwrap();
    while !plan.is::<AggregateExec>() {
        let child = Arc::clone(plan.children()[0]);
        plan = child;
    }
    plan
}

/// The same plan over other rows.
fn over(plan: Arc<dyn ExecutionPlan>, rows: &RecordBatch) -> Arc<dyn ExecutionPlan> {
    let half = rows.num_rows() / 2;
    let pieces = [
        vec![rows.slice(0, half)],
        vec![rows.slice(half, rows.num_rows() - half)],
    ];
    let replaced = plan.transform_up(|node| {
        if !node.children().is_empty() {
            return Ok(Transformed::no(node));
        }
        let columns = node.schema();
        let projection = columns
            .fields()
            .iter()
            .map(|field| rows.schema().index_of(field.name()));
        let projection = projection.collect::<Result<Vec<_>, _>>()?;
        let source = MemorySourceConfig::try_new_exec(&pieces, rows.schema(), Some(projection))?;
        Ok(Transformed::yes(source as _))
    });
    replaced.unwrap().data
}

/// Rows by key: the values of the other columns.
type Groups = BTreeMap<Vec<String>, Vec<Cell>>;

#[derive(Debug, Clone)]
enum Cell {
    Number(f64),
    Text(String),
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => {
                (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0) || (a.is_nan() && b.is_nan())
            }
            (Self::Text(a), Self::Text(b)) => a == b,
            _ => false,
        }
    }
}

/// Adds rows to groups; a group that is there already must not come again, unless it `may_repeat`.
fn add(groups: &mut Groups, batches: &[RecordBatch], keys: usize, may_repeat: bool) {
    for batch in batches {
        for row in 0..batch.num_rows() {
            let text = |column: &ArrayRef| array_value_to_string(column, row).unwrap();
            let key = batch.columns()[..keys].iter().map(text).collect();
            let cells = batch.columns()[keys..].iter().map(|column| {
                match column.as_primitive_opt::<Float64Type>() {
                    Some(numbers) if numbers.is_valid(row) => Cell::Number(numbers.value(row)),
                    _ => Cell::Text(text(column)),
                }
            });
            let before = groups.insert(key, cells.collect());
            assert!(may_repeat || before.is_none(), "a group came twice");
        }
    }
}

struct Job {
    ctx: SessionContext,
    states: Arc<States>,
    plan: Arc<dyn ExecutionPlan>,
}

impl Job {
    async fn new(ctx: SessionContext, sql: &str, mode: OutputMode, expiry: Expiry) -> Self {
        let template = aggregate(&ctx, sql).await;
        let options = StateOptions {
            op: "0/0".to_owned(),
            query: 0,
            mode,
            expiry,
            delay_ms: 0,
        };
        let template = template.downcast_ref::<AggregateExec>().unwrap();
        let plan = Arc::new(StateAggregateExec::new(template, options).unwrap());
        Self {
            ctx,
            states: Arc::default(),
            plan,
        }
    }

    async fn epoch(
        &self,
        rows: &RecordBatch,
        time_ms: i64,
        watermarks: Watermarks,
    ) -> Vec<RecordBatch> {
        let plan = over(Arc::clone(&self.plan), rows);
        let watermarks = BTreeMap::from([(0, watermarks)]);
        let epoch = EpochContext::new(0, time_ms, watermarks, Arc::clone(&self.states));
        let epoch = Arc::new(epoch);
        let config = self.ctx.copied_config().with_extension(Arc::clone(&epoch));
        let task = TaskContext::from(&self.ctx).with_session_config(config);
        let emitted = collect(plan, Arc::new(task)).await.unwrap();
        self.states.apply(&epoch.take_pending()).unwrap();
        emitted
    }
}

fn window(column: usize) -> Expiry {
    Expiry::Window {
        column,
        end: Arc::new(|start| start.checked_add(WINDOW_MS)),
    }
}

/// Runs a query over epochs, and over all rows at once.
async fn compare(
    sql: &str,
    keys: usize,
    mode: OutputMode,
    expiry: Expiry,
    seed: u64,
    partitions: usize,
) {
    let epochs = epochs(&mut Random(seed));
    let ctx = session(&epochs, partitions).await;
    let mut expected = Groups::new();
    let batch = aggregate(&ctx, sql).await;
    add(
        &mut expected,
        &collect(batch, ctx.task_ctx()).await.unwrap(),
        keys,
        false,
    );

    let job = Job::new(ctx, sql, mode, expiry).await;
    let mut found = Groups::new();
    let mut watermarks = Watermarks::NONE;
    let nothing = RecordBatch::new_empty(epochs[0].schema());
    let last = epochs.len();
    for (number, rows) in epochs.iter().chain([&nothing]).enumerate() {
        // No row of a later epoch is older than that.
        let now = if number == last {
            i64::MAX - 1
        } else {
            (number as i64 + 1) * 700
        };
        watermarks = Watermarks {
            before: watermarks.now,
            now: now / WINDOW_MS * WINDOW_MS,
        };
        if mode == OutputMode::Complete {
            found.clear();
        }
        let emitted = job.epoch(rows, 0, watermarks).await;
        add(&mut found, &emitted, keys, mode == OutputMode::Update);
    }
    assert_eq!(found.len(), expected.len(), "{sql} {mode:?} seed {seed}");
    for (key, cells) in &expected {
        assert_eq!(
            found.get(key),
            Some(cells),
            "{sql} {mode:?} seed {seed} {key:?}"
        );
    }
    if mode == OutputMode::Append {
        assert_eq!(
            job.states.size(0).rows,
            0,
            "closed windows stay in the state"
        );
    }
}

#[tokio::test]
async fn every_aggregate_over_epochs_is_the_aggregate_of_all_rows() {
    for (position, function) in FUNCTIONS.iter().enumerate() {
        for partitions in [1, 3] {
            let seed = 77 + 3 * position as u64 + partitions as u64;
            let sql = format!("SELECT w, g, {function} AS x FROM rows GROUP BY w, g");
            compare(&sql, 2, OutputMode::Update, window(0), seed, partitions).await;
            compare(&sql, 2, OutputMode::Append, window(0), seed, partitions).await;
            compare(&sql, 2, OutputMode::Complete, window(0), seed, partitions).await;
            let sql = format!("SELECT {function} AS x FROM rows");
            compare(&sql, 0, OutputMode::Update, Expiry::Never, seed, partitions).await;
            compare(
                &sql,
                0,
                OutputMode::Complete,
                Expiry::Never,
                seed,
                partitions,
            )
            .await;
        }
    }
}

#[tokio::test]
async fn many_aggregates_share_a_group() {
    let functions = FUNCTIONS.join(", ");
    let sql = format!("SELECT w, s, {functions} FROM rows GROUP BY w, s");
    for mode in [OutputMode::Update, OutputMode::Append, OutputMode::Complete] {
        compare(&sql, 2, mode, window(0), 5, 3).await;
    }
}

#[tokio::test]
async fn approximate_percentiles_stay_near_the_exact_ones() {
    let epochs = epochs(&mut Random(3));
    let ctx = session(&epochs, 3).await;
    let sql = "SELECT approx_percentile_cont(v, 0.5) AS a FROM rows";
    let exact = ctx
        .sql("SELECT percentile_cont(v, 0.5) AS a FROM rows")
        .await
        .unwrap();
    let exact = exact.collect().await.unwrap();
    let job = Job::new(ctx, sql, OutputMode::Update, Expiry::Never).await;
    let mut last = Vec::new();
    for rows in &epochs {
        last = job.epoch(rows, 0, Watermarks::NONE).await;
    }
    let value = |rows: &[RecordBatch]| rows[0].column(0).as_primitive::<Float64Type>().value(0);
    let (approximate, exact) = (value(&last), value(&exact));
    assert!(
        (approximate - exact).abs() < 0.05 * exact,
        "{approximate} for {exact}"
    );
}

#[tokio::test]
async fn array_agg_without_an_order_keeps_that_of_the_epochs() {
    let epochs = epochs(&mut Random(9));
    let ctx = session(&epochs, 1).await;
    let sql = "SELECT g, array_agg(id) AS ids, first_value(id) AS first FROM rows GROUP BY g";
    let job = Job::new(ctx, sql, OutputMode::Complete, Expiry::Never).await;
    let mut last = Vec::new();
    for rows in &epochs {
        last = job.epoch(rows, 0, Watermarks::NONE).await;
    }
    let rows = concat_batches(&last[0].schema(), &last).unwrap();
    let lists = rows.column(1).as_list::<i32>();
    let all: usize = (0..rows.num_rows()).map(|row| lists.value(row).len()).sum();
    assert_eq!(all, epochs.iter().map(RecordBatch::num_rows).sum::<usize>());
}

#[tokio::test]
async fn a_group_is_forgotten_after_its_time_to_live() {
    let rows = some_rows();
    let ctx = session(std::slice::from_ref(&rows), 2).await;
    let sql = "SELECT count(*) AS n FROM rows";
    let job = Job::new(ctx, sql, OutputMode::Update, Expiry::Ttl(100)).await;
    let mut counts = Vec::new();
    for time_ms in [0, 50, 149, 249, 260] {
        let emitted = job.epoch(&rows, time_ms, Watermarks::NONE).await;
        let count = emitted[0]
            .column(0)
            .as_primitive::<arrow::datatypes::Int64Type>()
            .value(0);
        counts.push(count / rows.num_rows() as i64);
    }
    assert_eq!(counts, [1, 2, 3, 1, 2]);
    assert_eq!(job.states.size(0).rows, 1);
    assert_eq!(job.states.size(1).rows, 0);
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused() {
    let rows = some_rows();
    let ctx = session(std::slice::from_ref(&rows), 2).await;
    let refusal = async |sql: &str, mode| {
        let template = aggregate(&ctx, sql).await;
        let options = StateOptions {
            op: "0/0".to_owned(),
            query: 0,
            mode,
            expiry: Expiry::Never,
            delay_ms: 0,
        };
        let template = template.downcast_ref::<AggregateExec>().unwrap();
        let error = StateAggregateExec::new(template, options).unwrap_err();
        error.to_string()
    };
    let sql = "SELECT g, n, count(*) FROM rows GROUP BY GROUPING SETS ((g), (n))";
    let error = refusal(sql, OutputMode::Update).await;
    assert!(error.contains("GROUPING SETS"), "{error}");
    let error = refusal(
        "SELECT g, count(*) FROM rows GROUP BY g",
        OutputMode::Append,
    )
    .await;
    assert!(error.contains("'append'"), "{error}");
}
