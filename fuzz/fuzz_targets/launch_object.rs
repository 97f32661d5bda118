//! A launch object's index and body: never a panic, an index that is read is written back to the same, and no body gives
//! more than its index announces. The input is the index's length in four bytes, the index, the body.
#![no_main]

use fs_core::package::launch::{BodyDecoder, LaunchEntry, encode_index, parse_index};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return };
    let Some((index, body)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { return };
    let Ok(entries) = parse_index(index, "input") else { return };
    assert_eq!(encode_index(&entries), index);
    let whole = decode(&entries, &[body]);
    // However it is split, the same comes of it.
    let (first, second) = body.split_at(body.len() / 3);
    assert_eq!(decode(&entries, &[first, second]), whole);
});

fn decode(entries: &[LaunchEntry], pieces: &[&[u8]]) -> (usize, bool) {
    let mut decoder = BodyDecoder::new(entries, "input").expect("there is memory");
    let mut given = 0;
    let mut failed = false;
    for piece in pieces {
        let fed = decoder.feed(piece, &mut |number, bytes| {
            assert_eq!((number, bytes.len()), (given, entries[given].length() as usize));
            given += 1;
        });
        failed |= fed.is_err();
    }
    (given, failed | decoder.finish().is_err())
}
