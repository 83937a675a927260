//! Essaim's own SQL functions.

pub mod event_time;
pub mod window;

use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// All of them, for the session's registry.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    event_time::EventTime::ALL
        .into_iter()
        .map(|function| Arc::new(ScalarUDF::new_from_impl(function)))
        .collect()
}
