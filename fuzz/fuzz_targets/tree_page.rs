//! One page of a tree: never a panic, and a page that was accepted has every record that it counts.
#![no_main]

use bytes::Bytes;
use fs_core::package::tree::page::{Page, PageKind, XattrPlace, decode_xattrs};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(page) = Page::parse(Bytes::copy_from_slice(bytes), &|| "input".to_owned()) else { return };
    for i in 0..page.count() {
        match page.kind() {
            PageKind::NodeLeaf => {
                let record = page.record(i).expect("an accepted leaf has all its records");
                assert!(record.name.len() <= 255 && !record.name.contains(&b'/'), "{:?}", record.name);
                if let XattrPlace::Inline(encoded) = record.xattrs {
                    let _ = decode_xattrs(&Bytes::copy_from_slice(encoded));
                }
            }
            PageKind::ExtentLeaf => {
                page.node_extent(i).expect("an accepted leaf has all its extents");
            }
            PageKind::NodeIndex | PageKind::ExtentIndex => {
                let entry = page.entry(i).expect("an accepted index has all its entries");
                assert_eq!(page.entry_for(entry.node, entry.position), Some(i), "a key is found where it stands");
            }
        }
    }
    // Attributes too long for a record are a block of their own.
    let _ = decode_xattrs(page.bytes());
});
