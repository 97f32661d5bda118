//! What is served: the packages of a content root, their objects, and what their metadata says of them.
//!
//! A content root is a folder on this machine, or anything else that a [`Backend`] reads. Objects are handed out as they
//! are stored; nothing here believes them.

mod packages;
mod paths;
mod pieces;

use std::fmt;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt, stream};
use lru::LruCache;
use parking_lot::Mutex;

use fs_core::backend::{
    Backend, ByteStream, LocalBackend, ObjectPath, ObjectState, ReadOptions, Validator, collect, open,
};
use fs_core::config::OriginConfig;
use fs_core::location::PackageLocation;
use fs_core::trust::head::{HEAD_BYTES_MAX, Head, bytes_before_tail};
use fs_core::trust::{Catalog, HEAD_OBJECT, unverified};
use fs_core::{Error, ErrorKind, Result};

pub(crate) use packages::{Stamp, Stamps, stamps};
pub(crate) use paths::{PackagePath, decode, is_named_by_hash, is_numbered_metadata, split};

use pieces::Pieces;

/// Packages whose metadata is kept in memory, if it is no longer than this for each: 64 MiB at most.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");
const KNOWN_FRONT_MAX_BYTES: usize = 256 << 10;
/// Packages of an origin that are remembered, each with its connections.
const ORIGIN_PACKAGES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");
/// How much of `head` is read at first: all that is wanted of most.
const FRONT_BYTES: u64 = 64 << 10;
/// What says that something changed where there is no `head`.
const TIMESTAMP: &str = "metadata/timestamp.json";

/// Where the packages are.
#[derive(Debug, Clone)]
pub enum ContentRoot {
    /// A folder on this machine, or one that the system mounted.
    Folder(PathBuf),
    /// A content root elsewhere, which this server reads as a client does.
    Origin {
        /// Its location, without a package.
        url: String,
        /// How it is reached.
        config: Box<OriginConfig>,
    },
}

impl fmt::Display for ContentRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentRoot::Folder(path) => write!(f, "{}", path.display()),
            ContentRoot::Origin { url, .. } => f.write_str(url),
        }
    }
}

/// What is served. Clones are the same.
#[derive(Clone)]
pub(crate) struct Content(Arc<Inner>);

struct Inner {
    root: Root,
    pieces: Pieces,
    known: Mutex<LruCache<PackagePath, Arc<Known>>>,
}

enum Root {
    Folder(PathBuf),
    Origin { url: String, config: Box<OriginConfig>, packages: Mutex<LruCache<PackagePath, Arc<dyn Backend>>> },
}

/// A stored object as it is now. It stays that while it is read, if it is a file here.
pub(crate) struct Object {
    pub(crate) length: u64,
    pub(crate) validator: Option<Validator>,
    pub(crate) modified: Option<SystemTime>,
    bytes: Source,
}

enum Source {
    File { file: Arc<File>, name: String, pieces: Pieces },
    Backend { backend: Arc<dyn Backend>, object: ObjectPath },
}

/// What a package's metadata says, unverified.
pub(crate) struct Known {
    /// Changes when the metadata does.
    pub(crate) tag: String,
    /// All that stands before the tail of its `head`, if it has one.
    pub(crate) head: Option<Head>,
    pub(crate) catalog: Catalog,
}

impl Content {
    /// Serves `root`. A folder must be there; it is resolved once, so that a link exchanged later changes nothing.
    pub(crate) fn new(root: ContentRoot) -> Result<Self> {
        let root = match root {
            ContentRoot::Folder(path) => {
                let resolved = std::fs::canonicalize(&path).map_err(|e| Error::local("serve", &path, e))?;
                std::fs::read_dir(&resolved).map_err(|e| Error::local("serve", &path, e))?;
                Root::Folder(resolved)
            }
            ContentRoot::Origin { url, config } => {
                let url = url.trim_end_matches('/').to_owned();
                // Any package's name tells whether the rest can be understood.
                format!("{url}/package").parse::<PackageLocation>()?;
                Root::Origin { url, config, packages: Mutex::new(LruCache::new(ORIGIN_PACKAGES_MAX)) }
            }
        };
        let known = Mutex::new(LruCache::new(KNOWN_MAX));
        Ok(Self(Arc::new(Inner { root, pieces: Pieces::default(), known })))
    }

    /// The folder that is served, if it is one.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match &self.0.root {
            Root::Folder(path) => Some(path),
            Root::Origin { .. } => None,
        }
    }

    /// The packages of an origin that somebody has asked for: it cannot be asked for a list.
    pub(crate) fn asked_for(&self) -> Vec<PackagePath> {
        match &self.0.root {
            Root::Folder(_) => Vec::new(),
            Root::Origin { packages, .. } => packages.lock().iter().map(|(package, _)| package.clone()).collect(),
        }
    }

    /// An object of a package.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for what is no file; what the content root says.
    pub(crate) async fn object(&self, package: &PackagePath, object: &ObjectPath) -> Result<Object> {
        match &self.0.root {
            Root::Folder(root) => {
                let local = LocalBackend::new(root.join(package.as_str()));
                let opened = local.open_object(object).await.map_err(|e| match e.kind() {
                    // A folder, or something else that is no file. To clients it is not there; but where a file decides who may
                    // read, this must not count as its absence.
                    ErrorKind::BadAnswer => Error::InvalidInput(format!("{object} of {package} is no file")),
                    _ => e,
                });
                let (file, ObjectState { length, validator, modified }) = opened?;
                let (file, name) = (Arc::new(file), format!("{package}/{object}"));
                let bytes = Source::File { file, name, pieces: self.0.pieces.clone() };
                Ok(Object { length, validator, modified, bytes })
            }
            Root::Origin { .. } => {
                let backend = self.backend(package)?;
                let ObjectState { length, validator, modified } = backend.stat(object).await?;
                let bytes = Source::Backend { backend, object: object.clone() };
                Ok(Object { length, validator, modified, bytes })
            }
        }
    }

    /// What the package's metadata says at present.
    ///
    /// # Errors
    /// `NotFound` if there is no such package; `Damaged` if its metadata cannot be read; what the content root says.
    pub(crate) async fn known(&self, package: &PackagePath) -> Result<Arc<Known>> {
        let head = match self.object(package, &path(HEAD_OBJECT)).await {
            Ok(head) => head,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let timestamp = self.object(package, &path(TIMESTAMP)).await?;
                return Ok(Arc::new(Known { tag: timestamp.tag(), head: None, catalog: Catalog::default() }));
            }
            Err(e) => return Err(e),
        };
        let tag = head.tag();
        if let Some(known) = self.0.known.lock().get(package).filter(|known| known.tag == tag) {
            return Ok(known.clone());
        }
        let front = head.front().await?;
        let length = front.len();
        let head = Head::parse(&front)?;
        let catalog = unverified::catalog(&head)?;
        let known = Arc::new(Known { tag, head: Some(head), catalog });
        if length <= KNOWN_FRONT_MAX_BYTES {
            self.0.known.lock().put(package.clone(), known.clone());
        }
        Ok(known)
    }

    fn backend(&self, package: &PackagePath) -> Result<Arc<dyn Backend>> {
        let Root::Origin { url, config, packages } = &self.0.root else {
            unreachable!("only packages of an origin have backends of their own")
        };
        if let Some(backend) = packages.lock().get(package) {
            return Ok(backend.clone());
        }
        let backend = open(&format!("{url}/{package}").parse()?, config)?;
        packages.lock().put(package.clone(), backend.clone());
        Ok(backend)
    }
}

/// A path that this program wrote.
fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect("a plain path")
}

impl Object {
    /// The bytes at `range`, which lies within the object.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        match &self.bytes {
            Source::File { file, name, pieces } => Ok(pieces.stream(file.clone(), range, name.clone())),
            Source::Backend { backend, object } => backend.read_range(object, range, ReadOptions::default()).await,
        }
    }

    /// Names the object's state: 32 hexadecimal digits, which are others when the object is another.
    pub(crate) fn tag(&self) -> String {
        let state = match &self.validator {
            Some(validator) => blake3::hash(validator.0.as_bytes()),
            // An origin that tells nothing but its length: what changes without changing that goes unnoticed.
            None => blake3::hash(&self.length.to_le_bytes()),
        };
        state.to_hex()[..32].to_owned()
    }

    async fn first(&self, length: u64) -> Result<Bytes> {
        let length = length.min(self.length);
        collect(self.read(0..length).await?, usize::try_from(length).unwrap_or(usize::MAX)).await
    }

    /// All that stands before the tail of this `head`.
    async fn front(&self) -> Result<Bytes> {
        let mut front = self.first(FRONT_BYTES).await?;
        let length = bytes_before_tail(&front).unwrap_or(front.len());
        if length > front.len() {
            // It says how long it is, which need not be true.
            front = self.first((length as u64).min(HEAD_BYTES_MAX)).await?;
        }
        front.truncate(length);
        Ok(front)
    }
}

#[cfg(test)]
mod tests;
