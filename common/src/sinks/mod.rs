//! One folder for each sink. What they have in common is in [`crate::connector`].

pub mod console;
pub mod files;
pub mod kafka;
pub mod postgres;
