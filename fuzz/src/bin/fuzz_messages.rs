//! The messages that masters and workers take, a task's parameters among them.
#![no_main]

use essaim_proto::v1::{
    HeartbeatRequest, PlanNode, PutBroadcastRequest, QueryRequest, RegisterRequest, RunRequest,
    SubmitRequest,
};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let _ = RunRequest::decode(data);
    let _ = PlanNode::decode(data);
    let _ = PutBroadcastRequest::decode(data);
    let _ = RegisterRequest::decode(data);
    let _ = HeartbeatRequest::decode(data);
    let _ = QueryRequest::decode(data);
    let _ = SubmitRequest::decode(data);
});
