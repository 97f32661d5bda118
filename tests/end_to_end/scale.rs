//! Large things: a million files, a directory of 100,000, files beyond 4 GiB.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tests::{Nginx, Streamfs, tier};

use crate::{in_folder, noise};

/// Bytes that may be fetched before the root of a mount can be listed, however many files there are.
const FIRST_MOUNT_MAX_BYTES: u64 = 256 << 10;
/// Memory of the agent's processes while a whole tree is walked.
const AGENT_MEMORY_MAX_BYTES: u64 = 100 << 20;

/// Makes `count` small files, 1,000 in each folder.
fn many_files(root: &Path, count: usize) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for folder in (thread..count.div_ceil(1_000)).step_by(4) {
                    let path = root.join(format!("part{:02}/folder{folder:04}", folder % 50));
                    fs::create_dir_all(&path).expect("a folder of the test");
                    for file in 0..1_000.min(count - folder * 1_000) {
                        // One in a hundred has content: the tree is what is tested.
                        let content: &[u8] = if file % 100 == 0 { b"content" } else { b"" };
                        fs::write(path.join(format!("file-{file:03}.txt")), content).expect("a folder of the test");
                    }
                }
            });
        }
    });
}

fn walk(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("lists") {
        let entry = entry.expect("lists");
        let meta = entry.metadata().expect("attributes");
        count += 1 + if meta.is_dir() { walk(&entry.path()) } else { 0 };
    }
    count
}

#[test]
fn a_mount_of_a_million_files_is_small() {
    let count = tier().choose(20_000, 1_000_000, 1_000_000);
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    many_files(&source, count);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let server = Nginx::http(&content);
    let mount = user.mount(&format!("{}/app", server.url()), "mnt");
    assert_eq!(fs::read_dir(mount.path()).expect("lists").count(), fs::read_dir(&source).expect("lists").count());
    let requests = server.requests();
    let fetched: u64 = requests.iter().map(|r| r.body_bytes).sum();
    println!("usable after {} requests and {fetched} bytes", requests.len());
    assert!(fetched < FIRST_MOUNT_MAX_BYTES, "{fetched} bytes were fetched for a listing of the root: {requests:?}");
    assert_eq!(walk(mount.path()), walk(&source));
    let (now, most) = user.agent_memory();
    println!("agent: {now} bytes now, {most} at most");
    assert!(most > 0 && most < AGENT_MEMORY_MAX_BYTES, "the agent used {most} bytes");
}

#[test]
fn a_directory_of_100_000_entries() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    for i in 0..100_000 {
        File::create(source.join(format!("entry {i:06}"))).expect("a folder of the test");
    }
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let mount = user.mount(&package, "mnt");
    let mut names: Vec<_> = fs::read_dir(mount.path()).expect("lists").map(|e| e.expect("lists").file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 100_000);
    assert!(names.iter().enumerate().all(|(i, name)| name.to_str() == Some(&format!("entry {i:06}"))));
    assert!(fs::metadata(mount.join("entry 099999")).is_ok());
    assert!(fs::metadata(mount.join("entry 100000")).is_err());
}

/// Offsets beyond 32 bits, in a file that is mostly a hole.
#[test]
fn a_file_beyond_4_gib() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    let file = File::create(source.join("huge")).expect("a folder of the test");
    file.set_len(9 << 30).expect("sparse files");
    let places = [0, (4 << 30) - 500_000, (4 << 30) + 1_012_345, (9 << 30) - 1_000_000];
    for (i, at) in places.iter().enumerate() {
        file.write_all_at(&noise(1_000_000, i as u64), *at).expect("room");
    }
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let mount = user.mount(&package, "mnt");
    tests::assert_same_tree(&source, mount.path());
    let mounted = File::open(mount.join("huge")).expect("opens");
    let mut found = vec![0; 1_000_000];
    for (i, at) in places.iter().enumerate() {
        mounted.read_exact_at(&mut found, *at).expect("reads");
        assert!(found == noise(1_000_000, i as u64), "at {at}");
    }
}
