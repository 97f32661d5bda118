//! Requests for stored objects, and what caches may do with the answers.

use std::path::Path;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::services::ServeDir;

/// For objects named by the hash of their bytes, and numbered metadata: they never change.
const KEEP_FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// For everything else: ask again each time (a conditional request is cheap).
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// Hexadecimal digits in a row that make a name a hash: 128 bits, which nobody writes by hand.
const HASH_DIGITS: usize = 32;

pub(crate) fn router(content_dir: &Path) -> Router {
    let files = ServeDir::new(content_dir).append_index_html_on_directories(false);
    Router::new().route("/healthz", get(health)).fallback_service(files).layer(from_fn(guard))
}

async fn health() -> &'static str {
    "ok\n"
}

/// Refuses what is not served, and says how long answers may be kept.
async fn guard(request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response();
    }
    let path = request.uri().path().to_owned();
    if hides_something(&path) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let mut response = next.run(request).await;
    if response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED {
        // ServeDir redirects folders to the same name with a slash; to a client a folder is simply not an object.
        return StatusCode::NOT_FOUND.into_response();
    }
    let keep = matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED)
        && (named_by_hash(&path) || is_numbered_metadata(&path));
    response.headers_mut().insert(header::CACHE_CONTROL, if keep { KEEP_FOR_EVER } else { ASK_AGAIN });
    // Objects are bytes; a browser must not guess that one of them is a page with scripts.
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether a component of `path` begins with a dot, written plainly or in percent code.
fn hides_something(path: &str) -> bool {
    path.split('/').any(|part| {
        let lower = part.get(..3).map(str::to_ascii_lowercase);
        part.starts_with('.') || lower.as_deref() == Some("%2e")
    }) || path.to_ascii_lowercase().contains("%2f")
}

/// Whether the last component of `path` holds a hash.
fn named_by_hash(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= HASH_DIGITS)
}

/// Whether `path` is metadata whose name carries its number (`metadata/12.targets.json`): the next one gets another.
fn is_numbered_metadata(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or_default();
    let number = name.strip_suffix(".json").and_then(|name| name.split_once('.')).map(|(number, _)| number);
    let in_metadata = parts.next() == Some("metadata");
    in_metadata && number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_are_recognised() {
        for path in ["/.git/config", "/a/.b", "/a/%2eb", "/a/%2Eb", "/a/../b", "/a%2F.b", "/."] {
            assert!(hides_something(path), "{path}");
        }
        for path in ["/", "/a/b.c", "/a-.b", "/healthz", "/a%20b/c"] {
            assert!(!hides_something(path), "{path}");
        }
    }

    #[test]
    fn only_names_with_a_hash_are_immutable() {
        let hash = "0123456789abcdef0123456789abcdef";
        assert!(named_by_hash(&format!("/app/packs/{hash}")));
        assert!(named_by_hash(&format!("/app/descriptors/{hash}{hash}.1.0")));
        for path in ["/app/head", "/app/metadata/timestamp.json", &format!("/{hash}/head")] {
            assert!(!named_by_hash(path), "{path}");
        }
    }

    #[test]
    fn numbered_metadata_is_immutable_and_the_timestamp_is_not() {
        for path in ["/app/metadata/12.root.json", "/a/app/metadata/1.targets.json"] {
            assert!(is_numbered_metadata(path), "{path}");
        }
        for path in ["/app/metadata/timestamp.json", "/app/12.root.json", "/app/metadata/.json", "/app/metadata/12"] {
            assert!(!is_numbered_metadata(path), "{path}");
        }
    }
}
