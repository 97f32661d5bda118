//! What is stored: descriptor, tree, blocks and packs, and publishing them. docs/FORMAT.md names every byte.
//!
//! ```text
//! PACKAGE/
//!   head, metadata/, descriptors/     signed: see `trust`
//!   trees/<hash>                      pages of names and attributes     tree
//!   packs/<hash>                      compressed blocks and their index pack, block
//! ```
//!
//! Parsers here take hostile bytes: they check every length before using it, allocate no more than the input
//! justifies, and never panic.

pub mod block;
pub mod collect;
pub mod descriptor;
pub mod launch;
pub mod pack;
pub mod profile;
pub mod publish;
pub mod tree;

mod bytes_at;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Newest package format that this program writes and reads.
pub const FORMAT_VERSION: u64 = 1;

/// Folder of tree objects in a package's folder.
pub const TREE_DIR: &str = "trees";
/// Folder of packs in a package's folder.
pub const PACK_DIR: &str = "packs";

/// Folder of launch objects in a package's folder.
pub const LAUNCH_DIR: &str = "launch";
/// Folder of the profiles that launch objects were made from, in a package's folder.
pub const PROFILE_DIR: &str = "profiles";

/// Index of a node in a version's tree, from 1 (the root directory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(1);
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
}

/// A BLAKE3-256 hash of uncompressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({})", &hex::encode(self.0)[..12])
    }
}

impl std::str::FromStr for Hash {
    type Err = hex::FromHexError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut out = [0; 32];
        hex::decode_to_slice(s, &mut out)?;
        Ok(Hash(out))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|e| serde::de::Error::custom(format!("{text:?} is not 64 hexadecimal digits: {e}")))
    }
}
