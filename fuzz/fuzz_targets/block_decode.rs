//! A stored block: never a panic, never more bytes than announced, and only bytes with the right hash.
#![no_main]

use bytes::Bytes;
use fs_core::package::Hash;
use fs_core::package::block::{BLOCK_MAX_BYTES, decode, decompress};

/// The first four bytes of the input announce the length, the rest is what is stored.
const LENGTH_BYTES: usize = 4;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((length, stored)) = bytes.split_at_checked(LENGTH_BYTES) else { return };
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    let stored = Bytes::copy_from_slice(stored);
    let whence = || "input".to_owned();
    let foreign = Hash::of(b"bytes that no input decodes to");
    assert!(decode(&stored, length, &foreign, BLOCK_MAX_BYTES, &whence).is_err());
    if let Ok(raw) = decompress(&stored, length, BLOCK_MAX_BYTES) {
        assert!(raw.len() == length && length <= BLOCK_MAX_BYTES);
        let decoded = decode(&stored, length, &Hash::of(&raw), BLOCK_MAX_BYTES, &whence);
        assert_eq!(decoded.expect("the hash is its own"), raw);
    }
});
