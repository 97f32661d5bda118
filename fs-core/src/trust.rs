//! Signatures, freshness and rollback protection: each package is a TUF repository whose targets are the
//! versions' descriptors.
//!
//! [`client`] loads and verifies a package's catalog; [`publisher`] signs new ones. Cryptography and TUF's checks
//! are `tough`'s; this module decides where files lie, in how many requests they come, and what to say when they
//! are refused.
//!
//! ```text
//! PACKAGE/head                               bundle of what follows (see `head`), written last
//! PACKAGE/metadata/timestamp.json            the only file that is ever replaced, beside `head`
//! PACKAGE/metadata/N.root.json               keys and roles; N counts from 1
//! PACKAGE/metadata/N.snapshot.json
//! PACKAGE/metadata/N.targets.json            all versions: length, SHA-256, and the custom data of `record`
//! PACKAGE/descriptors/SHA256.VERSION.json    TUF targets, named VERSION.json
//! ```

pub mod client;
pub mod head;
pub mod keys;
pub mod publisher;
pub mod receiving;
pub mod store;
pub mod tail;
pub mod unverified;

pub(crate) mod files;
pub(crate) mod folder;
mod record;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::backend::ObjectPath;

use crate::error::{Error, Result};
use crate::location::{Channel, DEFAULT_CHANNEL, PackageVersion, Selector};

/// Folder of TUF metadata in a package's folder.
pub const METADATA_DIR: &str = "metadata";
/// Folder of descriptors (TUF targets) in a package's folder.
pub const DESCRIPTOR_DIR: &str = "descriptors";
/// Bundle of all trust metadata and the newest descriptors, and the beginning of a launch object: a hint that saves
/// requests.
pub const HEAD_OBJECT: &str = "head";

/// The stored object that holds a version's descriptor, by the descriptor's SHA-256 in hexadecimal.
pub(crate) fn descriptor_object(sha256: &str, version: &str) -> ObjectPath {
    ObjectPath::new(format!("{DESCRIPTOR_DIR}/{sha256}.{version}.json"))
        .expect("a version's name holds only characters of object paths, and leaves room for the hash")
}

/// One version as the signed metadata tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRecord {
    /// Its name.
    pub version: PackageVersion,
    /// Position in the order of publishing, from 1.
    pub sequence: u64,
    /// When it was published, seconds since 1970.
    pub published: i64,
    /// Length of the descriptor in bytes.
    pub descriptor_bytes: u64,
    /// SHA-256 of the descriptor.
    pub descriptor_sha256: [u8; 32],
    /// Whether the publisher withdrew it.
    pub revoked: bool,
}

impl VersionRecord {
    /// The stored object that holds the descriptor.
    pub fn descriptor_object(&self) -> ObjectPath {
        descriptor_object(&hex::encode(self.descriptor_sha256), self.version.as_str())
    }
}

/// All versions and channels of a package, verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// By order of publishing.
    pub versions: Vec<VersionRecord>,
    /// Where each channel points.
    pub channels: BTreeMap<Channel, PackageVersion>,
}

impl Catalog {
    /// The version that `selector` means: a version of that name, else the channel's; without one, the default
    /// channel's.
    pub fn resolve(&self, selector: Option<&Selector>, package: &str) -> Result<&VersionRecord> {
        let wanted = selector.map_or(DEFAULT_CHANNEL, Selector::as_str);
        let by_version = |name: &str| self.versions.iter().find(|v| v.version.as_str() == name);
        let channel = || self.channels.iter().find(|(c, _)| c.as_str() == wanted).map(|(_, v)| v.as_str());
        by_version(wanted).or_else(|| channel().and_then(by_version)).ok_or_else(|| {
            let list = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let versions = self.versions.iter().rev().take(10).map(|v| v.version.as_str()).collect();
            let channels = self.channels.keys().map(Channel::as_str).collect();
            Error::NotFound {
                what: format!(
                    "version or channel {wanted:?} (versions: {}; channels: {})",
                    list(versions),
                    list(channels)
                ),
                origin: package.to_owned(),
            }
        })
    }
}
