//! One folder for each sink that is not a source too. What they have in common is in [`crate::connector`].

pub mod postgres;
pub mod kafka;
//! One folder for each sink that is not a source too, and the writing half of files. What they have in common is in
//! [`crate::connector`].

pub mod console;
pub mod files;
