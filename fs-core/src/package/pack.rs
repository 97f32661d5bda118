//! Packs: immutable objects of many blocks.
//!
//! ```text
//! stored blocks, one after another | index: one entry a block | footer
//! ```
//!
//! The index lets a publisher find blocks that it need not store again, and `verify` check a pack alone. Readers of
//! a mounted version do not need it: extents say where each block lies.

use super::Hash;
use super::block::BLOCK_MAX_BYTES;
use super::bytes_at::{array, u32_at};
use crate::error::{Error, Result};

/// A pack is closed when its blocks reach this many bytes.
pub const PACK_TARGET_BYTES: u64 = 64 << 20;
/// No pack has more blocks: 4 Mi entries are an index of 160 MiB.
pub const PACK_BLOCKS_MAX: u32 = 4 << 20;
/// Last 8 bytes of every pack.
pub const PACK_MAGIC: &[u8; 8] = b"sfpack01";
/// Bytes of the footer: index hash, number of blocks, zero, magic.
pub const PACK_FOOTER_BYTES: usize = 32 + 4 + 4 + 8;
/// Bytes of one index entry.
pub const PACK_ENTRY_BYTES: usize = 40;

/// One block of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Hash of the uncompressed bytes.
    pub hash: Hash,
    /// Where its stored bytes begin.
    pub offset: u64,
    /// How many there are.
    pub stored: u32,
    /// Length uncompressed.
    pub length: u32,
}

/// What the footer tells of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackFooter {
    /// BLAKE3 of the index.
    pub index_hash: Hash,
    /// Entries in it.
    pub blocks: u32,
}

impl PackFooter {
    /// Reads the last [`PACK_FOOTER_BYTES`] of a pack.
    pub fn parse(footer: &[u8], whence: &str) -> Result<Self> {
        let parts = (footer.len() == PACK_FOOTER_BYTES)
            .then(|| Some((array(footer, 0)?, u32_at(footer, 32)?, u32_at(footer, 36)?, array::<8>(footer, 40)?)))
            .flatten();
        match parts {
            Some((hash, blocks, 0, magic)) if &magic == PACK_MAGIC && blocks <= PACK_BLOCKS_MAX => {
                Ok(Self { index_hash: Hash(hash), blocks })
            }
            _ => Err(Error::damaged(whence, "it does not end as a pack does")),
        }
    }

    /// Bytes of the index.
    pub fn index_bytes(&self) -> usize {
        self.blocks as usize * PACK_ENTRY_BYTES
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.index_hash.0);
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(PACK_MAGIC);
    }
}

/// Reads an index against its footer. `pack_bytes` is the length of the pack.
pub fn parse_index(footer: &PackFooter, index: &[u8], pack_bytes: u64, whence: &str) -> Result<Vec<PackEntry>> {
    let broken = |reason: &str| Error::damaged(whence, reason);
    if index.len() != footer.index_bytes() || Hash::of(index) != footer.index_hash {
        return Err(broken("its index does not have the hash that its footer names"));
    }
    let mut entries = Vec::with_capacity(footer.blocks as usize);
    let mut offset = 0u64;
    for raw in index.chunks_exact(PACK_ENTRY_BYTES) {
        let (Some(hash), Some(stored), Some(length)) = (array(raw, 0), u32_at(raw, 32), u32_at(raw, 36)) else {
            return Err(broken("its index is cut off"));
        };
        if length == 0 || length as usize > BLOCK_MAX_BYTES || stored == 0 || stored > length {
            return Err(broken("its index has a block of an impossible length"));
        }
        entries.push(PackEntry { hash: Hash(hash), offset, stored, length });
        offset += u64::from(stored);
    }
    if offset.checked_add((footer.index_bytes() + PACK_FOOTER_BYTES) as u64) != Some(pack_bytes) {
        return Err(broken("its length is not what its index says"));
    }
    Ok(entries)
}

/// Index and footer for `entries`, to follow the blocks.
pub fn encode_tail(entries: &[PackEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * PACK_ENTRY_BYTES + PACK_FOOTER_BYTES);
    for entry in entries {
        out.extend_from_slice(&entry.hash.0);
        out.extend_from_slice(&entry.stored.to_le_bytes());
        out.extend_from_slice(&entry.length.to_le_bytes());
    }
    let footer = PackFooter { index_hash: Hash::of(&out), blocks: entries.len() as u32 };
    footer.encode(&mut out);
    out
}

/// Reads the index of a whole pack held in memory.
pub fn parse(pack: &[u8], whence: &str) -> Result<Vec<PackEntry>> {
    let cut_off = || Error::damaged(whence, "it is shorter than a pack's footer and index");
    let at = pack.len().checked_sub(PACK_FOOTER_BYTES).ok_or_else(cut_off)?;
    let footer = PackFooter::parse(&pack[at..], whence)?;
    let start = at.checked_sub(footer.index_bytes()).ok_or_else(cut_off)?;
    parse_index(&footer, &pack[start..at], pack.len() as u64, whence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_returns_as_it_went_and_notices_any_flipped_bit() {
        let entries = vec![
            PackEntry { hash: Hash::of(b"a"), offset: 0, stored: 3, length: 9 },
            PackEntry { hash: Hash::of(b"b"), offset: 3, stored: 4, length: 4 },
        ];
        let mut pack = b"aaabbbb".to_vec();
        pack.extend(encode_tail(&entries));
        assert_eq!(parse(&pack, "p").unwrap(), entries);
        for at in 7..pack.len() {
            let mut bad = pack.clone();
            bad[at] ^= 1;
            assert!(parse(&bad, "p").is_err(), "byte {at}");
        }
        assert!(parse(&pack[1..], "p").is_err());
        assert!(parse(b"", "p").is_err());
    }
}
