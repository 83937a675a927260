//! The option `compression` of files: DataFusion's planner takes it for itself, before any table is made.

use datafusion::common::parsers::CompressionTypeVariant as Codec;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use essaim_common::{Error, Result};
use std::str::FromStr;

/// Refuses a `compression` that the planner would refuse without a word of the table.
///
/// # Errors
/// A codec that the format does not have, or the codec of Parquet under this name.
pub(super) fn check(statement: &Statement) -> Result<()> {
    let Statement::CreateExternalTable(table) = statement else {
        return Ok(());
    };
    let is = |option: &str| {
        let option = option.strip_prefix("format.").unwrap_or(option);
        option.eq_ignore_ascii_case("compression")
    };
    let Some((_, codec)) = table.options.iter().find(|(option, _)| is(option)) else {
        return Ok(());
    };
    let wrong = |advice: &str| {
        Err(Error::invalid(format!(
            "table {}: option compression {codec}: {advice}",
            table.name
        )))
    };
    match table.file_type.to_uppercase().as_str() {
        "PARQUET" => wrong(
            "for PARQUET write 'parquet.compression' in its place, with 'zstd', 'snappy', 'lz4', 'gzip' or 'uncompressed'",
        ),
        "CSV" | "JSON" if Codec::from_str(&text_of(codec)).is_err() => {
            wrong("write 'gzip', 'zstd', 'bzip2', 'xz' or 'uncompressed'")
        }
        _ => Ok(()),
    }
}

fn text_of(value: &ast::Value) -> String {
    match value.clone().into_string() {
        Some(text) => text,
        None => value.to_string(),
    }
}
