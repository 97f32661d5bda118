//! The `head` object: trust metadata and the newest descriptors in one bundle, so that a cold mount needs one
//! request for all of them; and behind them, as the *tail*, the first bytes of the launch object that is most likely
//! wanted next, so that the line does not idle for a round trip before it.
//!
//! It is a hint. Nothing in it is believed for being in it: each file is verified as if it had been fetched by its
//! own name, and so is what the tail brings. The same form, without a tail, keeps a client's last good metadata (see
//! [`super::store`]).
//!
//! All integers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `73 66 73 68 65 61 64 0A` (`sfshead` and a line feed) |
//! | 4 | format version, 1 |
//! | 4 | number of entries, at most 4,096 |
//! | 4 | length of all that stands before the tail, at most 16 MiB |
//! | 4 | length of the tail, at most 16 MiB; 0 without a tail |
//! | 8 | length of the launch object that the tail is the beginning of; 0 without a tail |
//! | 32 | BLAKE3-256 of that launch object, which is its name; zeros without a tail |
//! | | per entry: |
//! | 2 | length of the path |
//! | … | path of the object within the package, ASCII; entries are in strictly ascending order of it |
//! | 4 | length of the data |
//! | … | data |
//! | | after the last entry: |
//! | 32 | BLAKE3-256 of all bytes before, to tell an accident from an attack |
//! | … | the tail: the launch object's first bytes |
//!
//! Nothing follows the tail.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::backend::ObjectPath;
use crate::error::{Error, Result};
use crate::package::Hash;

/// Longest bundle, without its tail.
pub const HEAD_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest tail that is read.
pub const HEAD_TAIL_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest tail that is written: what a line of 50 Mbit/s brings during a round trip of 120 ms (750,000 bytes), which is
/// how long the request for the rest of the launch object is under way.
pub const HEAD_TAIL_BYTES: u64 = 768 * 1024;
/// Most entries of a bundle.
pub const HEAD_ENTRIES_MAX: u32 = 4096;
/// Newest format that this program reads, and the one it writes.
pub const HEAD_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"sfshead\n";
const HASH_BYTES: usize = blake3::OUT_LEN;
/// Bytes before the first entry.
const FIXED_BYTES: usize = 64;

/// What the tail of a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailOf {
    /// The launch object that it is the beginning of.
    pub object: Hash,
    /// Length of that object.
    pub object_bytes: u64,
    /// Length of the tail: at least 1, at most the object's.
    pub bytes: u32,
}

/// Files by their paths within the package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    files: BTreeMap<ObjectPath, Bytes>,
    /// What follows it, which is no part of it.
    tail: Option<TailOf>,
}

/// How many bytes stand before the tail of the bundle that begins with `beginning`; `None` if that is too short to tell,
/// or does not begin as a bundle of a known format does.
pub fn bytes_before_tail(beginning: &[u8]) -> Option<usize> {
    let mut fixed = beginning.get(..FIXED_BYTES)?.strip_prefix(MAGIC)?;
    let (format, _, length) = (fixed.get_u32_le(), fixed.get_u32_le(), fixed.get_u32_le());
    (format == HEAD_FORMAT && u64::from(length) <= HEAD_BYTES_MAX).then_some(length as usize)
}

impl Head {
    /// Reads a bundle without its tail. Total: any bytes give a bundle or an error, with memory bounded by their length.
    ///
    /// # Errors
    /// `Damaged` if they are no bundle, `UnsupportedFormat` if they are one of a newer format.
    pub fn parse(bytes: &Bytes) -> Result<Self> {
        let bad = |why: &str| Error::damaged(super::HEAD_OBJECT, why);
        if bytes.len() as u64 > HEAD_BYTES_MAX {
            return Err(bad("it is longer than 16 MiB"));
        }
        if bytes.len() < FIXED_BYTES + HASH_BYTES || !bytes.starts_with(MAGIC) {
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
        if body.get_u32_le() as usize != bytes.len() {
            return Err(bad("it has another length than it says"));
        }
        let (tail_bytes, object_bytes, mut object) = (body.get_u32_le(), body.get_u64_le(), [0; HASH_BYTES]);
        body.copy_to_slice(&mut object);
        let tail = match tail_bytes {
            0 if object_bytes == 0 && object == [0; HASH_BYTES] => None,
            0 => return Err(bad("it names the object of a tail that it has not")),
            _ if u64::from(tail_bytes) > HEAD_TAIL_BYTES_MAX => return Err(bad("its tail is longer than 16 MiB")),
            _ if u64::from(tail_bytes) > object_bytes => {
                return Err(bad("its tail is longer than the object it begins"));
            }
            bytes => Some(TailOf { object: Hash(object), object_bytes, bytes }),
        };
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
        Ok(Self { files, tail })
    }

    /// Writes the bundle, which the tail must follow if it has one.
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
        out.put_u32_le(length as u32);
        match self.tail {
            Some(TailOf { object, object_bytes, bytes }) => {
                out.put_u32_le(bytes);
                out.put_u64_le(object_bytes);
                out.put_slice(&object.0);
            }
            None => out.put_bytes(0, 4 + 8 + HASH_BYTES),
        }
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
        (FIXED_BYTES + HASH_BYTES) as u64 + entries
    }

    /// What the tail is, if it has one.
    pub fn tail(&self) -> Option<TailOf> {
        self.tail
    }

    /// Tells what the tail shall be.
    pub fn set_tail(&mut self, tail: Option<TailOf>) {
        self.tail = tail;
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

    /// Fixed bytes, so that no change of the form goes unnoticed.
    #[test]
    fn it_begins_with_what_it_is_and_what_its_tail_is() {
        let mut head = sample();
        head.set_tail(Some(TailOf { object: Hash([0xab; 32]), object_bytes: 0x0102_0304_0506, bytes: 0x000c_0000 }));
        let bytes = head.encode().unwrap();
        assert_eq!(Head::parse(&bytes).unwrap(), head);
        assert_eq!(
            hex::encode(&bytes[..FIXED_BYTES]),
            [
                "736673686561640a",
                "01000000",
                "03000000",
                &hex::encode((bytes.len() as u32).to_le_bytes()),
                "00000c00",
                "0605040302010000",
                &"ab".repeat(32),
            ]
            .concat()
        );
        assert_eq!(
            hex::encode(&bytes[FIXED_BYTES..FIXED_BYTES + 24]),
            hex::encode(b"\x14\0metadata/1.root.json\x02\0")
        );
        let plain = sample().encode().unwrap();
        assert_eq!(plain.len(), bytes.len());
        assert_eq!(plain[20..FIXED_BYTES], [0; 44]);
    }

    #[test]
    fn its_length_is_told_before_the_rest_has_come() {
        let bytes = sample().encode().unwrap();
        assert_eq!(bytes_before_tail(&bytes[..FIXED_BYTES - 1]), None);
        assert_eq!(bytes_before_tail(&bytes[..FIXED_BYTES]), Some(bytes.len()));
        assert_eq!(bytes_before_tail(&[&bytes[..], b"a tail"].concat()), Some(bytes.len()));
        for (at, what) in [(0, "the magic"), (8, "the format"), (19, "more than 16 MiB")] {
            let mut changed = bytes.to_vec();
            changed[at] = 0xff;
            assert_eq!(bytes_before_tail(&changed), None, "{what}");
        }
    }

    #[test]
    fn a_tail_that_cannot_be_is_refused() {
        let tails: [(&[u8], &[u8]); 3] =
            [(&[1, 0, 0, 0], &[0; 8]), (&[0; 4], &[1; 8]), (&[1, 0, 0, 1], &[0, 0, 0, 2, 0, 0, 0, 0])];
        for (bytes, object_bytes) in tails {
            let mut changed = sample().encode().unwrap().to_vec();
            changed[20..24].copy_from_slice(bytes);
            changed[24..32].copy_from_slice(object_bytes);
            let body = changed.len() - HASH_BYTES;
            let hash = *blake3::hash(&changed[..body]).as_bytes();
            changed[body..].copy_from_slice(&hash);
            assert!(Head::parse(&changed.into()).unwrap_err().to_string().contains("tail"));
        }
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
