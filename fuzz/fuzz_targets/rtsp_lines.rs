//! Bodies of READ, CREDIT and CANCEL: never a panic, and a line that is read is written back to one that means the same.
#![no_main]

use fs_core::backend::rtsp::asked::{self, Asked, LINES_MAX};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    if let Ok(reads) = asked::reads(body) {
        assert!((1..=LINES_MAX).contains(&reads.len()));
        let text: Vec<String> = reads.iter().map(Asked::to_string).collect();
        assert_eq!(asked::reads(text.join("\n").as_bytes()).expect("it was written by us"), reads);
    }
    let _ = (asked::credits(body), asked::ids(body));
});
