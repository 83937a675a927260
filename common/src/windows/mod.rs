//! The nodes between a partial aggregate by pane (or by time) and the final one by window (or by session).

pub mod expand;
pub mod session;
