//! The gRPC contract of Essaim, package `essaim.v1`. Shapes and units stand in the `.proto` files.
#![allow(
    clippy::unwrap_used,
    clippy::large_enum_variant,
    missing_docs,
    unused_qualifications
)]

/// Messages, clients and servers of package `essaim.v1`.
pub mod v1 {
    tonic::include_proto!("essaim.v1");

    /// The compiled descriptors, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/essaim.v1.bin"));
}

impl std::fmt::Debug for v1::RegisterResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterResponse")
            .field("heartbeat_ms", &self.heartbeat_ms)
            .field("lease_ms", &self.lease_ms)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

mod version;

pub use version::{PROTOCOL, VERSION, Version};

/// The largest message that any Essaim listener takes, in bytes.
///
/// Data travels in chunks of [`CHUNK_BYTES`]; what may be larger is a plan with a broadcast input.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// The largest piece of an Arrow IPC stream in one message, in bytes.
pub const CHUNK_BYTES: usize = 1024 * 1024;
