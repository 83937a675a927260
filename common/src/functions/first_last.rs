//! `first_value` and `last_value` of lists and structs without an ORDER BY, as `SELECT DISTINCT ON` asks for them: a value is
//! kept as a copy of its own.
//!
//! DataFusion's keep a slice of the batch that the value came with, and count the whole batch as theirs, once for each
//! group: 4,000 groups out of one batch of 2 MB are 8 GB to the memory pool, and the query fails. Everything else is left
//! to it.

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, BooleanArray, UInt64Array, make_array};
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_datafusion_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF,
    Signature,
};
use std::sync::Arc;

/// Which of a group's values is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Which {
    First,
    Last,
}

impl Which {
    /// The row of `rows` that is wanted, of those for which `counts` says yes.
    fn of(self, rows: usize, counts: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::First => (0..rows).find(|row| counts(*row)),
            Self::Last => (0..rows).rev().find(|row| counts(*row)),
        }
    }
}

/// `first_value` or `last_value`, in place of DataFusion's.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct FirstLast {
    inner: AggregateUDF,
    which: Which,
}

impl FirstLast {
    /// `first_value`.
    pub fn first() -> Self {
        Self {
            inner: datafusion::functions_aggregate::first_last::first_value_udaf()
                .as_ref()
                .clone(),
            which: Which::First,
        }
    }

    /// `last_value`.
    pub fn last() -> Self {
        Self {
            inner: datafusion::functions_aggregate::first_last::last_value_udaf()
                .as_ref()
                .clone(),
            which: Which::Last,
        }
    }
}

impl AggregateUDFImpl for FirstLast {
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

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        self.inner.return_field(arguments)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let of = args.return_field.data_type();
        if args.order_bys.is_empty() && of.is_nested() {
            return Ok(Box::new(Kept {
                none: ScalarValue::try_from(of)?,
                value: None,
                which: self.which,
                ignore_nulls: args.ignore_nulls,
            }));
        }
        self.inner.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        self.inner.create_groups_accumulator(args)
    }

    fn with_beneficial_ordering(
        self: Arc<Self>,
        beneficial_ordering: bool,
    ) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        let inner = self
            .inner
            .clone()
            .with_beneficial_ordering(beneficial_ordering)?;
        Ok(inner.map(|inner| {
            Arc::new(Self {
                inner,
                which: self.which,
            }) as _
        }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_udf()
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.inner.supports_null_handling_clause()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// One value. Its state is the value and whether there is one, as DataFusion's.
#[derive(Debug)]
struct Kept {
    /// What stands for no value.
    none: ScalarValue,
    /// An array of one row.
    value: Option<ArrayRef>,
    which: Which,
    ignore_nulls: bool,
}

impl Kept {
    /// Whether what comes next cannot change the value.
    fn is_final(&self) -> bool {
        self.which == Which::First && self.value.is_some()
    }

    fn keep(&mut self, values: &ArrayRef, row: Option<usize>) -> Result<()> {
        if let Some(row) = row {
            self.value = Some(copy(values, row)?);
        }
        Ok(())
    }

    fn scalar(&self) -> Result<ScalarValue> {
        match &self.value {
            Some(value) => ScalarValue::try_from_array(value, 0),
            None => Ok(self.none.clone()),
        }
    }
}

impl Accumulator for Kept {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [values, ..] = values else {
            return Err(internal_datafusion_err!("a first or last value of nothing"));
        };
        if self.is_final() {
            return Ok(());
        }
        let row = self.which.of(values.len(), |row| {
            !self.ignore_nulls || values.is_valid(row)
        });
        self.keep(values, row)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [values, is_set] = states else {
            return Err(internal_datafusion_err!(
                "the state of a first or last value has {} columns",
                states.len()
            ));
        };
        if self.is_final() {
            return Ok(());
        }
        let is_set: &BooleanArray = is_set.as_boolean();
        let row = self.which.of(values.len(), |row| {
            is_set.is_valid(row) && is_set.value(row)
        });
        self.keep(values, row)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![
            self.scalar()?,
            ScalarValue::from(self.value.is_some()),
        ])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.scalar()
    }

    fn size(&self) -> usize {
        let value = self.value.as_ref().map_or(0, |v| v.get_array_memory_size());
        size_of::<Self>() + self.none.size() - size_of::<ScalarValue>() + value
    }
}

/// One row of `values` in buffers of its own.
fn copy(values: &ArrayRef, row: usize) -> Result<ArrayRef> {
    let row = take(values, &UInt64Array::from(vec![row as u64]), None)?;
    Ok(make_array(without_foreign_buffers(row.to_data())?))
}

/// `take` copies all but the texts that views point to: those are copied here, at any depth.
fn without_foreign_buffers(data: ArrayData) -> Result<ArrayData> {
    match data.data_type() {
        DataType::Utf8View => Ok(make_array(data).as_string_view().gc().into_data()),
        DataType::BinaryView => Ok(make_array(data).as_binary_view().gc().into_data()),
        _ => {
            let children = data
                .child_data()
                .iter()
                .map(|child| without_foreign_buffers(child.clone()))
                .collect::<Result<_>>()?;
            Ok(data.into_builder().child_data(children).build()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::session::with_essaim;
    use arrow::array::{Array, AsArray};
    use datafusion::execution::SessionStateBuilder;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    /// 20,000 rows with a list each, all of one batch, of which every tenth comes twice.
    const ROWS: &str = "
        SELECT value % 18000 AS id, [CAST(value % 18000 AS VARCHAR) || ' is a long text that no view holds', 'short'] AS tags
        FROM generate_series(0, 19999) AS t(value)";

    /// With 256 MB for a whole query.
    fn context() -> SessionContext {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(256 << 20, 1.0)
            .build_arc()
            .unwrap();
        let config = SessionConfig::new()
            .with_batch_size(20_000)
            .with_target_partitions(2);
        let builder = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime);
        SessionContext::new_with_state(with_essaim(builder).build())
    }

    #[tokio::test]
    async fn distinct_on_with_a_list_takes_the_memory_of_what_it_keeps() {
        let sql = format!(
            "SELECT count(*), sum(length(tags[1])) FROM (SELECT DISTINCT ON (id) id, tags FROM ({ROWS}))"
        );
        let batches = context().sql(&sql).await.unwrap().collect().await.unwrap();
        let rows = batches[0]
            .column(0)
            .as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(rows.value(0), 18_000);
        let letters = batches[0]
            .column(1)
            .as_primitive::<arrow::datatypes::Int64Type>();
        // " is a long text that no view holds", and the digits of 0 to 17999.
        let digits: i64 = (0..18_000i64).map(|id| id.to_string().len() as i64).sum();
        assert_eq!(letters.value(0), 18_000 * 34 + digits);
    }

    #[tokio::test]
    async fn first_and_last_of_lists_are_those_of_datafusion() {
        let sql =
            "SELECT first_value(t)[1] AS a, last_value(t)[1] AS b, first_value(t) IGNORE NULLS AS c
            FROM (VALUES (1, CAST(NULL AS BIGINT[])), (2, [7]), (3, [8, 9])) AS v(n, t)";
        let batches = context().sql(sql).await.unwrap().collect().await.unwrap();
        assert!(batches[0].column(0).is_null(0));
        let last = batches[0]
            .column(1)
            .as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(last.value(0), 8);
        let first = batches[0].column(2).as_list::<i32>().value(0);
        assert_eq!(
            first.as_primitive::<arrow::datatypes::Int64Type>().values(),
            &[7]
        );
    }
}
