//! What the master serves: gRPC for clients and workers, HTTP for people and probes.

pub mod cluster;
pub mod http;
pub mod jobs;
mod pages;
