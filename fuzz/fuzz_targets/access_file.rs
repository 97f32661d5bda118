//! The server's access file and a package's `access.toml`: never a panic, and no message repeats a value that may be a
//! secret.
#![no_main]

use stream_server::fuzzing::{access_settings, package_access};

/// A value that occurs nowhere in the words of a message.
const SECRET: &str = "hunter2-correct-horse";

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = package_access(text);
    let _ = access_settings(text);
    if text.contains(SECRET) {
        return;
    }
    for line in ["password = \"SECRET\"", "password_file = [\"SECRET\"]", "bind_as = \"SECRET"] {
        let error = access_settings(&format!("{text}\n[directory]\n{}\n", line.replace("SECRET", SECRET)));
        assert!(!error.is_err_and(|error| error.contains(SECRET)), "{text:?}");
    }
});
