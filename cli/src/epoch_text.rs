//! The epochs of a streaming job as text for people.

use crate::text::{instant, one_line, rfc3339};
use comfy_table::{CellAlignment, Table, presets};
use essaim_proto::v1::{EpochProgress, EpochTotals, QueryProgress, SourceProgress};
use indicatif::{HumanBytes, HumanCount};

/// The steps of an epoch in the order in which they happen.
const STEPS: [&str; 5] = [
    "latest_offsets",
    "write_offsets",
    "tasks",
    "process",
    "checkpoint",
];

/// An epoch's sources added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Flow {
    pub input_rows_per_second: f64,
    pub processed_rows_per_second: f64,
    /// In offsets.
    pub lag: u64,
}

impl Flow {
    /// That of one epoch.
    pub fn of(epoch: &EpochProgress) -> Self {
        epoch
            .sources
            .iter()
            .fold(Self::default(), |sum, source| Self {
                input_rows_per_second: sum.input_rows_per_second + source.input_rows_per_second,
                processed_rows_per_second: sum.processed_rows_per_second
                    + source.processed_rows_per_second,
                lag: sum.lag + source.lag,
            })
    }
}

/// An epoch in one line. How far the watermark is behind refers to the epoch's end.
pub fn line(epoch: &EpochProgress) -> String {
    let flow = Flow::of(epoch);
    let mut parts = vec![
        format!(
            "{} rows in {}",
            HumanCount(epoch.input_rows),
            duration(epoch.duration_ms)
        ),
        format!("{} rows/s", rate(flow.processed_rows_per_second)),
        format!("lag {}", HumanCount(flow.lag)),
    ];
    // An INSERT that joins waits for its slowest source.
    let watermarks = epoch.queries.iter().filter_map(|query| query.watermark_ms);
    if let Some(watermark) = watermarks.min() {
        let end = epoch.started_ms + epoch.duration_ms as i64;
        let at = instant(watermark).unwrap_or_default();
        parts.push(format!(
            "watermark {at} ({} behind)",
            behind(watermark, end)
        ));
    }
    let sum = |of: fn(&QueryProgress) -> u64| epoch.queries.iter().map(of).sum::<u64>();
    parts.push(format!("{} rows out", HumanCount(sum(|q| q.output_rows))));
    let unusual = [
        ("late", sum(|q| q.late_rows)),
        ("skipped", epoch.records_skipped),
        ("dead-lettered", epoch.records_dead_lettered),
        ("lost", epoch.sources.iter().map(|source| source.lost).sum()),
        ("retries", u64::from(epoch.retries)),
    ];
    for (name, count) in unusual.into_iter().filter(|(_, count)| *count > 0) {
        parts.push(format!("{} {name}", HumanCount(count)));
    }
    let state_rows = sum(|q| q.state_rows);
    if state_rows > 0 {
        parts.push(format!(
            "state {} rows ({})",
            HumanCount(state_rows),
            HumanBytes(sum(|q| q.state_bytes))
        ));
    }
    format!(
        "{} epoch {}: {}",
        rfc3339(epoch.started_ms).unwrap_or_default(),
        epoch.epoch,
        parts.join(", ")
    )
}

/// An epoch with a table of its sources and one of its INSERTs, at the time `now_ms`.
pub fn tables(epoch: &EpochProgress, now_ms: i64) -> Vec<String> {
    vec![
        String::new(),
        sources(&epoch.sources, now_ms),
        String::new(),
        inserts(&epoch.queries, now_ms),
    ]
}

/// The fields of a job's status that tell of its last epoch: name and value.
pub fn fields(epoch: &EpochProgress) -> Vec<(&'static str, String)> {
    let flow = Flow::of(epoch);
    let mut fields = vec![(
        "epoch",
        format!(
            "{}, begun {}, {}{}",
            epoch.epoch,
            rfc3339(epoch.started_ms).unwrap_or_default(),
            duration(epoch.duration_ms),
            match epoch.retries {
                0 => String::new(),
                retries => format!(", started again {retries} times"),
            }
        ),
    )];
    fields.push(("steps", steps(epoch)));
    fields.push((
        "rate",
        format!(
            "{} rows/s in, {} rows/s processed",
            rate(flow.input_rows_per_second),
            rate(flow.processed_rows_per_second)
        ),
    ));
    fields.push(("lag", format!("{} offsets", HumanCount(flow.lag))));
    fields
}

/// What a job's epochs did together.
pub fn totals(totals: &EpochTotals) -> String {
    format!(
        "{} epochs, {} rows in, {} rows out, {} late, {} skipped, {} dead-lettered, {} offsets lost",
        HumanCount(totals.epochs),
        HumanCount(totals.input_rows),
        HumanCount(totals.output_rows),
        HumanCount(totals.late_rows),
        HumanCount(totals.records_skipped),
        HumanCount(totals.records_dead_lettered),
        HumanCount(totals.lost),
    )
}

fn steps(epoch: &EpochProgress) -> String {
    let known = STEPS.iter().copied();
    let mut others: Vec<&str> = epoch.durations_ms.keys().map(String::as_str).collect();
    others.retain(|step| !STEPS.contains(step));
    others.sort_unstable();
    let shown: Vec<String> = known
        .chain(others)
        .filter_map(|step| Some((step, epoch.durations_ms.get(step)?)))
        .map(|(step, ms)| format!("{} {}", one_line(step), duration(*ms)))
        .collect();
    shown.join(", ")
}

fn sources(sources: &[SourceProgress], now_ms: i64) -> String {
    let mut table = table(
        [
            "SOURCE",
            "ROWS",
            "IN/S",
            "DONE/S",
            "LAG",
            "LOST",
            "WATERMARK",
            "BEHIND",
        ],
        &[1, 2, 3, 4, 5, 7],
    );
    for source in sources {
        let (at, behind) = watermark(source.watermark_ms, now_ms);
        table.add_row([
            one_line(&source.table),
            HumanCount(source.input_rows).to_string(),
            rate(source.input_rows_per_second),
            rate(source.processed_rows_per_second),
            HumanCount(source.lag).to_string(),
            HumanCount(source.lost).to_string(),
            at,
            behind,
        ]);
    }
    table.trim_fmt()
}

fn inserts(queries: &[QueryProgress], now_ms: i64) -> String {
    let mut table = table(
        [
            "INSERT",
            "MODE",
            "ROWS OUT",
            "LATE",
            "STATE",
            "SIZE",
            "WATERMARK",
            "BEHIND",
        ],
        &[2, 3, 4, 5, 7],
    );
    for query in queries {
        let (at, behind) = watermark(query.watermark_ms, now_ms);
        table.add_row([
            format!("{} -> {}", query.index, one_line(&query.sink)),
            one_line(&query.output_mode),
            HumanCount(query.output_rows).to_string(),
            HumanCount(query.late_rows).to_string(),
            HumanCount(query.state_rows).to_string(),
            HumanBytes(query.state_bytes).to_string(),
            at,
            behind,
        ]);
    }
    table.trim_fmt()
}

fn table<const N: usize>(header: [&str; N], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The watermark and how far it is behind.
fn watermark(ms: Option<i64>, now_ms: i64) -> (String, String) {
    match ms {
        Some(ms) => (instant(ms).unwrap_or_default(), behind(ms, now_ms)),
        None => ("-".to_owned(), "-".to_owned()),
    }
}

fn behind(watermark_ms: i64, now_ms: i64) -> String {
    duration(now_ms.saturating_sub(watermark_ms) as f64)
}

/// Three digits or so, and a unit.
fn duration(ms: f64) -> String {
    let seconds = ms / 1000.0;
    match seconds.abs() {
        s if s < 1.0 => format!("{ms:.0} ms"),
        s if s < 120.0 => format!("{seconds:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", seconds / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} d", seconds / 86_400.0),
    }
}

/// Rows a second.
pub fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        HumanCount(per_second.round() as u64).to_string()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Two partitions of one topic, counted by minute.
    pub fn epoch(number: u64) -> EpochProgress {
        let steps = [
            ("checkpoint", 3.0),
            ("tasks", 400.4),
            ("process", 120.0),
            ("latest_offsets", 1.6),
        ];
        EpochProgress {
            epoch: number,
            started_ms: 1_700_000_000_000,
            duration_ms: 532.4,
            input_rows: 1234,
            sources: vec![SourceProgress {
                table: "toots".into(),
                end: [("toots[0]".to_owned(), 617), ("toots[1]".to_owned(), 617)].into(),
                lag: 12_000,
                input_rows: 1234,
                input_rows_per_second: 2.345,
                processed_rows_per_second: 2317.8,
                watermark_ms: Some(1_699_999_980_532),
                ..SourceProgress::default()
            }],
            queries: vec![QueryProgress {
                index: 0,
                sink: "per_minute".into(),
                output_mode: "update".into(),
                output_rows: 17,
                late_rows: 3,
                watermark_ms: Some(1_699_999_980_532),
                state_rows: 1000,
                state_bytes: 65_536,
            }],
            durations_ms: steps.map(|(step, ms)| (step.to_owned(), ms)).into(),
            ..EpochProgress::default()
        }
    }

    #[test]
    fn an_epoch_is_one_line() {
        assert_eq!(
            line(&epoch(42)),
            "2023-11-14T22:13:20.000Z epoch 42: 1,234 rows in 532 ms, 2,318 rows/s, lag 12,000, \
             watermark 2023-11-14T22:13:00.532Z (20.0 s behind), 17 rows out, 3 late, \
             state 1,000 rows (64.00 KiB)"
        );
        let idle = EpochProgress {
            epoch: 43,
            ..EpochProgress::default()
        };
        assert_eq!(
            line(&idle),
            " epoch 43: 0 rows in 0 ms, 0 rows/s, lag 0, 0 rows out"
        );
    }

    #[test]
    fn steps_are_in_the_order_in_which_they_happen() {
        assert_eq!(
            steps(&epoch(1)),
            "latest_offsets 2 ms, tasks 400 ms, process 120 ms, checkpoint 3 ms"
        );
    }

    #[test]
    fn a_watermark_is_behind_now() {
        let text = tables(&epoch(1), 1_700_000_040_532).join("\n");
        assert_eq!(text.matches("60.0 s").count(), 2, "{text}");
        let mut without = epoch(1);
        without.sources[0].watermark_ms = None;
        let text = tables(&without, 1_700_000_040_532).join("\n");
        assert_eq!(text.matches("60.0 s").count(), 1, "{text}");
    }

    #[test]
    fn durations_and_rates_have_about_three_digits() {
        let shown = [0.4, 999.0, 61_300.0, 3_600_000.0, 8_000_000.0, 2e8].map(duration);
        let expected = ["0 ms", "999 ms", "61.3 s", "60.0 min", "2.2 h", "2.3 d"];
        assert_eq!(shown, expected);
        assert_eq!(duration(-1500.0), "-1.5 s");
        assert_eq!(
            [0.0, 0.25, 12.6, 1e6].map(rate),
            ["0", "0.2", "13", "1,000,000"]
        );
    }
}
