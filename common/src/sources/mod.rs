//! One folder for each source. What they have in common is in [`crate::connector`].

pub(crate) mod feed;
pub mod files;
pub mod generator;
pub mod http;
pub mod kafka;
pub mod mongodb;
pub mod postgres;
pub mod sse;
