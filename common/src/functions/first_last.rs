//! `first_value` and `last_value` of lists and structs without an ORDER BY, as `SELECT DISTINCT ON` asks for them: a value is
//! kept as a copy of its own.
//!
//! DataFusion's keep a slice of the batch that the value came with, and count the whole batch as theirs, once for each
//! group: 4,000 groups out of one batch of 2 MB are 8 GB to the memory pool, and the query fails. Everything else is left
//! to it.

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BooleanArray, UInt64Array, make_array, new_null_array,
};
use arrow::compute::{interleave, take};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_datafusion_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator,
    ReversedUDAF, Signature,
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
        if is_ours(&args) {
            return Ok(Box::new(Kept {
                none: ScalarValue::try_from(args.return_field.data_type())?,
                value: None,
                which: self.which,
                ignore_nulls: args.ignore_nulls,
            }));
        }
        self.inner.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        is_ours(&args) || self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        if is_ours(&args) {
            return Ok(Box::new(KeptGroups::new(
                args.return_field.data_type(),
                self.which,
                args.ignore_nulls,
            )));
        }
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

/// Whether an aggregate is one that DataFusion's would take too much memory for.
fn is_ours(args: &AccumulatorArgs) -> bool {
    args.order_bys.is_empty() && !args.is_distinct && args.return_field.data_type().is_nested()
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
            self.value = Some(copy(values, vec![row as u64])?);
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
        let (values, is_set) = value_and_flag(states)?;
        if self.is_final() {
            return Ok(());
        }
        let row = self
            .which
            .of(values.len(), |row| is_true(Some(is_set), row));
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

/// The values of many groups.
struct KeptGroups {
    which: Which,
    ignore_nulls: bool,
    /// A row that is null, then the rows that were kept of each batch.
    pieces: Vec<ArrayRef>,
    /// Rows of all pieces.
    rows: usize,
    /// By group: the piece and the row in it.
    at: Vec<Option<(usize, usize)>>,
}

/// More rows than twice the groups, and so many more, are gathered anew without those that nobody needs.
const SPARE_ROWS: usize = 8192;

impl KeptGroups {
    fn new(of: &DataType, which: Which, ignore_nulls: bool) -> Self {
        Self {
            which,
            ignore_nulls,
            pieces: vec![new_null_array(of, 1)],
            rows: 1,
            at: Vec::new(),
        }
    }

    /// Keeps of each group the row that is wanted among those for which `counts` says yes.
    fn keep(
        &mut self,
        values: &ArrayRef,
        groups: &[usize],
        total_groups: usize,
        counts: impl Fn(usize) -> bool,
    ) -> Result<()> {
        self.at.resize(total_groups.max(self.at.len()), None);
        let piece = self.pieces.len();
        let mut rows: Vec<u64> = Vec::new();
        for (row, group) in groups.iter().enumerate() {
            if !counts(row) {
                continue;
            }
            let at = &mut self.at[*group];
            match (self.which, *at) {
                (Which::First, Some(_)) => {}
                (Which::Last, Some((of, index))) if of == piece => rows[index] = row as u64,
                _ => {
                    *at = Some((piece, rows.len()));
                    rows.push(row as u64);
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.rows += rows.len();
        self.pieces.push(copy(values, rows)?);
        if self.rows > 2 * self.at.len() + SPARE_ROWS {
            self.gather()?;
        }
        Ok(())
    }

    /// Makes one piece of all.
    fn gather(&mut self) -> Result<()> {
        let all = self.values(&self.at)?;
        self.rows = 1 + all.len();
        self.pieces.truncate(1);
        self.pieces
            .push(make_array(without_foreign_buffers(all.to_data())?));
        for (row, at) in self.at.iter_mut().enumerate() {
            *at = at.map(|_| (1, row));
        }
        Ok(())
    }

    fn values(&self, at: &[Option<(usize, usize)>]) -> Result<ArrayRef> {
        let pieces: Vec<&dyn Array> = self.pieces.iter().map(AsRef::as_ref).collect();
        let indices: Vec<_> = at.iter().map(|at| at.unwrap_or((0, 0))).collect();
        Ok(interleave(&pieces, &indices)?)
    }

    /// The values of the first groups, which are forgotten, and whether each has one.
    fn emit(&mut self, emit_to: EmitTo) -> Result<(ArrayRef, BooleanArray)> {
        let at = emit_to.take_needed(&mut self.at);
        let values = self.values(&at)?;
        let is_set = at.iter().map(|at| Some(at.is_some())).collect();
        if self.at.is_empty() {
            self.pieces.truncate(1);
            self.rows = 1;
        } else if self.rows > 2 * self.at.len() + SPARE_ROWS {
            self.gather()?;
        }
        Ok((values, is_set))
    }
}

impl GroupsAccumulator for KeptGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> Result<()> {
        let [values, ..] = values else {
            return Err(internal_datafusion_err!("a first or last value of nothing"));
        };
        let ignore_nulls = self.ignore_nulls;
        self.keep(values, groups, total_groups, |row| {
            is_true(filter, row) && (!ignore_nulls || values.is_valid(row))
        })
    }

    fn merge_batch(
        &mut self,
        states: &[ArrayRef],
        groups: &[usize],
        total_groups: usize,
    ) -> Result<()> {
        let (values, is_set) = value_and_flag(states)?;
        self.keep(values, groups, total_groups, |row| {
            is_true(Some(is_set), row)
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(self.emit(emit_to)?.0)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (values, is_set) = self.emit(emit_to)?;
        Ok(vec![values, Arc::new(is_set)])
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let [values, ..] = values else {
            return Err(internal_datafusion_err!("a first or last value of nothing"));
        };
        let is_set: BooleanArray = (0..values.len())
            .map(|row| Some(is_true(filter, row) && (!self.ignore_nulls || values.is_valid(row))))
            .collect();
        Ok(vec![Arc::clone(values), Arc::new(is_set)])
    }

    fn size(&self) -> usize {
        let pieces = self
            .pieces
            .iter()
            .map(|piece| piece.get_array_memory_size());
        size_of::<Self>()
            + pieces.sum::<usize>()
            + self.at.capacity() * size_of::<Option<(usize, usize)>>()
    }
}

/// Whether a row passes a filter.
fn is_true(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

/// The two columns of a state.
fn value_and_flag(states: &[ArrayRef]) -> Result<(&ArrayRef, &BooleanArray)> {
    match states {
        [values, is_set] => Ok((values, is_set.as_boolean())),
        _ => Err(internal_datafusion_err!(
            "the state of a first or last value has {} columns",
            states.len()
        )),
    }
}

/// Rows of `values` in buffers of their own.
fn copy(values: &ArrayRef, rows: Vec<u64>) -> Result<ArrayRef> {
    let rows = take(values, &UInt64Array::from(rows), None)?;
    Ok(make_array(without_foreign_buffers(rows.to_data())?))
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
    async fn each_group_has_its_own_first_and_last_list() {
        // Many batches, so that what the last ones replace is dropped on the way.
        let sql = "SELECT g, first_value(t)[1] AS a, last_value(t)[1] AS b, (first_value(t) FILTER (WHERE n > 50000))[1] AS c
            FROM (SELECT value AS n, value % 3 AS g, [value] AS t FROM generate_series(0, 99999) AS s(value)) GROUP BY g ORDER BY g";
        let mut config = SessionConfig::new().with_batch_size(1000);
        // One after the other, so that it is certain which row is the first.
        config = config.with_target_partitions(1);
        let builder = SessionStateBuilder::new().with_config(config);
        let context = SessionContext::new_with_state(with_essaim(builder).build());
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let column = |index: usize| {
            batches[0]
                .column(index)
                .as_primitive::<arrow::datatypes::Int64Type>()
                .values()
                .to_vec()
        };
        assert_eq!(column(1), [0, 1, 2]);
        assert_eq!(column(2), [99_999, 99_997, 99_998]);
        assert_eq!(column(3), [50_001, 50_002, 50_003]);
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
