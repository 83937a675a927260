//! Traces over several processes: a span's context travels in a call's metadata, as W3C's `traceparent`. What becomes of
//! the spans is the process's business; without a collector there is no context, and nothing travels.

use crate::metrics::{Counter, Page};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The spans of this process.
pub static SPANS: Spans = Spans::new();

/// What became of spans that ended.
#[derive(Debug)]
pub struct Spans {
    waiting: AtomicUsize,
    exported: Counter,
    failed: Counter,
    dropped: Counter,
}

impl Spans {
    const fn new() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            exported: Counter::new(),
            failed: Counter::new(),
            dropped: Counter::new(),
        }
    }

    /// Takes in a span that has ended if fewer than `room` wait; otherwise it counts as dropped.
    pub fn enter(&self, room: usize) -> bool {
        let more = |waiting: usize| (waiting < room).then_some(waiting + 1);
        let entered = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        if entered.is_err() {
            self.dropped.inc();
        }
        entered.is_ok()
    }

    /// So many spans have been handed to the collector, or could not be.
    pub fn leave(&self, count: usize, taken: bool) {
        self.waiting.fetch_sub(count, Ordering::AcqRel);
        let counter = if taken { &self.exported } else { &self.failed };
        counter.add(count as u64);
    }

    /// Adds what was counted.
    pub fn add_to(&self, page: &mut Page) {
        let outcomes = [
            ("exported", &self.exported),
            ("failed", &self.failed),
            ("dropped", &self.dropped),
        ];
        let mut family = page.counter(
            "essaim_trace_spans_total",
            "Spans that ended: exported to the collector, failed to reach it, or dropped because too many waited.",
        );
        for (outcome, counter) in outcomes {
            family.count(&[("outcome", outcome)], counter);
        }
    }
}

/// Does blocking work on a thread of its own, within the current span: what it logs says of which job and epoch it is.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
}

/// Writes the current span's context into a call's metadata.
pub fn inject(metadata: &mut MetadataMap) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut Outgoing(metadata));
}

/// Makes `span` a child of the caller's, if the metadata names one. Before the span is entered.
pub fn adopt(span: &Span, metadata: &MetadataMap) {
    if metadata.get("traceparent").is_none() {
        return;
    }
    let context = TraceContextPropagator::new().extract(&Incoming(metadata));
    // Without a collector on this side nobody wants to know.
    let _ = span.set_parent(context);
}

/// A call's metadata, as OpenTelemetry writes to it.
struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            return;
        }
        if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), value.parse())
        {
            self.0.insert(key, value);
        }
    }
}

/// A call's metadata, as OpenTelemetry reads it.
struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        // W3C's two names are asked for, never looked for.
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_nothing_travels() {
        let mut metadata = MetadataMap::new();
        tracing::error_span!("epoch").in_scope(|| inject(&mut metadata));
        assert!(metadata.is_empty(), "{metadata:?}");
        adopt(&Span::none(), &metadata);
    }

    #[test]
    fn spans_beyond_the_room_are_dropped() {
        let spans = Spans::new();
        assert!(spans.enter(2) && spans.enter(2));
        assert!(!spans.enter(2));
        spans.leave(2, false);
        assert!(spans.enter(2));
        spans.leave(1, true);
        let counts = [&spans.exported, &spans.failed, &spans.dropped].map(Counter::get);
        assert_eq!(counts, [1, 2, 1]);
    }
}
