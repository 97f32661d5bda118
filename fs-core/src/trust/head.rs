//! The `head` object: trust metadata and the newest descriptors in one bundle, so that a cold mount needs one
//! request for all of them.
//!
//! It is a hint. Nothing in it is believed for being in it: each file is verified as if it had been fetched by its
//! own name. The same form keeps a client's last good metadata (see [`super::store`]).
//!
//! All integers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `73 66 73 68 65 61 64 0A` (`sfshead` and a line feed) |
//! | 4 | format version, 1 |
//! | 4 | number of entries, at most 4,096 |
//! | | per entry: |
//! | 2 | length of the path |
//! | … | path of the object within the package, ASCII; entries are in strictly ascending order of it |
//! | 4 | length of the data |
//! | … | data |
//! | | after the last entry: |
//! | 32 | BLAKE3-256 of all bytes before, to tell an accident from an attack |
//!
//! The whole is at most 16 MiB long, and nothing follows the hash.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::backend::ObjectPath;
use crate::error::{Error, Result};

/// Longest bundle.
pub const HEAD_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most entries of a bundle.
pub const HEAD_ENTRIES_MAX: u32 = 4096;
/// Newest format that this program reads, and the one it writes.
pub const HEAD_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"sfshead\n";
const HASH_BYTES: usize = blake3::OUT_LEN;

/// Files by their paths within the package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    files: BTreeMap<ObjectPath, Bytes>,
}

impl Head {
    /// Reads a bundle. Total: any bytes give a bundle or an error, with memory bounded by their length.
    ///
    /// # Errors
    /// `Damaged` if they are no bundle, `UnsupportedFormat` if they are one of a newer format.
    pub fn parse(bytes: &Bytes) -> Result<Self> {
        let bad = |why: &str| Error::damaged(super::HEAD_OBJECT, why);
        if bytes.len() as u64 > HEAD_BYTES_MAX {
            return Err(bad("it is longer than 16 MiB"));
        }
        if bytes.len() < MAGIC.len() + 8 + HASH_BYTES || !bytes.starts_with(MAGIC) {
            return Err(bad("it does not begin as a bundle does"));
        }
        let (mut body, mut hash) = (bytes.clone(), bytes.clone());
        hash.advance(bytes.len() - HASH_BYTES);
        body.truncate(bytes.len() - HASH_BYTES);
        body.advance(MAGIC.len());
        let format = body.get_u32_le();
        if format != HEAD_FORMAT {
            let (found, supported) = (format.into(), HEAD_FORMAT.into());
            return Err(Error::UnsupportedFormat { what: super::HEAD_OBJECT.to_owned(), found, supported });
        }
        if blake3::hash(&bytes[..bytes.len() - HASH_BYTES]).as_bytes() != &hash[..] {
            return Err(bad("its hash does not fit"));
        }
        let count = body.get_u32_le();
        if count > HEAD_ENTRIES_MAX {
            return Err(bad("it has more than 4096 entries"));
        }
        let mut files = BTreeMap::new();
        for _ in 0..count {
            let length = body.try_get_u16_le().map_err(|_| bad("it ends within an entry"))?;
            let path = take(&mut body, length.into()).ok_or_else(|| bad("it ends within a path"))?;
            let path = std::str::from_utf8(&path).map_err(|_| bad("a path is not text"))?;
            let path = ObjectPath::new(path).map_err(|_| bad("a path is not one of an object"))?;
            let length = body.try_get_u32_le().map_err(|_| bad("it ends within an entry"))?;
            let data = take(&mut body, length as usize).ok_or_else(|| bad("it ends within an entry's data"))?;
            if files.last_key_value().is_some_and(|(last, _)| *last >= path) {
                return Err(bad("its entries are out of order"));
            }
            files.insert(path, data);
        }
        if body.has_remaining() {
            return Err(bad("something follows its last entry"));
        }
        Ok(Self { files })
    }

    /// Writes the bundle.
    ///
    /// # Errors
    /// `InvalidInput` if it would exceed the limits.
    pub fn encode(&self) -> Result<Bytes> {
        let length = self.encoded_bytes();
        if length > HEAD_BYTES_MAX || self.files.len() > HEAD_ENTRIES_MAX as usize {
            return Err(Error::InvalidInput(format!(
                "the package's trust metadata takes {length} bytes in {} files, more than the 16 MiB and {HEAD_ENTRIES_MAX} files that a bundle holds",
                self.files.len()
            )));
        }
        let mut out = BytesMut::with_capacity(length as usize);
        out.put_slice(MAGIC);
        out.put_u32_le(HEAD_FORMAT);
        out.put_u32_le(self.files.len() as u32);
        for (path, data) in &self.files {
            out.put_u16_le(path.as_str().len() as u16);
            out.put_slice(path.as_str().as_bytes());
            out.put_u32_le(data.len() as u32);
            out.put_slice(data);
        }
        let hash = blake3::hash(&out);
        out.put_slice(hash.as_bytes());
        Ok(out.freeze())
    }

    /// Length that [`Self::encode`] would give.
    pub fn encoded_bytes(&self) -> u64 {
        let entries: u64 = self.files.iter().map(|(p, d)| 6 + p.as_str().len() as u64 + d.len() as u64).sum();
        (MAGIC.len() + 8 + HASH_BYTES) as u64 + entries
    }

    /// The file at `path`, if it is in the bundle.
    pub fn get(&self, path: &ObjectPath) -> Option<&Bytes> {
        self.files.get(path)
    }

    /// Adds or replaces a file.
    pub fn insert(&mut self, path: ObjectPath, data: Bytes) {
        self.files.insert(path, data);
    }

    /// All files, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectPath, &Bytes)> {
        self.files.iter()
    }

    /// Metadata files named `metadata/N.ROLE.json`, by their number.
    pub(super) fn numbered(&self, role: &str) -> BTreeMap<u64, &Bytes> {
        let number = |path: &ObjectPath| {
            let name = path.as_str().strip_prefix(super::METADATA_DIR)?.strip_prefix('/')?;
            name.strip_suffix(".json")?.strip_suffix(role)?.strip_suffix('.')?.parse().ok()
        };
        self.files.iter().filter_map(|(path, data)| Some((number(path)?, data))).collect()
    }
}

fn take(body: &mut Bytes, length: usize) -> Option<Bytes> {
    (body.remaining() >= length).then(|| body.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Head {
        let mut head = Head::default();
        for (path, data) in
            [("metadata/1.root.json", "r1"), ("metadata/12.root.json", "r12"), ("metadata/timestamp.json", "")]
        {
            head.insert(ObjectPath::new(path).unwrap(), Bytes::from_static(data.as_bytes()));
        }
        head
    }

    #[test]
    fn round_trip_and_numbers() {
        let head = sample();
        let bytes = head.encode().unwrap();
        assert_eq!(bytes.len() as u64, head.encoded_bytes());
        assert_eq!(Head::parse(&bytes).unwrap(), head);
        assert_eq!(head.numbered("root").keys().copied().collect::<Vec<_>>(), [1, 12]);
        assert_eq!(head.numbered("timestamp").len(), 0);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let bytes = sample().encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(Head::parse(&bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x81;
            assert!(Head::parse(&changed.clone().into()).is_err(), "changed at {at}");
            // With the hash made right again the structure alone must hold: an error or a bundle, no panic.
            let body = changed.len() - HASH_BYTES;
            let hash = *blake3::hash(&changed[..body]).as_bytes();
            changed[body..].copy_from_slice(&hash);
            let _ = Head::parse(&changed.into());
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Head::parse(&longer.into()).is_err());
    }
}
