//! What a URL's path and a `Transport` header name: never a panic, and no part of a path that leads elsewhere.
#![no_main]

use fs_core::backend::rtsp::target::{PATH_MAX_BYTES, Target};
use fs_core::backend::rtsp::transport::interleaved;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = interleaved(text);
    if let Some(target) = Target::parse(text) {
        assert!(!target.package.contains(char::is_control));
        // Escapes that were decoded once are not decoded again by whoever gets it as text.
        if target.package.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-~/".contains(&b))
            && !target.package.starts_with('/')
            && !target.package.ends_with('/')
            && target.to_string().len() <= PATH_MAX_BYTES
        {
            assert_eq!(Target::parse(&target.to_string()), Some(target));
        }
    }
});
