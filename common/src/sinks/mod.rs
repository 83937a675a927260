//! One folder for each sink. What they have in common is in [`crate::connector`].

pub(crate) mod again;
pub mod console;
pub mod files;
pub mod kafka;
pub mod mongodb;
pub mod postgres;
