//! Runs streaming jobs: epoch after epoch of the same plan, with state in between.

pub mod aggregate;
pub mod context;
pub mod dedup;
mod feed;
pub mod state;
