//! Where in a statement an error is: its line, and a caret below the column.

use crate::client::Failure;
use crate::text::printable;
use essaim_common::secret::redact_sql;

/// A longer line is cut.
const MAX_CHARS: usize = 100;
/// So much of a line that is cut stands before the caret.
const BEFORE: usize = 60;

/// Adds to an error that names a line and column the line, as psql does.
pub fn point_at(error: anyhow::Error, sql: &str) -> anyhow::Error {
    match error.downcast::<Failure>() {
        Ok(failure) => match pointer(&failure.to_string(), sql) {
            Some(pointer) => failure.with(&format!("\n{pointer}")).into(),
            None => failure.into(),
        },
        Err(error) => error,
    }
}

fn pointer(message: &str, sql: &str) -> Option<String> {
    let (line, column) = place(message)?;
    let text = sql.lines().nth(line.checked_sub(1)?)?;
    // A line that holds a password or would drive the terminal is not repeated.
    if printable(&redact_sql(sql)).lines().nth(line - 1) != Some(text) {
        return None;
    }
    let chars: Vec<char> = text.chars().collect();
    let at = column.checked_sub(1).filter(|at| *at <= chars.len())?;
    let (start, end) = match chars.len() {
        len if len <= MAX_CHARS => (0, len),
        len => {
            let start = at.saturating_sub(BEFORE);
            (start, len.min(start + MAX_CHARS))
        }
    };
    let dots = |is_cut: bool| if is_cut { "…" } else { "" };
    let shown: String = chars[start..end].iter().collect();
    let head = format!("LINE {line}: {}", dots(start > 0));
    // A tab stays one, so that the caret stands where the eye expects it.
    let blank = |c: char| if c == '\t' { '\t' } else { ' ' };
    let before = head.chars().chain(chars[start..at].iter().copied());
    let indent: String = before.map(blank).collect();
    Some(format!(
        "{head}{shown}{}\n{indent}^",
        dots(end < chars.len())
    ))
}

/// The last "Line: 3, Column: 7" of a message, as the parser writes it.
fn place(message: &str) -> Option<(usize, usize)> {
    let (_, rest) = message.rsplit_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let column = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((line.parse().ok()?, column.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointed(message: &str, sql: &str) -> String {
        let failure = Failure::Refused(message.to_owned());
        point_at(failure.into(), sql).to_string()
    }

    #[test]
    fn the_line_of_an_error_is_shown_with_a_caret_below_its_column() {
        assert_eq!(
            pointed(
                "found: b at Line: 2, Column: 5",
                "SELECT 1,\n\t é b\nFROM t"
            ),
            "found: b at Line: 2, Column: 5\nLINE 2: \t é b\n        \t   ^"
        );
        let long = format!("SELECT {}x y{}", "1, ".repeat(50), ", 1".repeat(50));
        let shown = pointed("Line: 1, Column: 160", &long);
        let lines: Vec<&str> = shown.lines().collect();
        let caret = lines[2].chars().count() - 1;
        assert_eq!(lines[1].chars().nth(caret), Some('y'), "{shown}");
        assert_eq!(
            lines[1].chars().count(),
            MAX_CHARS + "LINE 1: ……".chars().count()
        );
    }

    #[test]
    fn nothing_is_added_where_no_place_is_known_or_a_password_stands() {
        for (message, sql) in [
            ("there is no table t", "SELECT * FROM t"),
            ("Line: 9, Column: 1", "SELECT 1"),
            ("Line: 1, Column: 99", "SELECT 1"),
            ("Line: 0, Column: 0", "SELECT 1"),
            (
                "Line: 1, Column: 30",
                "LOCATION 'postgres://app:hunter2@h/db' b",
            ),
        ] {
            assert_eq!(pointed(message, sql), message);
        }
    }
}
