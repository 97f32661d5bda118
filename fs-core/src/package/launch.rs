//! Launch objects: what starting an application touches, in order of first use, as one stream.
//!
//! ```text
//! index   stored like a block: what follows, in order
//! body    one zstd frame, of the bytes of all entries one after another
//! ```
//!
//! The body is one frame over everything, so that it is as small as the same bytes in one archive, and it is decoded
//! while it comes: an entry is there as soon as its own bytes are. Its bytes are copies: every page is also in the
//! tree object, every block also in a pack, so a launch object is never needed, only faster.
//!
//! The descriptor names the index's hash. Pages carry their hash in the index; blocks are verified against the tree,
//! whose pages come before the blocks that they describe.

mod body;

pub use body::{BodyDecoder, BodyEncoder, LAUNCH_LEVEL};

use super::bytes_at::{array, u32_at, u64_at};
use super::descriptor::PageSum;
use super::tree::{PAGE_MAX_BYTES, PageAddress};
use super::{Hash, NodeId, block::BLOCK_MAX_BYTES};
use crate::error::{Error, Result};

/// Most entries in a launch object: about 16 GiB of blocks.
pub const LAUNCH_ENTRIES_MAX: usize = 1 << 18;
/// Most bytes that a launch object's body decodes to.
pub const LAUNCH_BODY_MAX_BYTES: u64 = 16 << 30;
/// Most bytes of a launch object: an index and a body that do not compress, with what zstd adds to such.
pub const LAUNCH_OBJECT_MAX_BYTES: u64 = LAUNCH_BODY_MAX_BYTES + (LAUNCH_BODY_MAX_BYTES >> 8) + (64 << 20);
/// Window of the body's frame as a power of two: what a reader must keep of what it decoded, 32 MiB
/// at most.
pub const LAUNCH_WINDOW_LOG: u32 = 25;
/// Most bytes of an index.
pub const LAUNCH_INDEX_MAX_BYTES: usize = 4 + LAUNCH_ENTRIES_MAX * PAGE_ENTRY_BYTES;
/// Most launch sets of one version.
pub const LAUNCH_SETS_MAX: usize = 64;
/// Length of the beginning of a block's hash in an index entry: enough to tell the blocks of one launch set apart.
pub const HASH_PREFIX_BYTES: usize = 8;

const PAGE_ENTRY_BYTES: usize = 1 + 4 + 8 + 4 + 4 + 32;
const BLOCK_ENTRY_BYTES: usize = 1 + 4 + 8 + 4 + HASH_PREFIX_BYTES;
const KIND_PAGE: u8 = 0;
const KIND_BLOCK: u8 = 1;

/// The beginning of a block's hash.
pub type HashPrefix = [u8; HASH_PREFIX_BYTES];

/// One piece of a launch object's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchEntry {
    /// A page of the tree, and where it is in the tree object.
    Page(PageAddress),
    /// A whole block of a file.
    Block {
        /// The file; never a further name of one.
        node: NodeId,
        /// Where in the file the block begins.
        offset: u64,
        /// Its length uncompressed.
        length: u32,
        /// The beginning of its hash; the whole of it is in the tree.
        prefix: HashPrefix,
    },
}

impl LaunchEntry {
    /// Bytes of this entry in the decoded body.
    pub fn length(&self) -> u32 {
        match self {
            LaunchEntry::Page(page) => page.sum.length,
            LaunchEntry::Block { length, .. } => *length,
        }
    }

    /// The beginning of its hash.
    pub fn prefix(&self) -> HashPrefix {
        match self {
            LaunchEntry::Page(page) => hash_prefix(&page.sum.hash),
            LaunchEntry::Block { prefix, .. } => *prefix,
        }
    }
}

/// Whether `name` can name a launch set: 1 to 64 ASCII letters, digits, `.`, `_` and `-`.
pub fn is_launch_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// The beginning of `hash`.
pub fn hash_prefix(hash: &Hash) -> HashPrefix {
    hash.0[..HASH_PREFIX_BYTES].try_into().expect("a hash is longer than its prefix")
}

/// The encoded index, uncompressed.
pub fn encode_index(entries: &[LaunchEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + entries.len() * PAGE_ENTRY_BYTES);
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        match entry {
            LaunchEntry::Page(PageAddress { number, offset, sum }) => {
                out.push(KIND_PAGE);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&sum.stored.to_le_bytes());
                out.extend_from_slice(&sum.length.to_le_bytes());
                out.extend_from_slice(&sum.hash.0);
            }
            LaunchEntry::Block { node, offset, length, prefix } => {
                out.push(KIND_BLOCK);
                // A tree has no more than 2^32 - 1 nodes.
                out.extend_from_slice(&(node.0 as u32).to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(prefix);
            }
        }
    }
    out
}

/// Reads an index. `whence` names it in errors.
///
/// # Errors
/// `Damaged` if it is not an index or breaks a limit.
pub fn parse_index(bytes: &[u8], whence: &str) -> Result<Vec<LaunchEntry>> {
    let broken = |what: &str| Error::damaged(whence, format!("its index is unreadable: {what}"));
    let count = u32_at(bytes, 0).ok_or_else(|| broken("it is too short"))? as usize;
    if count > LAUNCH_ENTRIES_MAX {
        return Err(broken(&format!("{count} entries are more than {LAUNCH_ENTRIES_MAX}")));
    }
    let mut entries = Vec::with_capacity(count.min(bytes.len() / BLOCK_ENTRY_BYTES));
    let mut at = 4;
    let mut body = 0u64;
    for _ in 0..count {
        let (entry, bytes_read) = parse_entry(bytes, at).ok_or_else(|| broken("an entry makes no sense"))?;
        at += bytes_read;
        body += u64::from(entry.length());
        entries.push(entry);
    }
    if at != bytes.len() {
        return Err(broken("something follows the last entry"));
    }
    // No overflow: there are few entries, and none is long.
    if body > LAUNCH_BODY_MAX_BYTES {
        return Err(broken("its entries are too long together"));
    }
    Ok(entries)
}

fn parse_entry(bytes: &[u8], at: usize) -> Option<(LaunchEntry, usize)> {
    match *bytes.get(at)? {
        KIND_PAGE => {
            let (number, offset) = (u32_at(bytes, at + 1)?, u64_at(bytes, at + 5)?);
            let (stored, length) = (u32_at(bytes, at + 13)?, u32_at(bytes, at + 17)?);
            let sum = PageSum { stored, length, hash: Hash(array(bytes, at + 21)?) };
            let sane = (1..=PAGE_MAX_BYTES as u32).contains(&length)
                && (1..=length).contains(&stored)
                && offset <= i64::MAX as u64;
            sane.then_some((LaunchEntry::Page(PageAddress { number, offset, sum }), PAGE_ENTRY_BYTES))
        }
        KIND_BLOCK => {
            let (node, offset, length) = (u32_at(bytes, at + 1)?, u64_at(bytes, at + 5)?, u32_at(bytes, at + 13)?);
            let prefix = array(bytes, at + 17)?;
            let sane = (1..=BLOCK_MAX_BYTES as u32).contains(&length) && node > 0 && offset <= i64::MAX as u64;
            let node = NodeId(u64::from(node));
            sane.then_some((LaunchEntry::Block { node, offset, length, prefix }, BLOCK_ENTRY_BYTES))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<LaunchEntry> {
        vec![
            LaunchEntry::Page(PageAddress {
                number: 3,
                offset: 1 << 33,
                sum: PageSum { stored: 5000, length: 16_384, hash: Hash::of(b"page") },
            }),
            LaunchEntry::Block {
                node: NodeId(7),
                offset: 1 << 40,
                length: 4096,
                prefix: hash_prefix(&Hash::of(b"block")),
            },
        ]
    }

    #[test]
    fn indexes_return_as_they_went() {
        for entries in [vec![], sample()] {
            assert_eq!(parse_index(&encode_index(&entries), "x").unwrap(), entries);
        }
    }

    #[test]
    fn cut_lengthened_and_senseless_indexes_are_refused() {
        let good = encode_index(&sample());
        for length in 0..good.len() {
            let e = parse_index(&good[..length], "launch object l").unwrap_err();
            assert!(e.to_string().contains("launch object l"), "{e}");
        }
        assert!(parse_index(&[&good[..], &[0]].concat(), "x").is_err());
        for (at, value) in [(4, 9u8), (17, 0), (23, 0xff), (57 + 13, 0), (57 + 15, 0xff)] {
            let mut bad = good.clone();
            bad[at..at + if value == 0 { 4 } else { 1 }].fill(value);
            assert!(parse_index(&bad, "x").is_err(), "byte {at}");
        }
    }
}
