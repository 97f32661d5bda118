//! The bundle of trust metadata: never a panic, and what is read is written back to the same.
#![no_main]

use bytes::Bytes;
use fs_core::package::Hash;
use fs_core::trust::head::Head;

const HASH_BYTES: usize = 32;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes.to_vec());
    // No mutation guesses a hash: with the hash made right, what lies behind it is reached.
    if let Some(body) = bytes.len().checked_sub(HASH_BYTES) {
        let mut fixed = bytes.to_vec();
        let hash = Hash::of(&fixed[..body]);
        fixed[body..].copy_from_slice(&hash.0);
        check(fixed);
    }
});

fn check(bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    if let Ok(head) = Head::parse(&bytes) {
        assert_eq!(head.encode().expect("what was read is within the limits"), bytes);
    }
}
