//! HTTP: requests to answers.
//!
//! ```text
//! GET /PACKAGE/OBJECT        a stored object: whole, by range, conditionally          object.rs
//! GET /PACKAGE/events        what changes, as server-sent events                      events.rs
//! POST /PACKAGE/launches     how long a launch took, told by clients that agree
//! GET /PACKAGE/launch        all that a first launch needs, in one answer             launch.rs
//! PUT /PACKAGE/OBJECT        a publication, by those who may                             publishing.rs
//! GET /healthz               whether it serves
//! GET /metrics               counters for Prometheus
//! GET /status                a page for people                                        status.rs
//! ```
//!
//! An object is in one of the folders of docs/FORMAT.md or called `head`, so no package's object is hidden by another of
//! these names. Everything else is not found, and denied looks the same.

mod asking;
mod conditions;
mod connection;
mod counted;
mod events;
mod launch;
mod object;
mod publishing;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use axum::http::request::Parts;
use fs_core::backend::http::LAUNCH_HEADER;
use fs_core::backend::http::events::{OFFERS_EVENTS, OFFERS_HEADER, STATE_HEADER};
use fs_core::backend::{LAUNCH_REPORT_MAX_BYTES, LaunchReport, ObjectPath};
use fs_core::trust::HEAD_OBJECT;
use fs_core::trust::head::HEAD_TAIL_BYTES_MAX;
use fs_core::{Error, ErrorKind};

use crate::content::{PackagePath, decode, split};
use crate::{Connection, Shared};

pub(crate) use connection::{HttpTimes, Version, serve};

/// For everything that may change: ask again each time (a conditional request is cheap).
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");
/// A report of some hundred bytes comes with its request, or soon after.
const REPORT_WITHIN: Duration = Duration::from_secs(10);
/// When to come back after an origin behind this server was away.
const COME_BACK: Duration = Duration::from_secs(1);

/// Answers every request.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .merge(status::router())
        .fallback(package)
        .layer(Extension(publishing::Publishing::default()))
        .layer(from_fn(guard))
        .with_state(shared)
}

async fn health(Extension(connection): Extension<Arc<Connection>>) -> Response {
    match *connection.ending.borrow() {
        false => "ok\n".into_response(),
        // Whoever spreads requests over several servers sends the next ones elsewhere.
        true => (StatusCode::SERVICE_UNAVAILABLE, "ending\n").into_response(),
    }
}

async fn metrics(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Response {
    match asking::insider(&shared, &connection, request.headers()).await {
        Ok(_) => {
            let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
            ([kind], shared.metrics.text()).into_response()
        }
        Err(refused) => refused,
    }
}

/// Refuses what is not served at all, and says of every answer how it may be used.
async fn guard(request: Request, next: Next) -> Response {
    let is_publication = *request.method() == Method::PUT && Target::of(request.uri().path()).is_some();
    let is_report = *request.method() == Method::POST && request.uri().path().ends_with("/launches");
    if !is_publication && !is_report && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(ASK_AGAIN);
    // Objects are bytes; a browser must not guess that one of them is a page with scripts.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What a path below the content root means.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Object(PackagePath, ObjectPath),
    Events(PackagePath),
    Launch(PackagePath),
    /// Where clients tell how long launches took.
    Reports(PackagePath),
}

impl Target {
    fn of(raw: &str) -> Option<Self> {
        let path = decode(raw)?;
        if let Some((package, object)) = split(&path) {
            return Some(Target::Object(package, object));
        }
        let (package, last) = path.rsplit_once('/')?;
        match last {
            "events" => Some(Target::Events(package.parse().ok()?)),
            "launches" => Some(Target::Reports(package.parse().ok()?)),
            "launch" => Some(Target::Launch(package.parse().ok()?)),
            _ => None,
        }
    }

    fn package(&self) -> &PackagePath {
        match self {
            Target::Object(package, _)
            | Target::Events(package)
            | Target::Launch(package)
            | Target::Reports(package) => package,
        }
    }
}

async fn package(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    Extension(publishing): Extension<publishing::Publishing>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(target) = Target::of(parts.uri.path()) else { return not_found() };
    if parts.method == Method::PUT {
        return publishing::answer(&shared, &connection, &publishing, &target, &parts, body).await;
    }
    let reader = match asking::reader(&shared, &connection, &parts.headers, target.package()).await {
        Ok(reader) => reader,
        Err(refused) => return refused,
    };
    let client = connection.presence.client().clone();
    client.reads(reader.user.as_deref(), target.package(), None);
    let told = Told {
        user: reader.user.clone(),
        package: target.package().clone(),
        object: match &target {
            Target::Object(_, object) => Some(object.clone()),
            Target::Events(_) | Target::Launch(_) | Target::Reports(_) => None,
        },
    };
    let mut response = match target {
        Target::Reports(package) => report(&shared, &connection, &reader, &package, &parts, body).await,
        Target::Object(package, object) if object.as_str() == HEAD_OBJECT => {
            head(&shared, &connection, &reader, &package, &object, &parts).await
        }
        Target::Object(package, object) => {
            object::answer(&shared, &connection, &reader, &package, &object, &parts).await
        }
        Target::Events(package) => events::answer(&shared, connection, package, &reader, &parts).await,
        Target::Launch(package) => {
            launch::answer(&shared, &connection, &package, &parts, parts.uri.query(), u64::MAX).await
        }
    };
    if let Some(reply) = reader.reply {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, reply);
    }
    response.extensions_mut().insert(told);
    response
}

/// Takes what a client tells of a launch.
async fn report(
    shared: &Shared,
    connection: &Connection,
    reader: &asking::Reader,
    package: &PackagePath,
    request: &Parts,
    body: Body,
) -> Response {
    if request.method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response();
    }
    let body = tokio::time::timeout(REPORT_WITHIN, axum::body::to_bytes(body, LAUNCH_REPORT_MAX_BYTES)).await;
    let report = match body {
        Ok(Ok(bytes)) => serde_json::from_slice::<LaunchReport>(&bytes).ok(),
        Ok(Err(_)) | Err(_) => None,
    };
    match report {
        Some(report) => {
            shared.launched(connection, reader.user.as_deref(), package, report);
            StatusCode::NO_CONTENT.into_response()
        }
        None => (StatusCode::BAD_REQUEST, "this is no report of a launch\n").into_response(),
    }
}

/// `head`, with all of the launch set behind it that the client says it is about to start; and that there is more to be had
/// here than objects.
async fn head(
    shared: &Arc<Shared>,
    connection: &Connection,
    reader: &asking::Reader,
    package: &PackagePath,
    object: &ObjectPath,
    request: &Parts,
) -> Response {
    // Before it is answered: if it changes meanwhile, the client hears of a state that it knows already, not the other way.
    let state = shared.content.known(package).await.ok();
    let wish = request.headers.get(LAUNCH_HEADER).filter(|_| !request.headers.contains_key(header::RANGE));
    let mut response = match wish.and_then(|wish| wish.to_str().ok()) {
        Some(wish) => {
            let launch = launch::answer(shared, connection, package, request, Some(wish), HEAD_TAIL_BYTES_MAX).await;
            match launch.status() {
                StatusCode::OK | StatusCode::NOT_MODIFIED => launch,
                // The client will say what it misses in the stored one.
                _ => object::answer(shared, connection, reader, package, object, request).await,
            }
        }
        None => object::answer(shared, connection, reader, package, object, request).await,
    };
    let headers = response.headers_mut();
    if let Some(state) = state.and_then(|known| HeaderValue::from_str(&known.tag).ok()) {
        headers.insert(STATE_HEADER, state);
    }
    headers.insert(OFFERS_HEADER, HeaderValue::from_static(OFFERS_EVENTS));
    headers.insert(header::VARY, HeaderValue::from_static(LAUNCH_HEADER));
    response
}

/// What the access log tells of a request, beside its answer.
#[derive(Debug, Clone)]
struct Told {
    user: Option<String>,
    package: PackagePath,
    object: Option<ObjectPath>,
}

fn not_found() -> Response {
    StatusCode::NOT_FOUND.into_response()
}

/// The answer where the content root did not give what was asked for.
fn failed(package: &PackagePath, error: &Error) -> Response {
    let status = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidInput => {
            return not_found();
        }
        // This server's account may not read it: to the client it is not there.
        ErrorKind::Denied => StatusCode::NOT_FOUND,
        ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::BadAnswer => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    tracing::warn!(%package, %error, "cannot serve it");
    let mut response = status.into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, COME_BACK.as_secs().into());
    }
    response
}

/// `bytes`, no faster than the client's limit allows.
fn limited(shared: &Shared, connection: &Connection, bytes: fs_core::backend::ByteStream) -> Body {
    use futures::TryStreamExt as _;
    let bucket = shared.limits.client(connection.peer.ip());
    Body::from_stream(futures::stream::try_unfold((bytes, bucket), |(mut bytes, bucket)| async move {
        let Some(piece) = bytes.try_next().await.inspect_err(broken)? else { return Ok::<_, Error>(None) };
        bucket.take(piece.len() as u64).await;
        Ok(Some((piece, (bytes, bucket))))
    }))
}

/// An answer that breaks off tells the client nothing of why.
fn broken(error: &Error) {
    tracing::warn!(%error, "an answer broke off");
}

#[cfg(test)]
mod tests;
