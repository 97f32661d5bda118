//! A settings file: never a panic, and nothing that is shown repeats a secret, also where none belongs.
#![no_main]

use fs_core::config::Settings;

/// A value that occurs nowhere in the words of a message.
const SECRET: &str = "hunter2-correct-horse";

libfuzzer_sys::fuzz_target!(|text: &str| {
    check(text);
    for line in ["credentials = { token = \"SECRET\" }", "credentials = \"SECRET\"", "token = \"SECRET"] {
        check(&format!("{text}\n[[origin]]\nurl = \"http://h/c\"\n{}\n", line.replace("SECRET", SECRET)));
    }
});

fn check(text: &str) {
    let shown = match Settings::parse(text) {
        Ok(settings) => format!("{settings:?}"),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains(SECRET), "{shown}");
}
