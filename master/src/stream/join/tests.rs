//! Joins over many epochs against the same joins over all rows at once.

use super::{Bound, JoinOptions, StateJoinExec};
use crate::stream::context::{EpochContext, States, Watermarks};
use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::TimestampMillisecondType;
use arrow::util::display::array_value_to_string;
use datafusion::catalog::MemTable;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const COLUMNS: &str = "a.id, a.at AS a_at, a.n AS a_n, b.at AS b_at, b.n AS b_n";
const WITHIN: &str =
    "a.id = b.id AND b.at BETWEEN a.at - INTERVAL '5 seconds' AND a.at + INTERVAL '10 seconds'";

/// (id, time in ms, n).
type Row = (Option<i64>, Option<i64>, i64);

fn batch(rows: &[Row]) -> RecordBatch {
    let ids = rows.iter().map(|row| row.0).collect::<Int64Array>();
    let times = rows.iter().map(|row| row.1);
    let times = times.collect::<TimestampMillisecondArray>();
    let numbers = Int64Array::from_iter_values(rows.iter().map(|row| row.2));
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(ids) as _, true),
        ("at", Arc::new(times) as _, true),
        ("n", Arc::new(numbers) as _, true),
    ])
    .unwrap()
}

fn session(a: &[Row], b: &[Row]) -> SessionContext {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for (name, rows) in [("a", a), ("b", b)] {
        let rows = batch(rows);
        let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap();
        ctx.register_table(name, Arc::new(table)).unwrap();
    }
    ctx
}

fn find(plan: &Arc<dyn ExecutionPlan>) -> Option<&HashJoinExec> {
    plan.downcast_ref::<HashJoinExec>()
        .or_else(|| plan.children().into_iter().find_map(find))
}

/// The plan of a join, whose root may be a projection.
async fn plan(sql: &str) -> Arc<dyn ExecutionPlan> {
    let row = (Some(1), Some(0), 9);
    let frame = session(&[row], &[row]).sql(sql).await.unwrap();
    frame.create_physical_plan().await.unwrap()
}

fn bound_of(join: &HashJoinExec) -> Option<Bound> {
    let time =
        |side: &Arc<dyn ExecutionPlan>| BTreeSet::from([side.schema().index_of("at").unwrap()]);
    Bound::of(join, &[time(join.left()), time(join.right())])
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter();
            let values = values.map(|column| array_value_to_string(column, row).unwrap());
            lines.push(values.collect::<Vec<_>>().join("|"));
        }
    }
    lines.sort();
    lines
}

/// A join, epoch after epoch.
struct Epochs {
    template: Arc<dyn ExecutionPlan>,
    options: JoinOptions,
    states: Arc<States>,
    marks: Watermarks,
}

impl Epochs {
    async fn new(sql: &str) -> Self {
        let template = plan(sql).await;
        let join = find(&template).unwrap();
        let options = JoinOptions {
            op: "0/0".to_owned(),
            query: 0,
            bound: bound_of(join).unwrap(),
            delays_ms: [0, 0],
        };
        Self {
            template,
            options,
            states: Arc::default(),
            marks: Watermarks::NONE,
        }
    }

    /// Runs an epoch that moves the watermark to `now`, a first time in vain.
    async fn run(&mut self, a: &[Row], b: &[Row], now: i64) -> Vec<RecordBatch> {
        self.marks = Watermarks {
            before: self.marks.now,
            now,
        };
        let (failed, _) = self.attempt(a, b).await;
        let (rows, epoch) = self.attempt(a, b).await;
        assert_eq!(lines(&failed), lines(&rows));
        self.states.apply(&epoch.take_pending()).unwrap();
        rows
    }

    async fn attempt(&self, a: &[Row], b: &[Row]) -> (Vec<RecordBatch>, Arc<EpochContext>) {
        let input = |rows: &[Row]| {
            let rows = batch(rows);
            let schema = rows.schema();
            MemorySourceConfig::try_new_exec(&[vec![rows]], schema, None).unwrap()
                as Arc<dyn ExecutionPlan>
        };
        let join = find(&self.template).unwrap();
        let inputs = [input(a), input(b)];
        let join = StateJoinExec::new(join, inputs, self.options.clone()).unwrap();
        let watermarks = BTreeMap::from([(0, self.marks)]);
        let states = Arc::clone(&self.states);
        let epoch = Arc::new(EpochContext::new(1, 0, watermarks, states));
        let config = SessionConfig::new()
            .with_batch_size(7)
            .with_extension(Arc::clone(&epoch));
        let task = Arc::new(TaskContext::default().with_session_config(config));
        (collect(Arc::new(join), task).await.unwrap(), epoch)
    }
}

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn rows(&mut self, clock: i64) -> Vec<Row> {
        (0..self.below(12))
            .map(|_| {
                let id = self.below(5) as i64;
                let time = clock - self.below(9000) as i64;
                (
                    (id > 0).then_some(id),
                    (self.below(20) > 0).then_some(time),
                    self.below(1000) as i64,
                )
            })
            .collect()
    }
}

fn in_time(rows: &[Row], watermark: i64) -> Vec<Row> {
    let is_in_time = |row: &&Row| row.1.is_none_or(|time| time >= watermark);
    rows.iter().filter(is_in_time).copied().collect()
}

async fn is_like_a_batch(kind: &str, on: &str) {
    let sql = format!("SELECT {COLUMNS} FROM a {kind} JOIN b ON {on}");
    let mut epochs = Epochs::new(&sql).await;
    let delay_ms = epochs.options.bound.delay_ms([0, 0]);
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let (mut all_a, mut all_b, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let (mut latest, mut late, mut largest) = ([i64::MIN; 2], 0, 0);
    let mut clock = 1_000_000;
    for _ in 0..150 {
        clock += numbers.below(3000) as i64;
        let (a, b) = (numbers.rows(clock), numbers.rows(clock));
        let before = epochs.marks.now;
        let (in_time_a, in_time_b) = (in_time(&a, before), in_time(&b, before));
        late += a.len() + b.len() - in_time_a.len() - in_time_b.len();
        all_a.extend(in_time_a);
        all_b.extend(in_time_b);
        for (latest, rows) in latest.iter_mut().zip([&a, &b]) {
            let times = rows.iter().filter_map(|row| row.1);
            *latest = times.max().unwrap_or(i64::MIN).max(*latest);
        }
        let now = latest[0].min(latest[1]).saturating_sub(5000).max(before);
        let rows = epochs.run(&a, &b, now).await;
        for batch in &rows {
            for column in [1, 3] {
                let times = batch
                    .column(column)
                    .as_primitive::<TimestampMillisecondType>();
                let oldest = before.saturating_sub(delay_ms);
                assert!(times.iter().flatten().all(|time| time >= oldest));
            }
        }
        largest = epochs.states.size(0).rows.max(largest);
        all.extend(rows);
    }
    all.extend(epochs.run(&[], &[], i64::MAX - 1).await);
    let expected = session(&all_a, &all_b).sql(&sql).await.unwrap();
    let expected = lines(&expected.collect().await.unwrap());
    assert!(
        late > 50 && expected.len() > 500,
        "{late} {}",
        expected.len()
    );
    assert_eq!(lines(&all), expected);
    assert!(largest < 200, "{largest} rows are kept");
    assert_eq!(epochs.states.size(0).rows, 0, "all has been freed");
}

#[tokio::test]
async fn an_inner_join_is_that_of_all_rows_in_time() {
    is_like_a_batch("", WITHIN).await;
}

#[tokio::test]
async fn a_left_join_yields_rows_without_a_match_once() {
    is_like_a_batch("LEFT", WITHIN).await;
    is_like_a_batch("LEFT", &format!("{WITHIN} AND a.n > b.n")).await;
}

#[tokio::test]
async fn a_right_join_yields_rows_without_a_match_once() {
    is_like_a_batch("RIGHT", WITHIN).await;
}

#[tokio::test]
async fn the_bound_may_lie_ahead_or_behind() {
    let ahead = "a.id = b.id AND b.at > a.at + INTERVAL '2 seconds' \
                 AND b.at <= a.at + INTERVAL '9 seconds'";
    let behind = "a.id = b.id AND a.at - INTERVAL '9 seconds' <= b.at \
                  AND a.at > b.at + INTERVAL '2 seconds'";
    for on in [ahead, behind] {
        is_like_a_batch("", on).await;
        is_like_a_batch("LEFT", on).await;
    }
}

#[tokio::test]
async fn a_row_waits_as_long_as_the_other_side_may_be_late() {
    let sql = format!("SELECT {COLUMNS} FROM a LEFT JOIN b ON {WITHIN}");
    let mut epochs = Epochs::new(&sql).await;
    epochs.options.delays_ms = [0, 3000];
    let at = |time| vec![(Some(1), Some(time), 1)];
    assert!(epochs.run(&at(100_000), &[], 113_000).await.is_empty());
    let rows = epochs.run(&[], &at(110_000), 113_001).await;
    assert_eq!(rows.len(), 1, "110 s is 3 s behind the watermark");
    assert!(
        epochs.run(&at(100_500), &[], 120_000).await.is_empty(),
        "late"
    );
}

#[tokio::test]
async fn a_condition_tells_how_far_apart_rows_may_be() {
    let cases = [
        (
            "b.at BETWEEN a.at AND a.at + INTERVAL '1 minute'",
            Some([0, 60_000]),
        ),
        (
            "a.at < b.at AND b.at - INTERVAL '1 hour' < a.at",
            Some([0, 3_600_000]),
        ),
        ("a.at = b.at", Some([0, 0])),
        (
            "b.at >= a.at - INTERVAL '1 day' AND a.at >= b.at",
            Some([-86_400_000, 0]),
        ),
        (
            "a.at + INTERVAL '2 seconds' >= b.at - INTERVAL '1 second' AND b.at > a.at AND a.n > 3",
            Some([0, 3000]),
        ),
        ("b.at > a.at", None),
        ("b.at < a.at + INTERVAL '1 minute'", None),
        ("b.at BETWEEN a.at AND a.at + INTERVAL '1 month'", None),
        (
            "b.at BETWEEN a.at AND a.at + INTERVAL '1 day' OR a.n > b.n",
            None,
        ),
        ("a.n = b.n", None),
    ];
    for (condition, expected) in cases {
        let sql = format!("SELECT {COLUMNS} FROM a JOIN b ON a.id = b.id AND ({condition})");
        let plan = plan(&sql).await;
        let bound = find(&plan).map(bound_of);
        let bound = bound.unwrap_or_else(|| panic!("{condition}: {plan:?}"));
        assert_eq!(bound.map(|bound| bound.apart), expected, "{condition}");
    }
}
