//! Publications: `PUT` of objects named by their hashes, then of `head` with new metadata (docs/HTTP.md, "Publishing").
//!
//! ```text
//! PUT /PACKAGE/packs/HASH      kept if the bytes have that hash; refers to nothing and is referred to by nothing yet
//! PUT /PACKAGE/head            a bundle of signed metadata: verified, complete, expected - then the package's state
//! ```
//!
//! No key is here, so this server can publish nothing by itself, nor take what was not signed by the package's keys.

mod incoming;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt as _;
use tokio::sync::Semaphore;

use fs_core::backend::ObjectPath;
use fs_core::trust::head::HEAD_BYTES_MAX;
use fs_core::trust::receiving::{NotReceived, Received, receive};
use fs_core::trust::{HEAD_OBJECT, METADATA_DIR};
use fs_core::{Error, ErrorKind};

use super::asking::{denied, identity, refused};
use super::conditions::names;
use super::{COME_BACK, Target, Told};
use crate::access::{Action, Identity};
use crate::access_log::{Entry, Event};
use crate::content::PackagePath;
use crate::{Connection, Shared};

use incoming::{Incoming, NotKept, ObjectName};

/// Objects that are taken at a time; who comes then comes back. Each has an open file and some pieces in memory.
const TAKEN_AT_A_TIME: usize = 64;
/// A client of which nothing comes for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// What is read of a body that nobody wants, and for how long.
const UNREAD_MAX_BYTES: usize = 128 << 20;
const UNREAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a publication waits for another one of the same package.
const PATIENCE: Duration = Duration::from_secs(5);

/// What publications have in common.
#[derive(Clone)]
pub(super) struct Publishing(Arc<Semaphore>);

impl Default for Publishing {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TAKEN_AT_A_TIME)))
    }
}

/// Answers a PUT.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    publishing: &Publishing,
    target: &Target,
    parts: &Parts,
    body: Body,
) -> Response {
    let package = target.package();
    let publisher = match publisher(shared, connection, &parts.headers, package).await {
        Ok(publisher) => publisher,
        Err(refused) => return refused,
    };
    let Some(root) = shared.content.folder() else {
        let why = "what this server shows is not a folder of its own; publish to where it reads from";
        return refusal(StatusCode::NOT_IMPLEMENTED, why);
    };
    let Target::Object(_, object) = target else { return not_taken() };
    if let Some(outer) = around(root, package) {
        let why = format!("{} is a package; there can be none within it", outer.display());
        return refusal(StatusCode::CONFLICT, why);
    }
    let Ok(_permit) = publishing.0.try_acquire() else {
        let later = [(header::RETRY_AFTER, HeaderValue::from(COME_BACK.as_secs()))];
        return (StatusCode::SERVICE_UNAVAILABLE, later, "too many objects are coming in\n").into_response();
    };
    let folder = root.join(package.as_str());
    let mut answer = match ObjectName::of(object) {
        Some(name) => take(&folder, object, name, &parts.headers, body).await,
        None if object.as_str() == HEAD_OBJECT => {
            let answer = commit(shared, &folder, package, &parts.headers, body).await;
            shared.log.record(Entry {
                user: publisher.name(),
                package: Some(package.as_str()),
                status: Some(answer.status().as_u16()),
                ..Entry::new(Event::Publish, connection.peer.ip(), connection.encrypted)
            });
            answer
        }
        None => not_taken(),
    };
    if let Some(reply) = super::asking::reply(&publisher) {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, reply);
    }
    let user = publisher.name().map(str::to_owned);
    answer.extensions_mut().insert(Told { user, package: package.clone(), object: Some(object.clone()) });
    answer
}

fn not_taken() -> Response {
    let allow = [(header::ALLOW, "GET, HEAD")];
    let why = "only head, and objects that are named by their hashes, can be published\n";
    (StatusCode::METHOD_NOT_ALLOWED, allow, why).into_response()
}

/// Lets those through who may publish `package`. Who may not even read it is told that it is not there.
async fn publisher(
    shared: &Shared,
    connection: &Connection,
    headers: &HeaderMap,
    package: &PackagePath,
) -> Result<Identity, Response> {
    let identity = identity(shared, connection, headers).await?;
    let challenges = shared.gate.challenges(connection.peer.ip(), connection.encrypted);
    let may = async |action| {
        let allowed = shared.gate.may(&identity, package, action).await;
        allowed.map_err(|refusal| refused(&refusal, challenges.clone()))
    };
    if may(Action::Publish).await? {
        return Ok(identity);
    }
    if !may(Action::Read).await? || (identity.is_anonymous() && !challenges.is_empty()) {
        return Err(denied(identity.is_anonymous(), challenges));
    }
    Err(refusal(StatusCode::FORBIDDEN, "you may read this package, and not publish it"))
}

/// The folder of a package that `package` would lie in.
fn around(root: &Path, package: &PackagePath) -> Option<PathBuf> {
    let mut outer = Path::new(package.as_str());
    while let Some(parent) = outer.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        if root.join(parent).join(METADATA_DIR).is_dir() {
            return Some(parent.to_owned());
        }
        outer = parent;
    }
    None
}

/// Keeps an object, if it is what its name says.
async fn take(folder: &Path, object: &ObjectPath, name: ObjectName, headers: &HeaderMap, body: Body) -> Response {
    let length = match length(headers, name.limit_bytes()) {
        Ok(length) => length,
        Err(refused) => return *refused,
    };
    let mut body = body.into_data_stream();
    let mut incoming = match Incoming::begin(folder, object, name, length).await {
        Ok(incoming) => incoming,
        Err(e) => {
            drain(body).await;
            return not_kept(object, &e);
        }
    };
    loop {
        let kept = match tokio::time::timeout(SILENCE_MAX, body.try_next()).await {
            Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "nothing came for too long"),
            // Nobody is there to hear this.
            Ok(Err(_)) => return refusal(StatusCode::BAD_REQUEST, "the body broke off"),
            Ok(Ok(Some(piece))) => incoming.write(piece).await,
            Ok(Ok(None)) => break,
        };
        if let Err(e) = kept {
            drain(body).await;
            return not_kept(object, &e);
        }
    }
    match incoming.finish().await {
        Ok(true) => StatusCode::CREATED.into_response(),
        Ok(false) => StatusCode::NO_CONTENT.into_response(),
        Err(e) => not_kept(object, &e),
    }
}

/// Lets the rest of a body come, so that its sender hears the answer: a connection that is closed while something is unread
/// is reset, and what was said last gets lost.
async fn drain(mut body: BodyDataStream) {
    let mut left = UNREAD_MAX_BYTES;
    let unread = async {
        while let Ok(Some(piece)) = body.try_next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    };
    // Who is slower than that has to make do without.
    let _ = tokio::time::timeout(UNREAD_WITHIN, unread).await;
}

/// The length that the body will have.
fn length(headers: &HeaderMap, limit_bytes: u64) -> Result<u64, Box<Response>> {
    let told = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.trim().parse::<u64>().ok());
    match told {
        None => Err(Box::new(refusal(StatusCode::LENGTH_REQUIRED, "say by Content-Length how long it is"))),
        Some(length) if length > limit_bytes => {
            Err(Box::new(refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("it may have {limit_bytes} bytes"))))
        }
        Some(length) => Ok(length),
    }
}

fn not_kept(object: &ObjectPath, why: &NotKept) -> Response {
    match why {
        NotKept::Damaged => {
            refusal(StatusCode::UNPROCESSABLE_ENTITY, "the bytes that came do not have the hash that is its name")
        }
        NotKept::OtherLength => refusal(StatusCode::BAD_REQUEST, "other bytes came than Content-Length said"),
        NotKept::Full => refusal(StatusCode::INSUFFICIENT_STORAGE, "there is no room left for it"),
        NotKept::ReadOnly => read_only(),
        NotKept::Failed(error) => {
            tracing::error!(%object, %error, "cannot keep a published object");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot write it; its log says why")
        }
    }
}

fn read_only() -> Response {
    refusal(StatusCode::NOT_IMPLEMENTED, "this server cannot write to the folder that it serves")
}

/// Makes new metadata the package's.
async fn commit(
    shared: &Arc<Shared>,
    folder: &Path,
    package: &PackagePath,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let condition = match Condition::of(headers) {
        Some(condition) => condition,
        None => {
            let why =
                "say by If-Match which state of head this goes on from, or by If-None-Match: * that there is none";
            return refusal(StatusCode::PRECONDITION_REQUIRED, why);
        }
    };
    if let Err(refused) = length(headers, HEAD_BYTES_MAX) {
        return *refused;
    }
    let read = axum::body::to_bytes(body, HEAD_BYTES_MAX as usize);
    let bundle = match tokio::time::timeout(SILENCE_MAX * 4, read).await {
        Ok(Ok(bundle)) => bundle,
        Ok(Err(_)) => return refusal(StatusCode::BAD_REQUEST, "the body broke off"),
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "it took too long to come"),
    };
    let name = package.as_str().rsplit('/').next().unwrap_or_default();
    let Ok(name) = name.parse() else { return super::not_found() };
    let (content, asked, runtime) = (shared.content.clone(), package.clone(), tokio::runtime::Handle::current());
    let as_expected = move || {
        let head = ObjectPath::new(HEAD_OBJECT).expect("a plain name");
        let now = runtime.block_on(content.object(&asked, &head));
        match now {
            Ok(object) => condition.holds(Some(&format!("\"{}\"", object.tag()))),
            Err(e) => e.kind() == ErrorKind::NotFound && condition.holds(None),
        }
    };
    match receive(folder, &name, bundle, PATIENCE, as_expected).await {
        Ok(Received::First) => StatusCode::CREATED.into_response(),
        Ok(Received::Changed | Received::Unchanged) => StatusCode::NO_CONTENT.into_response(),
        Err(NotReceived::Changed) => refusal(StatusCode::PRECONDITION_FAILED, NotReceived::Changed.to_string()),
        Err(e @ (NotReceived::Conflict(_) | NotReceived::Missing(_))) => refusal(StatusCode::CONFLICT, e.to_string()),
        Err(NotReceived::Unusable(error)) => {
            tracing::warn!(%package, %error, "a publication was refused");
            refusal(StatusCode::BAD_REQUEST, error.to_string())
        }
        Err(NotReceived::Failed(error)) => cannot_write(package, &error),
    }
}

fn cannot_write(package: &PackagePath, error: &Error) -> Response {
    tracing::error!(%package, %error, "cannot publish");
    match error {
        Error::Busy { .. } => {
            let later = [(header::RETRY_AFTER, HeaderValue::from(COME_BACK.as_secs()))];
            (StatusCode::SERVICE_UNAVAILABLE, later, "somebody else publishes this package\n").into_response()
        }
        Error::Local { source, .. } => match NotKept::from_io(source) {
            NotKept::Full => refusal(StatusCode::INSUFFICIENT_STORAGE, "there is no room left for it"),
            NotKept::ReadOnly => read_only(),
            _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot write it; its log says why"),
        },
        _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, "what is there cannot be read; the server's log says why"),
    }
}

/// What the client demands of `head` as it is.
#[derive(Debug)]
enum Condition {
    /// That there is none.
    Absent,
    /// That it is one of these states.
    Is(HeaderMap),
}

impl Condition {
    fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(header::IF_MATCH) {
            let only = headers.get_all(header::IF_MATCH).iter().map(|value| (header::IF_MATCH, value.clone()));
            return Some(Condition::Is(only.collect()));
        }
        let none = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
        (none.trim() == "*").then_some(Condition::Absent)
    }

    fn holds(&self, etag: Option<&str>) -> bool {
        match (self, etag) {
            (Condition::Absent, etag) => etag.is_none(),
            (Condition::Is(headers), Some(etag)) => names(headers, &header::IF_MATCH, etag, false),
            (Condition::Is(_), None) => false,
        }
    }
}

/// A refusal in one line.
fn refusal(status: StatusCode, why: impl Into<String>) -> Response {
    (status, why.into() + "\n").into_response()
}

#[cfg(test)]
mod tests;
