//! Metrics in Prometheus's text format: counters that code counts with, and the page that is made of them at a scrape.
//!
//! Nothing is registered anywhere. Counters live where the thing lives that they count, and go with it; a scrape looks
//! at what is there and writes it down, so a series ends when its subject does.

mod grpc;
mod listeners;
mod process;

pub use grpc::GrpcErrors;
pub use listeners::{Connections, Listeners};

use crate::error::{Error, Result};
use crate::trace::SPANS;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::runtime_env::RuntimeEnv;
use prometheus::TextEncoder;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The content type of a page.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The longest value of a label, in characters: names come from users.
const LABEL_CHARS: usize = 128;

/// Log lines of this process that were not written.
pub static LOG_LINES_DROPPED: Counter = Counter::new();

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Nothing counted yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts several.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of [`Durations`], in seconds: epochs and tasks last from milliseconds to minutes.
const BOUNDS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0,
];

/// How long something took, counted by bounds from 1 ms to 5 min.
#[derive(Debug, Default)]
pub struct Durations {
    /// How many were within each bound and above the one before; the last ones were above all bounds.
    counts: [Counter; BOUNDS.len() + 1],
    nanoseconds: Counter,
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bound = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bound].inc();
        self.nanoseconds
            .add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Counter::get).sum()
    }

    fn proto(&self) -> proto::Histogram {
        let mut histogram = proto::Histogram::default();
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS.len());
        for (at, bound) in BOUNDS.iter().enumerate() {
            count += self.counts[at].get();
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + self.counts[BOUNDS.len()].get());
        histogram.set_sample_sum(self.nanoseconds.get() as f64 / 1e9);
        histogram
    }
}

/// What a scrape yields, while it is put together.
#[derive(Debug, Default)]
pub struct Page(Vec<MetricFamily>);

/// One metric of a [`Page`], to which samples are added.
#[derive(Debug)]
pub struct Family<'a>(&'a mut MetricFamily);

impl Page {
    /// A page of a process: what it is, its memory and files, its operators' memory and spill files.
    pub fn of_process(component: &str, runtime: &RuntimeEnv) -> Self {
        let mut page = Self::default();
        page.gauge(
            "essaim_build_info",
            "Always 1; the labels say what runs here.",
        )
        .add(
            &[
                ("component", component),
                ("version", essaim_proto::VERSION.as_str()),
            ],
            1.0,
        );
        process::add(&mut page);
        page.operators(runtime);
        SPANS.add_to(&mut page);
        page.counter(
            "essaim_log_lines_dropped_total",
            "Log lines that were dropped, as nobody read them from standard error.",
        )
        .count(&[], &LOG_LINES_DROPPED);
        page
    }

    fn operators(&mut self, runtime: &RuntimeEnv) {
        let pool = &runtime.memory_pool;
        self.gauge(
            "essaim_memory_reserved_bytes",
            "Memory that operators have reserved.",
        )
        .add(&[], pool.reserved() as f64);
        if let MemoryLimit::Finite(limit) = pool.memory_limit() {
            self.gauge(
                "essaim_memory_limit_bytes",
                "Memory that operators may reserve together (--memory); what can, spills above it.",
            )
            .add(&[], limit as f64);
        }
        let disk = &runtime.disk_manager;
        self.gauge(
            "essaim_spill_bytes",
            "Bytes in temporary files of operators and results.",
        )
        .add(&[], disk.used_disk_space() as f64);
        self.gauge(
            "essaim_spill_limit_bytes",
            "Bytes that temporary files may take together.",
        )
        .add(&[], disk.max_temp_directory_size() as f64);
    }

    /// A metric that only grows; its name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::COUNTER)
    }

    /// A metric that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::GAUGE)
    }

    /// A metric of [`Durations`]; its name ends in `_seconds`.
    pub fn histogram(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::HISTOGRAM)
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType) -> Family<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        let at = self.0.len();
        self.0.push(family);
        Family(&mut self.0[at])
    }

    /// The page as text, of the type [`CONTENT_TYPE`]. Metrics without samples are left out.
    ///
    /// # Errors
    /// A metric has no name.
    pub fn text(mut self) -> Result<String> {
        self.0.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new()
            .encode_to_string(&self.0)
            .map_err(|e| Error::internal(format!("the metrics cannot be written: {e}")))
    }
}

impl Family<'_> {
    /// Adds a sample with these labels.
    pub fn add(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        let mut metric = Metric::from_label(pairs(labels));
        match self.0.get_field_type() {
            MetricType::COUNTER => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.0.mut_metric().push(metric);
        self
    }

    /// Adds a counter's count with these labels.
    pub fn count(&mut self, labels: &[(&str, &str)], counter: &Counter) -> &mut Self {
        self.add(labels, counter.get() as f64)
    }

    /// Adds durations with these labels, to a metric made by [`Page::histogram`].
    pub fn durations(&mut self, labels: &[(&str, &str)], durations: &Durations) -> &mut Self {
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(durations.proto());
        self.0.mut_metric().push(metric);
        self
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.chars().take(LABEL_CHARS).collect());
        pair
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_by_their_bounds() {
        let durations = Durations::default();
        for ms in [0, 1, 30, 400_000] {
            durations.observe(Duration::from_millis(ms));
        }
        let mut page = Page::default();
        page.histogram("essaim_x_seconds", "X.")
            .durations(&[("job", "a")], &durations);
        let text = page.text().unwrap();
        for line in [
            "essaim_x_seconds_bucket{job=\"a\",le=\"0.001\"} 2",
            "essaim_x_seconds_bucket{job=\"a\",le=\"0.05\"} 3",
            "essaim_x_seconds_bucket{job=\"a\",le=\"300\"} 3",
            "essaim_x_seconds_bucket{job=\"a\",le=\"+Inf\"} 4",
            "essaim_x_seconds_sum{job=\"a\"} 400.031",
            "essaim_x_seconds_count{job=\"a\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_name_with_quotes_and_newlines_stays_one_label() {
        let mut page = Page::default();
        let name = format!("a\"b\nc\\{}", "x".repeat(1000));
        page.gauge("essaim_x", "X.").add(&[("job", &name)], 1.5);
        page.counter("essaim_none_total", "Has no sample.");
        let text = page.text().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[2].starts_with(r#"essaim_x{job="a\"b\nc\\x"#),
            "{text}"
        );
        assert!(lines[2].ends_with("x\"} 1.5"), "{text}");
        assert!(lines[2].len() < 200, "{text}");
    }
}
