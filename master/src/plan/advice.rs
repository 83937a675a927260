//! DataFusion's errors of planning, said so that somebody who wrote the job knows what to do.

use datafusion::catalog::TableProvider;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use essaim_common::options::meant;
use essaim_common::{Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;

/// What other systems call it, and what to write here.
const FOREIGN: [(&[&str], &str); 8] = [
    (
        &["explode", "explode_outer", "posexplode", "flatten"],
        "unnest(list) takes a list apart",
    ),
    (
        &["tumble", "hop", "tumble_start", "hop_start"],
        "write GROUP BY window(ts, INTERVAL '1 minute') and SELECT window_start, over a table with OPTIONS (event_time, watermark_delay)",
    ),
    (
        &["tumble_end", "hop_end"],
        "write GROUP BY window(ts, INTERVAL '1 minute') and SELECT window_end, over a table with OPTIONS (event_time, watermark_delay)",
    ),
    (
        &["session", "session_start", "session_end"],
        "write GROUP BY session_window(ts, INTERVAL '5 minutes') and SELECT window_start, window_end",
    ),
    (
        &["from_json", "parse_json"],
        "declare the columns of the JSON with the table, as STRUCT<…> where it is nested, or take fields of a text with json_tuple(text, 'field')['c0']",
    ),
    (
        &[
            "get_json_object",
            "json_extract",
            "json_extract_scalar",
            "json_value",
            "json_extract_path_text",
        ],
        "json_tuple(text, 'field')['c0'] is a field of a JSON text",
    ),
    (
        &["proctime", "rowtime", "current_watermark"],
        "the event time is the column that OPTIONS (event_time 'column') names",
    ),
    (
        &["datediff", "timestampdiff"],
        "subtract the dates or times themselves",
    ),
];

/// How many signatures of a function are listed.
const SIGNATURES: usize = 6;

/// Statements that change rows where they are, for which no connector has a way.
///
/// # Errors
/// It is one of them.
pub fn refuse(statement: &Statement) -> Result<()> {
    let Statement::Statement(sql) = statement else {
        return Ok(());
    };
    let word = match sql.as_ref() {
        SqlStatement::Update { .. } => "UPDATE",
        SqlStatement::Delete { .. } => "DELETE",
        SqlStatement::Merge { .. } => "MERGE",
        SqlStatement::Truncate { .. } => "TRUNCATE",
        _ => return Ok(()),
    };
    Err(Error::invalid(format!(
        "{word} is not there: INSERT INTO a table with mode 'upsert' replaces rows by key, and INSERT OVERWRITE all of them"
    )))
}

/// An error of planning a statement. `read` are the tables that it reads.
pub fn planned(
    error: DataFusionError,
    state: &SessionState,
    read: &[Arc<dyn TableProvider>],
) -> Error {
    let missing = match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, .. } => Some(field.name().to_owned()),
            _ => None,
        },
        _ => None,
    };
    let error = Error::from(error);
    let text = error.to_string();
    if let Some(name @ ("window_start" | "window_end")) = missing.as_deref() {
        return Error::invalid(format!(
            "{}; {name} is there where rows are grouped by a window: write GROUP BY window(ts, INTERVAL '1 minute')",
            without_setting(&text)
        ));
    }
    if missing.is_some() {
        return Error::invalid(without_setting(&text));
    }
    if error.kind() != ErrorKind::Invalid {
        return error;
    }
    let better = unknown_function(&text, state)
        .or_else(|| unknown_table(&text, state))
        .or_else(|| unknown_field(&text, read))
        .or_else(|| signature(&text));
    better.map_or(error, Error::invalid)
}

/// A setting by which names are not folded would change every other name of the job too.
fn without_setting(text: &str) -> String {
    text.replace(
        " or disable the datafusion.sql_parser.enable_ident_normalization configuration",
        "",
    )
}

/// What stands between two texts.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

fn unknown_function(text: &str, state: &SessionState) -> Option<String> {
    let name = between(text, "Invalid function '", "'")?;
    let lower = name.to_lowercase();
    let foreign = FOREIGN
        .iter()
        .find(|(names, _)| names.contains(&lower.as_str()));
    if let Some((_, advice)) = foreign {
        return Some(format!("there is no function {name}: {advice}"));
    }
    let scalar = state.scalar_functions().keys();
    let others = state.aggregate_functions().keys();
    let known: Vec<&str> = scalar
        .chain(others)
        .chain(state.window_functions().keys())
        .map(String::as_str)
        .collect();
    Some(match meant(&lower, known) {
        Some(near) => format!("there is no function {name}: did you mean {near}?"),
        None => format!(
            "there is no function {name}: SELECT DISTINCT routine_name FROM information_schema.routines lists those that there are"
        ),
    })
}

fn unknown_table(text: &str, state: &SessionState) -> Option<String> {
    let name = between(text, "table 'datafusion.", "' not found")?;
    let name = name.strip_prefix("public.").unwrap_or(name);
    let known = state.catalog_list().catalog("datafusion");
    let known = known.and_then(|catalog| catalog.schema("public"));
    let known = known.map(|schema| schema.table_names()).unwrap_or_default();
    Some(match meant(name, known.iter().map(String::as_str)) {
        Some(near) => format!("there is no table {name}: did you mean {near}?"),
        None => format!(
            "there is no table {name}: declare it with CREATE EXTERNAL TABLE, or name a query so with CREATE VIEW"
        ),
    })
}

/// The field of a struct.
fn unknown_field(text: &str, read: &[Arc<dyn TableProvider>]) -> Option<String> {
    let name = between(text, "Field ", " not found in struct")?;
    let mut known = BTreeSet::new();
    for table in read {
        for field in table.schema().fields() {
            fields_of(field.data_type(), &mut known);
        }
    }
    Some(match meant(name, known.iter().map(String::as_str)) {
        Some(near) => format!(
            "a struct has no field {name}: did you mean \"{near}\"? Names without quotes are folded to lower case"
        ),
        None => format!(
            "a struct has no field {name}; names without quotes are folded to lower case: write \"fieldName\" in quotes"
        ),
    })
}

/// The names of the fields of structs, however deep.
fn fields_of(data_type: &DataType, names: &mut BTreeSet<String>) {
    match data_type {
        DataType::Struct(fields) => {
            for field in fields {
                names.insert(field.name().clone());
                fields_of(field.data_type(), names);
            }
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => fields_of(item.data_type(), names),
        _ => {}
    }
}

/// A function that is there, and not for these arguments.
fn signature(text: &str) -> Option<String> {
    let call = between(
        text,
        "No function matches the given name and argument types '",
        "'. You might",
    )?;
    let candidates: Vec<&str> = text
        .split_once("Candidate functions:")
        .map_or("", |(_, listed)| listed)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    // Such a function has said itself what it takes.
    if candidates.iter().any(|known| known.contains("UserDefined")) {
        return None;
    }
    let call = sql_names(call);
    if candidates.is_empty() {
        return Some(format!("there is no {call}: CAST its arguments"));
    }
    let more = match candidates.len() > SIGNATURES {
        true => ", …",
        false => "",
    };
    let listed = candidates.iter().take(SIGNATURES);
    let listed = listed.map(|known| sql_names(known)).collect::<Vec<_>>();
    // It may differ in how many there are, too.
    let cast = match call.contains("VARCHAR") {
        true => "CAST the text, e.g. CAST(… AS BIGINT)",
        false => "CAST its arguments",
    };
    Some(format!(
        "there is no {call}, but {}{more}: {cast}",
        listed.join(", ")
    ))
}

/// The names of types as SQL has them.
fn sql_names(signature: &str) -> String {
    let mut names = signature.to_owned();
    for (arrow, sql) in [
        ("LargeUtf8", "VARCHAR"),
        ("Utf8View", "VARCHAR"),
        ("Utf8", "VARCHAR"),
        ("UInt64", "BIGINT UNSIGNED"),
        ("Int64", "BIGINT"),
        ("UInt32", "INT UNSIGNED"),
        ("Int32", "INT"),
        ("Float64", "DOUBLE"),
        ("Float32", "REAL"),
        ("Date32", "DATE"),
        ("Decimal128", "DECIMAL"),
        ("Boolean", "BOOLEAN"),
    ] {
        names = names.replace(arrow, sql);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_that_does_not_match_is_one_line() {
        let text = "Error during planning: Internal error: Function 'sum' failed to match any signature.\nThis issue was likely caused by a bug in DataFusion's code. No function matches the given name and argument types 'sum(Utf8View)'. You might need to add explicit type casts.\n\tCandidate functions:\n\tsum(Decimal)\n\tsum(Int64)";
        assert_eq!(
            signature(text).as_deref(),
            Some(
                "there is no sum(VARCHAR), but sum(Decimal), sum(BIGINT): CAST the text, e.g. CAST(… AS BIGINT)"
            )
        );
    }
}
