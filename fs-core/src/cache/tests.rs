//! The disk cache against crashes, damage, a small quota and many threads.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::open_files::OPEN_FILES_MAX;
use super::*;
use crate::error::ErrorKind;
use crate::stage::noise;

const BLOCK: usize = 64 << 10;

fn limits(disk_bytes: u64) -> CacheLimits {
    CacheLimits { disk_bytes, keep_free_bytes: 0, memory_bytes: 1 << 20 }
}

fn open(dir: &Path) -> Arc<Cache> {
    Cache::open(dir, limits(1 << 30)).unwrap()
}

/// A content of several blocks, the `i`th.
struct Content {
    name: Hash,
    blocks: Vec<(Hash, Vec<u8>)>,
}

impl Content {
    fn new(i: u64, blocks: usize) -> Self {
        let blocks = (0..blocks).map(|b| noise(i * 1000 + b as u64, BLOCK)).map(|b| (Hash::of(&b), b)).collect();
        Self { name: Hash::of(&i.to_le_bytes()), blocks }
    }

    fn blob(&self, cache: &Cache) -> Arc<Blob> {
        let size = (self.blocks.len() * BLOCK) as u64;
        cache.blob(self.name, size, size)
    }

    /// How many of its blocks could be stored.
    fn store(&self, cache: &Cache) -> usize {
        let blob = self.blob(cache);
        let each = self.blocks.iter().enumerate();
        each.filter(|(i, (hash, block))| cache.store(&blob, (i * BLOCK) as u64, hash, block)).count()
    }

    /// How many of its blocks are there; panics if any is wrong.
    fn found(&self, cache: &Cache) -> usize {
        let blob = self.blob(cache);
        let each = self.blocks.iter().enumerate().filter(|(i, (hash, block))| {
            let at = (i * BLOCK) as u64;
            let got = cache.on_disk(&blob, at, BLOCK as u32, hash);
            assert!(got.as_ref().is_none_or(|got| got == block), "wrong bytes in block {i}");
            let verified = blob.read(&(at..at + BLOCK as u64));
            assert!(verified.is_none_or(|got| got == *block), "wrong bytes called verified in block {i}");
            got.is_some()
        });
        each.count()
    }
}

fn blob_files(dir: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(dir.join("blobs")).into_iter().flatten().flatten();
    shards.flat_map(|s| fs::read_dir(s.path()).unwrap()).map(|f| f.unwrap().path()).collect()
}

/// Waits for what the cache's own thread does.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come");
        std::thread::yield_now();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn blocks_are_found_after_a_restart_and_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::new(1, 5);
    let cache = open(dir.path());
    assert_eq!(content.store(&cache), 5);
    assert_eq!(content.store(&cache), 5, "again");
    assert_eq!(cache.status().used_bytes, 5 * BLOCK as u64, "what is stored twice counts once");
    drop(cache);
    let cache = open(dir.path());
    assert_eq!((cache.status().used_bytes, cache.status().entries), (5 * BLOCK as u64, 1));
    let blob = content.blob(&cache);
    assert!(!blob.is_complete() && blob.open_complete().is_none(), "nothing is trusted before it was verified");
    assert_eq!(content.found(&cache), 5);
    assert!(blob.is_complete() && blob.open_complete().is_some());
    for file in blob_files(dir.path()) {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_second_agent_is_told_that_the_cache_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let e = Cache::open(dir.path(), limits(1)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains("another cache directory"), "{e}");
}

#[test]
fn a_copy_made_at_any_moment_is_a_correct_cache() {
    let dir = tempfile::tempdir().unwrap();
    let contents: Vec<Content> = (0..8).map(|i| Content::new(i, 4)).collect();
    let cache = open(dir.path());
    for (moment, content) in contents.iter().enumerate() {
        content.store(&cache);
        if moment % 3 == 0 {
            cache.flush();
        }
        // What the disk would hold if the agent were killed now.
        let killed = dir.path().join(format!("killed-{moment}"));
        fs::create_dir(&killed).unwrap();
        copy(&dir.path().join("blobs"), &killed.join("blobs"));
        fs::copy(dir.path().join("index.redb"), killed.join("index.redb")).unwrap();
        let after = open(&killed);
        let found: usize = contents[..=moment].iter().map(|c| c.found(&after)).sum();
        assert_eq!(found, (moment + 1) * 4, "blocks are on disk when they are stored");
        let all = (moment as u64 + 1) * 4 * BLOCK as u64;
        until("the count of what the index did not know", || after.status().used_bytes == all);
    }
}

#[test]
fn damaged_files_are_never_believed() {
    for damage in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::new(1, 6);
        let cache = open(dir.path());
        content.store(&cache);
        drop(cache);
        let file = blob_files(dir.path()).pop().unwrap();
        let damaged = fs::OpenOptions::new().write(true).open(&file).unwrap();
        let expected = match damage {
            0 => damaged.write_all_at(b"!", 2 * BLOCK as u64 + 7).map(|()| 5).unwrap(),
            1 => damaged.set_len(3 * BLOCK as u64 + 5).map(|()| 3).unwrap(),
            2 => damaged.set_len(0).map(|()| 0).unwrap(),
            3 => damaged.write_all_at(&noise(77, 6 * BLOCK), 0).map(|()| 0).unwrap(),
            _ => fs::remove_file(&file).map(|()| 0).unwrap(),
        };
        let cache = open(dir.path());
        assert_eq!(content.found(&cache), expected, "damage {damage}");
        assert_eq!(content.found(&cache), expected, "damage {damage}, again");
        assert_eq!(content.store(&cache), 6, "it is made whole");
        assert_eq!(content.found(&cache), 6);
        assert!(content.blob(&cache).open_complete().is_some());
    }
}

#[test]
fn a_damaged_index_is_put_aside_and_what_is_cached_is_counted_again() {
    // The new index was taken for one that knew everything: blobs from before were never counted nor evicted.
    let good = {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        fs::read(dir.path().join("index.redb")).unwrap()
    };
    let half = good[..good.len() / 2].to_vec();
    for garbage in [b"garbage".to_vec(), noise(1, 100_000), half, Vec::new()] {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::new(1, 4);
        let cache = open(dir.path());
        content.store(&cache);
        drop(cache);
        fs::write(dir.path().join("index.redb"), &garbage).unwrap();
        let cache = open(dir.path());
        assert_eq!(content.found(&cache), 4);
        until("the count of what is there", || {
            let status = cache.status();
            (status.used_bytes, status.entries) == (4 * BLOCK as u64, 1)
        });
    }
}

#[test]
fn a_removed_index_does_not_make_the_cache_forget_its_quota() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    (0..10).for_each(|i| assert_eq!(Content::new(i, 4).store(&cache), 4));
    drop(cache);
    fs::remove_file(dir.path().join("index.redb")).unwrap();
    let quota = 20 * BLOCK as u64;
    let cache = Cache::open(dir.path(), limits(quota)).unwrap();
    until("eviction of what is too much", || {
        Content::new(50, 1).store(&cache);
        // Evicted between being listed and being asked for its length, a file has none.
        let lengths = blob_files(dir.path()).into_iter().filter_map(|f| fs::metadata(f).ok());
        lengths.map(|meta| meta.len()).sum::<u64>() <= quota
    });
}

#[test]
fn the_quota_is_kept_by_many_threads_and_the_unused_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 64 * BLOCK as u64;
    let cache = Cache::open(dir.path(), limits(quota)).unwrap();
    let in_use = cache.new_in_use();
    let (used, pinned) = (Content::new(900, 4), Content::new(901, 4));
    used.store(&cache);
    cache.touch(&used.blob(&cache), &in_use);
    pinned.store(&cache);
    cache.pin("app@1", &[pinned.name]).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for i in 0..25 {
                    Content::new(thread * 100 + i, 4).store(cache);
                    let status = cache.status();
                    assert!(status.used_bytes <= quota, "{} of {quota}", status.used_bytes);
                }
            });
        }
    });
    assert_eq!(used.found(&cache), 4, "what a mount uses stays while there is anything else");
    assert_eq!(pinned.found(&cache), 4, "pins are kept");
    until("room", || Content::new(2000, 4).store(&cache) == 4);
    cache.flush();
    // What the cache counts is what is on disk, once an eviction that is still going on has ended.
    until("the count to be right", || {
        use std::os::unix::fs::MetadataExt;
        let blocks = |file| fs::metadata(file).map_or(0, |meta| meta.blocks());
        cache.status().used_bytes == blob_files(dir.path()).iter().map(|file| blocks(file) * 512).sum::<u64>()
    });
    assert_eq!(cache.status().pinned_bytes, 4 * BLOCK as u64);
    assert_eq!(cache.unpin("app@1").unwrap(), 4 * BLOCK as u64);
    assert!(cache.pinned_owners().is_empty());
}

#[test]
fn what_must_stay_free_is_not_stored_in_and_the_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), CacheLimits { keep_free_bytes: 1 << 60, ..limits(1 << 30) }).unwrap();
    assert_eq!(Content::new(1, 2).store(&cache), 0);
    assert_eq!(cache.room_bytes(), 0);
    for why in [cache.make_room(1).unwrap_err(), cache.status().degraded.unwrap()] {
        assert!(why.contains("keep_free keeps") && why.contains("free"), "{why}");
    }
}

#[test]
fn room_is_made_of_what_is_not_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), limits(20 * BLOCK as u64)).unwrap();
    let (pinned, other) = (Content::new(1, 8), Content::new(2, 8));
    assert_eq!((pinned.store(&cache), other.store(&cache)), (8, 8));
    cache.pin("app@1", &[pinned.name]).unwrap();
    cache.make_room(12 * BLOCK as u64).unwrap();
    assert_eq!((pinned.found(&cache), other.found(&cache)), (8, 0));
    let why = cache.make_room(13 * BLOCK as u64).unwrap_err();
    assert!(why.contains("is full") && why.contains("streamfs unload") && why.contains("cache_size"), "{why}");
    assert_eq!(cache.unpin("app@1").unwrap(), 8 * BLOCK as u64);
    cache.make_room(13 * BLOCK as u64).unwrap();
    assert_eq!(pinned.found(&cache), 0);
}

#[test]
fn pins_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let pinned = Content::new(1, 4);
    let cache = open(dir.path());
    pinned.store(&cache);
    cache.pin("app@1", &[pinned.name]).unwrap();
    drop(cache);
    let cache = Cache::open(dir.path(), limits(6 * BLOCK as u64)).unwrap();
    assert_eq!(cache.pinned_owners(), ["app@1"]);
    for i in 10..30 {
        Content::new(i, 1).store(&cache);
        cache.flush();
    }
    assert_eq!(pinned.found(&cache), 4);
}

#[test]
fn reading_and_storing_while_everything_is_evicted_never_brings_a_wrong_byte() {
    // A block that was written into a file just when it was evicted was called verified, and later read from the new,
    // empty file of that name: zeros. And two locks taken in both orders could stop both threads for ever.
    let dir = tempfile::tempdir().unwrap();
    let quota = 12 * BLOCK as u64;
    let cache = Cache::open(dir.path(), limits(quota)).unwrap();
    let contents: Vec<Content> = (0..6).map(|i| Content::new(i, 4)).collect();
    // Held, as mounts do.
    let held: Vec<Arc<Blob>> = contents.iter().map(|c| c.blob(&cache)).collect();
    let end = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, contents) = (&cache, &contents);
            scope.spawn(move || {
                let mut turn = thread;
                while Instant::now() < end {
                    let content = &contents[turn % contents.len()];
                    content.store(cache);
                    content.found(cache);
                    if let Some(file) = content.blob(cache).open_complete() {
                        let mut all = vec![0; 4 * BLOCK];
                        file.read_exact_at(&mut all, 0).unwrap();
                        let right = content.blocks.iter().flat_map(|(_, b)| b);
                        assert!(all.iter().eq(right), "a file given away as complete is not");
                    }
                    turn += 1;
                }
            });
        }
    });
    drop(held);
}

#[test]
fn only_so_many_files_are_open_at_once() {
    // Every blob kept its file open: a program that opened two thousand files exhausted the agent's descriptors, and a
    // file that could not be opened for that reason was taken for absent.
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let contents: Vec<Content> = (0..OPEN_FILES_MAX as u64 * 3).map(|i| Content::new(i, 1)).collect();
    let blobs: Vec<Arc<Blob>> = contents.iter().map(|c| c.blob(&cache)).collect();
    contents.iter().for_each(|c| assert_eq!(c.store(&cache), 1));
    let open_here = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|to| to.starts_with(dir.path().join("blobs"))).count()
    };
    assert!(open_here() <= OPEN_FILES_MAX + 1, "{} files are open", open_here());
    assert!(blobs.iter().all(|blob| blob.is_complete()), "closing a file forgets nothing of it");
    contents.iter().for_each(|c| assert_eq!(c.found(&cache), 1));
    assert!(open_here() <= OPEN_FILES_MAX + 1);
}

#[test]
fn a_file_that_was_replaced_while_it_was_closed_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let content = Content::new(1, 2);
    content.store(&cache);
    let blob = content.blob(&cache);
    assert!(blob.close(false));
    let other = dir.path().join("other");
    fs::write(&other, vec![0; 2 * BLOCK]).unwrap();
    fs::rename(&other, blob.path()).unwrap();
    assert_eq!(content.found(&cache), 0);
    assert!(blob.open_complete().is_none());
}

#[test]
fn a_vanished_directory_means_fetching_not_failing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let content = Content::new(1, 2);
    content.store(&cache);
    fs::remove_dir_all(dir.path().join("blobs")).unwrap();
    content.found(&cache);
    let other = Content::new(2, 2);
    assert_eq!(other.store(&cache), 2, "the folder is made again");
    assert_eq!(other.found(&cache), 2);
    // A file where the folder should be: nothing can be stored, and nothing fails.
    fs::remove_dir_all(dir.path().join("blobs")).unwrap();
    fs::write(dir.path().join("blobs"), b"").unwrap();
    let third = Content::new(3, 2);
    assert_eq!(third.store(&cache), 0);
    assert_eq!(third.found(&cache), 0);
    assert!(cache.status().degraded.is_some_and(|why| why.contains("cannot be written")));
}

#[test]
fn a_block_is_copied_from_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let one = Content::new(1, 3);
    one.store(&cache);
    cache.flush();
    // The same block in another content, and once more in the same.
    let (hash, block) = &one.blocks[2];
    let other = cache.blob(Hash::of(b"other"), 10 * BLOCK as u64, 10 * BLOCK as u64);
    assert_eq!(cache.on_disk(&other, 5 * BLOCK as u64, BLOCK as u32, hash).unwrap(), block[..]);
    cache.flush();
    assert_eq!(cache.on_disk(&other, 7 * BLOCK as u64, BLOCK as u32, hash).unwrap(), block[..]);
    // A content of one block is named by it.
    let single = noise(99, BLOCK);
    let alone = cache.blob(Hash::of(&single), BLOCK as u64, BLOCK as u64);
    assert!(cache.store(&alone, 0, &Hash::of(&single), &single));
    assert_eq!(cache.on_disk(&other, 0, BLOCK as u32, &Hash::of(&single)).unwrap(), single[..]);
}

#[test]
fn memory_keeps_its_limit_with_large_and_with_tiny_blocks() {
    // Only the blocks' bytes were counted: a million files of a few bytes took ten times the limit.
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for i in 0..100u64 {
        cache.remember(Hash::of(&i.to_le_bytes()), noise(i, BLOCK).into());
        assert!(cache.status().memory_bytes <= 1 << 20);
    }
    for i in 0..100_000u64 {
        cache.remember(Hash::of(&i.to_le_bytes()), Bytes::copy_from_slice(&i.to_le_bytes()));
    }
    let kept = (0..100_000u64).filter(|i| cache.in_memory(&Hash::of(&i.to_le_bytes())).is_some()).count();
    assert!(kept < 8000, "{kept} tiny blocks are kept in 1 MiB");
    assert!(kept > 1000);
}
