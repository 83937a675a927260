//! Counts gRPC calls that a listener answers with an error, by its code: what is too large, comes too often, or may not.

use crate::metrics::{Counter, Page};
use std::sync::Arc;
use tonic::body::Body;
use tonic::codegen::http::Response;

/// By gRPC's number of the code, as in metrics.
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// The errors of one listener.
#[derive(Debug, Clone, Default)]
pub struct GrpcErrors(Arc<[Counter; CODES.len()]>);

impl GrpcErrors {
    /// Looks at an answer. An error is in its head unless something has been sent before.
    pub fn look(&self, answer: &Response<Body>) {
        let code = answer
            .headers()
            .get("grpc-status")
            .and_then(|code| code.to_str().ok()?.parse::<usize>().ok());
        if let Some(counter) = code.and_then(|code| self.0.get(code)) {
            counter.inc();
        }
    }

    /// Adds what was counted.
    pub fn add_to(&self, page: &mut Page) {
        let mut family = page.counter(
            "essaim_grpc_errors_total",
            "Calls that were answered with nothing but an error, by its gRPC code; out_of_range is a message above the size limit.",
        );
        for (name, counter) in CODES.iter().zip(self.0.iter()).skip(1) {
            family.count(&[("code", name)], counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_code() {
        let errors = GrpcErrors::default();
        let answer = |code: &str| {
            Response::builder()
                .header("grpc-status", code)
                .body(Body::empty())
                .unwrap()
        };
        for code in ["11", "11", "16", "99", "x"] {
            errors.look(&answer(code));
        }
        errors.look(&Response::new(Body::empty()));
        let mut page = Page::default();
        errors.add_to(&mut page);
        let text = page.text().unwrap();
        let counted: Vec<&str> = text.lines().filter(|line| !line.ends_with(" 0")).collect();
        assert_eq!(
            counted[2..],
            [
                "essaim_grpc_errors_total{code=\"out_of_range\"} 2",
                "essaim_grpc_errors_total{code=\"unauthenticated\"} 1",
            ],
            "{text}"
        );
    }
}
