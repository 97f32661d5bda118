//! What is served: packages and their objects.
//!
//! A stand-in with the agreed signatures, for a folder only, until the real one is merged.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use fs_core::backend::{Backend, ByteStream, LocalBackend, ObjectPath, ReadOptions, Validator};

/// Name of a package below the content root: one or more folder names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PackagePath(String);

impl FromStr for PackagePath {
    type Err = fs_core::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The same characters as an object's path.
        ObjectPath::new(text).map(|path| Self(path.as_str().to_owned()))
    }
}

impl fmt::Display for PackagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A content root.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    root: Arc<PathBuf>,
}

/// A stored object as it is now.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) length: u64,
    #[expect(dead_code, reason = "of the seam")]
    pub(crate) validator: Option<Validator>,
    backend: LocalBackend,
    path: ObjectPath,
}

impl Content {
    /// The object at `object` in `package`.
    pub(crate) async fn object(&self, package: &PackagePath, object: &ObjectPath) -> fs_core::Result<Object> {
        let folder = self.root.join(&package.0);
        let file = folder.join(object.as_str());
        let metadata = tokio::fs::metadata(&file).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                fs_core::Error::NotFound { what: object.to_string(), origin: folder.display().to_string() }
            }
            _ => fs_core::Error::local("look at", &file, e),
        })?;
        if !metadata.is_file() {
            return Err(fs_core::Error::InvalidInput(format!("{} is no file", file.display())));
        }
        let backend = LocalBackend::new(folder);
        Ok(Object { length: metadata.len(), validator: None, backend, path: object.clone() })
    }

    #[cfg(test)]
    pub(crate) fn folder_for_test(root: &std::path::Path) -> Self {
        Self { root: Arc::new(root.to_owned()) }
    }
}

impl Object {
    /// The bytes of `range`.
    pub(crate) async fn read(&self, range: Range<u64>) -> fs_core::Result<ByteStream> {
        self.backend.read_range(&self.path, range, ReadOptions::default()).await
    }
}
