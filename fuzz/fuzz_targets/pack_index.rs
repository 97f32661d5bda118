//! A pack's index and footer: never a panic, and what is read is written back to the same.
#![no_main]

use fs_core::package::Hash;
use fs_core::package::pack::{PACK_ENTRY_BYTES, PACK_FOOTER_BYTES, encode_tail, parse};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // No mutation guesses a hash: with the hash made right, what lies behind it is reached.
    let mut fixed = bytes.to_vec();
    let Some(footer) = fixed.len().checked_sub(PACK_FOOTER_BYTES) else { return };
    let count = u32::from_le_bytes(fixed[footer + 32..footer + 36].try_into().expect("four bytes"));
    let Some(start) = footer.checked_sub(count as usize * PACK_ENTRY_BYTES) else { return };
    let hash = Hash::of(&fixed[start..footer]);
    fixed[footer..footer + 32].copy_from_slice(&hash.0);
    check(&fixed);
});

fn check(pack: &[u8]) {
    if let Ok(entries) = parse(pack, "input") {
        let tail = encode_tail(&entries);
        assert!(pack.ends_with(&tail), "an accepted index is the one that its entries make");
        let blocks: u64 = entries.iter().map(|e| u64::from(e.stored)).sum();
        assert_eq!(blocks + tail.len() as u64, pack.len() as u64);
    }
}
