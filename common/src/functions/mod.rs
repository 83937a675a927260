//! Essaim's own SQL functions.

pub mod average;
pub mod event_time;
pub mod first_last;
pub mod list_field;
pub mod random;
pub mod window;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use std::sync::Arc;

/// All of them, for the session's registry.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let of_windows = event_time::EventTime::ALL.map(ScalarUDF::new_from_impl);
    let random = random::Random::ALL.map(ScalarUDF::new_from_impl);
    let of_lists = [ScalarUDF::new_from_impl(list_field::ListField)];
    let all = of_windows.into_iter().chain(random).chain(of_lists);
    all.map(Arc::new).collect()
}

/// Those of ours that stand in for DataFusion's of the same name.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::new_from_impl(average::Average::default())),
        Arc::new(AggregateUDF::new_from_impl(first_last::FirstLast::first())),
        Arc::new(AggregateUDF::new_from_impl(first_last::FirstLast::last())),
    ]
}
