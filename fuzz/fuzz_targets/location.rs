//! A package's location as a user types it: never a panic, and what is shown parses back to the same.
#![no_main]

use fs_core::location::PackageLocation;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(location) = text.parse::<PackageLocation>() {
        let shown = location.to_string();
        assert_eq!(shown.parse::<PackageLocation>().ok(), Some(location), "{text:?} is shown as {shown:?}");
    }
});
