//! A profile: never a panic, what is read is written back to the same, and its simplest form has no simpler one.
#![no_main]

use fs_core::package::profile::Profile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(profile) = Profile::parse(bytes, "input") else { return };
    assert_eq!(Profile::parse(&profile.to_bytes(), "written").expect("what was written is read"), profile);
    let _ = profile.to_text();
    let simple = profile.clone().normalised();
    assert_eq!(simple.clone().normalised(), simple);
    assert_eq!(Profile::parse(&simple.to_bytes(), "simple").expect("what was written is read"), simple);
    let merged = Profile::merge(&[profile.clone(), profile]).expect("there are two");
    assert_eq!(merged.read_bytes(), simple.read_bytes());
    assert_eq!(merged.paths(), simple.paths());
});
