//! What the numbers in a statement are. One with a point is a DECIMAL, one with an exponent a DOUBLE, and where a DECIMAL
//! meets a DOUBLE it becomes one, as in PostgreSQL. DataFusion would compare both as DECIMAL(30, 15), which most DOUBLEs
//! do not fit.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, cast};
use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{
    self, CastKind, ExactNumberInfo, Statement as SqlStatement, Value, VisitMut, VisitorMut,
};
use std::cell::Cell;
use std::ops::ControlFlow;

/// A quotient of decimals has at least so many digits behind the point, if there is room for them.
const QUOTIENT_SCALE: i8 = 10;
/// DataFusion gives a quotient so many digits behind the point more than the dividend has.
const QUOTIENT_INCREMENT: i8 = 4;
const MAX_PRECISION: i8 = 38;

/// Makes DOUBLEs of the numbers with an exponent.
pub fn exponents(statement: &mut Statement) {
    // It never breaks off.
    let _: ControlFlow<()> = match statement {
        Statement::Statement(sql) => match sql.as_mut() {
            // A setting's value is no expression.
            SqlStatement::Set(_) => ControlFlow::Continue(()),
            sql => sql.visit(&mut Exponents),
        },
        Statement::Explain(explain) => return exponents(&mut explain.statement),
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(&mut Exponents),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        _ => ControlFlow::Continue(()),
    };
}

struct Exponents;

impl VisitorMut for Exponents {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
        if let ast::Expr::Value(value) = expr
            && let Value::Number(digits, _) = &value.value
            && digits.contains(['e', 'E'])
        {
            let text = Value::SingleQuotedString(digits.replace('_', ""));
            *expr = ast::Expr::Cast {
                kind: CastKind::Cast,
                expr: Box::new(ast::Expr::Value(text.with_span(value.span))),
                data_type: ast::DataType::Double(ExactNumberInfo::None),
                array: false,
                format: None,
            };
        }
        ControlFlow::Continue(())
    }
}

/// Casts decimals that meet floats, and makes quotients of decimals long enough.
///
/// # Errors
/// Those of the planner.
pub fn settle(plan: LogicalPlan) -> Result<LogicalPlan> {
    let is_changed = Cell::new(false);
    plan.transform_up_with_subqueries(|plan| {
        let schema = merge_schema(&plan.inputs());
        let names = NamePreserver::new(&plan);
        let plan = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let settled = expr.transform_up(|expr| settled(expr, &schema))?;
            Ok(settled.update_data(|expr| name.restore(expr)))
        })?;
        is_changed.set(is_changed.get() || plan.transformed);
        if !is_changed.get() {
            return Ok(plan);
        }
        // Its own types may have changed, or those of its inputs.
        plan.map_data(LogicalPlan::recompute_schema)
    })
    .data()
}

fn settled(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let type_of = |expr: &Expr| expr.get_type(schema).ok();
    let is_float = |expr: &Expr| type_of(expr).is_some_and(|t| floats(&t));
    let is_decimal = |expr: &Expr| type_of(expr).is_some_and(|t| t.is_decimal());
    let double = |expr: &mut Expr| {
        *expr = cast(std::mem::take(expr), DataType::Float64);
    };
    let mut expr = expr;
    let mut met: Vec<&mut Expr> = match &mut expr {
        Expr::BinaryExpr(binary) if compares(binary.op) => {
            vec![binary.left.as_mut(), binary.right.as_mut()]
        }
        Expr::BinaryExpr(binary) if binary.op == Operator::Divide => {
            let types = type_of(&binary.left).zip(type_of(&binary.right));
            let is_longer = match types.and_then(|(left, right)| dividend(&left, &right)) {
                Some(dividend) => {
                    lengthen(binary, dividend);
                    true
                }
                None => false,
            };
            return Ok(Transformed::new_transformed(expr, is_longer));
        }
        Expr::Between(between) => vec![
            between.expr.as_mut(),
            between.low.as_mut(),
            between.high.as_mut(),
        ],
        Expr::InList(list) => {
            let mut met = vec![list.expr.as_mut()];
            met.extend(&mut list.list);
            met
        }
        Expr::Case(case) => {
            let (mut met, results): (Vec<_>, Vec<_>) = case
                .when_then_expr
                .iter_mut()
                .map(|(when, then)| (when.as_mut(), then.as_mut()))
                .unzip();
            let results = results.into_iter().chain(case.else_expr.as_deref_mut());
            let mut results: Vec<_> = results.collect();
            let mut is_changed = unify(&mut results, is_float, is_decimal, double);
            if let Some(operand) = &mut case.expr {
                met.push(operand);
                is_changed |= unify(&mut met, is_float, is_decimal, double);
            }
            return Ok(Transformed::new_transformed(expr, is_changed));
        }
        Expr::ScalarFunction(call) => match (call.func.name(), call.args.as_mut_slice()) {
            // It takes no decimals.
            ("rint", [arg]) if is_decimal(arg) => {
                double(arg);
                return Ok(Transformed::yes(expr));
            }
            // The result may have a digit more before the point.
            ("ceil" | "floor", [arg]) => {
                let is_wider = match type_of(arg) {
                    Some(DataType::Decimal128(precision, scale))
                        if i16::from(precision) == i16::from(scale)
                            && precision < MAX_PRECISION as u8 =>
                    {
                        let wider = DataType::Decimal128(precision + 1, scale);
                        *arg = cast(std::mem::take(arg), wider);
                        true
                    }
                    _ => false,
                };
                return Ok(Transformed::new_transformed(expr, is_wider));
            }
            (_, args) => {
                let is_changed = literals(args, is_float, double);
                return Ok(Transformed::new_transformed(expr, is_changed));
            }
        },
        Expr::WindowFunction(call) => {
            let is_changed = literals(&mut call.params.args, is_float, double);
            return Ok(Transformed::new_transformed(expr, is_changed));
        }
        _ => return Ok(Transformed::no(expr)),
    };
    let is_changed = unify(&mut met, is_float, is_decimal, double);
    Ok(Transformed::new_transformed(expr, is_changed))
}

fn compares(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

/// Whether it is a float, or a list of them.
fn floats(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            floats(item.data_type())
        }
        other => other.is_floating(),
    }
}

/// Makes DOUBLEs of the decimals among values that are to be of one type, if one of them is a float.
fn unify(
    met: &mut [&mut Expr],
    is_float: impl Fn(&Expr) -> bool,
    is_decimal: impl Fn(&Expr) -> bool,
    double: impl Fn(&mut Expr),
) -> bool {
    if !met.iter().any(|expr| is_float(expr)) {
        return false;
    }
    let mut is_changed = false;
    for expr in met.iter_mut().filter(|expr| is_decimal(expr)) {
        double(expr);
        is_changed = true;
    }
    is_changed
}

/// As [`unify`], of arguments, which need not be of one type: only numbers that are written out.
fn literals(
    args: &mut [Expr],
    is_float: impl Fn(&Expr) -> bool,
    double: impl Fn(&mut Expr),
) -> bool {
    let is_written = |expr: &Expr| {
        matches!(
            expr,
            Expr::Literal(ScalarValue::Decimal128(..) | ScalarValue::Decimal256(..), _)
        )
    };
    let mut args: Vec<&mut Expr> = args.iter_mut().collect();
    unify(&mut args, is_float, is_written, double)
}

/// Digits in all and behind the point of an exact number.
fn digits(data_type: &DataType) -> Option<(i8, i8)> {
    Some(match data_type {
        DataType::Int8 | DataType::UInt8 => (3, 0),
        DataType::Int16 | DataType::UInt16 => (5, 0),
        DataType::Int32 | DataType::UInt32 => (10, 0),
        DataType::Int64 | DataType::UInt64 => (20, 0),
        DataType::Decimal128(precision, scale) => (i8::try_from(*precision).ok()?, *scale),
        _ => return None,
    })
}

/// What a dividend is to be, so that the quotient has enough digits behind the point; `None` if it has.
fn dividend(left: &DataType, right: &DataType) -> Option<DataType> {
    if !left.is_decimal() && !right.is_decimal() {
        return None;
    }
    let ((precision, scale), (_, divisor_scale)) = (digits(left)?, digits(right)?);
    // As the kernel reckons: the digits of the quotient before the point.
    let before = precision - scale + divisor_scale;
    let wanted = QUOTIENT_SCALE.min(MAX_PRECISION - before) - QUOTIENT_INCREMENT;
    if wanted <= scale {
        return None;
    }
    let precision = (precision - scale + wanted).min(MAX_PRECISION);
    Some(DataType::Decimal128(u8::try_from(precision).ok()?, wanted))
}

fn lengthen(division: &mut BinaryExpr, dividend: DataType) {
    let left = std::mem::take(division.left.as_mut());
    *division.left = cast(left, dividend);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quotient_has_ten_digits_behind_the_point_where_there_is_room() {
        use DataType::{Decimal128, Float64, Int64};
        for (left, right, is) in [
            (Int64, Decimal128(8, 1), Some(Decimal128(26, 6))),
            (Decimal128(4, 2), Int64, Some(Decimal128(8, 6))),
            (Decimal128(10, 6), Decimal128(10, 2), None),
            (Decimal128(38, 4), Decimal128(38, 4), None),
            (Decimal128(36, 2), Int64, None),
            (Decimal128(31, 1), Int64, Some(Decimal128(34, 4))),
            (Int64, Int64, None),
            (Float64, Decimal128(2, 1), None),
        ] {
            assert_eq!(dividend(&left, &right), is, "{left} / {right}");
        }
    }
}
