//! The descriptor: a version's small signed record, from which everything else of it is found and verified.
//!
//! JSON, because the metadata around it is, and because an administrator may want to read it. Its integrity comes
//! from the signed metadata, which names its SHA-256 and length.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::launch::{
    LAUNCH_BODY_MAX_BYTES, LAUNCH_INDEX_MAX_BYTES, LAUNCH_OBJECT_MAX_BYTES, LAUNCH_SETS_MAX, is_launch_name,
};
use super::profile::PROFILE_MAX_BYTES;
use super::tree::PAGE_MAX_BYTES;
use super::{FORMAT_VERSION, Hash, LAUNCH_DIR, PACK_DIR, PROFILE_DIR, TREE_DIR};
use crate::backend::ObjectPath;
use crate::error::{Error, Result};
use crate::location::{PackageName, PackageVersion};

/// No descriptor is longer. 4 MiB holds about 40,000 packs, which is 2.5 TiB of stored blocks.
pub const DESCRIPTOR_MAX_BYTES: u64 = 4 << 20;
/// Deepest tree of pages: 5 levels of at least 2-fold branching never occur in practice below 2^40 nodes.
pub const LEVELS_MAX: usize = 8;

/// A version's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// [`FORMAT_VERSION`] of the stored objects.
    pub format: u64,
    /// The package this belongs to.
    pub package: PackageName,
    /// The version's name.
    pub version: PackageVersion,
    /// The tree object.
    pub tree: TreeRef,
    /// Packs that extents refer to by index.
    pub packs: Vec<PackRef>,
    /// What starting its applications touches, the most likely one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launch: Vec<LaunchRef>,
    /// Sums over the tree.
    pub totals: TreeTotals,
}

/// One launch set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRef {
    /// Which application it starts: 1 to 64 ASCII letters, digits, `.`, `_` and `-`, each name once.
    pub name: String,
    /// BLAKE3 of the whole object, which is also its name.
    pub object: Hash,
    /// Its length.
    pub bytes: u64,
    /// The index at its beginning.
    pub index: PageSum,
    /// Bytes that its body decodes to.
    pub body: u64,
    /// The profile that it was made from, compressed.
    pub profile: ProfileRef,
}

/// A stored profile: one zstd frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileRef {
    /// BLAKE3 of the stored object, which is also its name.
    pub object: Hash,
    /// Its length as stored.
    pub bytes: u64,
    /// Its length uncompressed.
    pub length: u64,
}

/// Where the tree object is and how its pages hang together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeRef {
    /// BLAKE3 of the whole object, which is also its name.
    pub object: Hash,
    /// Its length.
    pub bytes: u64,
    /// Names and attributes, by node.
    pub nodes: PageTree,
    /// Extents of files with too many to stand beside their names, by node and position; absent if none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<PageTree>,
}

/// One B+tree of pages: its levels from the root page down to the leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageTree {
    /// The root page, alone on the first level.
    pub root: PageSum,
    /// The levels, from the root's.
    pub levels: Vec<Level>,
}

/// How to verify one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageSum {
    /// Length as stored (compressed).
    pub stored: u32,
    /// Length uncompressed.
    pub length: u32,
    /// BLAKE3 of the uncompressed page.
    pub hash: Hash,
}

/// One level of a page tree: consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Position of its first page in the tree object.
    pub offset: u64,
    /// Bytes of the level in the tree object.
    pub bytes: u64,
    /// How many pages.
    pub pages: u32,
}

/// One pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackRef {
    /// BLAKE3 of the whole object, which is also its name.
    pub object: Hash,
    /// Its length.
    pub bytes: u64,
}

/// Sums over a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeTotals {
    /// Highest node number; hard links' further names count.
    pub nodes: u64,
    /// Regular files.
    pub files: u64,
    /// Directories with the root.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Sum of the files' sizes.
    pub bytes: u64,
    /// Sum of the files' bytes that are not holes.
    pub allocated_bytes: u64,
}

impl TreeRef {
    /// Path of the object.
    pub fn path(&self) -> ObjectPath {
        object_path(TREE_DIR, &self.object)
    }
}

impl PackRef {
    /// Path of the object.
    pub fn path(&self) -> ObjectPath {
        object_path(PACK_DIR, &self.object)
    }
}

impl LaunchRef {
    /// Path of the object.
    pub fn path(&self) -> ObjectPath {
        object_path(LAUNCH_DIR, &self.object)
    }
}

impl ProfileRef {
    /// Path of the object.
    pub fn path(&self) -> ObjectPath {
        object_path(PROFILE_DIR, &self.object)
    }
}

fn object_path(dir: &str, hash: &Hash) -> ObjectPath {
    ObjectPath::new(format!("{dir}/{hash}")).expect("a hexadecimal name is an object path")
}

impl Descriptor {
    /// Reads a descriptor. `whence` names it in errors.
    ///
    /// # Errors
    /// `UnsupportedFormat` for a newer format; `Damaged` if it is not a descriptor or breaks a limit.
    pub fn parse(bytes: &[u8], whence: &str) -> Result<Self> {
        if bytes.len() as u64 > DESCRIPTOR_MAX_BYTES {
            return Err(Error::damaged(whence, format!("it is longer than {DESCRIPTOR_MAX_BYTES} bytes")));
        }
        // The format number is read first and alone: a newer format may have any other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let broken = |e: serde_json::Error| Error::damaged(whence, format!("it is not a descriptor: {e}"));
        let Format { format } = serde_json::from_slice(bytes).map_err(broken)?;
        if format != FORMAT_VERSION {
            return Err(Error::UnsupportedFormat { what: whence.to_owned(), found: format, supported: FORMAT_VERSION });
        }
        let descriptor: Descriptor = serde_json::from_slice(bytes).map_err(broken)?;
        match descriptor.broken_rule() {
            Some(rule) => Err(Error::damaged(whence, rule)),
            None => Ok(descriptor),
        }
    }

    /// What the version consists of beside this, with lengths.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectPath, u64)> + '_ {
        let packs = self.packs.iter().map(|pack| (pack.path(), pack.bytes));
        let launch =
            self.launch.iter().flat_map(|set| [(set.path(), set.bytes), (set.profile.path(), set.profile.bytes)]);
        std::iter::once((self.tree.path(), self.tree.bytes)).chain(packs).chain(launch)
    }

    /// The bytes to sign: same descriptor, same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a descriptor has only string keys")
    }

    fn broken_rule(&self) -> Option<String> {
        let trees = std::iter::once(&self.tree.nodes).chain(&self.tree.extents);
        for tree in trees {
            if tree.levels.is_empty() || tree.levels.len() > LEVELS_MAX {
                return Some(format!("a page tree has {} levels", tree.levels.len()));
            }
            if tree.levels[0].pages != 1 || tree.levels[0].bytes != u64::from(tree.root.stored) {
                return Some("the first level of a page tree is not its root page".into());
            }
            if tree.root.length as usize > PAGE_MAX_BYTES
                || tree.root.stored > tree.root.length
                || tree.root.stored == 0
            {
                return Some("a root page is too long".into());
            }
            for level in &tree.levels {
                let inside = level.offset.checked_add(level.bytes).is_some_and(|end| end <= self.tree.bytes);
                if !inside || level.pages == 0 {
                    return Some("a level lies outside of the tree object".into());
                }
            }
        }
        let t = &self.totals;
        let parts = t.files.checked_add(t.directories).and_then(|n| n.checked_add(t.symlinks));
        if t.nodes == 0 || t.nodes > u64::from(u32::MAX) || parts.is_none_or(|n| n > t.nodes) {
            return Some("its totals contradict each other".into());
        }
        self.broken_launch_rule()
    }

    fn broken_launch_rule(&self) -> Option<String> {
        if self.launch.len() > LAUNCH_SETS_MAX {
            return Some(format!("it has {} launch sets, more than {LAUNCH_SETS_MAX}", self.launch.len()));
        }
        let mut names = HashSet::new();
        for LaunchRef { name, bytes, index, body, profile, .. } in &self.launch {
            if !is_launch_name(name) || !names.insert(name) {
                return Some(format!("it has a launch set of the name {name:?}, or several"));
            }
            let index_fits = index.length as usize <= LAUNCH_INDEX_MAX_BYTES
                && (1..=index.length).contains(&index.stored)
                && u64::from(index.stored) <= *bytes;
            if !index_fits || *body > LAUNCH_BODY_MAX_BYTES || *bytes > LAUNCH_OBJECT_MAX_BYTES {
                return Some(format!("its launch set {name} is too long"));
            }
            if profile.length > PROFILE_MAX_BYTES as u64 || !(1..=profile.length).contains(&profile.bytes) {
                return Some(format!("the profile of its launch set {name} is too long"));
            }
        }
        None
    }
}
