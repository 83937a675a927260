//! Types under the names that SQL has for them: what stands in a declaration and in a CAST, not what Arrow calls it.

use arrow::datatypes::{DataType, Fields, TimeUnit};

/// The name of a type as `CREATE EXTERNAL TABLE` and `CAST` take it. Types of which SQL knows no difference, such as the
/// ways to hold a text, have one name; one that SQL does not have keeps Arrow's.
pub fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "NULL".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::UInt8 => "TINYINT UNSIGNED".to_owned(),
        DataType::UInt16 => "SMALLINT UNSIGNED".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::Float16 | DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".to_owned(),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "BYTEA".to_owned(),
        DataType::Date32 | DataType::Date64 => "DATE".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".to_owned(),
        DataType::Timestamp(unit, zone) => {
            let digits = match unit {
                TimeUnit::Second => "(0)",
                TimeUnit::Millisecond => "(3)",
                TimeUnit::Microsecond => "(6)",
                TimeUnit::Nanosecond => "",
            };
            let zone = match zone {
                Some(_) => " WITH TIME ZONE",
                None => "",
            };
            format!("TIMESTAMP{digits}{zone}")
        }
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL".to_owned(),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => format!("{}[]", sql_type(item.data_type())),
        DataType::FixedSizeList(item, size) => format!("{}[{size}]", sql_type(item.data_type())),
        DataType::Struct(fields) => format!("STRUCT<{}>", list(fields)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(entry) => {
                let types = entry.iter().map(|field| sql_type(field.data_type()));
                format!("MAP<{}>", types.collect::<Vec<_>>().join(", "))
            }
            other => other.to_string(),
        },
        DataType::Dictionary(_, values) => sql_type(values),
        DataType::RunEndEncoded(_, values) => sql_type(values.data_type()),
        DataType::Union(..) => data_type.to_string(),
    }
}

fn list(fields: &Fields) -> String {
    let fields = fields
        .iter()
        .map(|field| format!("{} {}", name(field.name()), sql_type(field.data_type())));
    fields.collect::<Vec<_>>().join(", ")
}

/// A name as it is written in SQL: in quotes if it would be folded to lower case or split without.
pub fn name(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match is_plain {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// What to do about a time that the unit of a column cannot hold; `None` where all that anyone writes fit.
pub fn beyond(unit: TimeUnit) -> Option<&'static str> {
    matches!(unit, TimeUnit::Nanosecond).then_some(
        "TIMESTAMP counts nanoseconds and goes from 1677 to 2262: declare or CAST it as TIMESTAMP(6)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::SessionContext;

    #[tokio::test]
    async fn the_name_of_a_type_declares_that_type() {
        let session = SessionContext::new();
        for written in [
            "BOOLEAN",
            "TINYINT",
            "SMALLINT",
            "INT",
            "BIGINT",
            "BIGINT UNSIGNED",
            "REAL",
            "DOUBLE",
            "DECIMAL(12, 2)",
            "DECIMAL(50, 10)",
            "VARCHAR",
            "BYTEA",
            "DATE",
            "TIME",
            "TIMESTAMP",
            "TIMESTAMP(0)",
            "TIMESTAMP(6)",
            "INTERVAL",
            "VARCHAR[]",
            "BIGINT[][]",
            "STRUCT<a BIGINT, \"deepKey\" STRUCT<b VARCHAR[]>>",
            "STRUCT<a BIGINT, b VARCHAR>[]",
        ] {
            let sql = format!("SELECT CAST(NULL AS {written}) AS x");
            let frame = session.sql(&sql).await.unwrap();
            assert_eq!(sql_type(frame.schema().field(0).data_type()), written);
        }
        let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
        assert_eq!(sql_type(&zoned), "TIMESTAMP(6) WITH TIME ZONE");
        let coded = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert_eq!(sql_type(&coded), "VARCHAR");
    }
}
