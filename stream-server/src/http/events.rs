//! What changes in a package, as server-sent events.
//!
//! ```text
//! retry: 2000
//!
//! event: state                         at first: what there is, so that nothing is missed between two connections
//! id: 0123456789abcdef0123456789abcdef
//! data: {"package":"gimp","tag":"0123…","channels":{"stable":"2.10"}}
//!
//! event: version                       whenever the package's metadata changed
//! id: …
//! data: {"package":"gimp","tag":"…","channels":{"stable":"2.12"}}
//!
//! : still here                         when nothing else was sent for a while
//! ```
//!
//! A client that names versions (`?using=1.0&using=1.1`) has them in use for as long as it listens.
//!
//! What an event says is unverified, as everything that a server says: a client takes it as a reason to look.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use fs_core::location::{Channel, PackageVersion};

use super::asking::Reader;
use super::failed;
use crate::content::{Known, PackagePath};
use crate::metrics::{Counted as Watching, Gauge};
use crate::notices::NewVersion;
use crate::rtsp::Use;
use crate::{Connection, Shared};

/// A connection on which nothing is heard is closed by many a proxy after 30 s or a minute.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Who listens asks anew after so long, so that who may no longer read hears no more.
const LISTENING_MAX: Duration = Duration::from_secs(600);
/// More versions of one package than a client uses at a time.
const USES_MAX: usize = 16;
/// When to come back after the connection was lost.
const COME_BACK: &str = "retry: 2000\n\n";
const STILL_HERE: &str = ": still here\n\n";

/// What is told of a package.
#[derive(Serialize)]
struct Told<'a> {
    package: &'a str,
    tag: &'a str,
    channels: &'a BTreeMap<Channel, PackageVersion>,
}

pub(super) async fn answer(
    shared: &Arc<Shared>,
    connection: Arc<Connection>,
    package: PackagePath,
    reader: &Reader,
    request: &Parts,
) -> Response {
    // Listening begins before looking: what changes in between is told.
    let heard = shared.notices.subscribe();
    let known = match shared.content.known(&package).await {
        Ok(known) => known,
        Err(error) => return failed(&package, &error),
    };
    let first = COME_BACK.to_owned() + &event("state", &package, &known.tag, &known.catalog.channels);
    let until = Instant::now() + LISTENING_MAX;
    let watching = shared.metrics.hold(Gauge::Watchers);
    let uses = using(shared, &connection, &package, &known, reader, request);
    let (shared, tag) = (shared.clone(), known.tag.clone());
    let listening = Listening { shared, connection, package, heard, tag, until, _watching: watching, _uses: uses };
    let mut first = Some(first);
    let events = stream::unfold(listening, move |mut listening| {
        let first = first.take();
        async move {
            let text = match first {
                Some(first) => first,
                None => listening.next().await?,
            };
            Some((Ok::<_, Infallible>(Bytes::from(text)), listening))
        }
    });
    streamed(if request.method == Method::GET { Body::from_stream(events) } else { Body::empty() })
}

/// An answer of events.
pub(super) fn streamed(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would keep events back until it has a buffer full of them.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// Somebody who listens to one package.
struct Listening {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    package: PackagePath,
    heard: broadcast::Receiver<NewVersion>,
    /// What was told last.
    tag: String,
    until: Instant,
    _watching: Watching,
    /// Versions that the client uses while it listens.
    _uses: Vec<Use>,
}

/// The versions that a client says it uses (`?using=VERSION`, more than once), of those that there are.
fn using(
    shared: &Shared,
    connection: &Connection,
    package: &PackagePath,
    known: &Known,
    reader: &Reader,
    request: &Parts,
) -> Vec<Use> {
    if request.method != Method::GET {
        return Vec::new();
    }
    let query = url::form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes());
    let named = query.filter(|(name, _)| name == "using").take(USES_MAX);
    let versions = named.filter_map(|(_, version)| {
        known.catalog.versions.iter().map(|record| &record.version).find(|known| known.as_str() == version)
    });
    versions
        .map(|version| {
            connection.presence.client().reads(reader.user.as_deref(), package, Some(version));
            shared.uses.begin(package.clone(), version.clone())
        })
        .collect()
}

impl Listening {
    /// What to send next; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        let silent_until = Instant::now() + SILENCE_MAX;
        loop {
            let heard = tokio::select! {
                () = self.connection.is_ending() => return None,
                () = tokio::time::sleep_until(self.until) => return None,
                () = tokio::time::sleep_until(silent_until) => return Some(STILL_HERE.to_owned()),
                heard = self.heard.recv() => heard,
            };
            let (tag, channels) = match heard {
                Ok(notice) if notice.package == self.package => (notice.tag, notice.channels),
                Ok(_) => continue,
                Err(RecvError::Closed) => return None,
                // Much was told of other packages, and perhaps something of this one.
                Err(RecvError::Lagged(_)) => match self.shared.content.known(&self.package).await {
                    Ok(known) => (known.tag.clone(), Arc::new(known.catalog.channels.clone())),
                    Err(_) => continue,
                },
            };
            if tag != self.tag {
                let text = event("version", &self.package, &tag, &channels);
                self.tag = tag;
                self.shared.metrics.notices(1);
                return Some(text);
            }
        }
    }
}

fn event(name: &str, package: &PackagePath, tag: &str, channels: &BTreeMap<Channel, PackageVersion>) -> String {
    let told = Told { package: package.as_str(), tag, channels };
    // JSON on one line: it has no line break outside of strings, and escapes those within.
    let data = serde_json::to_string(&told).expect("plain fields have a form in JSON");
    format!("event: {name}\nid: {tag}\ndata: {data}\n\n")
}
