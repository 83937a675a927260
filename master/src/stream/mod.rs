//! Runs streaming jobs: epoch after epoch of the same plan, with state in between.

pub mod checkpoint;
pub mod context;
