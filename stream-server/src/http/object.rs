//! A stored object.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use fs_core::backend::ObjectPath;

use super::asking::Reader;
use super::conditions::{State, Verdict, judge};
use super::{ASK_AGAIN, failed, limited};
use crate::content::{Object, PackagePath, is_named_by_hash, is_numbered_metadata};
use crate::{Connection, Shared};

/// For objects named by the hash of their bytes, and numbered metadata: they never change.
const KEEP_FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// The same for what not everybody may read: no cache on the way may give it to somebody else.
const KEEP_FOR_YOURSELF: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

pub(super) async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    reader: &Reader,
    package: &PackagePath,
    name: &ObjectPath,
    request: &Parts,
) -> Response {
    let object = match shared.content.object(package, name).await {
        Ok(object) => object,
        Err(error) => return failed(package, &error),
    };
    let is_get = request.method == Method::GET;
    let state = State { etag: etag(name, &object), modified: object.modified, length: object.length };
    let mut response = match judge(is_get, &request.headers, &state) {
        Verdict::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Verdict::Failed => return StatusCode::PRECONDITION_FAILED.into_response(),
        Verdict::Unsatisfiable => {
            let length = [(header::CONTENT_RANGE, format!("bytes */{}", object.length))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, length).into_response();
        }
        Verdict::Whole => match sent(shared, connection, &object, 0..object.length, is_get).await {
            Ok(response) => response,
            Err(error) => return failed(package, &error),
        },
        Verdict::Part(range) => match sent(shared, connection, &object, range.clone(), is_get).await {
            Ok(mut response) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let text = format!("bytes {}-{}/{}", range.start, range.end - 1, object.length);
                insert(&mut response, header::CONTENT_RANGE, &text);
                response
            }
            Err(error) => return failed(package, &error),
        },
    };
    let forever = is_named_by_hash(name) || is_numbered_metadata(name);
    let keep = match (forever, reader.public) {
        (true, true) => KEEP_FOR_EVER,
        (true, false) => KEEP_FOR_YOURSELF,
        (false, _) => ASK_AGAIN,
    };
    response.headers_mut().insert(header::CACHE_CONTROL, keep);
    insert(&mut response, header::ETAG, &state.etag);
    if let Some(modified) = state.modified {
        insert(&mut response, header::LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
    if response.status() != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let kind = if name.as_str().ends_with(".json") { "application/json" } else { "application/octet-stream" };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

/// An object that is named by its hash is the same wherever it is served from, so that a client or cache that comes to
/// another server of the same packages goes on with what it has.
fn etag(name: &ObjectPath, object: &Object) -> String {
    let last = name.as_str().rsplit('/').next().unwrap_or_default();
    if is_named_by_hash(name) { format!("\"{last}\"") } else { format!("\"{}\"", object.tag()) }
}

async fn sent(
    shared: &Shared,
    connection: &Connection,
    object: &Object,
    range: Range<u64>,
    is_get: bool,
) -> fs_core::Result<Response> {
    let length = range.end - range.start;
    let body = if is_get { limited(shared, connection, object.read(range).await?) } else { Body::empty() };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// Sets a header to what this program wrote.
fn insert(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
