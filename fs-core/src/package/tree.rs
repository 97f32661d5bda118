//! The tree: a version's names and attributes as an image of verified pages, usable in place.
//!
//! Two B+trees of pages stand in one object. The *node tree* is keyed by node number and holds each node's name,
//! attributes, link target, small extended attributes and the extents of files of few blocks, so that one page
//! answers look-up, attributes and where to read. The *extent tree*, keyed by (node, position), holds the extents of
//! larger files. Every index entry carries the hash of the page below it, so verifying a page needs only the
//! pages above it: a Merkle tree whose roots are in the descriptor.
//!
//! Nodes are numbered breadth-first from 1, a directory's children consecutively and sorted by (name hash, name).
//! A directory therefore needs only its first child and their number, and a name is found by interpolation in
//! about one page, however large the directory is.
//!
//! [`page`] reads single pages, [`build`] writes trees, [`walk`] answers questions. This module fetches nothing.

pub mod build;
pub mod page;
pub mod walk;

use super::Hash;
use super::descriptor::{PageSum, PageTree, TreeRef};
use crate::error::{Error, Result};

/// No page is longer uncompressed. 16 KiB hold about 100 nodes or 255 index entries and compress to about 5 KiB,
/// which a demand read fetches without noticing on any network.
pub const PAGE_MAX_BYTES: usize = 16 * 1024;
/// Bytes before a page's records.
pub const PAGE_HEADER_BYTES: usize = 16;
/// Bytes of an index entry: key node, key position, page position, stored length, length, hash.
pub const INDEX_ENTRY_BYTES: usize = 8 + 8 + 8 + 4 + 4 + 32;
/// Fixed bytes before a node record's name.
pub const NODE_HEAD_BYTES: usize = 48;
/// Files of up to this many blocks keep their extents beside their name.
pub const INLINE_EXTENTS_MAX: usize = 4;
/// Encoded extended attributes up to this long stand in the node's record; longer ones are a block.
pub const INLINE_XATTRS_MAX_BYTES: usize = 1024;
/// Longest name, bytes: what Linux allows.
pub const NAME_MAX_BYTES: usize = 255;
/// Longest link target, bytes: Linux's PATH_MAX without the closing NUL.
pub const TARGET_MAX_BYTES: usize = 4095;

/// Which of the two page trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageTreeKind {
    /// Names and attributes.
    Nodes,
    /// Extents of larger files.
    Extents,
}

/// Address and checksum of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageAddress {
    /// Number of the page among all pages of the tree object, in stored order.
    pub number: u32,
    /// Position in the tree object.
    pub offset: u64,
    /// Lengths and hash.
    pub sum: PageSum,
}

/// Where the pages of one tree object are.
#[derive(Debug, Clone)]
pub struct TreeLayout {
    nodes: TreeLevels,
    extents: Option<TreeLevels>,
    pages: u32,
}

#[derive(Debug, Clone)]
struct TreeLevels {
    root: PageSum,
    levels: Vec<LevelPlace>,
}

#[derive(Debug, Clone, Copy)]
struct LevelPlace {
    first_page: u32,
    pages: u32,
    offset: u64,
    bytes: u64,
}

impl TreeLayout {
    /// Numbers the pages of `tree`.
    pub fn new(tree: &TreeRef) -> Result<Self> {
        let mut pages = 0u32;
        let mut number = |t: &PageTree| -> Result<TreeLevels> {
            let mut levels = Vec::new();
            for level in &t.levels {
                levels.push(LevelPlace {
                    first_page: pages,
                    pages: level.pages,
                    offset: level.offset,
                    bytes: level.bytes,
                });
                pages = pages
                    .checked_add(level.pages)
                    .ok_or_else(|| Error::damaged(format!("tree {}", tree.object), "it has too many pages"))?;
            }
            Ok(TreeLevels { root: t.root, levels })
        };
        let nodes = number(&tree.nodes)?;
        let extents = tree.extents.as_ref().map(&mut number).transpose()?;
        Ok(Self { nodes, extents, pages })
    }

    /// Pages of the tree object.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    fn levels(&self, kind: PageTreeKind) -> Option<&TreeLevels> {
        match kind {
            PageTreeKind::Nodes => Some(&self.nodes),
            PageTreeKind::Extents => self.extents.as_ref(),
        }
    }

    /// The root page and the number of levels of a page tree; `None` if the version has no such tree.
    pub fn root(&self, kind: PageTreeKind) -> Option<(PageAddress, usize)> {
        let tree = self.levels(kind)?;
        let top = tree.levels.first()?;
        Some((PageAddress { number: top.first_page, offset: top.offset, sum: tree.root }, tree.levels.len()))
    }

    /// Address of the page that an index entry `(index, offset, sum)` on `level` - 1 points at.
    fn child(&self, kind: PageTreeKind, level: usize, index: u64, offset: u64, sum: PageSum) -> Option<PageAddress> {
        let place = self.levels(kind)?.levels.get(level)?;
        let end = offset.checked_add(u64::from(sum.stored))?;
        if index >= u64::from(place.pages) || end > place.bytes {
            return None;
        }
        Some(PageAddress { number: place.first_page + index as u32, offset: place.offset + offset, sum })
    }
}

/// Hash by which a directory's children are sorted and found: the first four bytes, little-endian, of the BLAKE3 hash of
/// the name with ASCII capitals made small. Names that differ in ASCII case only are thus neighbours, which lets a
/// case-insensitive system find them without listing the directory.
pub fn name_hash(name: &[u8]) -> u32 {
    let Hash(h) = Hash::of(&name.to_ascii_lowercase());
    u32::from_le_bytes([h[0], h[1], h[2], h[3]])
}

#[cfg(test)]
mod tests;
