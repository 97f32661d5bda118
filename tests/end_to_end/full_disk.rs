//! A cache on a disk that is full or about to be. These tests must run as root, to mount small file systems.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use tests::{Streamfs, assert_same_tree, wait_for};

use crate::{forget_pages, in_folder, noise, sample};

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A small file system as cache, smaller than what is read through it.
#[test]
fn a_full_disk_keeps_serving() {
    let disk = SmallDisk::new(12 << 20);
    let user = disk.user();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    for i in 0..6 {
        fs::write(source.join(format!("big{i}")), noise(8 << 20, i)).expect("a folder of the test");
    }
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let mount = user.mount(&package, "mnt");
    for _ in 0..2 {
        assert_same_tree(&source, mount.path());
        for i in 0..6 {
            forget_pages(&mount.join(format!("big{i}")));
        }
    }
    let _hog = disk.fill();
    assert_same_tree(&source, mount.path());
    mount.unmount();
    drop(user);
}

/// A file system of `bytes` in memory, mounted as long as this lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test must run as root, to mount a small file system");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL in it");
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).expect("root may");
        Self(dir)
    }

    /// Somebody whose cache lies on it.
    fn user(&self) -> Streamfs {
        Streamfs::new().with_cache(&self.0.path().join("cache"))
    }

    /// Somebody else takes all that is left of it.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("hog");
        let hog = File::options().append(true).create(true).open(&path).expect("own disk");
        for piece in [64 << 10, 4096, 1] {
            while (&hog).write_all(&vec![1; piece]).is_ok() {}
        }
        path
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.0.path()).expect("it is mounted");
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is left of it lies in memory and goes with the last user.
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// A package of `files` files of 2 MiB that do not compress.
fn package(user: &Streamfs, name: &str, files: u64) -> (PathBuf, String) {
    let source = user.folder(&format!("source-{name}"));
    for i in 0..files {
        fs::write(source.join(format!("big{i}")), noise(2 << 20, i + 1000 * name.len() as u64)).expect("own folder");
    }
    let package = in_folder(&user.folder("content"), name);
    user.publish(&source, &package, "1.0");
    (source, package)
}

fn keep_free(user: &Streamfs, size: &str) {
    let dir = user.home().join("config/streamfs");
    fs::create_dir_all(&dir).expect("own folder");
    fs::write(dir.join("config.toml"), format!("[agent]\nkeep_free = \"{size}\"\n")).expect("own folder");
}

/// What `status` says of the load of that package.
fn load_status(user: &Streamfs, package: &str) -> Value {
    let status = user.status();
    let loads = status.pointer("/agents/0/loads").and_then(Value::as_array).cloned().unwrap_or_default();
    let of = |load: &Value| load["location"].as_str().is_some_and(|l| l.starts_with(&format!("{package}@")));
    loads.into_iter().find(of).unwrap_or_default()
}

/// `load` filled the disk to its last byte; then `unload` failed, because the index could not be written, and so did
/// everything else.
#[test]
fn a_load_leaves_what_must_stay_free_and_says_so() {
    let disk = SmallDisk::new(32 * MIB);
    let user = disk.user();
    keep_free(&user, "6M");
    let (source, big) = package(&user, "big", 20);
    let (small_source, small) = package(&user, "small", 2);
    let line = user.fails(["--quiet", "load", &big]);
    for part in ["keep_free", "6.0 MiB", "free", "streamfs unload"] {
        assert!(line.contains(part), "should mention {part:?}: {line}");
    }
    let free = disk.free_bytes();
    assert!((6 * MIB - 256 * 1024..9 * MIB).contains(&free), "{free} bytes are free");
    // The next agent still knows.
    user.kill_agent();
    let status = load_status(&user, &big);
    let mount = user.mount(&big, "mnt");
    assert_eq!(status, Value::Null, "no agent runs that could tell");
    let status = load_status(&user, &big);
    assert_eq!(status["state"], "failed", "{status}");
    assert!(status["reason"].as_str().is_some_and(|reason| reason.contains("keep_free")), "{status}");
    // Reading goes on, past the cache.
    assert_same_tree(&source, mount.path());
    mount.unmount();
    assert!(user.fails(["--quiet", "load", &small]).contains("streamfs unload"), "all that is there is pinned");
    user.ok(["unload", &big]);
    user.ok(["load", &small]);
    let mount = user.mount(&small, "mnt");
    assert_same_tree(&small_source, mount.path());
    assert!(disk.free_bytes() >= 6 * MIB - 256 * 1024, "{} bytes are free", disk.free_bytes());
}

/// What was read before and is not pinned goes for what is loaded: a cache of 24 MB was called full.
#[test]
fn a_load_evicts_what_may_go_first() {
    let disk = SmallDisk::new(24 * MIB);
    let user = disk.user();
    let (source, first) = package(&user, "first", 8);
    let mount = user.mount(&first, "mnt");
    assert_same_tree(&source, mount.path());
    mount.unmount();
    let (source, second) = package(&user, "another", 9);
    user.ok(["load", &second]);
    user.kill_agent();
    let content = user.home().join("content");
    fs::rename(&content, user.home().join("gone")).expect("own folder");
    let mount = user.mount(&second, "mnt");
    assert_same_tree(&source, mount.path());
}

/// Whatever filled the disk: what was loaded can be given up, by the agent that loaded it and by another one.
#[test]
fn unloading_works_on_a_full_disk() {
    for restarted in [false, true] {
        let disk = SmallDisk::new(32 * MIB);
        let user = disk.user();
        let (source, big) = package(&user, "big", 8);
        let (other_source, other) = package(&user, "other", 2);
        user.ok(["load", &other]);
        user.ok(["load", &big]);
        let hog = disk.fill();
        assert_eq!(disk.free_bytes(), 0);
        if restarted {
            user.kill_agent();
        }
        // Both are loaded, so both can be mounted; nothing can be noted meanwhile.
        let mount = user.mount(&big, "mnt");
        assert_same_tree(&source, mount.path());
        mount.unmount();
        let said = user.ok(["unload", &big]).stdout;
        assert!(said.contains("16."), "{said}");
        wait_for("room on the disk", DEADLINE, || (disk.free_bytes() > MIB).then_some(()));
        fs::remove_file(&hog).expect("own disk");
        // What the other load keeps was not touched, and loading goes on as ever.
        assert_eq!(load_status(&user, &other)["state"], "offline_ready");
        assert_eq!(load_status(&user, &big), Value::Null);
        wait_for("an index that can be written", DEADLINE, || (user.run(["load", &big]).code == 0).then_some(()));
        user.kill_agent();
        fs::rename(user.home().join("content"), user.home().join("gone")).expect("own folder");
        for (source, package, dir) in [(&source, &big, "mnt"), (&other_source, &other, "mnt2")] {
            let mount = user.mount(package, dir);
            assert_same_tree(source, mount.path());
        }
    }
}

/// An agent that starts on a full disk serves what it has.
#[test]
fn an_agent_starts_on_a_full_disk() {
    let disk = SmallDisk::new(16 * MIB);
    let user = disk.user();
    let (source, known) = package(&user, "known", 2);
    let mount = user.mount(&known, "mnt");
    assert_same_tree(&source, mount.path());
    mount.unmount();
    user.kill_agent();
    // Not even the log has room: an agent that could not write it "died without a word".
    fs::write(user.cache().join("log/agent.log"), "").expect("own disk");
    disk.fill();
    let mount = user.mount(&known, "mnt");
    assert_same_tree(&source, mount.path());
    let status = user.ok(["status"]).stdout;
    assert!(status.contains("degraded"), "{status}");
    mount.unmount();
    // A package that was never seen cannot be trusted, because that could not be remembered.
    let (_, unknown) = package(&user, "unknown", 1);
    let dir = user.folder("mnt3");
    let line = user.fails([OsStr::new("mount"), unknown.as_ref(), dir.as_os_str()]);
    assert!(line.contains("No space left on device"), "{line}");
}
