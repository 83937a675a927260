//! What the listeners of a process have to do: open connections against their limit, those refused, calls in error.

use crate::metrics::{Counter, GrpcErrors, Page};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The listeners of a process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    pub grpc: Connections,
    pub http: Connections,
    pub grpc_errors: GrpcErrors,
}

impl Listeners {
    /// Adds what was counted.
    pub fn add_to(&self, page: &mut Page) {
        let both = [("grpc", &self.grpc), ("http", &self.http)];
        let mut open = page.gauge("essaim_connections", "Connections that are open.");
        for (listener, connections) in both {
            open.add(&[("listener", listener)], connections.open() as f64);
        }
        let mut limits = page.gauge(
            "essaim_connections_limit",
            "Connections that may be open: --max-connections, or what the limit on open files allows.",
        );
        for (listener, connections) in both {
            let limit = connections.0.limit.load(Ordering::Relaxed);
            limits.add(&[("listener", listener)], limit as f64);
        }
        let mut refused = page.counter(
            "essaim_connections_refused_total",
            "Connections that were refused: too many in all or of one client.",
        );
        for (listener, connections) in both {
            refused.count(&[("listener", listener)], &connections.0.refused);
        }
        self.grpc_errors.add_to(page);
    }
}

/// The connections of one listener.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    limit: AtomicUsize,
    refused: Counter,
}

impl Connections {
    /// How many may be open.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    pub(crate) fn enter(&self) {
        self.0.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a refusal; returns how many there were.
    pub(crate) fn refuse(&self) -> u64 {
        self.0.refused.inc();
        self.0.refused.get()
    }
}
