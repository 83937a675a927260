//! The account of every row: what was sent against what the result tables count, key by key, as PostgreSQL sees it.

use super::postgres::Postgres;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, Row, ValueRef};

/// The table with a row for each window and language.
pub const LANGUAGES: &str = "toots_by_language";
/// The table with a row for each window and hashtag.
pub const HASHTAGS: &str = "toots_by_hashtag";

/// A result table, and the same rows as PostgreSQL computes them from what was sent.
struct Checked {
    table: &'static str,
    /// What its rows count.
    counts: &'static str,
    key: &'static str,
    /// Columns besides the key and `toots` that must agree too.
    values: &'static [&'static str],
    expected: &'static str,
}

const CHECKED: [Checked; 2] = [
    Checked {
        table: LANGUAGES,
        counts: "toots",
        key: "window_start, language",
        values: &["round(avg_length * toots)"],
        expected: "SELECT date_bin('10 seconds', created_at, 'epoch') AS window_start, language, count(*) AS toots,
                     avg(length)::float8 AS avg_length
                   FROM toots_sent GROUP BY 1, 2",
    },
    Checked {
        table: HASHTAGS,
        counts: "hashtags",
        key: "window_start, hashtag",
        values: &["followers_reached"],
        expected: "SELECT date_bin('5 seconds', created_at, 'epoch') AS window_start, hashtag, count(*) AS toots,
                     sum(followers_count)::bigint AS followers_reached
                   FROM toots_sent CROSS JOIN unnest(tags) AS hashtag JOIN accounts ON accounts.id = account_id
                   GROUP BY 1, 2",
    },
];

/// The account of one result table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub table: &'static str,
    counts: &'static str,
    sent: u64,
    pub counted: u64,
    /// Over all keys, by how much less was counted than sent.
    lost: u64,
    /// Over all keys, by how much more was counted than sent.
    duplicated: u64,
    /// Keys whose other values differ.
    wrong: u64,
}

/// The account of all tables.
#[derive(Debug)]
pub struct Account {
    /// What the topic holds.
    pub kafka_rows: u64,
    pub lines: Vec<Line>,
}

impl Account {
    /// Draws up the account.
    ///
    /// # Errors
    /// The server's: a result table is missing, or has other columns.
    pub async fn draw_up(postgres: &Postgres, kafka_rows: u64) -> Result<Self> {
        let mut lines = Vec::new();
        for checked in &CHECKED {
            lines.push(checked.line(postgres).await?);
        }
        Ok(Self { kafka_rows, lines })
    }

    /// Toots that the first table counts.
    pub fn counted(&self) -> u64 {
        self.lines.first().map_or(0, |line| line.counted)
    }

    /// Rows lost, of all tables.
    pub fn lost(&self) -> u64 {
        self.lines.iter().map(|line| line.lost).sum()
    }

    /// Rows counted twice, of all tables.
    pub fn duplicated(&self) -> u64 {
        self.lines.iter().map(|line| line.duplicated).sum()
    }

    /// Whether every row is counted once and every value is PostgreSQL's.
    pub fn is_right(&self) -> bool {
        self.counted() == self.kafka_rows
            && self
                .lines
                .iter()
                .all(|line| line.sent > 0 && (line.lost, line.duplicated, line.wrong) == (0, 0, 0))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header([
            "",
            "sent",
            "counted",
            "lost",
            "counted twice",
            "keys with other values than PostgreSQL's",
        ]);
        for line in &self.lines {
            let numbers = [
                line.sent,
                line.counted,
                line.lost,
                line.duplicated,
                line.wrong,
            ];
            let name = format!("{} in {}", line.counts, line.table);
            table.add_row(
                std::iter::once(name).chain(numbers.map(|number| HumanCount(number).to_string())),
            );
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.trim_fmt()
    }
}

impl Checked {
    async fn line(&self, postgres: &Postgres) -> Result<Line> {
        let differs: Vec<String> = self
            .values
            .iter()
            .map(|value| {
                format!("(SELECT {value} FROM (SELECT s.*) _) IS DISTINCT FROM (SELECT {value} FROM (SELECT c.*) _)")
            })
            .collect();
        let sql = format!(
            "SELECT coalesce(sum(s.toots), 0)::bigint,
               coalesce(sum(c.toots), 0)::bigint,
               coalesce(sum(greatest(coalesce(s.toots, 0) - coalesce(c.toots, 0), 0)), 0)::bigint,
               coalesce(sum(greatest(coalesce(c.toots, 0) - coalesce(s.toots, 0), 0)), 0)::bigint,
               count(*) FILTER (WHERE {})
             FROM ({}) AS s FULL JOIN {} AS c USING ({})",
            differs.join(" OR "),
            self.expected,
            self.table,
            self.key
        );
        let (sent, counted, lost, duplicated, wrong): (i64, i64, i64, i64, i64) =
            sqlx::query_as(AssertSqlSafe(sql))
                .fetch_one(&postgres.pool)
                .await
                .with_context(|| format!("the account of {}", self.table))?;
        Ok(Line {
            table: self.table,
            counts: self.counts,
            sent: u64::try_from(sent)?,
            counted: u64::try_from(counted)?,
            lost: u64::try_from(lost)?,
            duplicated: u64::try_from(duplicated)?,
            wrong: u64::try_from(wrong)?,
        })
    }
}

/// The newest windows of a result table, their largest counts first, under a line that says how many rows there are.
///
/// # Errors
/// The server's.
pub async fn newest_rows(postgres: &Postgres, table: &str, limit: usize) -> Result<String> {
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .fetch_one(&postgres.pool)
        .await?;
    // The simple protocol sends every value as text.
    let sql =
        format!("SELECT * FROM {table} ORDER BY window_start DESC, toots DESC, 2 LIMIT {limit}");
    let rows = postgres
        .pool
        .fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await?;
    let mut shown = Table::new();
    shown.load_preset(presets::NOTHING);
    if let Some(first) = rows.first() {
        let names = first.columns().iter().map(sqlx::Column::name);
        shown.set_header(names);
    }
    for row in &rows {
        shown.add_row(texts(row)?);
    }
    Ok(format!(
        "{table}: {} rows, the newest {}\n{}",
        HumanCount(u64::try_from(count)?),
        rows.len(),
        shown.trim_fmt()
    ))
}

fn texts(row: &PgRow) -> Result<Vec<String>> {
    (0..row.len())
        .map(|column| {
            let value = row.try_get_raw(column)?;
            if value.is_null() {
                return Ok("NULL".to_owned());
            }
            let text = value.as_str().map_err(|e| anyhow::anyhow!("{e}"))?;
            Ok(text.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(counted: u64, lost: u64, duplicated: u64, wrong: u64) -> Account {
        Account {
            kafka_rows: 10,
            lines: vec![Line {
                table: "t",
                counts: "toots",
                sent: 10,
                counted,
                lost,
                duplicated,
                wrong,
            }],
        }
    }

    #[test]
    fn an_account_with_any_difference_is_wrong() {
        assert!(account(10, 0, 0, 0).is_right());
        assert!(!account(9, 1, 0, 0).is_right());
        assert!(!account(11, 0, 1, 0).is_right());
        // One lost and another counted twice add up, and are wrong nevertheless.
        assert!(!account(10, 1, 1, 0).is_right());
        assert!(!account(10, 0, 0, 1).is_right());
    }
}
