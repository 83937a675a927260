//! Aggregates as people wrote them: a plan names its columns by what the query became on the way.

use datafusion::physical_plan::aggregates::AggregateExec;

/// The functions and the groups of an aggregate; `first_rows` for one that only tells first rows apart.
pub(super) fn aggregate(aggregate: &AggregateExec, first_rows: bool) -> String {
    let groups = aggregate.group_expr().expr().iter();
    let groups: Vec<String> = groups
        .map(|(_, name)| as_written(name))
        // The end of a session is grouped by beside its start.
        .filter(|group| !group.starts_with("essaim_session_end("))
        .collect();
    let groups = groups.join(", ");
    let functions: Vec<String> = aggregate
        .aggr_expr()
        .iter()
        .map(|function| as_written(function.name()))
        .collect();
    match (first_rows, functions.is_empty()) {
        (true, false) => format!("DISTINCT ON ({groups})"),
        (true, true) => format!("DISTINCT {groups}"),
        (false, true) => format!("GROUP BY {groups}"),
        (false, false) => format!("{} by {groups}", functions.join(", ")),
    }
}

/// A name that DataFusion made of an expression, with its literals and windows as they stand in SQL.
fn as_written(name: &str) -> String {
    let mut written = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end == 0 {
            written.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        rest = after;
        match (word, after.strip_prefix('(').and_then(inside)) {
            (_, Some((inner, left))) if is_literal(word) => {
                written.push_str(&literal(word, inner));
                rest = left;
            }
            ("essaim_window", _) => written.push_str("window"),
            ("essaim_session", _) => written.push_str("session_window"),
            _ => written.push_str(word),
        }
    }
    written.replace("count(1)", "count(*)").replace(",'", ", '")
}

fn is_literal(word: &str) -> bool {
    const TYPES: [&str; 15] = [
        "Boolean",
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "UInt8",
        "UInt16",
        "UInt32",
        "UInt64",
        "Float32",
        "Float64",
        "Utf8",
        "Utf8View",
        "LargeUtf8",
        "IntervalMonthDayNano",
    ];
    TYPES.contains(&word)
}

/// What stands up to the parenthesis that closes a literal, and what comes behind.
fn inside(after: &str) -> Option<(&str, &str)> {
    match after.strip_prefix('"') {
        Some(text) => text.split_once("\")"),
        None => after.split_once(')'),
    }
}

fn literal(word: &str, inner: &str) -> String {
    match word {
        "Utf8" | "Utf8View" | "LargeUtf8" => format!("'{}'", inner.replace('\'', "''")),
        "IntervalMonthDayNano" => format!("'{}'", interval(inner)),
        _ => inner.to_owned(),
    }
}

/// `IntervalMonthDayNano { months: 0, days: 0, nanoseconds: 60000000000 }` as `1 minute`.
fn interval(debug: &str) -> String {
    let of = |part: &str| -> i64 {
        let behind = debug.split(&format!("{part}: ")).nth(1).unwrap_or_default();
        let digits = behind.split([',', ' ', '}']).next().unwrap_or_default();
        digits.parse().unwrap_or_default()
    };
    let mut parts = Vec::new();
    let mut some = |count: i64, unit: &str| match count {
        0 => {}
        1 => parts.push(format!("1 {unit}")),
        _ => parts.push(format!("{count} {unit}s")),
    };
    some(of("months"), "month");
    some(of("days"), "day");
    let mut left = of("nanoseconds");
    for (size, unit) in [
        (3_600_000_000_000, "hour"),
        (60_000_000_000, "minute"),
        (1_000_000_000, "second"),
        (1_000_000, "millisecond"),
        (1_000, "microsecond"),
        (1, "nanosecond"),
    ] {
        some(left / size, unit);
        left %= size;
    }
    match parts.is_empty() {
        true => "0".to_owned(),
        false => parts.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::as_written;

    #[test]
    fn literals_and_windows_are_as_in_sql() {
        for (name, written) in [
            ("count(Int64(1))", "count(*)"),
            ("count(*)", "count(*)"),
            ("sum(events.v)", "sum(events.v)"),
            (
                "essaim_window(events.at,IntervalMonthDayNano(\"IntervalMonthDayNano { months: 0, days: 0, nanoseconds: 90000000000 }\"))",
                "window(events.at, '1 minute 30 seconds')",
            ),
            (
                "essaim_session(events.at,Utf8(\"5 minutes\"))",
                "session_window(events.at, '5 minutes')",
            ),
            ("concat(t.a,Utf8View(\"it's\"))", "concat(t.a, 'it''s')"),
            ("größe", "größe"),
        ] {
            assert_eq!(as_written(name), written);
        }
    }
}
