//! The status pages: files that build.rs embeds, served under a policy that lets them load nothing from elsewhere.
//!
//! They hold no data of the cluster, which they ask the API for: so they are for anyone to read, token or not.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Scripts and styles are files of ours, requests go to us, and no other page shows ours in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// An embedded file.
#[derive(Debug)]
struct File {
    /// Its path below `/assets/`.
    name: &'static str,
    content_type: &'static str,
    /// A hash of its content, in quotes.
    etag: &'static str,
    body: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// The pages' addresses. All of them are one file, whose script looks at the address.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = || get(|headers: HeaderMap| async move { answer("index.html", &headers) });
    Router::new()
        .route("/", page())
        .route("/jobs", page())
        .route("/jobs/{id}", page())
        .route("/workers", page())
        .route("/workers/{id}", page())
        .route("/assets/{*name}", get(asset))
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    answer(&name, &headers)
}

/// A file, or nothing but its ETag if the browser has it.
fn answer(name: &str, headers: &HeaderMap) -> Response {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    };
    let common = [
        (header::ETAG, file.etag),
        // To be asked for each time: another build may serve the next one.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if has(headers, file.etag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let content_type = [(header::CONTENT_TYPE, file.content_type)];
    (common, content_type, file.body).into_response()
}

/// Whether `If-None-Match` names the ETag (RFC 9110, section 13.1.2).
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == etag || one == "*")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_page_is_sent_with_its_type_and_policy_and_not_sent_again() {
        let first = answer("index.html", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let sent = first.headers();
        assert_eq!(sent[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(sent[header::CONTENT_SECURITY_POLICY], POLICY);
        let etag = sent[header::ETAG].to_str().unwrap();

        let mut headers = HeaderMap::new();
        let known = HeaderValue::from_str(&format!("\"other\", W/{etag}")).unwrap();
        headers.insert(header::IF_NONE_MATCH, known);
        assert_eq!(
            answer("index.html", &headers).status(),
            StatusCode::NOT_MODIFIED
        );
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"other\""));
        assert_eq!(answer("index.html", &headers).status(), StatusCode::OK);
    }

    #[test]
    fn charts_are_a_file_whether_they_were_built_or_not() {
        let charts = answer("charts.js", &HeaderMap::new());
        assert_eq!(charts.status(), StatusCode::OK);
    }

    #[test]
    fn a_path_out_of_the_folder_is_not_found() {
        for name in ["../Cargo.toml", "/etc/passwd", "package.json", ""] {
            let status = answer(name, &HeaderMap::new()).status();
            assert_eq!(status, StatusCode::NOT_FOUND, "{name}");
        }
    }

    #[test]
    fn no_page_has_a_script_or_style_of_its_own() {
        let index = FILES.iter().find(|file| file.name == "index.html").unwrap();
        let text = std::str::from_utf8(index.body).unwrap();
        for piece in text.split('<').filter(|piece| piece.starts_with("script")) {
            assert!(piece.starts_with("script type=\"module\" src=\"/assets/"));
            assert!(piece.trim_end().ends_with('>'));
        }
        assert!(!text.contains("<style") && !text.contains("style=") && !text.contains(" on"));
    }
}
