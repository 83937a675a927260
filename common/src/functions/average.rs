//! `avg` of decimals, rounded in its last digit as PostgreSQL and Spark round it: half away from zero.
//!
//! DataFusion's own cuts the rest of the division off, so that the average of 1, 2 and 2 is 1.666666. Everything but the
//! last step is left to it: its accumulators keep a sum and a count, and only the division is done here.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal256Array, Decimal256Builder, UInt64Array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DECIMAL256_MAX_PRECISION, DataType, Decimal256Type, DecimalType, FieldRef, i256,
};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, internal_datafusion_err};
use datafusion::functions_aggregate::average::Avg;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    Signature,
};
use std::sync::Arc;

/// `avg(expression)`, in place of DataFusion's.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Average {
    inner: Avg,
}

impl AggregateUDFImpl for Average {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let result = args.return_type().clone();
        let inner = self.inner.accumulator(args)?;
        Ok(match result.is_decimal() {
            true => Box::new(Rounded { inner, result }),
            false => inner,
        })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let result = args.return_field.data_type().clone();
        let inner = self.inner.create_groups_accumulator(args)?;
        Ok(match result.is_decimal() {
            true => Box::new(RoundedGroups { inner, result }),
            false => inner,
        })
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_expr()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// One average.
#[derive(Debug)]
struct Rounded {
    inner: Box<dyn Accumulator>,
    result: DataType,
}

impl Accumulator for Rounded {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(values)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let state = self.inner.state()?;
        let average = match state.as_slice() {
            [count, sum] => {
                let counts = count.to_array()?;
                quotients(&sum.to_array()?, counts.as_primitive(), &self.result)?
            }
            // Of DISTINCT: a list of the values.
            [ScalarValue::List(values)] => {
                let (sum, count) = total(&values.value(0))?;
                quotients(&sum, &UInt64Array::from(vec![count]), &self.result)?
            }
            other => return Err(internal_datafusion_err!("the state of avg is {other:?}")),
        };
        ScalarValue::try_from_array(&average, 0)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}

/// The averages of many groups.
struct RoundedGroups {
    inner: Box<dyn GroupsAccumulator>,
    result: DataType,
}

impl GroupsAccumulator for RoundedGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> Result<()> {
        self.inner
            .update_batch(values, groups, filter, total_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        match self.inner.state(emit_to)?.as_slice() {
            [counts, sums] => quotients(sums, counts.as_primitive(), &self.result),
            other => Err(internal_datafusion_err!(
                "the state of avg has {} columns",
                other.len()
            )),
        }
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit_to)
    }

    fn merge_batch(
        &mut self,
        states: &[ArrayRef],
        groups: &[usize],
        total_groups: usize,
    ) -> Result<()> {
        self.inner.merge_batch(states, groups, total_groups)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.inner.size()
    }
}

/// The widest decimal of the scale of `values`, in which no sum of ours overflows.
fn widened(values: &ArrayRef) -> Result<Decimal256Array> {
    let scale = scale(values.data_type())?;
    let wide = cast(
        values,
        &DataType::Decimal256(DECIMAL256_MAX_PRECISION, scale),
    )?;
    Ok(wide.as_primitive::<Decimal256Type>().clone())
}

/// A cast that fails where a value does not fit, instead of making it null.
fn cast(values: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let options = CastOptions {
        safe: false,
        ..Default::default()
    };
    Ok(cast_with_options(values, to, &options)?)
}

/// The scale of a decimal type.
fn scale(of: &DataType) -> Result<i8> {
    match of {
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => Ok(*scale),
        other => Err(internal_datafusion_err!("{other} is no decimal")),
    }
}

/// Sum and number of the values that are not null. Of none the sum is null.
fn total(values: &ArrayRef) -> Result<(ArrayRef, u64)> {
    let values = widened(values)?;
    let sum = values.iter().flatten().try_fold(i256::ZERO, |sum, value| {
        sum.checked_add(value).ok_or_else(overflow)
    })?;
    let count = (values.len() - values.null_count()) as u64;
    let sum = Decimal256Array::from(vec![(count > 0).then_some(sum)])
        .with_precision_and_scale(values.precision(), values.scale())?;
    Ok((Arc::new(sum), count))
}

/// `sums / counts` as `result`, a decimal of at least the scale of the sums: rounded half away from zero. Null where the sum
/// is, and where nothing was counted.
fn quotients(sums: &ArrayRef, counts: &UInt64Array, result: &DataType) -> Result<ArrayRef> {
    let sums = widened(sums)?;
    let scale = scale(result)?;
    let digits = u32::try_from(i16::from(scale) - i16::from(sums.scale()))
        .map_err(|_| internal_datafusion_err!("avg loses digits: its result is {result}"))?;
    let factor = i256::from_i128(10)
        .checked_pow(digits)
        .ok_or_else(overflow)?;
    let mut quotients = Decimal256Builder::with_capacity(sums.len());
    for (sum, count) in sums.iter().zip(counts.iter()) {
        quotients.append_option(match (sum, count) {
            (Some(sum), Some(count)) if count > 0 => {
                let dividend = sum.checked_mul(factor).ok_or_else(overflow)?;
                Some(rounded(dividend, i256::from_i128(i128::from(count))))
            }
            _ => None,
        });
    }
    let quotients = quotients
        .finish()
        .with_precision_and_scale(DECIMAL256_MAX_PRECISION, scale)?;
    quotients.validate_decimal_precision(Decimal256Type::MAX_PRECISION)?;
    cast(&(Arc::new(quotients) as ArrayRef), result)
}

/// `dividend / divisor`, half away from zero. The divisor is positive, and at most 2^64.
fn rounded(dividend: i256, divisor: i256) -> i256 {
    let quotient = dividend.wrapping_div(divisor);
    let rest = dividend.wrapping_rem(divisor);
    match rest.wrapping_abs().wrapping_mul(i256::from_i128(2)) < divisor {
        true => quotient,
        false if rest.is_negative() => quotient.wrapping_sub(i256::ONE),
        false => quotient.wrapping_add(i256::ONE),
    }
}

fn overflow() -> datafusion::common::DataFusionError {
    exec_datafusion_err!("avg: the sum has more digits than the widest decimal, 76")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::with_essaim;
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::SessionContext;

    /// The rows of a query as texts.
    async fn rows(sql: &str) -> Vec<Vec<String>> {
        let state = with_essaim(SessionStateBuilder::new()).build();
        let context = SessionContext::new_with_state(state);
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let mut rows = Vec::new();
        for batch in batches {
            for row in 0..batch.num_rows() {
                let cell = |column: &ArrayRef| {
                    ScalarValue::try_from_array(column, row)
                        .unwrap()
                        .cast_to(&DataType::Utf8)
                        .unwrap()
                        .to_string()
                };
                rows.push(batch.columns().iter().map(cell).collect());
            }
        }
        rows
    }

    const VALUES: &str = "(VALUES (1, '1.00'), (1, '2.00'), (1, '2.00'), (2, '-1.00'), (2, '-2.00'), (2, '-2.00'), (3, '0.01'), (3, NULL), (4, NULL)) AS v(g, t)";

    #[tokio::test]
    async fn the_last_digit_of_an_average_is_rounded_as_postgres_rounds_it() {
        let of_groups = rows(&format!(
            "SELECT g, avg(CAST(t AS DECIMAL(12,2))), avg(DISTINCT CAST(t AS DECIMAL(12,2))) FROM {VALUES} GROUP BY g ORDER BY g"
        ))
        .await;
        assert_eq!(
            of_groups,
            [
                ["1", "1.666667", "1.500000"],
                ["2", "-1.666667", "-1.500000"],
                ["3", "0.010000", "0.010000"],
                ["4", "NULL", "NULL"],
            ]
        );
        // The sum is 0.01, of 7.
        for (cast, average) in [
            ("DECIMAL(38,18)", "0.0014285714285714285714"),
            ("DECIMAL(9,2)", "0.001429"),
        ] {
            let of_all = rows(&format!("SELECT avg(CAST(t AS {cast})) FROM {VALUES}")).await;
            assert_eq!(of_all, [[average]]);
        }
    }

    #[tokio::test]
    async fn a_sliding_window_of_averages_forgets_what_has_left_it() {
        let sliding = rows(
            "SELECT avg(CAST(t AS DECIMAL(4,1))) OVER (ORDER BY n ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)
             FROM (VALUES (1, '1.0'), (2, '2.0'), (3, '2.0'), (4, '9.0')) AS v(n, t) ORDER BY n",
        )
        .await;
        assert_eq!(
            sliding,
            [["1.00000"], ["1.50000"], ["1.66667"], ["4.33333"]]
        );
    }

    #[test]
    fn half_goes_away_from_zero() {
        let of = |dividend, divisor| {
            rounded(i256::from_i128(dividend), i256::from_i128(divisor)).to_i128()
        };
        assert_eq!(of(5, 10), Some(1));
        assert_eq!(of(-5, 10), Some(-1));
        assert_eq!(of(4, 10), Some(0));
        assert_eq!(of(-15, 10), Some(-2));
        assert_eq!(of(1, 3), Some(0));
        assert_eq!(of(2, 3), Some(1));
    }
}
