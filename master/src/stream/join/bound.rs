//! How far apart in time the rows of two joined streams may be, read off the join's condition.

use crate::plan::stage::StageInputExec;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{JoinSide, JoinType, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr, split_conjunction};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::union::UnionExec;
use essaim_common::functions::event_time::EventTime;
use essaim_common::functions::window::WINDOW_KEY;
use essaim_common::late::LateFilterExec;
use essaim_common::scan::ScanExec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const NANOS_PER_MS: i128 = 1_000_000;
const NANOS_PER_DAY: i128 = 86_400_000 * NANOS_PER_MS;

/// A pair of event times that a join's condition ties together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The columns with the times, of the left and of the right input.
    pub columns: [usize; 2],
    /// The least and the greatest difference, right less left, of rows that match: ms.
    pub apart: [i64; 2],
}

impl Bound {
    /// The bound that the condition of `join` sets; `times` are the event times of its left and its right input.
    /// `None` if it leaves a difference open to either end.
    pub fn of(join: &HashJoinExec, times: &[BTreeSet<usize>; 2]) -> Option<Self> {
        let mut ranges = BTreeMap::new();
        for (left, right) in join.on() {
            let column =
                |expr: &Arc<dyn PhysicalExpr>| expr.downcast_ref::<Column>().map(Column::index);
            if let (Some(left), Some(right)) = (column(left), column(right)) {
                ranges.insert([left, right], Range::default().narrowed(Operator::Eq, 0));
            }
        }
        if let Some(filter) = join.filter() {
            for condition in split_conjunction(filter.expression()) {
                if let Some((columns, operator, apart)) = comparison(condition, filter) {
                    let range: &mut Range = ranges.entry(columns).or_default();
                    *range = range.narrowed(operator, apart);
                }
            }
        }
        ranges.into_iter().find_map(|(columns, range)| {
            let timed = times.iter().zip(columns).all(|(t, c)| t.contains(&c));
            let (Some(least), Some(greatest), true) = (range.least, range.greatest, timed) else {
                return None;
            };
            let least = least.div_euclid(NANOS_PER_MS);
            let greatest = -(-greatest).div_euclid(NANOS_PER_MS);
            let apart = [i64::try_from(least).ok()?, i64::try_from(greatest).ok()?];
            Some(Self { columns, apart })
        })
    }

    /// How much older than the watermark the times of a result may be, as rows wait for one another; `delays_ms` is
    /// how much older those of the left and of the right input may be, ms.
    pub fn delay_ms(&self, delays_ms: [i64; 2]) -> i64 {
        let [least, greatest] = self.apart;
        let [left, right] = delays_ms;
        let left_waits = right.saturating_add(greatest);
        let right_waits = left.saturating_sub(least);
        left.max(right).max(left_waits).max(right_waits)
    }
}

/// What is known of right less left, nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Range {
    least: Option<i128>,
    greatest: Option<i128>,
}

impl Range {
    /// With `right - left <operator> apart`.
    fn narrowed(self, operator: Operator, apart: i128) -> Self {
        let above = matches!(operator, Operator::Eq | Operator::Gt | Operator::GtEq);
        let below = matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq);
        Self {
            least: self.least.max(above.then_some(apart)),
            greatest: match (self.greatest, below) {
                (Some(known), true) => Some(known.min(apart)),
                (None, true) => Some(apart),
                (known, false) => known,
            },
        }
    }
}

/// A comparison of a time of the left with one of the right, as `right - left <operator> nanoseconds`.
fn comparison(
    condition: &Arc<dyn PhysicalExpr>,
    filter: &JoinFilter,
) -> Option<([usize; 2], Operator, i128)> {
    let binary = condition.downcast_ref::<BinaryExpr>()?;
    let operator = *binary.op();
    if !matches!(
        operator,
        Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
    ) {
        return None;
    }
    let (first, second) = (
        moment(binary.left(), filter)?,
        moment(binary.right(), filter)?,
    );
    match (first.side, second.side) {
        (JoinSide::Right, JoinSide::Left) => Some((
            [second.column, first.column],
            operator,
            second.plus - first.plus,
        )),
        (JoinSide::Left, JoinSide::Right) => Some((
            [first.column, second.column],
            operator.swap()?,
            first.plus - second.plus,
        )),
        _ => None,
    }
}

/// A column of one side, and nanoseconds that are added to it.
struct Moment {
    side: JoinSide,
    column: usize,
    plus: i128,
}

fn moment(expr: &Arc<dyn PhysicalExpr>, filter: &JoinFilter) -> Option<Moment> {
    if let Some(column) = expr.downcast_ref::<Column>() {
        let place = filter.column_indices().get(column.index())?;
        return Some(Moment {
            side: place.side,
            column: place.index,
            plus: 0,
        });
    }
    let type_of = |expr: &Arc<dyn PhysicalExpr>| expr.data_type(filter.schema()).ok();
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        let from = type_of(cast.expr())?;
        return is_exact(&from, cast.cast_type())
            .then(|| moment(cast.expr(), filter))
            .flatten();
    }
    let binary = expr.downcast_ref::<BinaryExpr>()?;
    let (base, interval, sign) = match binary.op() {
        Operator::Plus if binary.left().is::<Literal>() => (binary.right(), binary.left(), 1),
        Operator::Plus => (binary.left(), binary.right(), 1),
        Operator::Minus => (binary.left(), binary.right(), -1),
        _ => return None,
    };
    let base_type = type_of(base)?;
    let moment = moment(base, filter)?;
    let length = nanoseconds(interval.downcast_ref::<Literal>()?.value(), &base_type)?;
    Some(Moment {
        plus: moment.plus + sign * length,
        ..moment
    })
}

/// Whether a cast of a timestamp leaves the time as it is.
fn is_exact(from: &DataType, to: &DataType) -> bool {
    let fineness = |unit: &TimeUnit| match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    };
    match (from, to) {
        (DataType::Timestamp(from, from_zone), DataType::Timestamp(to, to_zone)) => {
            fineness(to) >= fineness(from)
                && (from_zone == to_zone || (has_even_days(from_zone) && has_even_days(to_zone)))
        }
        _ => false,
    }
}

/// Whether every day of a time zone has 24 hours.
fn has_even_days(zone: &Option<Arc<str>>) -> bool {
    zone.as_deref()
        .is_none_or(|zone| matches!(zone, "UTC" | "Z" | "+00:00" | "+00"))
}

/// The length of an interval that is added to a time of type `base`; `None` if it differs from time to time.
fn nanoseconds(interval: &ScalarValue, base: &DataType) -> Option<i128> {
    let days_are_even = match base {
        DataType::Timestamp(_, zone) => has_even_days(zone),
        _ => return None,
    };
    let days = |days: i32| (days == 0 || days_are_even).then_some(i128::from(days) * NANOS_PER_DAY);
    match interval {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => {
            Some(days(interval.days)? + i128::from(interval.nanoseconds))
        }
        ScalarValue::IntervalDayTime(Some(interval)) => {
            Some(days(interval.days)? + i128::from(interval.milliseconds) * NANOS_PER_MS)
        }
        ScalarValue::DurationSecond(Some(length)) => Some(i128::from(*length) * 1_000_000_000),
        ScalarValue::DurationMillisecond(Some(length)) => Some(i128::from(*length) * NANOS_PER_MS),
        ScalarValue::DurationMicrosecond(Some(length)) => Some(i128::from(*length) * 1000),
        ScalarValue::DurationNanosecond(Some(length)) => Some(i128::from(*length)),
        _ => None,
    }
}

/// The columns of a plan that are event times of UNBOUNDED tables, or starts of windows over them.
pub fn event_times(plan: &Arc<dyn ExecutionPlan>) -> BTreeSet<usize> {
    if let Some(leaf) = plan.downcast_ref::<StageInputExec>() {
        return event_times(&leaf.stage().plan);
    }
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        return scan
            .stream()
            .and_then(|_| scan.event_time())
            .into_iter()
            .collect();
    }
    let inputs: Vec<_> = plan.children().into_iter().map(event_times).collect();
    let Some(input) = inputs.first() else {
        return BTreeSet::new();
    };
    let taken = |expr: &Arc<dyn PhysicalExpr>| {
        // A window's start passes through a function that changes nothing.
        let start = expr
            .downcast_ref::<ScalarFunctionExpr>()
            .filter(|function| function.name() == EventTime::WindowStart.as_str())
            .and_then(|function| function.args().first());
        start
            .unwrap_or(expr)
            .downcast_ref::<Column>()
            .is_some_and(|column| input.contains(&column.index()))
    };
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let columns = projection.expr().iter().enumerate();
        return columns
            .filter(|(_, column)| taken(&column.expr))
            .map(|(position, _)| position)
            .collect();
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        return projected(input, filter.projection().as_deref());
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        let left = join.left().schema().fields().len();
        let right = inputs.get(1).into_iter().flatten();
        let columns: BTreeSet<usize> = match join.join_type() {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => input.clone(),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                right.copied().collect()
            }
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                let right = right.map(|column| left + column);
                input.iter().copied().chain(right).collect()
            }
        };
        return projected(&columns, join.projection.as_deref());
    }
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        let schema = aggregate.schema();
        let groups = aggregate.group_expr().expr().iter();
        return groups
            .zip(schema.fields())
            .enumerate()
            .filter(|(_, ((expr, _), field))| {
                taken(expr) || field.metadata().contains_key(WINDOW_KEY)
            })
            .map(|(position, _)| position)
            .collect();
    }
    if plan.is::<UnionExec>() {
        let all = inputs.iter().skip(1);
        return all.fold(input.clone(), |all, input| &all & input);
    }
    let keeps_columns = plan.is::<RepartitionExec>()
        || plan.is::<CoalescePartitionsExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<LateFilterExec>();
    if keeps_columns {
        input.clone()
    } else {
        BTreeSet::new()
    }
}

/// Where some columns are after a projection.
fn projected(columns: &BTreeSet<usize>, projection: Option<&[usize]>) -> BTreeSet<usize> {
    match projection {
        None => columns.clone(),
        Some(projection) => projection
            .iter()
            .enumerate()
            .filter(|(_, column)| columns.contains(column))
            .map(|(position, _)| position)
            .collect(),
    }
}
