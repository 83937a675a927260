//! Essaim's own SQL functions.

pub mod event_time;
pub mod random;
pub mod window;

use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// All of them, for the session's registry.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let of_windows = event_time::EventTime::ALL.map(ScalarUDF::new_from_impl);
    let random = random::Random::ALL.map(ScalarUDF::new_from_impl);
    of_windows.into_iter().chain(random).map(Arc::new).collect()
}
