//! A stream of RTSP, in pieces of any length: never a panic, never more kept than the limits, and what comes out does not
//! depend on how it came in.
#![no_main]

use fs_core::backend::rtsp::wire::{Item, Splitter, WireError, WireLimits, cseq, header, list};

const LIMITS: WireLimits = WireLimits { head_bytes: 512, body_bytes: 128, frame_bytes: 256 };

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = items(bytes.chunks(bytes.len().max(1)));
    let pieces = items(bytes.chunks(usize::from(step).max(1)));
    assert_eq!(whole, pieces);
});

fn items<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, Option<WireError>) {
    let (mut splitter, mut items) = (Splitter::new(LIMITS), Vec::new());
    for chunk in chunks {
        splitter.buffer().extend_from_slice(chunk);
        loop {
            match splitter.next() {
                Ok(Some(item)) => items.push(shown(&item)),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
        let waits = splitter.buffer().len();
        assert!(waits <= LIMITS.head_bytes + LIMITS.body_bytes, "{waits} bytes wait");
    }
    (items, None)
}

fn shown(item: &Item) -> String {
    if let Item::Request(request) = item {
        // What a server does first with each.
        let _ = (cseq(request), header(request, "Session"), list(request, "Require").count());
    }
    format!("{item:?}")
}
