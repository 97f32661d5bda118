//! Publishing real directories, and reading them back through a host.

mod interrupted;
mod launch;
mod refused;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::*;
use crate::package::NodeKind;
use crate::stage::{Stage, assert_same, at, content, noise};

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())
}

/// A bit of everything that a package keeps.
fn odd_tree(root: &Path) {
    fs::create_dir_all(root.join("empty dir")).unwrap();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    File::create(root.join("a/empty")).unwrap();
    fs::write(root.join("a/one byte"), b"x").unwrap();
    fs::write(root.join("a/b/large"), noise(1, 3_000_000)).unwrap();
    fs::write(root.join("a/b/text"), "all work and no play\n".repeat(40_000)).unwrap();
    fs::hard_link(root.join("a/b/large"), root.join("a/b/c/same")).unwrap();
    fs::hard_link(root.join("a/b/large"), root.join("again")).unwrap();
    symlink("a/b/large", root.join("link")).unwrap();
    symlink("x".repeat(4000), root.join("long link")).unwrap();
    for name in [&b"\xff\xfe not UTF-8"[..], b"-rf *", b"new\nline", b"\\back", b".hidden", &[b'n'; 255]] {
        fs::write(root.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    fs::set_permissions(root.join("a/one byte"), PermissionsExt::from_mode(0o4711)).unwrap();
    let old = UNIX_EPOCH - Duration::new(86_400, 123_456_789);
    File::options().write(true).open(root.join("a/empty")).unwrap().set_modified(old).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    sparse.write_all_at(&noise(2, 70_000), (4 << 30) + 8192).unwrap();
}

#[tokio::test]
async fn what_a_package_keeps_comes_back() {
    let stage = Stage::new();
    let source = stage.folder("source");
    odd_tree(&source);
    let sparse = source.join("sparse");
    // The comparison reads whole files; this one is compared below, around its data.
    fs::rename(&sparse, stage.path("sparse")).unwrap();
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    assert_same(&mount, &source).await;
    assert_eq!(at(&mount, "again").await.id, at(&mount, "a/b/c/same").await.id, "one file, several names");

    fs::rename(stage.path("sparse"), &sparse).unwrap();
    stage.publish(&source, "2");
    let mount = stage.mount(&host, "2").await;
    let node = at(&mount, "sparse").await;
    assert_eq!((node.kind, node.size_bytes), (NodeKind::File, 5 << 30));
    assert!(node.allocated_bytes < 200_000, "holes are kept: {}", node.allocated_bytes);
    let place = (4 << 30) + 8192;
    let read = |offset: u64, length: usize| {
        let mount = mount.clone();
        async move { mount.read(node.id, offset, length).wait().await.unwrap() }
    };
    assert_eq!(read(place, 70_000).await, noise(2, 70_000));
    assert_eq!(read(place - 5000, 5001).await, [&[0; 5000][..], &noise(2, 1)].concat());
    assert_eq!(read((5 << 30) - 3, 100).await, [0; 3][..]);
    assert_eq!(read(5 << 30, 1).await, Bytes::new());
    assert_eq!(read(u64::MAX, usize::MAX).await, Bytes::new());
    let data = mount.seek(node.id, 17, true).wait().await.unwrap().unwrap();
    assert!(data <= place && data + 4096 > place - 4096, "{data}");
    assert_eq!(mount.seek(node.id, 17, false).wait().await.unwrap(), Some(17));
    assert!(mount.seek(node.id, place, false).wait().await.unwrap().unwrap() >= place + 70_000);
    assert_eq!(mount.seek(node.id, place + 90_000, true).wait().await.unwrap(), None);
    assert_eq!(mount.seek(node.id, 5 << 30, true).wait().await.unwrap(), None);
}

#[tokio::test]
async fn extended_attributes_small_and_large_come_back() {
    let stage = Stage::new();
    let source = stage.folder("source");
    let file = source.join("f");
    fs::write(&file, b"content").unwrap();
    let mut expected = vec![("user.a".to_owned(), b"1".to_vec()), ("user.empty".to_owned(), Vec::new())];
    for (name, value) in &expected {
        set_xattr(&file, name, value).expect("the temporary folder's file system keeps user attributes");
    }
    let large = source.join("large");
    fs::write(&large, b"").unwrap();
    // ext4 keeps 4 KiB of attributes at most, others more: as many as fit, so that they need a block of their own.
    let mut on_large = Vec::new();
    for i in 0..200 {
        let (name, value) = (format!("user.{i:03}"), noise(i, 400));
        if set_xattr(&large, &name, &value).is_err() {
            break;
        }
        on_large.push((name, value));
    }
    assert!(on_large.len() > 3, "over 1 KiB");
    set_xattr(&source, "user.root", b"r").unwrap();
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    expected.sort();
    for (path, expected) in [("f", expected), ("large", on_large), ("", vec![("user.root".into(), b"r".to_vec())])] {
        let node = at(&mount, path).await;
        assert!(node.has_xattrs);
        let got = mount.xattrs(node.id).wait().await.unwrap();
        let got: Vec<_> = got.iter().map(|(n, v)| (String::from_utf8(n.to_vec()).unwrap(), v.to_vec())).collect();
        assert_eq!(got, expected, "{path}");
    }
}

#[test]
fn the_same_input_gives_the_same_objects_whatever_the_number_of_threads() {
    let mut seen = Vec::new();
    for threads in [1, 2, 7] {
        let stage = Stage::new();
        let source = stage.folder("source");
        odd_tree(&source);
        // Made one after the other, the trees differ in these times only.
        let then = fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000));
        let mut todo = vec![source.clone()];
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
            if meta.is_symlink() {
                let times = rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 },
                    last_modification: rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 },
                };
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
            } else {
                File::open(&path).unwrap().set_times(then).unwrap();
            }
        }
        let mut request = stage.request(&source, "1");
        request.threads = threads;
        let summary = publish(&request, &NoProgress).unwrap();
        let names: Vec<String> = stage
            .stored()
            .into_keys()
            .map(|path| path.strip_prefix(stage.package_dir()).unwrap().display().to_string())
            .filter(|name| name.starts_with("packs/") || name.starts_with("trees/"))
            .collect();
        seen.push((summary.descriptor_sha256, names));
    }
    assert_eq!(seen[0].1.len(), 2, "one pack and one tree: {:?}", seen[0].1);
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[test]
fn publishing_a_version_again_changes_nothing() {
    let stage = Stage::new();
    let source = stage.folder("source");
    odd_tree(&source);
    stage.publish(&source, "1");
    let before = stage.stored();
    let again = stage.publish(&source, "1");
    assert_eq!((again.new_blocks, again.new_bytes_stored), (0, 0));
    assert!(before == stage.stored());
}

#[tokio::test]
async fn an_upgrade_stores_and_fetches_little_more_than_what_changed() {
    let stage = Stage::new();
    let source = stage.folder("source");
    let mut files: Vec<Vec<u8>> = (0..64).map(|i| noise(i, 512 << 10)).collect();
    let write = |files: &[Vec<u8>]| {
        for (i, bytes) in files.iter().enumerate() {
            let path = source.join(format!("file-{i:02}"));
            if !fs::read(&path).is_ok_and(|old| old == *bytes) {
                fs::write(path, bytes).unwrap();
            }
        }
    };
    write(&files);
    stage.publish(&source, "1");
    let (host, log) = stage.recorded("cache").await;
    let old = stage.mount(&host, "1").await;
    assert_same(&old, &source).await;

    // One per cent of 32 MiB: two files anew but for some bytes, and an insertion that shifts what follows.
    files[7] = noise(1000, 160 << 10);
    files[9] = noise(1001, 160 << 10);
    files[11].splice(1000..1000, *b"inserted");
    write(&files);
    let summary = stage.publish(&source, "2");
    let total: u64 = files.iter().map(|f| f.len() as u64).sum();
    let tree = stage.mount(&host, "2").await.descriptor().tree.bytes;
    let allowed = total / 50 + tree + 4096;
    assert!(summary.new_bytes_stored <= allowed, "{} stored, {allowed} allowed", summary.new_bytes_stored);

    host.cache().flush();
    log.clear();
    let new = stage.mount(&host, "2").await;
    assert_same(&new, &source).await;
    assert!(log.delivered_bytes() <= allowed, "{} fetched, {allowed} allowed", log.delivered_bytes());
    // And the old version is as it was.
    let node = at(&old, "file-07").await;
    assert!(content(&old, &node, 1 << 20).await.unwrap() == noise(7, 512 << 10));
}

#[tokio::test]
async fn a_directory_of_100_000_entries() {
    let stage = Stage::new();
    let source = stage.folder("source");
    for i in 0..100_000 {
        symlink("t", source.join(format!("entry {i:06}"))).unwrap();
    }
    let summary = stage.publish(&source, "1");
    assert_eq!(summary.symlinks, 100_000);
    let (host, log) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    assert_eq!(at(&mount, "entry 077777").await.kind, NodeKind::Symlink);
    assert!(mount.lookup(NodeId::ROOT, b"entry 100000").wait().await.unwrap().is_none());
    assert!(log.delivered_bytes() < 256 << 10, "{}", log.delivered_bytes());
    assert_eq!(crate::stage::walk(&mount).await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn more_names_of_one_hash_than_a_page_holds_are_all_found() {
    // A look-up that hit a page full of one hash went on to one side only and told that the name was absent.
    let stage = Stage::new();
    let source = stage.folder("source");
    let names: Vec<String> = (0..1024u32)
        .map(|bits| (0..10).map(|i| if bits >> i & 1 == 1 { 'A' } else { 'a' }).collect::<String>() + &"x".repeat(200))
        .collect();
    names.iter().for_each(|name| symlink("t", source.join(name)).unwrap());
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    for name in &names {
        assert!(mount.lookup(NodeId::ROOT, name.as_bytes()).wait().await.unwrap().is_some(), "{name}");
    }
    let absent = "B".repeat(210);
    assert!(mount.lookup(NodeId::ROOT, absent.as_bytes()).wait().await.unwrap().is_none());
}
