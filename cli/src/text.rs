//! Text from elsewhere, made fit for a terminal.

use chrono::{DateTime, SecondsFormat, Utc};
use std::fmt::Write;

/// The text with control characters written as `\x1b`: a record must not be able to drive the terminal.
///
/// Line feeds and tabs stay.
pub fn printable(text: &str) -> String {
    escape(text, |c| c == '\n' || c == '\t')
}

/// As [`printable`], on one line.
pub fn one_line(text: &str) -> String {
    escape(&text.replace('\n', " "), |_| false)
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !keep(c) {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\x{:02x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A time of the contract, in ms since 1970-01-01 UTC, as RFC 3339; nothing for 0, a time not reached.
pub fn rfc3339(ms: i64) -> Option<String> {
    instant(ms).filter(|_| ms != 0)
}

/// A point in time, in ms since 1970-01-01 UTC, as RFC 3339; nothing for what is too far away to have a date.
pub fn instant(ms: i64) -> Option<String> {
    let time: DateTime<Utc> = DateTime::from_timestamp_millis(ms)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(printable("a\x1b[2J\tb\nc"), "a\\x1b[2J\tb\nc");
        assert_eq!(one_line("a\x07\nb"), "a\\x07 b");
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(
            rfc3339(1_700_000_000_123).as_deref(),
            Some("2023-11-14T22:13:20.123Z")
        );
        assert_eq!(rfc3339(0), None);
        assert_eq!(instant(0).as_deref(), Some("1970-01-01T00:00:00.000Z"));
    }
}
