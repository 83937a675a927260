//! `SET`: spellings that the planner does not know, and values that are none.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    self, Expr, Ident, ObjectName, Set, Statement as SqlStatement, ValueWithSpan,
};
use essaim_common::{Error, Result};

/// `SET TIME ZONE 'x'` as `SET timezone = 'x'`, which means the same (PostgreSQL manual, SET); all else as it is.
///
/// # Errors
/// A time zone that is no text: a session here has no default to go back to.
pub fn spelled_out(statement: Statement) -> Result<Statement> {
    let Statement::Statement(sql) = statement else {
        return Ok(statement);
    };
    let SqlStatement::Set(Set::SetTimeZone { value, .. }) = *sql else {
        return Ok(Statement::Statement(sql));
    };
    match &value {
        Expr::Value(ValueWithSpan {
            value: ast::Value::SingleQuotedString(_),
            ..
        }) => Ok(Statement::Statement(Box::new(SqlStatement::Set(
            Set::SingleAssignment {
                scope: None,
                hivevar: false,
                variable: ObjectName::from(vec![Ident::new("timezone")]),
                values: vec![value],
            },
        )))),
        other => Err(Error::invalid(format!(
            "SET TIME ZONE {other}: write the name of a time zone or its offset, e.g. SET TIME ZONE 'Europe/Berlin' or '+02:00'"
        ))),
    }
}

/// Why a setting does not take a value, on one line.
pub fn refused(variable: &str, value: &str, error: &Error) -> Error {
    let why = error.to_string();
    let why: Vec<&str> = why
        .lines()
        .map(|line| line.trim_start_matches("External error: "))
        .filter(|line| !line.is_empty() && *line != "caused by")
        .collect();
    Error::invalid(format!(
        "SET {variable} = '{value}' is refused: {}",
        why.join(": ")
    ))
}
