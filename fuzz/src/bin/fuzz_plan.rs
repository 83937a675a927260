//! A task's plan as a worker decodes it. DataFusion's decoder panics on some bytes, which the worker turns into an error
//! of the task: so does this. What is left to find is what no program survives.
#![no_main]

use datafusion::prelude::SessionContext;
use datafusion_proto::bytes::physical_plan_from_bytes_with_extension_codec;
use essaim_common::codec::EssaimCodec;
use libfuzzer_sys::fuzz_target;
use std::panic::catch_unwind;
use std::sync::LazyLock;

static SESSION: LazyLock<SessionContext> = LazyLock::new(|| {
    // The fuzzer's own ends the process at a panic.
    std::panic::set_hook(Box::new(|_| {}));
    essaim_fuzz::session()
});

fuzz_target!(|data: &[u8]| {
    let ctx = SESSION.task_ctx();
    let decode = || physical_plan_from_bytes_with_extension_codec(data, &ctx, &EssaimCodec).is_ok();
    let _ = catch_unwind(std::panic::AssertUnwindSafe(decode));
});
