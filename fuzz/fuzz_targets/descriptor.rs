//! A version's descriptor: never a panic, and what is read is written back to the same.
#![no_main]

use fs_core::package::descriptor::Descriptor;
use fs_core::package::tree::TreeLayout;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(descriptor) = Descriptor::parse(bytes, "input") {
        let written = descriptor.to_bytes();
        assert_eq!(Descriptor::parse(&written, "written").expect("what was written is read"), descriptor);
        // Numbering the pages may refuse, but not panic.
        let _ = TreeLayout::new(&descriptor.tree);
    }
});
