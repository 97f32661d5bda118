//! Listing directories in pieces: from remembered places, backwards, while others list too.

use std::collections::BTreeSet;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::{RawDir, SeekFrom, seek};

use crate::with_worlds;

/// An entry as the kernel gives it: name, inode, and the place to continue after it.
type Entry = (Vec<u8>, u64, u64);

/// All entries of `folder` from where it stands, read with a buffer of `buffer_bytes`, `.` and `..` included.
fn rest(folder: &File, buffer_bytes: usize) -> Vec<Entry> {
    let mut buffer = vec![MaybeUninit::uninit(); buffer_bytes];
    let mut listing = RawDir::new(folder.as_fd(), &mut buffer);
    let mut out = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.expect("lists");
        out.push((entry.file_name().to_bytes().to_vec(), entry.ino(), entry.next_entry_cookie()));
    }
    out
}

fn names(entries: &[Entry]) -> BTreeSet<Vec<u8>> {
    entries.iter().map(|e| e.0.clone()).collect()
}

fn check(source: &Path, mounted: &Path, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let expected = names(&rest(&File::open(source).expect("the source"), 64 << 10));
    let folder = File::open(mounted).expect("opens");
    let all = rest(&folder, 32 << 10);
    assert_eq!(names(&all), expected, "{}", mounted.display());
    assert_eq!(all.len(), expected.len(), "{}: an entry came twice", mounted.display());
    for _ in 0..20 {
        // telldir at any entry, then seekdir there, with buffers of any size: the same rest comes.
        let from = rng.random_range(0..all.len());
        let place = all[from].2;
        seek(&folder, SeekFrom::Start(place)).expect("a place that the kernel gave");
        let found = rest(&folder, rng.random_range(1_024..9_000));
        assert_eq!(found[..], all[from + 1..], "{}: from entry {from} on", mounted.display());
    }
    seek(&folder, SeekFrom::Start(0)).expect("the beginning");
    assert_eq!(rest(&folder, 2_048), all, "{}: again from the beginning", mounted.display());
}

#[test]
fn listings_can_be_continued_anywhere() {
    with_worlds(1, 3, 30, |world, mount, rng| {
        let mut folders =
            vec![std::path::PathBuf::new(), "large directory".into(), "fixed".into(), "fixed/empty folder".into()];
        for entry in std::fs::read_dir(&world.source).expect("the source").flatten() {
            if entry.file_type().expect("the source").is_dir() {
                folders.push(entry.file_name().into());
            }
        }
        let seeds: Vec<u64> = (0..3).map(|_| rng.random()).collect();
        std::thread::scope(|scope| {
            for seed in seeds {
                let folders = &folders;
                scope.spawn(move || {
                    for folder in folders {
                        check(&world.source.join(folder), &mount.join(folder), seed);
                    }
                });
            }
        });
    });
}
