//! What a bench prints: a table for people and one line of JSON for programs.

use crate::measure::Runs;
use serde_json::{Map, Value, json};

/// How many columns a name takes in the table.
const NAME: usize = 34;

/// The figures of one bench.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
    lines: Vec<String>,
    figures: Map<String, Value>,
}

impl Report {
    /// An empty one.
    pub fn new(bench: &'static str) -> Self {
        Self {
            bench,
            lines: Vec::new(),
            figures: Map::new(),
        }
    }

    /// A single figure, e.g. `("rows", 10_000_000, "")`.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>, unit: &str) {
        let value = value.into();
        self.lines.push(format!("{name:<NAME$} {value} {unit}"));
        self.figures.insert(name.to_owned(), value);
    }

    /// Seconds of several runs, and how many `things` a second the median makes.
    pub fn runs(&mut self, name: &str, runs: &Runs, count: u64, things: &str) {
        let rate = (count as f64 / runs.median()).round();
        self.lines.push(format!(
            "{name:<NAME$} {:.3} s (min {:.3}, max {:.3}): {} {things}/s",
            runs.median(),
            runs.min(),
            runs.max(),
            with_commas(rate as u64),
        ));
        self.figures.insert(
            name.to_owned(),
            json!({
                "median_s": rounded(runs.median()),
                "min_s": rounded(runs.min()),
                "max_s": rounded(runs.max()),
                "runs_s": runs.seconds().iter().map(|s| rounded(*s)).collect::<Vec<_>>(),
                "per_second": rate,
            }),
        );
    }

    /// Essaim's rate as a part of the limit's, and the mark that it should reach.
    pub fn ratio(&mut self, essaim: &Runs, limit: &Runs, mark: f64) {
        let ratio = essaim.ratio_to(limit);
        let pairs = essaim.ratios_to(limit);
        let (least, most) = (pairs.first().copied(), pairs.last().copied());
        let (least, most) = (least.unwrap_or(f64::NAN), most.unwrap_or(f64::NAN));
        self.lines.push(format!(
            "{:<NAME$} {ratio:.2} (pairs {least:.2} to {most:.2}), mark {mark}: {}",
            "ratio",
            verdict(ratio >= mark)
        ));
        self.figures.insert(
            "ratio".to_owned(),
            json!({
                "of_medians": rounded(ratio),
                "min": rounded(least),
                "max": rounded(most),
                "mark": mark,
                "reached": ratio >= mark,
            }),
        );
    }

    /// A figure that should be at least `mark`.
    pub fn at_least(&mut self, name: &str, value: f64, mark: f64, unit: &str) {
        self.marked(name, value, mark, unit, "at least", value >= mark);
    }

    /// A figure that should be below `mark`.
    pub fn below(&mut self, name: &str, value: f64, mark: f64, unit: &str) {
        self.marked(name, value, mark, unit, "below", value < mark);
    }

    fn marked(&mut self, name: &str, value: f64, mark: f64, unit: &str, side: &str, reached: bool) {
        self.lines.push(format!(
            "{name:<NAME$} {value:.3} {unit}, mark {side} {mark}: {}",
            verdict(reached)
        ));
        self.figures.insert(
            name.to_owned(),
            json!({ "value": rounded(value), "unit": unit, "mark": mark, "reached": reached }),
        );
    }

    /// Prints the table and the line of JSON.
    pub fn print(self) {
        println!("\n== {}", self.bench);
        for line in &self.lines {
            println!("{}", line.trim_end());
        }
        let document = json!({ "bench": self.bench, "figures": self.figures });
        println!("{document}");
    }
}

fn verdict(reached: bool) -> &'static str {
    match reached {
        true => "reached",
        false => "MISSED",
    }
}

/// To three digits after the point.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(with_commas(7), "7");
        assert_eq!(with_commas(123_456), "123,456");
        assert_eq!(with_commas(1_234_567), "1,234,567");
    }
}
