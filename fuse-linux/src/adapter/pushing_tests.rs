//! Launch sets in the page cache, through a real kernel.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering;
use std::time::Duration;

use fs_core::package::NodeId;

use super::memory_tree::MemoryTree;
use super::tests::{Shown, check_everything, sample};
use super::{Declining, OpenPolicy};
use crate::MountOptions;

/// A content in which no two pages are alike.
fn content(length: usize) -> Vec<u8> {
    (0..length.div_ceil(4) as u32).flat_map(u32::to_le_bytes).take(length).collect()
}

fn requests(shown: &Shown, kind: &str) -> u64 {
    shown.mounted.statistics().requests[kind]
}

#[test]
fn what_was_pushed_is_not_asked_for() {
    let mut tree = MemoryTree::new("1.0");
    let (small, large) = (content(1234), content(300_001));
    let id = tree.file(NodeId::ROOT, "small", small.clone());
    tree.launch(id, 0..1234);
    let id = tree.file(NodeId::ROOT, "large", large.clone());
    tree.pieces.insert(id, vec![0..100_000, 100_000..262_144, 262_144..300_001]);
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    for _ in 0..3 {
        assert_eq!(fs::read(shown.path.join("small")).unwrap(), small);
        assert_eq!(fs::read(shown.path.join("large")).unwrap(), large);
    }
    assert_eq!(fs::metadata(shown.path.join("large")).unwrap().len(), 300_001);
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), 0);
    let statistics = shown.mounted.statistics();
    assert_eq!((statistics.pushed_bytes, statistics.pushes), (301_235, 2), "once, neighbours together");
    assert_eq!(statistics.requests["open"], 6);
}

/// What the launch stream brings soon is waited for, by all who open the file, and by nobody else.
#[test]
fn opening_waits_for_what_is_arriving() {
    let mut tree = MemoryTree::new("1.0");
    let content = content(300_001);
    let id = tree.file(NodeId::ROOT, "file", content.clone());
    tree.launch(id, 0..300_001);
    tree.arriving.insert(id, tokio::sync::watch::Sender::new(false));
    let other = tree.file(NodeId::ROOT, "other", "content");
    tree.launch(other, 0..7);
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    let path = shown.path.join("file");
    let read = || fs::read(&path).unwrap() == content;
    std::thread::scope(|scope| {
        let readers = [scope.spawn(read), scope.spawn(read), scope.spawn(read)];
        while requests(&shown, "open") < 3 || shown.tree.arriving[&id].receiver_count() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(fs::read(shown.path.join("other")).unwrap(), b"content");
        assert!(readers.iter().all(|reader| !reader.is_finished()), "they wait");
        shown.tree.arriving[&id].send_replace(true);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
    });
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), 0, "all of it was pushed");
}

/// A mount goes away under those who wait for a file to arrive that never does.
#[test]
fn unmounting_ends_waiting_opens() {
    let mut tree = MemoryTree::new("1.0");
    let id = tree.file(NodeId::ROOT, "file", "content");
    tree.launch(id, 0..7);
    tree.arriving.insert(id, tokio::sync::watch::Sender::new(false));
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    std::thread::scope(|scope| {
        let path = shown.path.join("file");
        let reader = scope.spawn(move || File::open(path));
        while shown.tree.arriving[&id].receiver_count() == 0 {
            std::thread::yield_now();
        }
        shown.mounter.unmount(&shown.mounted, true).unwrap();
        shown.tree.arriving[&id].send_replace(true);
        // Whether it was opened before the connection ended is chance.
        drop(reader.join().unwrap());
    });
    shown.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), shown.mounted.ended()).await.expect("it ends").unwrap();
    });
    shown.gone();
}

/// Mapped memory shows the rest of a file's last page: zeros, whatever was in that memory before.
#[test]
fn nothing_follows_the_end_of_a_pushed_file() {
    let mut tree = MemoryTree::new("1.0");
    let mut names = Vec::new();
    for i in 0..64_u64 {
        let name = format!("{i}");
        let id = tree.file(NodeId::ROOT, &name, content(4096 + 1 + 60 * i as usize));
        tree.launch(id, 0..1 << 20);
        names.push((name, 4096 + 1 + 60 * i as usize));
    }
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    for (name, length) in names {
        let file = File::open(shown.path.join(&name)).unwrap();
        // SAFETY: a new mapping of two pages of a file that has them, read only while it is mapped.
        let mapped = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            let mapped = std::slice::from_raw_parts(at.cast::<u8>(), 8192).to_vec();
            libc::munmap(at, 8192);
            mapped
        };
        assert_eq!(mapped[..length], content(length));
        assert!(mapped[length..].iter().all(|byte| *byte == 0), "{name}");
    }
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), 0);
}

#[test]
fn pushing_changes_nothing_that_can_be_seen() {
    for policy in [OpenPolicy::ZeroMessage, OpenPolicy::Passthrough] {
        for later in [false, true] {
            let mut tree = sample();
            // Of every file something, never the same, and beyond the end of most.
            for id in 1..=1007 {
                let start = id * 512;
                tree.pieces.insert(NodeId(id), vec![0..1000 * id, start + (1 << 19)..start + (1 << 20)]);
            }
            tree.later.store(later, Ordering::Relaxed);
            let shown = Shown::new(tree, policy);
            check_everything(&shown.path);
            shown.mounted.launch_is_over();
            check_everything(&shown.path);
        }
    }
}

#[test]
fn opens_become_free_when_the_launch_is_over() {
    let mut tree = MemoryTree::new("1.0");
    let id = tree.file(NodeId::ROOT, "file", "content");
    tree.launch(id, 0..7);
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    let held = File::open(shown.path.join("file")).unwrap();
    fs::read(shown.path.join("file")).unwrap();
    assert_eq!(requests(&shown, "open"), 2);
    shown.mounted.launch_is_over();
    for _ in 0..10 {
        assert_eq!(fs::read(shown.path.join("file")).unwrap(), b"content");
    }
    assert_eq!(requests(&shown, "open"), 3, "one tells the kernel not to ask");
    drop(held);
    assert_eq!(fs::read(shown.path.join("file")).unwrap(), b"content");
}

#[test]
fn the_kernel_reads_ahead_little_until_the_launch_set_is_here() {
    let mut tree = MemoryTree::new("1.0");
    let id = tree.file(NodeId::ROOT, "file", "content");
    tree.launch(id, 0..7);
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    let read_ahead = || {
        let mounts = crate::mounting::streamfs_mounts().unwrap();
        let device = mounts.iter().find(|m| m.mount_id == shown.mounted.mount_id()).unwrap().device;
        fs::read_to_string(format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.0, device.1)).unwrap()
    };
    let options = MountOptions::default();
    assert_eq!(read_ahead().trim(), options.launch_read_ahead_kb.unwrap().to_string());
    shown.mounted.launch_set_is_here();
    assert_eq!(read_ahead().trim(), options.read_ahead_kb.unwrap().to_string());
}

#[test]
fn of_files_that_are_read_too_much_nothing_is_pushed() {
    let mut tree = MemoryTree::new("1.0");
    let (small, large) = (content(8000), content(8001));
    let id = tree.file(NodeId::ROOT, "small", small.clone());
    tree.launch(id, 0..8000);
    let id = tree.file(NodeId::ROOT, "large", large.clone());
    tree.pieces.insert(id, vec![0..4096, 4096..8001]);
    let shown = Shown::with(tree, &MountOptions { push_max_bytes: 8000, ..MountOptions::default() });
    assert_eq!(fs::read(shown.path.join("small")).unwrap(), small);
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), 0);
    assert_eq!(fs::read(shown.path.join("large")).unwrap(), large);
    assert_ne!(shown.tree.reads.load(Ordering::Relaxed), 0);
    assert_eq!(shown.mounted.statistics().pushed_bytes, 8000);
}

/// While somebody reads and maps every file, and the mount goes away under them, nothing hangs and no byte is wrong.
#[test]
fn a_mount_can_go_while_it_is_pushed_to() {
    for round in 0..20 {
        let mut tree = MemoryTree::new("1.0");
        for i in 0..200 {
            let id = tree.file(NodeId::ROOT, format!("{i}"), content(20_000 + i));
            tree.pieces.insert(id, vec![0..4096, 8192..65_536]);
        }
        let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let path = &shown.path;
                scope.spawn(move || {
                    for i in 0..200 {
                        let i = (i * 7 + reader) % 200;
                        match fs::read(path.join(i.to_string())) {
                            Ok(bytes) => assert_eq!(bytes, content(20_000 + i)),
                            // The mount is gone, or on its way.
                            Err(_) => return,
                        }
                    }
                });
            }
            // At another stage each time.
            while shown.mounted.statistics().pushed_bytes < 50_000 * round {
                std::thread::yield_now();
            }
            shown.mounter.unmount(&shown.mounted, true).unwrap();
        });
        shown.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), shown.mounted.ended()).await.expect("it ends").unwrap();
        });
        shown.gone();
    }
}

/// Opens of one file by many at once: all of them see the same bytes, and what is pushed is pushed once.
#[test]
fn whoever_opens_a_file_that_is_being_pushed_waits_for_that() {
    let mut tree = MemoryTree::new("1.0");
    let bytes = content(4 << 20);
    for i in 0..16 {
        let id = tree.file(NodeId::ROOT, format!("{i}"), bytes.clone());
        tree.launch(id, 0..4 << 20);
    }
    let shown = Shown::new(tree, OpenPolicy::ZeroMessage);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for i in 0..16 {
                    assert_eq!(fs::read(shown.path.join(i.to_string())).unwrap(), bytes);
                }
            });
        }
    });
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), 0);
    assert_eq!(shown.mounted.statistics().pushed_bytes, 64 << 20);
}

/// Whatever is refused, and however it is read, the bytes are right and no error is seen.
#[test]
fn refused_read_ahead_is_never_seen() {
    let bytes = content(3_000_001);
    for declining in [Declining::BesideLaunchSet, Declining::EverythingAhead] {
        let mut tree = MemoryTree::new("1.0");
        for name in ["read", "random", "mapped", "direct", "sent", "many"] {
            let id = tree.file(NodeId::ROOT, name, bytes.clone());
            tree.pieces.insert(id, (0..200).map(|i| i * 16_384 + 4096..i * 16_384 + 12_288).collect());
        }
        tree.away.store(true, Ordering::Relaxed);
        let options = MountOptions {
            open_policy: OpenPolicy::ZeroMessage,
            declining,
            launch_read_ahead_kb: Some(128),
            ..MountOptions::default()
        };
        let shown = Shown::with(tree, &options);
        let declined = || requests(&shown, "read_declined");

        assert!(fs::read(shown.path.join("read")).unwrap() == bytes);
        assert!(declined() > 0, "{declining:?}");

        let file = File::open(shown.path.join("random")).unwrap();
        for i in 0..300_usize {
            let at = i * 7919 * 13 % (bytes.len() - 20_000);
            let mut part = vec![0; 1 + i * 60];
            file.read_exact_at(&mut part, at as u64).unwrap();
            assert!(part[..] == bytes[at..at + part.len()]);
        }

        let file = File::open(shown.path.join("mapped")).unwrap();
        // SAFETY: a new mapping of a file that has these bytes, read only while it is mapped.
        unsafe {
            let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
            let at = libc::mmap(null, bytes.len(), libc::PROT_READ, libc::MAP_PRIVATE, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            let mapped = std::slice::from_raw_parts(at.cast::<u8>(), bytes.len());
            for i in 0..700 {
                let at = i * 7919 * 31 % bytes.len();
                assert_eq!(mapped[at], bytes[at]);
            }
            assert!(*mapped == bytes[..]);
            libc::munmap(at, bytes.len());
        }

        let before = declined();
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(shown.path.join("direct")).unwrap();
        let layout = std::alloc::Layout::from_size_align(1 << 20, 4096).unwrap();
        // SAFETY: freshly allocated with that layout, zeroed, and freed with the same.
        unsafe {
            let room = std::alloc::alloc_zeroed(layout);
            let part = std::slice::from_raw_parts_mut(room, 1 << 20);
            file.read_exact_at(part, 1 << 20).unwrap();
            assert!(*part == bytes[1 << 20..2 << 20]);
            std::alloc::dealloc(room, layout);
        }
        assert_eq!(declined(), before, "direct reads have nobody who asks again");

        let (file, target) = (File::open(shown.path.join("sent")).unwrap(), tempfile::tempfile().unwrap());
        let mut offset = 0;
        while (offset as usize) < bytes.len() {
            // SAFETY: both descriptors are open, and `offset` is written while the call lasts.
            let sent = unsafe { libc::sendfile(target.as_raw_fd(), file.as_raw_fd(), &raw mut offset, 1 << 30) };
            assert!(sent > 0, "{}", std::io::Error::last_os_error());
        }
        let mut copied = vec![0; bytes.len()];
        target.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == bytes);

        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| assert!(fs::read(shown.path.join("many")).unwrap() == bytes));
            }
        });
    }
}

/// A fault on a page that is to be read brings that page, whatever lies around it.
#[test]
fn a_recording_sees_the_pages_that_are_used() {
    let mut tree = MemoryTree::new("1.0");
    tree.file(NodeId::ROOT, "file", content(1 << 20));
    let options = MountOptions { declining: Declining::EverythingAhead, ..MountOptions::default() };
    let shown = Shown::with(tree, &options);
    let file = File::open(shown.path.join("file")).unwrap();
    let mut byte = [0];
    for page in [3, 77, 150, 78] {
        file.read_exact_at(&mut byte, page * 4096).unwrap();
    }
    assert_eq!(shown.tree.reads.load(Ordering::Relaxed), 4);
}
