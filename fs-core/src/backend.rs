//! Reading byte ranges of a package's stored objects from wherever they are.
//!
//! A [`Backend`] is one configured origin, narrowed to one package's folder. It moves bytes and checks nothing
//! about their meaning: verification belongs to the callers. Retry, recording and fault injection are wrappers
//! around a backend, never flags in it.

pub mod http;
mod local;
mod negotiate;
pub mod rtsp;

pub mod faults;
pub mod hurried;
pub mod recording;
pub mod retry;
pub mod swappable;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::OriginConfig;
use crate::error::{Error, Result};
use crate::location::{Origin, PackageLocation, PackageVersion, Selector};

pub use http::HttpBackend;
pub use local::LocalBackend;
pub use rtsp::RtspBackend;

/// Path of a stored object within a package's folder: `/`-separated, relative, free of `.`, `..` and empty parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectPath(String);

impl ObjectPath {
    /// Checks `path` and wraps it. Each component is 1 to 255 bytes of ASCII letters, digits and `._+-~`, and
    /// does not begin with a dot.
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        let ok = path.split('/').all(|part| {
            !part.is_empty()
                && part.len() <= 255
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-~".contains(&b))
        });
        if ok {
            Ok(Self(path))
        } else {
            Err(Error::InvalidInput(format!("{path:?} is not the path of a stored object")))
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes as they arrive. Pieces have any size; their sum is exactly what was asked for, or the stream ends with
/// an error (a stream that ends early without one is a bug of the backend).
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// How urgent a read is, and whether intermediaries may answer it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Ask caches between here and the origin to fetch anew, because what they gave was damaged.
    pub bypass_caches: bool,
    /// Somebody waits for it: it shall not queue behind what nobody waits for yet.
    pub waited_for: bool,
}

/// What an origin said of an object's state, for asking later whether it changed. Opaque.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Validator(pub String);

/// Answer to [`Backend::stat`]: an object as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectState {
    /// Its length in bytes.
    pub length: u64,
    /// For conditional reads, if the origin gives any.
    pub validator: Option<Validator>,
    /// When it changed last, if the origin says so.
    pub modified: Option<SystemTime>,
}

/// Answer to [`Backend::read_small`].
#[derive(Debug, Clone)]
pub enum SmallRead {
    /// The object as it is now, with a validator if the origin gives any.
    Object {
        /// All its bytes.
        bytes: Bytes,
        /// For the next conditional read.
        validator: Option<Validator>,
    },
    /// Unchanged since the validator that was passed.
    NotModified,
}

/// Answer to [`Backend::read_beginning`].
pub enum Beginning {
    /// The object as it is now.
    Object {
        /// Its first bytes: as many as had come when enough of them were there; all, if they never were.
        front: Bytes,
        /// What follows, up to its end, as it comes. Dropping it ends the transfer.
        rest: ByteStream,
        /// For the next conditional read, if the origin gives any.
        validator: Option<Validator>,
    },
    /// Unchanged since the validator that was passed.
    NotModified,
}

/// How much of an object its reader waits for.
#[derive(Clone, Copy)]
pub struct Enough<'a> {
    is_enough: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
    first_bytes: Option<u64>,
    launch: Option<&'a LaunchWish>,
}

/// What somebody is about to start: an origin that can bundles what that reads with what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchWish {
    /// Version or channel; the default channel without.
    pub selector: Option<Selector>,
    /// Name of the launch set; the version's first without.
    pub set: Option<String>,
}

impl LaunchWish {
    /// As a query of `/launch` (docs/HTTP.md).
    pub fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let Some(selector) = &self.selector {
            query.append_pair("select", selector.as_str());
        }
        if let Some(set) = &self.set {
            query.append_pair("app", set);
        }
        query.finish()
    }
}

impl<'a> Enough<'a> {
    /// `is_enough` tells whether these first bytes of the object are as many as its reader waits for.
    pub fn when(is_enough: &'a (dyn Fn(&[u8]) -> bool + Send + Sync)) -> Self {
        Self { is_enough, first_bytes: None, launch: None }
    }

    /// The same, where nothing behind the first `bytes` is wanted: a backend that can leaves that where it is, and its
    /// answer may end there.
    pub fn of_first(self, bytes: u64) -> Self {
        Self { first_bytes: Some(bytes), ..self }
    }

    /// The same, of a `head` that is read in order to start something.
    pub fn to_launch(self, wish: Option<&'a LaunchWish>) -> Self {
        Self { launch: wish, ..self }
    }

    /// Whether these first bytes are enough.
    pub fn is_in(&self, front: &[u8]) -> bool {
        (self.is_enough)(front)
    }
}

/// Kept while a version is used; see [`Backend::hold`].
#[derive(Default)]
pub struct Hold(Option<Box<dyn Any + Send + Sync>>);

impl Hold {
    /// Drops `guard` when it is dropped.
    pub fn until_dropped(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(guard)))
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hold(..)" } else { "Hold" })
    }
}

/// How long a launch took: from its first read to the last thing it asked for before it asked for nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchReport {
    /// What was launched.
    pub version: PackageVersion,
    /// Name of its launch set, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Milliseconds.
    pub ms: u64,
}

/// Longest [`LaunchReport`] as JSON, in bytes.
pub const LAUNCH_REPORT_MAX_BYTES: usize = 1024;

/// A way to read the stored objects of one package.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// Where this reads from, for messages: no credentials.
    fn origin(&self) -> &str;

    /// Tells what an object is like at present, without reading it.
    ///
    /// # Errors
    /// As `read_range`.
    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState>;

    /// Reads exactly `range` of `object` (bytes; not empty).
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable`, `TimedOut`, `BadAnswer`; from the call or from the stream.
    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream>;

    /// Reads an object from its beginning, unless it is unchanged since `known`: returns as soon as what has come is
    /// `enough`, and hands on what follows. That may break off, with an error or, where the origin tells no length, without;
    /// nobody tries again then but the caller.
    ///
    /// # Errors
    /// As `read_range`, and `BadAnswer` if the object is longer than `limit_bytes`; from the call or from the stream.
    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning>;

    /// As [`Self::read_beginning`], for a caller that has something to fall back on: it takes `patience` at most, and a
    /// backend that tries again does so only a few times.
    ///
    /// # Errors
    /// As `read_beginning`.
    async fn read_beginning_within(
        &self,
        patience: Duration,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let read = tokio::time::timeout(patience, self.read_beginning(object, limit_bytes, known, enough)).await;
        read.unwrap_or_else(|_| {
            let (object, origin) = (object.to_string(), self.origin().to_owned());
            Err(Error::TimedOut { object, origin, after: patience })
        })
    }

    /// Reads a small object whole, unless it is unchanged since `known`.
    ///
    /// # Errors
    /// As `read_beginning`.
    async fn read_small(&self, object: &ObjectPath, limit_bytes: u64, known: Option<&Validator>) -> Result<SmallRead> {
        Ok(match self.read_beginning(object, limit_bytes, known, Enough::when(&|_| false)).await? {
            Beginning::Object { front, validator, .. } => SmallRead::Object { bytes: front, validator },
            Beginning::NotModified => SmallRead::NotModified,
        })
    }

    /// Tells an origin that wants to know that a version is in use until what is returned is dropped. Never waits: it is
    /// told when there is a connection.
    fn hold(&self, _version: &PackageVersion) -> Hold {
        Hold::default()
    }

    /// Tells an origin that wants to know how long a launch took, if that is allowed.
    ///
    /// # Errors
    /// As `read_range`. What could not be told is lost.
    async fn report_launch(&self, _report: &LaunchReport) -> Result<()> {
        Ok(())
    }

    /// Changes whenever the origin tells, unasked, that the package has changed; `None` if it never does. What it tells
    /// may get lost, so whoever wants to know asks now and then all the same.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// Opens the origin of `location`, narrowed to its package, with retries as `config` says.
pub fn open(location: &PackageLocation, config: &OriginConfig) -> Result<Arc<dyn Backend>> {
    let plain: Arc<dyn Backend> = match &location.origin {
        Origin::Folder(root) => Arc::new(LocalBackend::new(root.join(location.package.as_str()))),
        Origin::Http(root) => Arc::new(HttpBackend::new(root, &location.package, config)?),
        Origin::Rtsp(root) => Arc::new(RtspBackend::new(root, &location.package, config)?),
    };
    Ok(Arc::new(retry::Retry::new(plain, config.retry.clone())))
}

/// Collects a stream that must bring exactly `length` bytes.
pub async fn collect(mut stream: ByteStream, length: usize) -> Result<Bytes> {
    use futures::TryStreamExt;
    let mut out = bytes::BytesMut::with_capacity(length);
    while let Some(piece) = stream.try_next().await? {
        out.extend_from_slice(&piece);
    }
    debug_assert_eq!(out.len(), length, "a backend's stream brings what was asked for or fails");
    Ok(out.freeze())
}
