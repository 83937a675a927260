//! Filters that the server evaluates exactly as we would: everything else stays above the scan.

use super::client::{literal, quote};
use super::source::ReadColumn;
use super::types::{Comparison, Kind};
use chrono::{DateTime, Datelike, NaiveDate, NaiveTime};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Like, Operator};

/// Values that both sides compare alike. Floats are none of them: we tell 0 from -0 and order NaN by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Bool,
    Number,
    Text,
    TextEqualityOnly,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Bytea,
    Uuid,
}

/// The SQL of a filter, if the server's answer is ours for every row. Unknown and null count as the same: both
/// leave the row out, and below NOT both sides follow the same three-valued logic.
pub fn translate(filter: &Expr, columns: &[ReadColumn]) -> Option<String> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::And | Operator::Or => {
                let word = if *op == Operator::And { "AND" } else { "OR" };
                Some(format!(
                    "({} {word} {})",
                    translate(left, columns)?,
                    translate(right, columns)?
                ))
            }
            Operator::Eq | Operator::NotEq => compare(left, &op.to_string(), false, right, columns),
            Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                compare(left, &op.to_string(), true, right, columns)
            }
            _ => None,
        },
        Expr::Not(inner) => Some(format!("(NOT {})", translate(inner, columns)?)),
        Expr::IsNull(inner) => Some(format!("({} IS NULL)", name(inner, columns)?)),
        Expr::IsNotNull(inner) => Some(format!("({} IS NOT NULL)", name(inner, columns)?)),
        Expr::Column(_) => match operand(filter, None, columns)? {
            (sql, Class::Bool) => Some(sql),
            _ => None,
        },
        Expr::Between(Between {
            expr,
            negated,
            low,
            high,
        }) => {
            let low = compare(expr, ">=", true, low, columns)?;
            let high = compare(expr, "<=", true, high, columns)?;
            let not = if *negated { "NOT " } else { "" };
            Some(format!("({not}({low} AND {high}))"))
        }
        Expr::InList(InList {
            expr,
            list,
            negated,
        }) => {
            let (column, class) = operand(expr, None, columns)?;
            let values = list
                .iter()
                .map(|value| match value {
                    Expr::Literal(value, _) => scalar(value, class),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()?;
            let not = if *negated { "NOT " } else { "" };
            (!values.is_empty()).then(|| format!("({column} {not}IN ({}))", values.join(", ")))
        }
        Expr::Like(Like {
            negated,
            expr,
            pattern,
            escape_char: None,
            case_insensitive: false,
        }) => {
            let (column, class) = operand(expr, None, columns)?;
            let Expr::Literal(pattern, _) = pattern.as_ref() else {
                return None;
            };
            let pattern = pattern.try_as_str().flatten()?;
            // The meaning of a backslash before an ordinary character differs.
            if class != Class::Text || pattern.contains(['\\', '\0']) {
                return None;
            }
            let not = if *negated { "NOT " } else { "" };
            Some(format!(
                "({column} COLLATE \"C\" {not}LIKE {})",
                literal(pattern)
            ))
        }
        _ => None,
    }
}

fn compare(
    left: &Expr,
    operator: &str,
    ordered: bool,
    right: &Expr,
    columns: &[ReadColumn],
) -> Option<String> {
    // The column decides how a literal on the other side is written.
    let (left, right, class) = match (left, right) {
        (Expr::Literal(..), _) => {
            let (column, class) = operand(right, None, columns)?;
            (operand(left, Some(class), columns)?.0, column, class)
        }
        _ => {
            let (column, class) = operand(left, None, columns)?;
            let (other, other_class) = operand(right, Some(class), columns)?;
            if class != other_class {
                return None;
            }
            (column, other, class)
        }
    };
    if ordered && class == Class::TextEqualityOnly {
        return None;
    }
    // Texts are ordered by their bytes here, whatever the column's collation is there.
    let collate = if ordered && class == Class::Text {
        " COLLATE \"C\""
    } else {
        ""
    };
    Some(format!("({left}{collate} {operator} {right})"))
}

/// A column of the table, whatever its type.
fn name(expr: &Expr, columns: &[ReadColumn]) -> Option<String> {
    let Expr::Column(column) = expr else {
        return None;
    };
    columns
        .iter()
        .find(|known| known.name == column.name)
        .map(|known| quote(&known.name))
}

/// A column, or a literal where the class is known.
fn operand(expr: &Expr, class: Option<Class>, columns: &[ReadColumn]) -> Option<(String, Class)> {
    match expr {
        Expr::Literal(value, _) => {
            let class = class?;
            Some((scalar(value, class)?, class))
        }
        Expr::Column(column) => {
            let column = columns
                .iter()
                .find(|known| known.name == column.name)
                // One that is read as another type than it has could compare otherwise.
                .filter(|known| known.is_natural())?;
            let name = quote(&column.name);
            let class = match &column.kind {
                Kind::Bool => Class::Bool,
                Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid => Class::Number,
                Kind::Numeric { bounded: true, .. } => Class::Number,
                Kind::Text {
                    sql, comparison, ..
                } => {
                    let class = match comparison {
                        Comparison::Bytes => Class::Text,
                        Comparison::Equality => Class::TextEqualityOnly,
                        Comparison::Never => return None,
                    };
                    let plain = sql == "text" || sql.starts_with("character varying");
                    return Some((if plain { name } else { format!("{name}::text") }, class));
                }
                Kind::Bytea => Class::Bytea,
                Kind::Date => Class::Date,
                Kind::Time => Class::Time,
                Kind::Timestamp => Class::Timestamp,
                Kind::Timestamptz => Class::Timestamptz,
                Kind::Uuid => Class::Uuid,
                _ => return None,
            };
            Some((name, class))
        }
        _ => None,
    }
}

/// A literal as SQL; none for null, for other types than the column's, and for what the server would read otherwise.
fn scalar(value: &ScalarValue, class: Class) -> Option<String> {
    if value.is_null() {
        return None;
    }
    match class {
        Class::Bool => match value {
            ScalarValue::Boolean(Some(value)) => Some(value.to_string()),
            _ => None,
        },
        Class::Number => number(value),
        Class::Text | Class::TextEqualityOnly => {
            let text = value.try_as_str().flatten()?;
            (!text.contains('\0')).then(|| literal(text))
        }
        Class::Uuid => {
            let text = value.try_as_str().flatten()?;
            let uuid = uuid::Uuid::parse_str(text).ok()?;
            // Another spelling never equals the text that the scan yields.
            (uuid.to_string() == text).then(|| format!("{}::uuid", literal(text)))
        }
        Class::Date => match value {
            ScalarValue::Date32(Some(days)) => {
                let day = NaiveDate::from_epoch_days(*days)?;
                let known = (1..=9999).contains(&day.year());
                known.then(|| format!("'{}'::date", day.format("%Y-%m-%d")))
            }
            _ => None,
        },
        Class::Time => match value {
            ScalarValue::Time64Microsecond(Some(micros)) => {
                let seconds = u32::try_from(micros / 1_000_000).ok()?;
                let nanos = u32::try_from(micros % 1_000_000).ok()? * 1000;
                let time = NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanos)?;
                Some(format!("'{}'::time", time.format("%H:%M:%S%.6f")))
            }
            _ => None,
        },
        Class::Timestamp => timestamp(value, false),
        Class::Timestamptz => timestamp(value, true),
        Class::Bytea => match value {
            ScalarValue::Binary(Some(bytes))
            | ScalarValue::LargeBinary(Some(bytes))
            | ScalarValue::BinaryView(Some(bytes)) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Some(format!("pg_catalog.decode('{hex}', 'hex')"))
            }
            _ => None,
        },
    }
}

fn number(value: &ScalarValue) -> Option<String> {
    let text = match value {
        ScalarValue::Int8(Some(n)) => n.to_string(),
        ScalarValue::Int16(Some(n)) => n.to_string(),
        ScalarValue::Int32(Some(n)) => n.to_string(),
        ScalarValue::Int64(Some(n)) => n.to_string(),
        ScalarValue::UInt8(Some(n)) => n.to_string(),
        ScalarValue::UInt16(Some(n)) => n.to_string(),
        ScalarValue::UInt32(Some(n)) => n.to_string(),
        ScalarValue::UInt64(Some(n)) => n.to_string(),
        ScalarValue::Decimal128(Some(n), _, scale) if *scale >= 0 => {
            let digits = n.unsigned_abs().to_string();
            let scale = usize::from(scale.unsigned_abs());
            let digits = format!("{digits:0>width$}", width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            let sign = if *n < 0 { "-" } else { "" };
            let point = if scale > 0 { "." } else { "" };
            format!("{sign}{whole}{point}{fraction}")
        }
        _ => return None,
    };
    Some(if text.starts_with('-') {
        format!("({text})")
    } else {
        text
    })
}

fn timestamp(value: &ScalarValue, with_zone: bool) -> Option<String> {
    let (micros, zone) = match value {
        ScalarValue::TimestampSecond(Some(n), zone) => (n.checked_mul(1_000_000)?, zone),
        ScalarValue::TimestampMillisecond(Some(n), zone) => (n.checked_mul(1000)?, zone),
        ScalarValue::TimestampMicrosecond(Some(n), zone) => (*n, zone),
        ScalarValue::TimestampNanosecond(Some(n), zone) if n % 1000 == 0 => (n / 1000, zone),
        _ => return None,
    };
    if zone.is_some() != with_zone {
        return None;
    }
    let time = DateTime::from_timestamp_micros(micros)?;
    if !(1..=9999).contains(&time.year()) {
        return None;
    }
    let text = time.format("%Y-%m-%d %H:%M:%S%.6f");
    Some(if with_zone {
        format!("'{text}+00'::timestamptz")
    } else {
        format!("'{text}'::timestamp")
    })
}
