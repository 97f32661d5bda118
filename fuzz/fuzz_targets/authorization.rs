//! The value of an `Authorization` header: never a panic, and what is shown of it is never the password.
#![no_main]

use base64::Engine as _;
use stream_server::fuzzing::authorization;

const SECRET: &str = "hunter2-correct-horse";

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = authorization(text);
    let _ = authorization(&format!("Bearer {text}"));
    if text.contains(SECRET) {
        return;
    }
    let value = base64::engine::general_purpose::STANDARD.encode(format!("{text}:{SECRET}"));
    if let Some(shown) = authorization(&format!("Basic {value}")) {
        assert!(!shown.contains(SECRET), "{shown}");
    }
});
