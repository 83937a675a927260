//! One folder for each source. What they have in common is in [`crate::connector`].

pub mod files;
pub mod generator;
pub mod kafka;
pub mod mongodb;
pub mod postgres;
