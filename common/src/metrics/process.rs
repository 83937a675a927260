//! What the operating system says of this process, under the names that all of Prometheus's client libraries use. From
//! Linux's `/proc`; elsewhere nothing.

use crate::metrics::Page;
use std::fs;

/// `/proc` counts time in these, 100 a second on every Linux (`proc(5)`, `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds CPU time, memory, threads, open files and the start of this process.
pub(super) fn add(page: &mut Page) {
    let text = |file: &str| fs::read_to_string(file).unwrap_or_default();
    if let Some(stat) = Stat::parse(&text("/proc/self/stat")) {
        page.counter(
            "process_cpu_seconds_total",
            "User and system CPU time spent.",
        )
        .add(&[], stat.cpu_ticks / TICKS_PER_SECOND);
        page.gauge("process_threads", "Threads.")
            .add(&[], stat.threads);
        if let Some(booted) = number_after(&text("/proc/stat"), "btime") {
            page.gauge(
                "process_start_time_seconds",
                "When the process started, since 1970-01-01 UTC.",
            )
            .add(&[], booted + stat.start_ticks / TICKS_PER_SECOND);
        }
    }
    if let Some(kib) = number_after(&text("/proc/self/status"), "VmRSS:") {
        page.gauge("process_resident_memory_bytes", "Memory in use.")
            .add(&[], kib * 1024.0);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The folder that is being read is open too.
        page.gauge("process_open_fds", "Open files and connections.")
            .add(&[], entries.count().saturating_sub(1) as f64);
    }
    if let Some(limit) = number_after(&text("/proc/self/limits"), "Max open files") {
        page.gauge("process_max_fds", "Files and connections that may be open.")
            .add(&[], limit);
    }
}

/// Fields of `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: f64,
    /// Since the machine's start.
    start_ticks: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name in parentheses may hold anything; field 3 follows it.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.trim().parse::<f64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
        })
    }
}

/// The number that follows these words at the beginning of a line.
fn number_after(text: &str, words: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(words))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_found_behind_any_name() {
        let line = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 7 18 9000 20\n";
        let stat = Stat {
            cpu_ticks: 200.0,
            threads: 7.0,
            start_ticks: 9000.0,
        };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("42 (a"), None);
    }

    #[test]
    fn an_unlimited_number_is_none() {
        let limits = "Limit  Soft\nMax open files            1024   4096  files\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024.0));
        assert_eq!(
            number_after("Max open files unlimited", "Max open files"),
            None
        );
        assert_eq!(number_after("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12.0));
    }
}
