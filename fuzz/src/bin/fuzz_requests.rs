//! What a request asks for and shows, before anything else is done with it.
#![no_main]

use essaim_common::net::access::presented;
use essaim_common::net::rpcs::{Needs, page, rpc};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(uri) = Uri::try_from(data) {
        let path = uri.path();
        // The pages themselves hold nothing; what they show is asked for below /api.
        let open = page(&Method::GET, path) == Needs::Nothing;
        assert!(!(open && (path.starts_with("/api/v1/") || path == "/metrics")));
        if rpc(path) == Needs::Nothing {
            assert!(path.starts_with("/grpc.health.v1.Health/"));
        }
    }
    if let Ok(value) = HeaderValue::from_bytes(data) {
        let _ = presented(&HeaderMap::from_iter([(AUTHORIZATION, value)]));
    }
});
