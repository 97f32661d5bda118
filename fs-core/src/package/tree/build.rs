//! Writing trees: nodes go in by ascending number, pages come out.
//!
//! Leaves are spooled to a scratch file, so memory holds only one index entry a page.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::page::{
    EXTENT_ENTRY_BYTES, FLAG_EXTENTS_OUTSIDE, FLAG_XATTRS_BLOCK, FLAG_XATTRS_INLINE, IndexEntry, KIND_ALIAS,
    KIND_DIRECTORY, KIND_FILE, KIND_SYMLINK, PageKind, encode_xattrs,
};
use super::{
    INDEX_ENTRY_BYTES, INLINE_EXTENTS_MAX, INLINE_XATTRS_MAX_BYTES, NODE_HEAD_BYTES, PAGE_HEADER_BYTES, PAGE_MAX_BYTES,
    name_hash,
};
use crate::error::{Error, Result};
use crate::package::block::{Encoder, Extent};
use crate::package::descriptor::{Level, PageSum, PageTree, TreeRef};
use crate::package::{Hash, NodeId};

/// zstd level of pages: they are few, and fetched before anything else.
const PAGE_LEVEL: i32 = 9;

/// What a node is, for writing.
#[derive(Debug, Clone)]
pub enum NewBody {
    /// A regular file and its blocks, sorted by position.
    File {
        /// Size in bytes.
        size: u64,
        /// Its blocks.
        extents: Vec<Extent>,
    },
    /// A directory.
    Directory {
        /// Number of its first child.
        first_child: u64,
        /// How many children.
        children: u64,
        /// The directory it is in.
        parent: NodeId,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A further name of another node.
    Alias(NodeId),
}

/// Extended attributes, for writing.
#[derive(Debug, Clone, Default)]
pub enum NewXattrs {
    /// None.
    #[default]
    None,
    /// Encoded, at most [`INLINE_XATTRS_MAX_BYTES`].
    Inline(Vec<u8>),
    /// Stored as a block.
    Block(Extent),
}

impl NewXattrs {
    /// Encodes sorted attributes; `Err` gives back the encoded form if it must become a block.
    pub fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> std::result::Result<Self, Vec<u8>> {
        let encoded = encode_xattrs(xattrs);
        match encoded.len() {
            0 => Ok(NewXattrs::None),
            n if n <= INLINE_XATTRS_MAX_BYTES => Ok(NewXattrs::Inline(encoded)),
            _ => Err(encoded),
        }
    }
}

/// A node to be written.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its name; empty for the root.
    pub name: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Names that lead to it.
    pub links: u32,
    /// What it is.
    pub body: NewBody,
    /// Its extended attributes.
    pub xattrs: NewXattrs,
}

/// Writes one tree object.
pub struct TreeBuilder {
    next: u64,
    records: Vec<Vec<u8>>,
    records_bytes: usize,
    nodes: Spool,
    extent_page: Vec<(u64, Extent)>,
    extents: Spool,
    encoder: Encoder,
}

/// Leaves of one page tree on their way to disk.
struct Spool {
    file: File,
    bytes: u64,
    entries: Vec<IndexEntry>,
}

impl Spool {
    fn new(scratch: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(scratch).map_err(|e| Error::local("create a scratch file in", scratch, e))?;
        Ok(Self { file, bytes: 0, entries: Vec::new() })
    }

    fn push(&mut self, encoder: &mut Encoder, node: u64, position: u64, page: Vec<u8>) -> Result<()> {
        let (stored, sum) = seal(encoder, page);
        self.file.write_all(&stored).map_err(|e| Error::local("write", "the scratch file of the tree", e))?;
        self.entries.push(IndexEntry { node, position, offset: self.bytes, sum });
        self.bytes += stored.len() as u64;
        Ok(())
    }
}

fn seal(encoder: &mut Encoder, page: Vec<u8>) -> (Vec<u8>, PageSum) {
    debug_assert!(page.len() <= PAGE_MAX_BYTES, "pages are closed before they overflow");
    let (length, hash) = (page.len() as u32, Hash::of(&page));
    let stored = encoder.encode(page);
    let sum = PageSum { stored: stored.len() as u32, length, hash };
    (stored, sum)
}

fn header(kind: PageKind, count: usize, first: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_MAX_BYTES);
    page.extend_from_slice(&[kind as u8, 0]);
    page.extend_from_slice(&(count as u16).to_le_bytes());
    page.extend_from_slice(&0u32.to_le_bytes());
    page.extend_from_slice(&first.to_le_bytes());
    page
}

impl TreeBuilder {
    /// Begins a tree; spools to unnamed files in the folder `scratch`.
    pub fn new(scratch: &Path) -> Result<Self> {
        Ok(Self {
            next: 1,
            records: Vec::new(),
            records_bytes: 0,
            nodes: Spool::new(scratch)?,
            extent_page: Vec::new(),
            extents: Spool::new(scratch)?,
            encoder: Encoder::new(PAGE_LEVEL)?,
        })
    }

    /// Adds the next node; the first is the root, number 1.
    pub fn push(&mut self, node: &NewNode) -> Result<()> {
        let record = self.encode(node)?;
        if PAGE_HEADER_BYTES + self.records_bytes + record.len() + 2 * (self.records.len() + 1) > PAGE_MAX_BYTES {
            self.close_node_page()?;
        }
        self.records_bytes += record.len();
        self.records.push(record);
        self.next += 1;
        Ok(())
    }

    fn encode(&mut self, node: &NewNode) -> Result<Vec<u8>> {
        let (kind, first, second) = match &node.body {
            NewBody::File { size, extents } => {
                (KIND_FILE, *size, extents.iter().map(|e| u64::from(e.length)).sum::<u64>())
            }
            NewBody::Directory { first_child, children, .. } => (KIND_DIRECTORY, *first_child, *children),
            NewBody::Symlink { .. } => (KIND_SYMLINK, 0, 0),
            NewBody::Alias(target) => (KIND_ALIAS, target.0, 0),
        };
        let mut flags = match &node.xattrs {
            NewXattrs::None => 0,
            NewXattrs::Inline(_) => FLAG_XATTRS_INLINE,
            NewXattrs::Block(_) => FLAG_XATTRS_BLOCK,
        };
        let mut body = Vec::new();
        let (mut inline_extents, mut target_bytes, mut xattr_bytes) = (0u8, 0u16, 0u16);
        match &node.body {
            NewBody::File { size, extents } if extents.len() > INLINE_EXTENTS_MAX => {
                flags |= FLAG_EXTENTS_OUTSIDE;
                body.extend_from_slice(&content_hash(*size, extents).0);
                body.extend_from_slice(&(extents.len() as u64).to_le_bytes());
                for extent in extents {
                    self.push_extent(*extent)?;
                }
            }
            NewBody::File { extents, .. } => {
                inline_extents = extents.len() as u8;
                extents.iter().for_each(|e| e.encode(&mut body));
            }
            NewBody::Directory { parent, .. } => body.extend_from_slice(&parent.0.to_le_bytes()),
            NewBody::Symlink { target } => {
                target_bytes = target.len() as u16;
                body.extend_from_slice(target);
            }
            NewBody::Alias(_) => {}
        }
        match &node.xattrs {
            NewXattrs::None => {}
            NewXattrs::Inline(encoded) => {
                xattr_bytes = encoded.len() as u16;
                body.extend_from_slice(encoded);
            }
            NewXattrs::Block(extent) => extent.encode(&mut body),
        }
        let mut record = Vec::with_capacity(NODE_HEAD_BYTES + node.name.len() + body.len());
        record.extend_from_slice(&[kind, flags]);
        record.extend_from_slice(&node.mode.to_le_bytes());
        record.extend_from_slice(&name_hash(&node.name).to_le_bytes());
        record.extend_from_slice(&node.mtime.0.to_le_bytes());
        record.extend_from_slice(&node.mtime.1.to_le_bytes());
        record.extend_from_slice(&node.links.to_le_bytes());
        record.extend_from_slice(&[node.name.len() as u8, inline_extents]);
        record.extend_from_slice(&xattr_bytes.to_le_bytes());
        record.extend_from_slice(&target_bytes.to_le_bytes());
        record.extend_from_slice(&0u16.to_le_bytes());
        record.extend_from_slice(&first.to_le_bytes());
        record.extend_from_slice(&second.to_le_bytes());
        record.extend_from_slice(&node.name);
        record.extend_from_slice(&body);
        Ok(record)
    }

    fn push_extent(&mut self, extent: Extent) -> Result<()> {
        if PAGE_HEADER_BYTES + (self.extent_page.len() + 1) * EXTENT_ENTRY_BYTES > PAGE_MAX_BYTES {
            self.close_extent_page()?;
        }
        self.extent_page.push((self.next, extent));
        Ok(())
    }

    fn close_extent_page(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.extent_page);
        let Some((node, first)) = entries.first() else { return Ok(()) };
        let mut page = header(PageKind::ExtentLeaf, entries.len(), 0);
        for (node, extent) in &entries {
            page.extend_from_slice(&node.to_le_bytes());
            extent.encode(&mut page);
        }
        self.extents.push(&mut self.encoder, *node, first.file_offset, page)
    }

    fn close_node_page(&mut self) -> Result<()> {
        let records = std::mem::take(&mut self.records);
        self.records_bytes = 0;
        if records.is_empty() {
            return Ok(());
        }
        let first = self.next - records.len() as u64;
        let mut page = header(PageKind::NodeLeaf, records.len(), first);
        let mut at = PAGE_HEADER_BYTES + 2 * records.len();
        for record in &records {
            page.extend_from_slice(&(at as u16).to_le_bytes());
            at += record.len();
        }
        records.iter().for_each(|record| page.extend_from_slice(record));
        self.nodes.push(&mut self.encoder, first, 0, page)
    }

    /// Writes the object to `out`, from its beginning.
    pub fn finish(mut self, out: &mut File) -> Result<TreeRef> {
        self.close_node_page()?;
        self.close_extent_page()?;
        let mut writer = ObjectWriter { out, encoder: &mut self.encoder, hash: blake3::Hasher::new(), bytes: 0 };
        let nodes = writer.page_tree(self.nodes, PageKind::NodeIndex)?;
        let extents = match self.extents.entries.is_empty() {
            true => None,
            false => Some(writer.page_tree(self.extents, PageKind::ExtentIndex)?),
        };
        Ok(TreeRef { object: Hash(*writer.hash.finalize().as_bytes()), bytes: writer.bytes, nodes, extents })
    }
}

/// Name of a content by its size and extents: where each block stands in the file and what it is, not where it is
/// stored. The size is part of it, because files may differ in the hole at their end alone.
pub fn content_hash(size: u64, extents: &[Extent]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    for extent in extents {
        hasher.update(&extent.file_offset.to_le_bytes());
        hasher.update(&extent.length.to_le_bytes());
        hasher.update(&extent.hash.0);
    }
    Hash(*hasher.finalize().as_bytes())
}

struct ObjectWriter<'a> {
    out: &'a mut File,
    encoder: &'a mut Encoder,
    hash: blake3::Hasher,
    bytes: u64,
}

impl ObjectWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| Error::local("write", "the tree object", e))
    }

    fn page_tree(&mut self, mut spool: Spool, kind: PageKind) -> Result<PageTree> {
        const FANOUT: usize = (PAGE_MAX_BYTES - PAGE_HEADER_BYTES) / INDEX_ENTRY_BYTES;
        let mut below = std::mem::take(&mut spool.entries);
        let leaves = below.len() as u32;
        let mut indexes: Vec<(Vec<u8>, u32)> = Vec::new();
        while below.len() > 1 {
            let (mut bytes, mut entries) = (Vec::new(), Vec::new());
            for (i, chunk) in below.chunks(FANOUT).enumerate() {
                let mut page = header(kind, chunk.len(), (i * FANOUT) as u64);
                for e in chunk {
                    for number in [e.node, e.position, e.offset] {
                        page.extend_from_slice(&number.to_le_bytes());
                    }
                    page.extend_from_slice(&e.sum.stored.to_le_bytes());
                    page.extend_from_slice(&e.sum.length.to_le_bytes());
                    page.extend_from_slice(&e.sum.hash.0);
                }
                let (stored, sum) = seal(self.encoder, page);
                let IndexEntry { node, position, .. } = chunk[0];
                entries.push(IndexEntry { node, position, offset: bytes.len() as u64, sum });
                bytes.extend_from_slice(&stored);
            }
            indexes.push((bytes, entries.len() as u32));
            below = entries;
        }
        let root = below.first().expect("a tree has at least the root directory's page").sum;
        let mut levels = Vec::new();
        for (bytes, pages) in indexes.iter().rev() {
            levels.push(Level { offset: self.bytes, bytes: bytes.len() as u64, pages: *pages });
            self.write(bytes)?;
        }
        levels.push(Level { offset: self.bytes, bytes: spool.bytes, pages: leaves });
        let scratch = |e| Error::local("read", "the scratch file of the tree", e);
        spool.file.seek(SeekFrom::Start(0)).map_err(scratch)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match spool.file.read(&mut buffer).map_err(scratch)? {
                0 => break,
                n => self.write(&buffer[..n])?,
            }
        }
        Ok(PageTree { root, levels })
    }
}
