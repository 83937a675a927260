//! PostgreSQL's types and Arrow's: which stands for which, in both directions.

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Digits of a `numeric` without precision, as in Spark: 20 before the point, 18 after it.
pub const UNBOUNDED_NUMERIC: (u8, i8) = (38, 18);

/// The numbers, in `pg_type.dat`, of the types whose values are nothing but text.
pub const TEXT: u32 = 25;
pub const NAME: u32 = 19;
pub const BPCHAR: u32 = 1042;
pub const VARCHAR: u32 = 1043;

/// A PostgreSQL type, as far as its binary form differs from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    /// `bounded`: declared with precision and scale, so that no digit is ever rounded away.
    Numeric {
        precision: u8,
        scale: i8,
        bounded: bool,
    },
    /// text, varchar, name, enums: their bytes are the text. `sql` is the type's name; `oid` the number of the type, of a
    /// domain that of the type below it.
    Text {
        sql: String,
        oid: u32,
        comparison: Comparison,
    },
    Json,
    Jsonb,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    /// One-dimensional; `oid` is the element's type.
    Array {
        item: Box<Kind>,
        oid: u32,
    },
    /// Any other type: goes by its text. `sql` is its name.
    Other {
        sql: String,
    },
}

/// How far the server compares texts as we do: by their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Equality and, with `COLLATE "C"`, order.
    Bytes,
    /// Equality only: the database's encoding is not UTF-8.
    Equality,
    /// Not at all: blanks at the end do not count (`char(n)`), or the collation takes different texts as equal.
    Never,
}

impl Kind {
    /// Plain `text`.
    pub fn text() -> Self {
        Self::Text {
            sql: "text".to_owned(),
            oid: TEXT,
            comparison: Comparison::Bytes,
        }
    }

    /// The Arrow type that holds its values without loss (and is what a source yields if nothing else is declared).
    pub fn arrow(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int2 => DataType::Int16,
            Self::Int4 => DataType::Int32,
            Self::Int8 | Self::Oid => DataType::Int64,
            Self::Float4 => DataType::Float32,
            Self::Float8 => DataType::Float64,
            Self::Numeric {
                precision, scale, ..
            } if *precision <= 38 => DataType::Decimal128(*precision, *scale),
            Self::Numeric {
                precision, scale, ..
            } => DataType::Decimal256(*precision, *scale),
            Self::Text { .. } | Self::Json | Self::Jsonb | Self::Uuid | Self::Other { .. } => {
                DataType::Utf8View
            }
            Self::Bytea => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Self::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Self::Array { item, .. } => {
                DataType::List(Arc::new(Field::new_list_field(item.arrow(), true)))
            }
        }
    }

    /// The type's name in SQL.
    pub fn sql(&self) -> String {
        match self {
            Self::Bool => "boolean".to_owned(),
            Self::Int2 => "smallint".to_owned(),
            Self::Int4 => "integer".to_owned(),
            Self::Int8 => "bigint".to_owned(),
            Self::Oid => "oid".to_owned(),
            Self::Float4 => "real".to_owned(),
            Self::Float8 => "double precision".to_owned(),
            Self::Numeric {
                precision,
                scale,
                bounded: true,
            } => format!("numeric({precision},{scale})"),
            Self::Numeric { .. } => "numeric".to_owned(),
            Self::Text { sql, .. } | Self::Other { sql } => sql.clone(),
            Self::Json => "json".to_owned(),
            Self::Jsonb => "jsonb".to_owned(),
            Self::Bytea => "bytea".to_owned(),
            Self::Date => "date".to_owned(),
            Self::Time => "time".to_owned(),
            Self::Timestamp => "timestamp".to_owned(),
            Self::Timestamptz => "timestamptz".to_owned(),
            Self::Interval => "interval".to_owned(),
            Self::Uuid => "uuid".to_owned(),
            Self::Array { item, .. } => format!("{}[]", item.sql()),
        }
    }

    /// What a text must be cast to before the server puts it into a column of this type. A cast cuts a text that is too
    /// long for a `varchar(n)`, so where an assignment will do (which refuses it), there is none.
    pub fn cast_from_text(&self) -> Option<&str> {
        match self {
            Self::Text {
                oid: TEXT | NAME | BPCHAR | VARCHAR,
                ..
            } => None,
            Self::Text { sql, .. } | Self::Other { sql } => Some(sql),
            _ => None,
        }
    }

    /// The type for a column that a sink creates for an Arrow type.
    pub fn for_arrow(arrow: &DataType) -> Self {
        match arrow {
            DataType::Boolean => Self::Bool,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => Self::Int2,
            DataType::Int32 | DataType::UInt16 => Self::Int4,
            DataType::Int64 | DataType::UInt32 => Self::Int8,
            DataType::UInt64 => Self::numeric(20, 0),
            DataType::Float16 | DataType::Float32 => Self::Float4,
            DataType::Float64 => Self::Float8,
            DataType::Decimal32(p, s)
            | DataType::Decimal64(p, s)
            | DataType::Decimal128(p, s)
            | DataType::Decimal256(p, s) => Self::numeric(i32::from(*p), i32::from(*s)),
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => Self::Bytea,
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Time32(_) | DataType::Time64(_) => Self::Time,
            DataType::Timestamp(_, None) => Self::Timestamp,
            DataType::Timestamp(_, Some(_)) => Self::Timestamptz,
            DataType::Interval(_) | DataType::Duration(_) => Self::Interval,
            DataType::Dictionary(_, values) => Self::for_arrow(values),
            DataType::RunEndEncoded(_, values) => Self::for_arrow(values.data_type()),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item)
            | DataType::FixedSizeList(item, _) => {
                let item = Self::for_arrow(item.data_type());
                match item.oid() {
                    Some(oid) => Self::Array {
                        item: Box::new(item),
                        oid,
                    },
                    // PostgreSQL's nested arrays must be rectangular; JSON takes any.
                    None => Self::Jsonb,
                }
            }
            DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => Self::Jsonb,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
                Self::text()
            }
        }
    }

    /// A `numeric(precision, scale)` as Arrow can hold it. Arrow's scale is neither negative nor above its precision.
    pub fn numeric(precision: i32, scale: i32) -> Self {
        let (precision, scale) = match scale {
            scale if scale < 0 => (precision - scale, 0),
            scale if scale > precision => (scale, scale),
            scale => (precision, scale),
        };
        match (u8::try_from(precision), i8::try_from(scale)) {
            (Ok(precision), Ok(scale)) if precision <= 76 => Self::Numeric {
                precision,
                scale,
                bounded: true,
            },
            _ => Self::Other {
                sql: "numeric".to_owned(),
            },
        }
    }

    /// The type's number in `pg_type.dat`, for those a sink makes arrays of.
    fn oid(&self) -> Option<u32> {
        Some(match self {
            Self::Bool => 16,
            Self::Bytea => 17,
            Self::Int8 => 20,
            Self::Int2 => 21,
            Self::Int4 => 23,
            Self::Text { .. } => TEXT,
            Self::Float4 => 700,
            Self::Float8 => 701,
            Self::Date => 1082,
            Self::Time => 1083,
            Self::Timestamp => 1114,
            Self::Timestamptz => 1184,
            Self::Interval => 1186,
            Self::Numeric { .. } => 1700,
            _ => return None,
        })
    }

    /// Whether values of an Arrow type may be written to a column of this type. What may not fit (a large number
    /// into a small type) is checked value by value.
    pub fn takes(&self, arrow: &DataType) -> bool {
        let arrow = match arrow {
            DataType::Dictionary(_, values) => values,
            other => other,
        };
        if matches!(arrow, DataType::Null) {
            return true;
        }
        match self {
            Self::Bool => matches!(arrow, DataType::Boolean),
            Self::Int2 | Self::Int4 | Self::Int8 | Self::Oid => arrow.is_integer(),
            Self::Float4 | Self::Float8 => {
                arrow.is_integer() || arrow.is_floating() || arrow.is_decimal()
            }
            Self::Numeric { .. } => arrow.is_integer() || arrow.is_floating() || arrow.is_decimal(),
            Self::Text { .. } | Self::Uuid | Self::Other { .. } => is_text(arrow),
            Self::Json | Self::Jsonb => is_text(arrow) || arrow.is_nested(),
            Self::Bytea => matches!(
                arrow,
                DataType::Binary
                    | DataType::LargeBinary
                    | DataType::BinaryView
                    | DataType::FixedSizeBinary(_)
            ),
            Self::Date => matches!(arrow, DataType::Date32 | DataType::Date64),
            Self::Time => matches!(arrow, DataType::Time32(_) | DataType::Time64(_)),
            Self::Timestamp | Self::Timestamptz => matches!(
                arrow,
                DataType::Timestamp(..) | DataType::Date32 | DataType::Date64
            ),
            Self::Interval => matches!(arrow, DataType::Interval(_) | DataType::Duration(_)),
            Self::Array { item, .. } => match arrow {
                DataType::List(field)
                | DataType::LargeList(field)
                | DataType::ListView(field)
                | DataType::LargeListView(field)
                | DataType::FixedSizeList(field, _) => item.takes(field.data_type()),
                _ => false,
            },
        }
    }
}

fn is_text(arrow: &DataType) -> bool {
    matches!(
        arrow,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
    )
}
