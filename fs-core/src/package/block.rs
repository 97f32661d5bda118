//! Blocks: the unit of fetching and verifying.
//!
//! A block is up to [`BLOCK_MAX_BYTES`] consecutive bytes of one file, named by the BLAKE3 hash of those bytes.
//! It is stored as one zstd frame, or raw where that is not larger; which of the two is told by its stored length.

use bytes::Bytes;

use super::Hash;
use super::bytes_at::{array, u32_at, u64_at};
use crate::error::{Error, Result};

/// Smallest block that content-defined cutting makes (but for a file's last).
pub const BLOCK_MIN_BYTES: usize = 16 * 1024;
/// Size around which content-defined cutting aims.
pub const BLOCK_AVERAGE_BYTES: usize = 64 * 1024;
/// No block is longer.
pub const BLOCK_MAX_BYTES: usize = 256 * 1024;

/// Bytes of an encoded [`Extent`].
pub const EXTENT_BYTES: usize = 60;

/// Where a run of a file's bytes is stored: one whole block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Position in the file, bytes.
    pub file_offset: u64,
    /// Length of the block uncompressed, 1 to [`BLOCK_MAX_BYTES`].
    pub length: u32,
    /// Index of the pack in the descriptor.
    pub pack: u32,
    /// Position of the stored bytes in the pack.
    pub pack_offset: u64,
    /// Length of the stored bytes, 1 to `length`; equal to `length` means stored raw.
    pub stored: u32,
    /// Hash of the uncompressed bytes.
    pub hash: Hash,
}

impl Extent {
    /// Position after the last byte in the file.
    pub fn file_end(&self) -> u64 {
        self.file_offset + u64::from(self.length)
    }

    /// Position after the last stored byte in the pack.
    pub fn pack_end(&self) -> u64 {
        self.pack_offset + u64::from(self.stored)
    }

    /// Appends the encoded form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file_offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.pack.to_le_bytes());
        out.extend_from_slice(&self.pack_offset.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
        out.extend_from_slice(&self.hash.0);
    }

    /// Reads the form at `at`; `None` if it is not all there or breaks a limit.
    pub fn decode(bytes: &[u8], at: usize) -> Option<Self> {
        let extent = Extent {
            file_offset: u64_at(bytes, at)?,
            length: u32_at(bytes, at + 8)?,
            pack: u32_at(bytes, at + 12)?,
            pack_offset: u64_at(bytes, at + 16)?,
            stored: u32_at(bytes, at + 24)?,
            hash: Hash(array(bytes, at + 28)?),
        };
        let sane = (1..=BLOCK_MAX_BYTES as u32).contains(&extent.length)
            && (1..=extent.length).contains(&extent.stored)
            && extent.file_offset <= i64::MAX as u64
            && extent.pack_offset <= i64::MAX as u64;
        sane.then_some(extent)
    }
}

/// Compresses blocks. Its working memory is kept from block to block, which for small ones is most of the cost.
pub struct Encoder(zstd::bulk::Compressor<'static>);

impl Encoder {
    /// An encoder at zstd `level`.
    pub fn new(level: i32) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(level);
        Ok(Self(compressor.map_err(|e| Error::local("prepare", "the compressor", e))?))
    }

    /// The stored form of a block: compressed, or `raw` itself if that is not larger.
    pub fn encode(&mut self, raw: Vec<u8>) -> Vec<u8> {
        match self.0.compress(&raw) {
            Ok(packed) if packed.len() < raw.len() => packed,
            _ => raw,
        }
    }
}

thread_local! {
    /// Decompressing needs 160 KiB of working memory; threads that do it do it often.
    static DECOMPRESSOR: std::cell::RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { std::cell::RefCell::new(None) };
}

fn decompress_frame(stored: &[u8], length: usize) -> std::io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(decompressor) => decompressor.decompress(stored, length),
        None => kept.insert(zstd::bulk::Decompressor::new()?).decompress(stored, length),
    })
}

/// Decompresses stored bytes without checking what they say: exactly `length` bytes or an error.
pub fn decompress(stored: &[u8], length: usize, limit: usize) -> std::result::Result<Vec<u8>, String> {
    if length > limit {
        return Err(format!("{length} bytes are more than the limit of {limit}"));
    }
    if stored.len() == length {
        return Ok(stored.to_vec());
    }
    let raw = decompress_frame(stored, length).map_err(|e| format!("it does not decompress: {e}"))?;
    if raw.len() == length {
        Ok(raw)
    } else {
        Err(format!("it decompresses to {} bytes instead of {length}", raw.len()))
    }
}

/// Decodes and verifies a block: the only way from stored bytes to a reader.
///
/// # Errors
/// `Damaged`, naming `whence`, if the bytes do not decompress to `length` bytes with this hash.
pub fn decode(stored: &Bytes, length: usize, hash: &Hash, limit: usize, whence: &dyn Fn() -> String) -> Result<Bytes> {
    // Raw ones are copied, too: `stored` is a slice of a whole transfer, which a block that is kept would keep.
    let raw = Bytes::from(decompress(stored, length, limit).map_err(|reason| Error::damaged(whence(), reason))?);
    if Hash::of(&raw) == *hash {
        return Ok(raw);
    }
    Err(Error::damaged(whence(), format!("its bytes do not have the hash {hash}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_return_as_they_went() {
        for raw in [vec![7u8; 100_000], (0..255).collect::<Vec<u8>>(), vec![0]] {
            let stored = Bytes::from(Encoder::new(3).unwrap().encode(raw.clone()));
            assert!(stored.len() <= raw.len());
            let back = decode(&stored, raw.len(), &Hash::of(&raw), BLOCK_MAX_BYTES, &|| "b".into()).unwrap();
            assert_eq!(back, raw);
        }
    }

    #[test]
    fn damage_is_told() {
        let raw = vec![7u8; 100_000];
        let good = Encoder::new(3).unwrap().encode(raw.clone());
        let whence = || "pack p at 7".to_owned();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // A flipped bit in the frame's header may leave the content intact; then it must be exactly right.
            match decode(&bad.into(), raw.len(), &Hash::of(&raw), BLOCK_MAX_BYTES, &whence) {
                Ok(back) => assert_eq!(back, raw),
                Err(e) => assert!(e.to_string().contains("pack p at 7"), "{e}"),
            }
        }
        let short = Bytes::from(good[..good.len() - 1].to_vec());
        assert!(decode(&short, raw.len(), &Hash::of(&raw), BLOCK_MAX_BYTES, &whence).is_err());
        assert!(decode(&good.into(), raw.len() + 1, &Hash::of(&raw), BLOCK_MAX_BYTES, &whence).is_err());
    }

    #[test]
    fn extents_return_as_they_went_and_refuse_nonsense() {
        let extent =
            Extent { file_offset: 1 << 40, length: 65_536, pack: 3, pack_offset: 9, stored: 100, hash: Hash::of(b"x") };
        let mut bytes = Vec::new();
        extent.encode(&mut bytes);
        assert_eq!(bytes.len(), EXTENT_BYTES);
        assert_eq!(Extent::decode(&bytes, 0), Some(extent));
        assert_eq!(Extent::decode(&bytes[..59], 0), None);
        bytes[8..12].copy_from_slice(&0u32.to_le_bytes());
        assert_eq!(Extent::decode(&bytes, 0), None, "a block is never empty");
    }
}
