//! Reads of every kind, by several readers at once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tests::tier;

use crate::{files, with_worlds};

/// Longest single read, and longest mapping that is compared.
const LONGEST_BYTES: usize = 300 << 10;

#[test]
fn random_reads_by_several_readers() {
    with_worlds(2, 4, 60, |world, mount, rng| {
        let known = files(&world.source);
        let seeds: Vec<u64> = (0..4).map(|_| rng.random()).collect();
        std::thread::scope(|scope| {
            for seed in seeds {
                let (known, source, mounted) = (&known, &world.source, mount.path());
                scope.spawn(move || read_about(known, source, mounted, seed));
            }
        });
    });
}

/// One reader: opens files, reads here and there, lets pages go, maps.
fn read_about(known: &[PathBuf], source: &Path, mounted: &Path, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..tier().choose(60, 200, 1_000) {
        let path = &known[rng.random_range(0..known.len())];
        let open = |root: &Path| File::open(root.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (a, b) = (open(source), open(mounted));
        let length = a.metadata().expect("the source").len();
        for _ in 0..rng.random_range(1..8) {
            let at = place(&mut rng, length);
            let count = rng.random_range(0..LONGEST_BYTES);
            match rng.random_range(0..10) {
                0..=6 => same_read(path, &a, &b, at, count),
                7..=8 => same_mapping(path, &a, &b, at, count, length),
                _ => fadvise(&b, 0, None, Advice::DontNeed).expect("a regular file"),
            }
        }
    }
}

/// An offset: anywhere, at the very end, beyond it, at the edges of pages and blocks.
fn place(rng: &mut StdRng, length: u64) -> u64 {
    match rng.random_range(0..8) {
        0 => 0,
        1 => length,
        2 => length.saturating_sub(rng.random_range(0..5_000)),
        3 => length + rng.random_range(0..10_000),
        4 => rng.random_range(0..=length) / 4096 * 4096,
        5 => (rng.random_range(0..=length) / (256 << 10) * (256 << 10)).saturating_sub(1),
        _ => rng.random_range(0..=length),
    }
}

/// Reads until `count` bytes or the end.
fn read_at(file: &File, at: u64, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut have = 0;
    while have < count {
        match file.read_at(&mut bytes[have..], at + have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

fn same_read(path: &Path, a: &File, b: &File, at: u64, count: usize) {
    let expected = read_at(a, at, count).expect("the source");
    let found = read_at(b, at, count).unwrap_or_else(|e| panic!("{}: {count} bytes at {at}: {e}", path.display()));
    assert_eq!(expected.len(), found.len(), "{}: length of {count} bytes at {at}", path.display());
    if let Some(i) = expected.iter().zip(&found).position(|(x, y)| x != y) {
        panic!("{}: wrong byte at {}", path.display(), at + i as u64);
    }
}

/// Maps the same pages of both and compares them.
fn same_mapping(path: &Path, a: &File, b: &File, at: u64, count: usize, length: u64) {
    let start = at / 4096 * 4096;
    if start >= length {
        return;
    }
    let count = count.min((length - start) as usize).max(1);
    let (expected, found) = (Mapping::new(a, start, count), Mapping::new(b, start, count));
    if let Some(i) = expected.bytes().iter().zip(found.bytes()).position(|(x, y)| x != y) {
        panic!("{}: wrong mapped byte at {}", path.display(), start + i as u64);
    }
}

/// A private mapping for reading.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(file: &File, offset: u64, length: usize) -> Self {
        // SAFETY: the kernel chooses the address, so nothing is mapped over; the file does not shrink, because the
        // source is left alone by these tests and a mounted version never changes.
        let start = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, offset) };
        let start = start.unwrap_or_else(|e| panic!("cannot map {length} bytes at {offset}: {e}"));
        Self { start: NonNull::new(start.cast()).expect("a mapping is not at 0"), length }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `length` bytes from `start` are mapped for reading until this is dropped, and nobody writes them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped in `new`, and no slice of it outlives `self`.
        let ended = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(ended.is_ok());
    }
}
