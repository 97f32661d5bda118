//! All that a first launch needs, in one answer: `GET /PACKAGE/launch?channel=NAME`, or `?version=NAME`, and `&app=NAME`
//! for another launch set than the first.
//!
//! The answer has the form of `head` (docs/FORMAT.md), with the descriptor of the version that was asked for, and with
//! the whole launch object behind it instead of its beginning: trust data, tree pages and blocks in the order of use,
//! without a round trip in between. Nothing in it is believed for coming this way; a client verifies it as it verifies
//! `head` and what comes behind it. Where a launch object is longer than a tail may say it is, the tail says the most that
//! it may, and the object goes on behind it.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use fs_core::location::DEFAULT_CHANNEL;
use fs_core::package::descriptor::{DESCRIPTOR_MAX_BYTES, Descriptor, LaunchRef};
use fs_core::trust::head::{HEAD_TAIL_BYTES_MAX, Head, TailOf};
use fs_core::trust::{Catalog, VersionRecord};
use fs_core::{Error, Result};

use super::{failed, limited, not_found};
use crate::content::{Content, Known, PackagePath};
use crate::{Connection, Shared};

const KIND: HeaderValue = HeaderValue::from_static("application/vnd.streamfs.launch");
/// Which version it is, for logs and for people; a client goes by what was signed.
const VERSION: HeaderName = HeaderName::from_static("streamfs-version");

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    channel: Option<String>,
    version: Option<String>,
    /// A version, or else a channel.
    select: Option<String>,
    app: Option<String>,
}

impl Wanted {
    /// From the part of a URL behind the `?`; `None` if it contradicts itself.
    fn of(query: Option<&str>) -> Option<Self> {
        let mut wanted = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let place = match &*name {
                "channel" => &mut wanted.channel,
                "version" => &mut wanted.version,
                "select" => &mut wanted.select,
                "app" => &mut wanted.app,
                _ => continue,
            };
            if place.replace(value.into_owned()).is_some() {
                return None;
            }
        }
        let named = [&wanted.channel, &wanted.version, &wanted.select].into_iter().flatten().count();
        (named <= 1).then_some(wanted)
    }

    fn record<'a>(&self, catalog: &'a Catalog) -> Option<&'a VersionRecord> {
        let by_version = |version: &str| catalog.versions.iter().find(|record| record.version.as_str() == version);
        let by_channel = |channel: &str| {
            let (_, version) = catalog.channels.iter().find(|(name, _)| name.as_str() == channel)?;
            by_version(version.as_str())
        };
        match self {
            Wanted { version: Some(version), .. } => by_version(version),
            Wanted { select: Some(name), .. } => by_version(name).or_else(|| by_channel(name)),
            Wanted { channel, .. } => by_channel(channel.as_deref().unwrap_or(DEFAULT_CHANNEL)),
        }
    }

    fn set<'a>(&self, descriptor: &'a Descriptor) -> Option<&'a LaunchRef> {
        match &self.app {
            Some(app) => descriptor.launch.iter().find(|set| set.name == *app),
            None => descriptor.launch.first(),
        }
    }

    /// Names the answer, given the state of the package's metadata.
    fn etag(&self, tag: &str, record: &VersionRecord) -> String {
        let named = format!("{tag} {} {}", record.version, self.app.as_deref().unwrap_or_default());
        format!("\"{}\"", &blake3::hash(named.as_bytes()).to_hex()[..32])
    }
}

/// `query` says what is wanted, as in a URL; of the launch object `most_behind` bytes follow at most.
pub(super) async fn answer(
    shared: &Shared,
    connection: &Connection,
    package: &PackagePath,
    request: &Parts,
    query: Option<&str>,
    most_behind: u64,
) -> Response {
    let Some(wanted) = Wanted::of(query) else {
        return (StatusCode::BAD_REQUEST, "ask for one channel or one version\n").into_response();
    };
    let known = match shared.content.known(package).await {
        Ok(known) => known,
        Err(error) => return failed(package, &error),
    };
    // Without `head` there is nothing to bundle: a client that gets no answer here reads the separate files.
    let Known { tag, head: Some(head), catalog } = &*known else { return not_found() };
    let Some(record) = wanted.record(catalog) else { return not_found() };
    let etag = wanted.etag(tag, record);
    let matches = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains(&etag));
    let mut response = if request.headers.get_all(header::IF_NONE_MATCH).iter().any(matches) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match bundle(&shared.content, package, head, record, &wanted).await {
            Ok(Bundle { front, object }) => {
                let behind = object.as_ref().map_or(0, |object| object.length.min(most_behind));
                let length = front.len() as u64 + behind;
                let mut body = Body::empty();
                if request.method == Method::GET {
                    let behind = match &object {
                        Some(object) => match object.read(0..behind).await {
                            Ok(bytes) => bytes,
                            Err(error) => return failed(package, &error),
                        },
                        None => stream::empty().boxed(),
                    };
                    let bytes = stream::iter([Ok::<_, Error>(front)]).chain(behind).boxed();
                    body = limited(shared, connection, bytes);
                }
                let mut response = Response::new(body);
                response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
                response.headers_mut().insert(header::CONTENT_TYPE, KIND);
                response
            }
            Err(error) => return failed(package, &error),
        }
    };
    let headers = response.headers_mut();
    // Both are made of characters that a header may have.
    if let (Ok(etag), Ok(version)) = (HeaderValue::from_str(&etag), HeaderValue::from_str(record.version.as_str())) {
        headers.insert(header::ETAG, etag);
        headers.insert(VERSION, version);
    }
    response
}

struct Bundle {
    front: Bytes,
    /// What follows, if the version has such a launch set.
    object: Option<crate::content::Object>,
}

async fn bundle(
    content: &Content,
    package: &PackagePath,
    head: &Head,
    record: &VersionRecord,
    wanted: &Wanted,
) -> Result<Bundle> {
    let path = record.descriptor_object();
    let mut head = head.clone();
    let bytes = match head.get(&path) {
        Some(bytes) => bytes.clone(),
        // `head` has no room for the descriptors of all versions.
        None => {
            let object = content.object(package, &path).await?;
            if object.length > DESCRIPTOR_MAX_BYTES {
                return Err(Error::damaged(path.as_str(), "it is too long for a descriptor"));
            }
            let pieces = object.read(0..object.length).await?.try_collect::<Vec<_>>().await?;
            let bytes = Bytes::from(pieces.concat());
            head.insert(path.clone(), bytes.clone());
            bytes
        }
    };
    let descriptor = Descriptor::parse(&bytes, path.as_str())?;
    let mut object = None;
    if let Some(set) = wanted.set(&descriptor) {
        match content.object(package, &set.path()).await {
            Ok(stored) if stored.length == set.bytes && set.bytes > 0 => object = Some((stored, set)),
            // Clients do without a launch object that is lost or cut; so does this.
            Ok(stored) => {
                tracing::warn!(%package, object = %set.path(), length = stored.length, "the launch object has another length than was published");
            }
            Err(error) => tracing::warn!(%package, %error, "the launch object cannot be had"),
        }
    }
    head.set_tail(object.as_ref().map(|(stored, set)| TailOf {
        object: set.object,
        object_bytes: set.bytes,
        // The limit fits 32 bits.
        bytes: stored.length.min(HEAD_TAIL_BYTES_MAX) as u32,
    }));
    Ok(Bundle { front: head.encode()?, object: object.map(|(stored, _)| stored) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_understood() {
        let wanted = |query: &str| Wanted::of(Some(query));
        assert_eq!(Wanted::of(None), Some(Wanted::default()));
        let beta =
            Wanted { channel: Some("beta+1".to_owned()), app: Some("calc".to_owned()), version: None, select: None };
        assert_eq!(wanted("channel=beta%2B1&app=calc&else=x"), Some(beta));
        for contradiction in ["channel=a&version=1", "select=a&version=1", "channel=a&channel=b", "app=a&app=a"] {
            assert_eq!(wanted(contradiction), None, "{contradiction}");
        }
    }
}
