//! The subject of a client certificate: never a panic, and whoever it names has a name that can be logged.
#![no_main]

libfuzzer_sys::fuzz_target!(|subject: &str| {
    stream_server::fuzzing::certificate_subject(subject);
});
