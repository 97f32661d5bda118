//! Mistakes of users: one clear line each, status 1, and nothing left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tests::{Streamfs, is_mount_point};

use crate::{in_folder, sample};

/// A user with a published package: its location, and an empty folder.
fn with_package() -> (Streamfs, String, PathBuf) {
    let user = Streamfs::new();
    let source = user.folder("source");
    sample(&source);
    let package = in_folder(&user.folder("content"), "app");
    user.publish(&source, &package, "1.0");
    let dir = user.folder("mnt");
    (user, package, dir)
}

#[track_caller]
fn refused(user: &Streamfs, package: &str, dir: &std::path::Path, parts: &[&str]) {
    let line = user.fails([OsStr::new("mount"), package.as_ref(), dir.as_os_str()]);
    for part in parts {
        assert!(line.contains(part), "should mention {part:?}: {line}");
    }
    assert!(!is_mount_point(dir));
}

#[test]
fn a_mount_point_that_is_not_empty() {
    let (user, package, dir) = with_package();
    fs::write(dir.join("precious"), "mine").expect("own folder");
    refused(&user, &package, &dir, &["mnt", "empty"]);
    assert_eq!(fs::read_to_string(dir.join("precious")).expect("untouched"), "mine");
}

#[test]
fn a_mount_point_that_is_missing_or_a_file() {
    let (user, package, dir) = with_package();
    refused(&user, &package, &dir.join("none"), &["none"]);
    fs::write(user.home().join("file"), "x").expect("own folder");
    refused(&user, &package, &user.home().join("file"), &["file", "directory"]);
}

#[test]
fn a_mount_point_that_is_taken() {
    let (user, package, _) = with_package();
    let mount = user.mount(&package, "taken");
    let line = user.fails([OsStr::new("mount"), package.as_ref(), mount.path().as_os_str()]);
    assert!(line.contains("taken") && line.contains("mounted"), "{line}");
    // What is there goes on.
    assert_eq!(fs::read_to_string(mount.join("small")).expect("reads"), "small content\n");
}

#[test]
fn unmounting_what_is_in_use_or_not_mounted() {
    let (user, package, dir) = with_package();
    let line = user.fails([OsStr::new("unmount"), dir.as_os_str()]);
    assert!(line.contains("mnt") && line.contains("not"), "{line}");
    let mount = user.mount(&package, "busy");
    let held = fs::File::open(mount.join("small")).expect("opens");
    let line = user.fails([OsStr::new("unmount"), mount.path().as_os_str()]);
    assert!(line.contains("busy") && line.contains("use"), "{line}");
    assert!(is_mount_point(mount.path()));
    drop(held);
    mount.unmount();
}

#[test]
fn remounting_what_is_not_mounted() {
    let (user, _, dir) = with_package();
    let line = user.fails([OsStr::new("remount"), dir.as_os_str()]);
    assert!(line.contains("mnt"), "{line}");
}

#[test]
fn a_version_a_package_or_a_folder_that_does_not_exist() {
    let (user, package, dir) = with_package();
    refused(&user, &format!("{package}@9.9"), &dir, &["9.9", "1.0"]);
    let content = user.home().join("content");
    refused(&user, &in_folder(&content, "other"), &dir, &["other"]);
    refused(&user, "/no/such/content/app", &dir, &["/no/such/content"]);
}

#[test]
fn a_location_that_makes_no_sense() {
    let (user, _, dir) = with_package();
    for (location, part) in [
        ("nonsense", "nonsense"),
        ("gopher://host/content/app", "gopher"),
        ("http://", "http"),
        ("http://user:secret@host/content/app", "STREAMFS_HTTP_USER"),
        ("/content/app@", "app"),
        ("/content/a b", "a b"),
    ] {
        refused(&user, location, &dir, &[part]);
    }
    let line = user.fails([OsStr::new("mount"), "http://user:secret@host/content/app".as_ref(), dir.as_os_str()]);
    assert!(!line.contains("secret"), "an error must not repeat a password: {line}");
}

#[test]
fn a_server_that_is_not_there() {
    let (user, _, dir) = with_package();
    // Port 1 of this machine: refused at once.
    let arguments = ["mount", "http://127.0.0.1:1/content/app", dir.to_str().expect("plain"), "--deadline", "3s"];
    let outcome = user.run(arguments);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("127.0.0.1:1"), "{}", outcome.stderr);
    assert!(outcome.took.as_secs() < 15, "took {:?} with a deadline of 3 s", outcome.took);
}

/// Needs root, to become somebody else.
#[test]
fn somebody_without_permission() {
    const NOBODY: u32 = 65534;
    assert!(rustix::process::geteuid().is_root(), "this test must run as root, to become somebody else");
    let (owner, package, _) = with_package();
    let other = Streamfs::new().as_user(NOBODY);
    let dir = other.folder("mnt");
    // The content root of another user, closed to others.
    let content = owner.home().join("content/app");
    fs::set_permissions(&content, fs::Permissions::from_mode(0o700)).expect("own folder");
    refused(&other, &package, &dir, &["app"]);
    // A mount point of another user.
    let foreign = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(&content, fs::Permissions::from_mode(0o755)).expect("own folder");
    fs::set_permissions(owner.home(), fs::Permissions::from_mode(0o755)).expect("own folder");
    let mine = foreign.path().join("mnt");
    fs::create_dir(&mine).expect("own folder");
    refused(&other, &package, &mine, &["mnt"]);
    // A cache that cannot be written.
    let closed = foreign.path().join("cache");
    fs::create_dir(&closed).expect("own folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("own folder");
    let other = other.with_cache(&closed);
    let line = other.fails([OsStr::new("mount"), package.as_ref(), dir.as_os_str()]);
    assert!(line.contains("cache"), "{line}");
}

#[test]
fn writing_is_refused_as_read_only() {
    let (user, package, _) = with_package();
    let mount = user.mount(&package, "ro");
    let read_only = |result: std::io::Result<()>| {
        assert_eq!(result.expect_err("read-only").raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    };
    read_only(fs::write(mount.join("new"), "x"));
    read_only(fs::write(mount.join("small"), "x"));
    read_only(fs::remove_file(mount.join("small")));
    read_only(fs::create_dir(mount.join("folder/new")));
    read_only(fs::rename(mount.join("small"), mount.join("other")));
    read_only(fs::set_permissions(mount.join("small"), fs::Permissions::from_mode(0o777)));
    read_only(std::os::unix::fs::symlink("a", mount.join("b")));
}

#[test]
fn a_mount_tells_about_itself() {
    let (user, package, _) = with_package();
    let mount = user.mount(&package, "facts");
    let attribute = |path: PathBuf, name: &str| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::getxattr(&path, name, &mut value[..]).unwrap_or_else(|e| panic!("{name}: {e}"));
        String::from_utf8(value[..length].to_vec()).expect("text")
    };
    assert_eq!(attribute(mount.path().into(), "user.streamfs.version"), "1.0");
    assert_eq!(attribute(mount.path().into(), "user.streamfs.package"), "app");
    assert_eq!(attribute(mount.path().into(), "user.streamfs.descriptor").len(), 64);
    assert!(attribute(mount.path().into(), "user.streamfs.origin").contains("content"));
    let whole = fs::read(mount.join("folder/large")).expect("reads");
    assert_eq!(attribute(mount.join("folder/large"), "user.streamfs.cached"), whole.len().to_string());
    assert!(user.status_of(mount.path()).to_string().contains("1.0"));
}
