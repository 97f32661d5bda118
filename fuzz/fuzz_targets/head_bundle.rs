//! The bundle of trust metadata: never a panic, and what is read is written back to the same.
#![no_main]

use std::ops::Range;

use bytes::Bytes;
use fs_core::package::Hash;
use fs_core::trust::head::{Head, bytes_before_tail};

const HASH_BYTES: usize = 32;
/// Where the length of all before the tail stands.
const LENGTH: Range<usize> = 16..20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes.to_vec());
    // No mutation guesses a hash: with it and the length made right, what lies behind them is reached.
    if let Some(body) = bytes.len().checked_sub(HASH_BYTES).filter(|body| *body >= LENGTH.end) {
        let mut fixed = bytes.to_vec();
        let length = fixed.len() as u32;
        fixed[LENGTH].copy_from_slice(&length.to_le_bytes());
        let hash = Hash::of(&fixed[..body]);
        fixed[body..].copy_from_slice(&hash.0);
        check(fixed);
    }
});

fn check(bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    let told = bytes_before_tail(&bytes);
    if let Ok(head) = Head::parse(&bytes) {
        assert_eq!(told, Some(bytes.len()), "a reader that sees it coming stops at its end");
        assert_eq!(head.encode().expect("what was read is within the limits"), bytes);
    }
}
