//! One folder for each sink that is not a source too. What they have in common is in [`crate::connector`].

pub mod postgres;
pub mod kafka;
