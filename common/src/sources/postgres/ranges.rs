//! How a table is cut: by blocks where it has them, else by the values of one column.

use super::catalog::{Leaf, Relation};
use super::client::{literal, quote};
use super::types::Kind;
use crate::error::Result;
use crate::options::Options;
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde::{Deserialize, Serialize};

/// Fewer blocks (of 8 KiB) than this are not worth a split of their own.
const LEAST_BLOCKS: i64 = 512;

/// What a worker needs to read one split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// What stands after FROM.
    pub from: String,
    /// Which of its rows, as SQL; all if `None`.
    pub predicate: Option<String>,
}

/// A range with what people and the planner want to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub range: Range,
    pub label: String,
    pub rows: Option<u64>,
}

/// Cuts leaves into about `target` ranges of equally many blocks. The last range of a leaf has no end: a table may
/// have grown since its size was read, and what is not visible in the snapshot is not read anyway.
pub fn by_blocks(leaves: &[Leaf], target: usize) -> Vec<Cut> {
    let total: i64 = leaves.iter().map(|leaf| leaf.blocks).sum();
    let target = i64::try_from(target.max(1)).unwrap_or(i64::MAX);
    let step = (total / target + i64::from(total % target > 0)).max(LEAST_BLOCKS);
    let mut cuts = Vec::new();
    for leaf in leaves {
        // ONLY: tables that inherit from this one are leaves of their own.
        let from = format!("ONLY {}.{}", quote(&leaf.schema), quote(&leaf.table));
        let pieces = if leaf.has_blocks {
            ((leaf.blocks + step / 2) / step).max(1)
        } else {
            1
        };
        for piece in 0..pieces {
            let start = leaf.blocks * piece / pieces;
            let end = leaf.blocks * (piece + 1) / pieces;
            let mut terms = Vec::new();
            if piece > 0 {
                terms.push(format!("ctid >= '({start},0)'::tid"));
            }
            if piece + 1 < pieces {
                terms.push(format!("ctid < '({end},0)'::tid"));
            }
            cuts.push(Cut {
                label: if pieces == 1 {
                    leaf.table.clone()
                } else {
                    format!("{} blocks {start}..{end}", leaf.table)
                },
                range: Range {
                    from: from.clone(),
                    predicate: (!terms.is_empty()).then(|| terms.join(" AND ")),
                },
                rows: leaf.rows.map(|rows| rows / pieces.unsigned_abs()),
            });
        }
    }
    cuts
}

/// The options `partition_column`, `lower_bound`, `upper_bound`, `num_partitions`, as Spark's JDBC source has them:
/// the bounds decide only where the cuts are, not which rows are read.
#[derive(Debug, Clone)]
pub struct KeyRanges {
    column: String,
    lower: String,
    upper: String,
    pieces: u32,
}

impl KeyRanges {
    /// Takes the options; `None` if none of them is given.
    ///
    /// # Errors
    /// Some are given and others not; a number of partitions that is none.
    pub fn take(options: &mut Options) -> Result<Option<Self>> {
        let column = options.text("partition_column");
        let lower = options.text("lower_bound");
        let upper = options.text("upper_bound");
        let pieces = options.parsed::<u32>("num_partitions")?;
        match (column, lower, upper, pieces) {
            (None, None, None, None) => Ok(None),
            (Some(column), Some(lower), Some(upper), Some(pieces)) if pieces > 0 => Ok(Some(Self {
                column,
                lower,
                upper,
                pieces,
            })),
            _ => Err(options.error(
                "partition_column, lower_bound, upper_bound and num_partitions (at least 1) go together: give all four",
            )),
        }
    }

    /// Cuts a relation.
    ///
    /// # Errors
    /// An unknown column, one of a type without strides, bounds of another type or in the wrong order.
    pub fn cut(&self, relation: &Relation, options: &Options) -> Result<Vec<Cut>> {
        let Some(column) = relation.column(&self.column) else {
            let names: Vec<_> = relation.columns.iter().map(|c| c.name.as_str()).collect();
            return Err(options.error(format!(
                "option partition_column '{}': {} has no such column; it has {}",
                self.column,
                relation.quoted(),
                names.join(", ")
            )));
        };
        let bound = |name, text: &str| {
            position(&column.kind, text).ok_or_else(|| {
                options.error(format!(
                    "option {name} '{text}': column {} is {}; \
                     a partition_column is a whole number, a numeric, a date or a timestamp, and so are its bounds",
                    self.column,
                    column.kind.sql()
                ))
            })
        };
        let lower = bound("lower_bound", &self.lower)?;
        let upper = bound("upper_bound", &self.upper)?;
        if lower >= upper {
            return Err(options.error(format!(
                "lower_bound '{}' must be below upper_bound '{}'",
                self.lower, self.upper
            )));
        }
        let pieces = i128::from(self.pieces).min(upper - lower);
        let name = quote(&self.column);
        let edge = |piece: i128| {
            let at = lower + (upper - lower) * piece / pieces;
            value(&column.kind, at)
        };
        Ok((0..pieces)
            .map(|piece| {
                let start = (piece > 0).then(|| edge(piece));
                let end = (piece + 1 < pieces).then(|| edge(piece + 1));
                let (label, predicate) = match (start, end) {
                    (None, None) => (self.column.clone(), None),
                    (None, Some(end)) => (
                        format!("{} < {end}", self.column),
                        Some(format!("{name} < {end} OR {name} IS NULL")),
                    ),
                    (Some(start), None) => (
                        format!("{} >= {start}", self.column),
                        Some(format!("{name} >= {start}")),
                    ),
                    (Some(start), Some(end)) => (
                        format!("{start} <= {} < {end}", self.column),
                        Some(format!("{name} >= {start} AND {name} < {end}")),
                    ),
                };
                Cut {
                    range: Range {
                        from: relation.quoted(),
                        predicate,
                    },
                    label: format!("{} {label}", relation.table),
                    rows: None,
                }
            })
            .collect())
    }
}

/// A bound as a number: itself, days or microseconds.
fn position(kind: &Kind, text: &str) -> Option<i128> {
    let text = text.trim();
    let day = |text| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    match kind {
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid | Kind::Numeric { .. } => {
            text.parse::<i64>().ok().map(i128::from)
        }
        Kind::Date => Some(i128::from(day(text)?.to_epoch_days())),
        Kind::Timestamp | Kind::Timestamptz => {
            let text = text.strip_suffix('Z').unwrap_or(text);
            let time = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"]
                .iter()
                .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
                .or_else(|| day(text)?.and_hms_opt(0, 0, 0))?;
            Some(i128::from(time.and_utc().timestamp_micros()))
        }
        _ => None,
    }
}

/// The same number as SQL.
fn value(kind: &Kind, at: i128) -> String {
    let at64 = i64::try_from(at).unwrap_or_default();
    match kind {
        Kind::Date => {
            let day = i32::try_from(at64)
                .ok()
                .and_then(NaiveDate::from_epoch_days)
                .unwrap_or_default();
            format!("{}::date", literal(&day.format("%Y-%m-%d").to_string()))
        }
        Kind::Timestamp | Kind::Timestamptz => {
            let time = DateTime::from_timestamp_micros(at64).unwrap_or_default();
            let (format, sql) = match kind {
                Kind::Timestamptz => ("%Y-%m-%d %H:%M:%S%.6f+00", "timestamptz"),
                _ => ("%Y-%m-%d %H:%M:%S%.6f", "timestamp"),
            };
            format!("{}::{sql}", literal(&time.format(format).to_string()))
        }
        _ if at < 0 => format!("({at})"),
        _ => at.to_string(),
    }
}
