//! Filters as MongoDB's query language: they leave out no document whose row the SQL filter would keep.
//!
//! More is not asked of them, because every one is evaluated again above the scan. That allows for what differs: a
//! comparison there looks into arrays and at values of one type only, `$ne` finds missing fields, NaN is less than
//! every number (here it is more), and a number never equals its text. Below NOT "no more than" would turn into "no
//! less than", so of negations only those are translated that have an operator of their own.

use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{InList, ScalarFunction};
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};

/// How the values of a column compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Bool,
    Whole,
    Float,
    Text,
    Time,
    /// Only looked at for null.
    Other,
}

/// A column or a field within, in dot notation.
struct Field {
    path: String,
    class: Class,
}

/// The query that finds every document that the filter keeps, if there is one worth sending.
pub fn translate(filter: &Expr, schema: &Schema) -> Option<Document> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::And => match (translate(left, schema), translate(right, schema)) {
                (Some(left), Some(right)) => Some(doc! { "$and": [left, right] }),
                (one, other) => one.or(other),
            },
            Operator::Or => {
                Some(doc! { "$or": [translate(left, schema)?, translate(right, schema)?] })
            }
            op => compare(left, *op, right, schema),
        },
        Expr::Column(_) | Expr::ScalarFunction(_) => is_bool(filter, true, schema),
        Expr::Not(inner) => is_bool(inner, false, schema),
        Expr::IsNull(inner) => Some(doc! { field(inner, schema)?.path: Bson::Null }),
        Expr::IsNotNull(inner) => {
            let Field { path, class } = field(inner, schema)?;
            Some(match class {
                // `$ne: null` leaves out an array with a null in it, which is a text or a list here.
                Class::Text | Class::Other => doc! { path: { "$exists": true } },
                _ => doc! { path: { "$ne": Bson::Null } },
            })
        }
        Expr::Between(Between {
            expr,
            negated: false,
            low,
            high,
        }) => {
            let low = compare(expr, Operator::GtEq, low, schema)?;
            let high = compare(expr, Operator::LtEq, high, schema)?;
            Some(doc! { "$and": [low, high] })
        }
        Expr::InList(InList {
            expr,
            list,
            negated,
        }) => in_list(expr, list, *negated, schema),
        _ => None,
    }
}

fn in_list(expr: &Expr, list: &[Expr], negated: bool, schema: &Schema) -> Option<Document> {
    let Field { path, class } = field(expr, schema)?;
    let mut values = Vec::new();
    for value in list {
        let Expr::Literal(value, _) = value else {
            return None;
        };
        values.extend(equals(value, class)?);
    }
    match (negated, class) {
        (false, _) => Some(doc! { path: { "$in": values } }),
        (true, Class::Whole | Class::Time) => Some(doc! { path: { "$nin": values } }),
        (true, _) => None,
    }
}

fn is_bool(expr: &Expr, wanted: bool, schema: &Schema) -> Option<Document> {
    let Field { path, class } = field(expr, schema)?;
    (class == Class::Bool).then(|| doc! { path: wanted })
}

fn compare(left: &Expr, op: Operator, right: &Expr, schema: &Schema) -> Option<Document> {
    let (expr, op, value) = match (left, right) {
        (expr, Expr::Literal(value, _)) => (expr, op, value),
        (Expr::Literal(value, _), expr) => (expr, op.swap()?, value),
        _ => return None,
    };
    let Field { path, class } = field(expr, schema)?;
    if op == Operator::Eq {
        let mut values = equals(value, class)?;
        return Some(match values.len() {
            1 => doc! { path: values.swap_remove(0) },
            _ => doc! { path: { "$in": values } },
        });
    }
    match class {
        Class::Whole => {
            let value = whole(value)?;
            Some(doc! { path: { operator(op)?: value } })
        }
        Class::Time => {
            let (before, after) = milliseconds(value)?;
            let exact = before == after;
            Some(match op {
                Operator::NotEq if exact => doc! { path: { "$ne": before } },
                Operator::Gt | Operator::Lt if exact => doc! { path: { operator(op)?: before } },
                Operator::Gt | Operator::GtEq => doc! { path: { "$gte": before } },
                Operator::Lt | Operator::LtEq => doc! { path: { "$lte": after } },
                _ => return None,
            })
        }
        Class::Float => {
            let value = float(value)?;
            match op {
                // Whatever is a number and not less: NaN too. That -0 is less than 0 here is allowed for.
                Operator::Gt | Operator::GtEq => {
                    Some(doc! { path: { "$type": "number", "$not": { "$lt": value } } })
                }
                Operator::Lt | Operator::LtEq => Some(doc! { path: { "$lte": value } }),
                _ => None,
            }
        }
        Class::Bool if op == Operator::NotEq => match value {
            ScalarValue::Boolean(Some(value)) => Some(doc! { path: !value }),
            _ => None,
        },
        _ => None,
    }
}

fn operator(op: Operator) -> Option<&'static str> {
    Some(match op {
        Operator::NotEq => "$ne",
        Operator::Lt => "$lt",
        Operator::LtEq => "$lte",
        Operator::Gt => "$gt",
        Operator::GtEq => "$gte",
        _ => return None,
    })
}

/// A column, or a field of a struct however deep.
fn field(expr: &Expr, schema: &Schema) -> Option<Field> {
    let (path, data_type) = typed(expr, schema)?;
    let class = match data_type {
        DataType::Boolean => Class::Bool,
        data_type if data_type.is_integer() => Class::Whole,
        // A value of single precision is rounded before it is compared.
        DataType::Float64 => Class::Float,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Class::Text,
        DataType::Timestamp(
            TimeUnit::Millisecond | TimeUnit::Microsecond | TimeUnit::Nanosecond,
            _,
        ) => Class::Time,
        _ => Class::Other,
    };
    Some(Field { path, class })
}

fn typed(expr: &Expr, schema: &Schema) -> Option<(String, DataType)> {
    match expr {
        Expr::Column(column) => {
            let field = schema.field_with_name(&column.name).ok()?;
            Some((column.name.clone(), field.data_type().clone()))
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == "get_field" => {
            let (base, names) = args.split_first()?;
            let (mut path, mut data_type) = typed(base, schema)?;
            for name in names {
                let Expr::Literal(name, _) = name else {
                    return None;
                };
                let name = name.try_as_str().flatten()?;
                let DataType::Struct(fields) = &data_type else {
                    return None;
                };
                let (_, field) = fields.find(name)?;
                path = format!("{path}.{name}");
                data_type = field.data_type().clone();
            }
            Some((path, data_type))
        }
        _ => None,
    }
}

/// The values that equal a literal there.
fn equals(value: &ScalarValue, class: Class) -> Option<Vec<Bson>> {
    match class {
        Class::Bool => match value {
            ScalarValue::Boolean(Some(value)) => Some(vec![Bson::Boolean(*value)]),
            _ => None,
        },
        Class::Whole => Some(vec![whole(value)?]),
        Class::Float => Some(vec![Bson::Double(float(value)?)]),
        Class::Time => match milliseconds(value)? {
            (before, after) if before == after => Some(vec![Bson::DateTime(before)]),
            _ => None,
        },
        Class::Text => text(value.try_as_str().flatten()?),
        Class::Other => None,
    }
}

/// A text, and the ObjectId that is read as it. Texts that other values may be read as are not compared there.
fn text(text: &str) -> Option<Vec<Bson>> {
    let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    if text.len() == 24
        && text.chars().all(is_hex)
        && text.contains(|c: char| c.is_ascii_lowercase())
    {
        let id = ObjectId::parse_str(text).ok()?;
        return Some(vec![Bson::String(text.to_owned()), Bson::ObjectId(id)]);
    }
    let first = text.chars().next();
    // Numbers, dates, documents, arrays, UUIDs.
    let other = first.is_some_and(|first| first.is_ascii_digit() || "-+{[\"".contains(first))
        || uuid::Uuid::parse_str(text).is_ok()
        || ["true", "false", "NaN", "inf", "Infinity", "null"].contains(&text);
    (!other).then(|| vec![Bson::String(text.to_owned())])
}

fn whole(value: &ScalarValue) -> Option<Bson> {
    let value = match value {
        ScalarValue::Int8(Some(n)) => i64::from(*n),
        ScalarValue::Int16(Some(n)) => i64::from(*n),
        ScalarValue::Int32(Some(n)) => i64::from(*n),
        ScalarValue::Int64(Some(n)) => *n,
        ScalarValue::UInt8(Some(n)) => i64::from(*n),
        ScalarValue::UInt16(Some(n)) => i64::from(*n),
        ScalarValue::UInt32(Some(n)) => i64::from(*n),
        ScalarValue::UInt64(Some(n)) => i64::try_from(*n).ok()?,
        _ => return None,
    };
    Some(i32::try_from(value).map_or(Bson::Int64(value), Bson::Int32))
}

/// A double below which every whole number has a double of its own: then rounding a long moves it past no literal.
fn float(value: &ScalarValue) -> Option<f64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        ScalarValue::Float64(Some(value)) if value.abs() < EXACT => Some(*value),
        _ => None,
    }
}

/// The last millisecond not after a time, and the first not before it.
fn milliseconds(value: &ScalarValue) -> Option<(DateTime, DateTime)> {
    let (time, unit) = match value {
        ScalarValue::TimestampMillisecond(Some(time), _) => (*time, 1),
        ScalarValue::TimestampMicrosecond(Some(time), _) => (*time, 1_000),
        ScalarValue::TimestampNanosecond(Some(time), _) => (*time, 1_000_000),
        _ => return None,
    };
    let before = time.div_euclid(unit);
    let after = before + i64::from(time.rem_euclid(unit) != 0);
    Some((DateTime::from_millis(before), DateTime::from_millis(after)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;
    use arrow::datatypes::Field as Column;
    use datafusion::functions::core::expr_ext::FieldAccessor;
    use datafusion::logical_expr::{col, lit};

    fn schema() -> Schema {
        let inner = DataType::Struct(vec![Column::new("t", DataType::Float64, true)].into());
        let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
        Schema::new(vec![
            Column::new("n", DataType::Int64, true),
            Column::new("f", DataType::Float64, true),
            Column::new("s", DataType::Utf8View, true),
            Column::new("b", DataType::Boolean, true),
            Column::new("at", time, true),
            Column::new("data", inner, true),
        ])
    }

    fn shown(filter: Expr) -> Option<String> {
        let query = translate(&filter, &schema())?;
        Some(Bson::Document(query).into_relaxed_extjson().to_string())
    }

    #[test]
    fn comparisons_become_operators() {
        for (filter, expected) in [
            (col("n").gt(lit(5i64)), r#"{"n":{"$gt":5}}"#),
            (lit(5i64).gt(col("n")), r#"{"n":{"$lt":5}}"#),
            (col("n").eq(lit(5i64)), r#"{"n":5}"#),
            (col("n").is_null(), r#"{"n":null}"#),
            (col("n").is_not_null(), r#"{"n":{"$ne":null}}"#),
            (col("s").is_not_null(), r#"{"s":{"$exists":true}}"#),
            (col("s").eq(lit("Paris")), r#"{"s":"Paris"}"#),
            (!col("b"), r#"{"b":false}"#),
            (
                col("f").gt(lit(0.5)),
                r#"{"f":{"$not":{"$lt":0.5},"$type":"number"}}"#,
            ),
            (
                col("data").field("t").lt_eq(lit(0.5)),
                r#"{"data.t":{"$lte":0.5}}"#,
            ),
            (
                col("n").in_list(vec![lit(1i64), lit(2i64)], true),
                r#"{"n":{"$nin":[1,2]}}"#,
            ),
            (
                col("n").lt(lit(5i64)).and(col("s").like(lit("x%"))),
                r#"{"n":{"$lt":5}}"#,
            ),
            (
                col("s").eq(lit("507f1f77bcf86cd799439011")),
                r#"{"s":{"$in":["507f1f77bcf86cd799439011",{"$oid":"507f1f77bcf86cd799439011"}]}}"#,
            ),
        ] {
            assert_eq!(shown(filter.clone()).as_deref(), Some(expected), "{filter}");
        }
    }

    #[test]
    fn what_compares_otherwise_there_is_not_sent() {
        for filter in [
            col("s").eq(lit("12")),
            col("s").eq(lit("true")),
            col("s").gt(lit("a")),
            col("s").not_eq(lit("a")),
            col("f").not_eq(lit(1.0)),
            col("f").gt(lit(1e17)),
            col("f").eq(lit(f64::NAN)),
            !(col("n").gt(lit(5i64))),
            col("n").gt(lit(5i64)).or(col("s").gt(lit("a"))),
            col("n").gt(lit(ScalarValue::Int64(None))),
            col("n").gt(col("f")),
        ] {
            assert_eq!(shown(filter.clone()), None, "{filter}");
        }
    }

    #[test]
    fn times_between_milliseconds_take_both_sides_in() {
        let literal = |nanos| lit(ScalarValue::TimestampNanosecond(Some(nanos), None));
        let query = translate(&col("at").gt(literal(1_500_000)), &schema()).unwrap();
        assert_eq!(query, doc! { "at": { "$gte": DateTime::from_millis(1) } });
        let query = translate(&col("at").lt(literal(1_500_000)), &schema()).unwrap();
        assert_eq!(query, doc! { "at": { "$lte": DateTime::from_millis(2) } });
        let query = translate(&col("at").lt(literal(2_000_000)), &schema()).unwrap();
        assert_eq!(query, doc! { "at": { "$lt": DateTime::from_millis(2) } });
        assert_eq!(shown(col("at").eq(literal(1_500_000))), None);
    }
}
