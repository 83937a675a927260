//! What the benches share: how they measure and report, a look at processes, and the messages that they send.

pub mod epochs;
pub mod load;
pub mod measure;
pub mod messages;
pub mod process;
pub mod report;
pub mod topic;
