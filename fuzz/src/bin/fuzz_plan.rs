//! A task's plan as a worker decodes it.
#![no_main]

use datafusion::execution::context::SessionContext;
use datafusion_proto::bytes::physical_plan_from_bytes_with_extension_codec;
use essaim_common::codec::EssaimCodec;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static SESSION: LazyLock<SessionContext> = LazyLock::new(SessionContext::new);

fuzz_target!(|data: &[u8]| {
    let _ = physical_plan_from_bytes_with_extension_codec(data, &SESSION.task_ctx(), &EssaimCodec);
});
