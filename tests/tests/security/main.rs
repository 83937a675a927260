//! Who may do what on every listener, and what happens to a server that is abused.

mod abuse;
mod certificates;
mod cluster_secret;
mod decoders;
mod excess;
mod guarded;
mod raw;
mod refused;
mod shown;
mod started;
mod whole_job;
