//! One page: checked once as a whole when it arrives, then read in place.

use bytes::Bytes;

use super::{
    INDEX_ENTRY_BYTES, INLINE_EXTENTS_MAX, NODE_HEAD_BYTES, PAGE_HEADER_BYTES, PAGE_MAX_BYTES, TARGET_MAX_BYTES,
};
use crate::error::{Error, Result};
use crate::package::block::{EXTENT_BYTES, Extent};
use crate::package::bytes_at::{array, u16_at, u32_at, u64_at};
use crate::package::descriptor::PageSum;
use crate::package::{Hash, NodeId};

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PageKind {
    /// Node records.
    NodeLeaf = 1,
    /// Index over node pages.
    NodeIndex = 2,
    /// Extents.
    ExtentLeaf = 3,
    /// Index over extent pages.
    ExtentIndex = 4,
}

/// Node records' kind byte.
pub(super) const KIND_FILE: u8 = 1;
pub(super) const KIND_DIRECTORY: u8 = 2;
pub(super) const KIND_SYMLINK: u8 = 3;
pub(super) const KIND_ALIAS: u8 = 4;
/// Node records' flag bits.
pub(super) const FLAG_XATTRS_INLINE: u8 = 1;
pub(super) const FLAG_XATTRS_BLOCK: u8 = 2;
pub(super) const FLAG_EXTENTS_OUTSIDE: u8 = 4;
/// Extent leaf entries: node number before the extent.
pub(super) const EXTENT_ENTRY_BYTES: usize = 8 + EXTENT_BYTES;

/// A verified page whose structure has been checked.
#[derive(Debug, Clone)]
pub struct Page {
    kind: PageKind,
    count: usize,
    first: u64,
    bytes: Bytes,
}

/// An index entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Smallest key below: node number.
    pub node: u64,
    /// Smallest key below: position in the file (extent trees only, else 0).
    pub position: u64,
    /// Position of the page within its level.
    pub offset: u64,
    /// Its lengths and hash.
    pub sum: PageSum,
}

/// Bodies of node records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeBody<'a> {
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Bytes that are not holes.
        allocated: u64,
        /// Its blocks.
        extents: ExtentsPlace<'a>,
    },
    /// A directory.
    Directory {
        /// Number of its first child.
        first_child: u64,
        /// Number of children.
        children: u64,
        /// The directory it is in.
        parent: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: &'a [u8],
    },
    /// A further name of another node (hard link).
    Alias {
        /// That node.
        node: u64,
    },
}

/// Where a file's extents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentsPlace<'a> {
    /// Here, encoded one after another, sorted by position.
    Inline(&'a [u8]),
    /// In the extent tree.
    Outside {
        /// Names the content: BLAKE3 over its size and its extents' positions, lengths and hashes.
        content: Hash,
        /// How many.
        count: u64,
    },
}

/// Where extended attributes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrPlace<'a> {
    /// There are none.
    None,
    /// Here, encoded.
    Inline(&'a [u8]),
    /// The encoded form is a block.
    Block(Extent),
}

/// A node record, borrowed from its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRecord<'a> {
    /// Hash of its name.
    pub name_hash: u32,
    /// Its name; empty for the root.
    pub name: &'a [u8],
    /// Permission bits.
    pub mode: u16,
    /// Modification time: seconds.
    pub mtime_seconds: i64,
    /// Modification time: nanoseconds.
    pub mtime_nanos: u32,
    /// Names that lead to it.
    pub links: u32,
    /// What it is.
    pub body: NodeBody<'a>,
    /// Its extended attributes.
    pub xattrs: XattrPlace<'a>,
}

impl Page {
    /// Checks the structure of a page's uncompressed bytes: every record lies inside, has possible values, and
    /// stands in order. After that, reading records cannot fail.
    pub fn parse(bytes: Bytes, whence: &dyn Fn() -> String) -> Result<Self> {
        Self::checked(bytes).ok_or_else(|| Error::damaged(whence(), "it is not a tree page"))
    }

    fn checked(bytes: Bytes) -> Option<Self> {
        if bytes.len() > PAGE_MAX_BYTES {
            return None;
        }
        let kind = match bytes.first()? {
            1 => PageKind::NodeLeaf,
            2 => PageKind::NodeIndex,
            3 => PageKind::ExtentLeaf,
            4 => PageKind::ExtentIndex,
            _ => return None,
        };
        if *bytes.get(1)? != 0 || u32_at(&bytes, 4)? != 0 {
            return None;
        }
        let page = Page { kind, count: usize::from(u16_at(&bytes, 2)?), first: u64_at(&bytes, 8)?, bytes };
        if page.count == 0 {
            return None;
        }
        match kind {
            PageKind::NodeLeaf => page.check_nodes(),
            PageKind::NodeIndex | PageKind::ExtentIndex => page.check_index(),
            PageKind::ExtentLeaf => page.check_extents(),
        }
        .then_some(page)
    }

    fn check_nodes(&self) -> bool {
        let numbers_fit = self.first >= 1 && self.first.checked_add(self.count as u64).is_some();
        numbers_fit && (0..self.count).all(|i| self.record(i).is_some())
    }

    fn check_index(&self) -> bool {
        let fits = self.bytes.len() == PAGE_HEADER_BYTES + self.count * INDEX_ENTRY_BYTES
            && self.first.checked_add(self.count as u64).is_some();
        fits && (0..self.count).all(|i| {
            let Some(e) = self.entry(i) else { return false };
            let sane = e.sum.stored > 0 && e.sum.stored <= e.sum.length && e.sum.length as usize <= PAGE_MAX_BYTES;
            let rises = i == 0 || self.entry(i - 1).is_some_and(|p| (p.node, p.position) < (e.node, e.position));
            sane && rises
        })
    }

    fn check_extents(&self) -> bool {
        let fits = self.bytes.len() == PAGE_HEADER_BYTES + self.count * EXTENT_ENTRY_BYTES;
        fits && (0..self.count).all(|i| {
            let Some((node, extent)) = self.node_extent(i) else { return false };
            i == 0
                || self.node_extent(i - 1).is_some_and(|(before, earlier)| {
                    before < node || (before == node && earlier.file_end() <= extent.file_offset)
                })
        })
    }

    /// What it holds.
    pub fn kind(&self) -> PageKind {
        self.kind
    }

    /// How many records or entries.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Node leaves: number of the first node. Indexes: number, within its level, of the first page below.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The encoded page.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Index entry `i`.
    pub fn entry(&self, i: usize) -> Option<IndexEntry> {
        if i >= self.count || !matches!(self.kind, PageKind::NodeIndex | PageKind::ExtentIndex) {
            return None;
        }
        let b = &self.bytes;
        let at = PAGE_HEADER_BYTES + i * INDEX_ENTRY_BYTES;
        Some(IndexEntry {
            node: u64_at(b, at)?,
            position: u64_at(b, at + 8)?,
            offset: u64_at(b, at + 16)?,
            sum: PageSum { stored: u32_at(b, at + 24)?, length: u32_at(b, at + 28)?, hash: Hash(array(b, at + 32)?) },
        })
    }

    /// Index of the entry below which the key must be: the last whose key is not greater.
    pub fn entry_for(&self, node: u64, position: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            let e = self.entry(middle)?;
            if (e.node, e.position) <= (node, position) { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }

    /// Extent leaf entry `i`: node and extent.
    pub fn node_extent(&self, i: usize) -> Option<(u64, Extent)> {
        if i >= self.count || self.kind != PageKind::ExtentLeaf {
            return None;
        }
        let at = PAGE_HEADER_BYTES + i * EXTENT_ENTRY_BYTES;
        Some((u64_at(&self.bytes, at)?, Extent::decode(&self.bytes, at + 8)?))
    }

    /// Whether the node's record is in this leaf.
    pub fn holds(&self, node: NodeId) -> bool {
        self.kind == PageKind::NodeLeaf && node.0 >= self.first && node.0 - self.first < self.count as u64
    }

    /// Record of a node in this leaf.
    pub fn node(&self, node: NodeId) -> Option<NodeRecord<'_>> {
        if !self.holds(node) {
            return None;
        }
        self.record((node.0 - self.first) as usize)
    }

    /// Record `i` of a node leaf.
    pub fn record(&self, i: usize) -> Option<NodeRecord<'_>> {
        if i >= self.count || self.kind != PageKind::NodeLeaf {
            return None;
        }
        let b = &self.bytes[..];
        let at = usize::from(u16_at(b, PAGE_HEADER_BYTES + 2 * i)?);
        let head: &[u8; NODE_HEAD_BYTES] = b.get(at..at + NODE_HEAD_BYTES)?.try_into().ok()?;
        let kind = head[0];
        let flags = head[1];
        if flags & !(FLAG_XATTRS_INLINE | FLAG_XATTRS_BLOCK | FLAG_EXTENTS_OUTSIDE) != 0 {
            return None;
        }
        let mode = u16_at(head, 2)?;
        let mtime_nanos = u32_at(head, 16)?;
        let name_length = usize::from(head[24]);
        let inline_extents = usize::from(head[25]);
        let xattr_bytes = usize::from(u16_at(head, 26)?);
        let target_bytes = usize::from(u16_at(head, 28)?);
        let (first, second) = (u64_at(head, 32)?, u64_at(head, 40)?);
        let mut rest = b.get(at + NODE_HEAD_BYTES..)?;
        let mut take = |n: usize| -> Option<&[u8]> {
            let (taken, after) = rest.split_at_checked(n)?;
            rest = after;
            Some(taken)
        };
        let name = take(name_length)?;
        // The root alone has no name.
        let is_root = self.first + i as u64 == NodeId::ROOT.0;
        let name_fits = name.is_empty() == is_root && !name.contains(&b'/') && !name.contains(&0);
        if !name_fits || name == b"." || name == b".." || mode > 0o7777 || mtime_nanos >= 1_000_000_000 {
            return None;
        }
        let body = match kind {
            KIND_FILE => {
                let extents = if flags & FLAG_EXTENTS_OUTSIDE != 0 {
                    let raw = take(40)?;
                    ExtentsPlace::Outside { content: Hash(array(raw, 0)?), count: u64_at(raw, 32)? }
                } else {
                    let raw = take((inline_extents <= INLINE_EXTENTS_MAX).then_some(inline_extents * EXTENT_BYTES)?)?;
                    inline_in_order(raw, first).then_some(ExtentsPlace::Inline(raw))?
                };
                (first <= i64::MAX as u64 && second <= first).then_some(())?;
                NodeBody::File { size: first, allocated: second, extents }
            }
            KIND_DIRECTORY => {
                first.checked_add(second)?;
                NodeBody::Directory { first_child: first, children: second, parent: u64_at(take(8)?, 0)? }
            }
            KIND_SYMLINK => {
                let target = take((1..=TARGET_MAX_BYTES).contains(&target_bytes).then_some(target_bytes)?)?;
                (!target.contains(&0)).then_some(())?;
                NodeBody::Symlink { target }
            }
            KIND_ALIAS => NodeBody::Alias { node: first },
            _ => return None,
        };
        let xattrs = match flags & (FLAG_XATTRS_INLINE | FLAG_XATTRS_BLOCK) {
            0 => XattrPlace::None,
            FLAG_XATTRS_INLINE => XattrPlace::Inline(take(xattr_bytes)?),
            FLAG_XATTRS_BLOCK => XattrPlace::Block(Extent::decode(take(EXTENT_BYTES)?, 0)?),
            _ => return None,
        };
        Some(NodeRecord {
            name_hash: u32_at(head, 4)?,
            name,
            mode,
            mtime_seconds: u64_at(head, 8)?.cast_signed(),
            mtime_nanos,
            links: u32_at(head, 20)?,
            body,
            xattrs,
        })
    }
}

fn inline_in_order(raw: &[u8], size: u64) -> bool {
    let mut end = 0;
    raw.chunks_exact(EXTENT_BYTES).all(|one| {
        let Some(extent) = Extent::decode(one, 0) else { return false };
        let follows = extent.file_offset >= end && extent.file_end() <= size;
        end = extent.file_end();
        follows
    })
}

/// Encodes extended attributes: for each, sorted by name, the name's length (1 byte), the value's (4 bytes), name, value.
pub fn encode_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in xattrs {
        out.push(name.len() as u8);
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
    out
}

/// Reads [`encode_xattrs`]'s form; `None` if it is not that.
pub fn decode_xattrs(encoded: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < encoded.len() {
        let name_end = at + 5 + usize::from(encoded[at]);
        let end = name_end.checked_add(u32_at(encoded, at + 1)? as usize)?;
        if end > encoded.len() || name_end == at + 5 {
            return None;
        }
        out.push((encoded.slice(at + 5..name_end), encoded.slice(name_end..end)));
        at = end;
    }
    Some(out)
}
