//! Essaim's own SQL functions.

pub mod average;
pub mod event_time;
pub mod first_last;
pub mod list_field;
pub mod window;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use std::sync::Arc;

/// All of them, for the session's registry.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    event_time::EventTime::ALL
        .into_iter()
        .map(|function| Arc::new(ScalarUDF::new_from_impl(function)))
        .chain([Arc::new(ScalarUDF::new_from_impl(list_field::ListField))])
        .collect()
}

/// Those of ours that stand in for DataFusion's of the same name.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::new_from_impl(average::Average::default())),
        Arc::new(AggregateUDF::new_from_impl(first_last::FirstLast::first())),
        Arc::new(AggregateUDF::new_from_impl(first_last::FirstLast::last())),
    ]
}
