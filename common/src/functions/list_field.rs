//! `list['name']` of a list of structs: the list of that field, as Spark's `list.name`.
//!
//! JSON is full of lists of objects of which one field is wanted, and to take them apart by `unnest` and put them together
//! again by an aggregate would cost a stream a state.

use crate::sql_types::sql_type;
use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawFieldAccessExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, GetFieldAccess, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use std::sync::{Arc, LazyLock};

static SIGNATURE: LazyLock<Signature> = LazyLock::new(|| Signature::any(2, Volatility::Immutable));

/// `list_field(list, name)`: the field `name` of each struct of a list. A null struct gives a null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListField;

impl ScalarUDFImpl for ListField {
    fn name(&self) -> &str {
        "list_field"
    }

    fn signature(&self) -> &Signature {
        &SIGNATURE
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("list_field is asked for a type without the name of the field")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let [list, _] = args.arg_fields else {
            return plan_err!("list_field takes a list and the name of a field");
        };
        let Some(Some(name)) = args.scalar_arguments.get(1).map(|name| text(*name)) else {
            return plan_err!("list_field takes the name of a field as a literal");
        };
        let (DataType::List(item) | DataType::LargeList(item)) = list.data_type() else {
            return plan_err!(
                "list_field takes a list of structs, not {}",
                sql_type(list.data_type())
            );
        };
        let DataType::Struct(fields) = item.data_type() else {
            return plan_err!(
                "list_field takes a list of structs, not of {}",
                sql_type(item.data_type())
            );
        };
        let Some((_, field)) = fields.find(name) else {
            let names: Vec<_> = fields.iter().map(|field| field.name().as_str()).collect();
            return plan_err!(
                "the structs of the list have no field {name}, but {}",
                names.join(", ")
            );
        };
        let item = Arc::new(Field::new_list_field(field.data_type().clone(), true));
        let of = match list.data_type() {
            DataType::LargeList(_) => DataType::LargeList(item),
            _ => DataType::List(item),
        };
        Ok(Arc::new(Field::new(self.name(), of, list.is_nullable())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [list, ColumnarValue::Scalar(name)] = args.args.as_slice() else {
            return internal_err!("list_field takes a list and a literal");
        };
        let Some(name) = text(Some(name)) else {
            return internal_err!("list_field takes the name of a field");
        };
        let of = |list: &ArrayRef| match args.return_field.data_type() {
            DataType::LargeList(item) => fields::<i64>(list.as_list(), name, item),
            DataType::List(item) => fields::<i32>(list.as_list(), name, item),
            other => internal_err!("list_field yields {other}"),
        };
        match list {
            ColumnarValue::Array(list) => Ok(ColumnarValue::Array(of(list)?)),
            ColumnarValue::Scalar(list) => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
                &of(&list.to_array()?)?,
                0,
            )?)),
        }
    }
}

/// The text of a literal.
fn text(value: Option<&ScalarValue>) -> Option<&str> {
    value?.try_as_str().flatten()
}

fn fields<O: OffsetSizeTrait>(
    list: &GenericListArray<O>,
    name: &str,
    item: &FieldRef,
) -> Result<ArrayRef> {
    let structs: &StructArray = list.values().as_struct();
    let Some(values) = structs.column_by_name(name) else {
        return internal_err!("the structs of the list have no field {name}");
    };
    // Where a struct is null, its field may hold anything.
    let nulls = NullBuffer::union(structs.nulls(), values.nulls());
    let values = values.to_data().into_builder().nulls(nulls).build()?;
    Ok(Arc::new(GenericListArray::<O>::try_new(
        Arc::clone(item),
        list.offsets().clone(),
        arrow::array::make_array(values),
        list.nulls().cloned(),
    )?))
}

/// Makes `list['name']` a [`ListField`]. What is no list of structs is left to DataFusion.
#[derive(Debug)]
pub struct ListFieldPlanner;

impl ExprPlanner for ListFieldPlanner {
    fn plan_field_access(
        &self,
        access: RawFieldAccessExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        let GetFieldAccess::NamedStructField { name } = &access.field_access else {
            return Ok(PlannerResult::Original(access));
        };
        let (DataType::List(item) | DataType::LargeList(item)) = access.expr.get_type(schema)?
        else {
            return Ok(PlannerResult::Original(access));
        };
        if !matches!(item.data_type(), DataType::Struct(_)) {
            return Ok(PlannerResult::Original(access));
        }
        let name: Expr = lit(name.clone());
        let function = ScalarUDF::new_from_impl(ListField);
        Ok(PlannerResult::Planned(
            function.call(vec![access.expr, name]),
        ))
    }
}

#[cfg(test)]
mod tests {
    use crate::session::with_essaim;
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::SessionContext;

    async fn shown(sql: &str) -> Result<String, String> {
        let state = with_essaim(SessionStateBuilder::new()).build();
        let context = SessionContext::new_with_state(state);
        let frame = context.sql(sql).await.map_err(|e| e.to_string())?;
        let batches = frame.collect().await.map_err(|e| e.to_string())?;
        Ok(pretty_format_batches(&batches).unwrap().to_string())
    }

    #[tokio::test]
    async fn the_field_of_a_list_of_structs_is_a_list() {
        let tags = "(VALUES
            (1, [named_struct('name', 'a', 'n', 1), named_struct('name', 'b', 'n', NULL)]),
            (2, NULL), (3, [NULL, named_struct('name', NULL, 'n', 3)])) AS v(id, tags)";
        let rows = shown(&format!(
            "SELECT id, tags['name'] AS names, array_to_string(tags['name'], ',') AS text, tags['n'] AS n
             FROM {tags} ORDER BY id"
        ))
        .await
        .unwrap();
        let expected = "\
+----+--------+------+-------+
| id | names  | text | n     |
+----+--------+------+-------+
| 1  | [a, b] | a,b  | [1, ] |
| 2  |        |      |       |
| 3  | [, ]   |      | [, 3] |
+----+--------+------+-------+";
        assert_eq!(rows, expected);
    }

    #[tokio::test]
    async fn a_field_that_the_structs_do_not_have_is_an_error_that_says_which_they_have() {
        let error = shown("SELECT [named_struct('name', 'a', 'url', 'u')]['title']")
            .await
            .unwrap_err();
        assert!(error.contains("no field title, but name, url"), "{error}");
    }
}
