//! Signed metadata that somebody changed, exchanged or rolled back is refused with an error that names it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::Streamfs;

use crate::{in_folder, sample};

fn published(versions: &[&str]) -> (Streamfs, PathBuf, String) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    for version in versions {
        fs::write(source.join("version"), version).expect("a folder of the test");
        user.publish(&source, &package, version);
    }
    (user, content, package)
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("--").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

#[track_caller]
fn refused(user: &Streamfs, package: &str, parts: &[&str]) {
    let dir = user.folder("mnt");
    let line = user.fails([OsStr::new("mount"), package.as_ref(), dir.as_os_str()]);
    for part in parts {
        assert!(line.contains(part), "should mention {part:?}: {line}");
    }
}

/// Someone puts the state of last week back: a machine that saw newer metadata does not go back.
#[test]
fn a_rollback_is_refused_by_who_saw_newer() {
    let (user, content, package) = published(&["1.0"]);
    let old = user.home().join("old");
    copy(&content.join("app"), &old);
    let source = user.folder("source");
    fs::write(source.join("version"), "2.0").expect("a folder of the test");
    user.publish(&source, &package, "2.0");
    let mount = user.mount(&package, "seen");
    assert_eq!(fs::read_to_string(mount.join("version")).expect("reads"), "2.0");
    mount.unmount();
    user.kill_agent();
    fs::remove_dir_all(content.join("app")).expect("own content root");
    copy(&old, &content.join("app"));
    let dir = user.folder("mnt");
    let outcome = user.run([OsStr::new("mount"), package.as_ref(), dir.as_os_str()]);
    if outcome.code == 0 {
        // Going on with what is trusted and cached is allowed; going back is not.
        assert_eq!(fs::read_to_string(dir.join("version")).expect("reads"), "2.0");
        assert!(!outcome.stderr.is_empty(), "a rollback must be told of");
    } else {
        assert!(outcome.stderr.contains("app"), "{}", outcome.stderr);
    }
}

/// Another publisher's package under the same name: other keys, so not the package that was pinned.
#[test]
fn a_package_signed_by_others_is_refused() {
    let (user, content, package) = published(&["1.0"]);
    user.mount(&package, "seen").unmount();
    user.kill_agent();
    let (_other, foreign, _) = published(&["1.0", "2.0"]);
    fs::remove_dir_all(content.join("app")).expect("own content root");
    copy(&foreign.join("app"), &content.join("app"));
    let dir = user.folder("mnt");
    let outcome = user.run([OsStr::new("mount"), package.as_ref(), dir.as_os_str()]);
    if outcome.code == 0 {
        assert_eq!(fs::read_to_string(dir.join("version")).expect("reads"), "1.0", "the foreign version was mounted");
        assert!(!outcome.stderr.is_empty(), "foreign signatures must be told of");
    } else {
        assert!(outcome.stderr.contains("trust"), "{}", outcome.stderr);
    }
}

/// Metadata of another package of the same publisher does not pass for this one's.
#[test]
fn metadata_of_another_package_is_refused() {
    let (user, content, package) = published(&["1.0"]);
    let source = user.folder("other source");
    fs::write(source.join("version"), "other").expect("a folder of the test");
    user.publish(&source, &in_folder(&content, "other"), "1.0");
    user.mount(&package, "seen").unmount();
    user.kill_agent();
    fs::remove_dir_all(user.cache()).expect("own cache");
    fs::remove_dir_all(content.join("app")).expect("own content root");
    copy(&content.join("other"), &content.join("app"));
    refused(&user, &package, &["app"]);
}

#[test]
fn a_trust_root_that_does_not_fit_is_refused() {
    let (user, _, package) = published(&["1.0"]);
    let (_other, foreign, _) = published(&["1.0"]);
    let root = find(&foreign.join("app/metadata"), "root.json");
    let dir = user.folder("mnt");
    let line =
        user.fails([OsStr::new("mount"), package.as_ref(), dir.as_os_str(), "--trust-root".as_ref(), root.as_os_str()]);
    assert!(line.contains("trust"), "{line}");
}

#[test]
fn the_right_trust_root_is_accepted() {
    let (user, content, package) = published(&["1.0"]);
    let root = find(&content.join("app/metadata"), "root.json");
    let mount = user.mount_with(&package, "mnt", &["--trust-root", root.to_str().expect("plain")]);
    assert_eq!(fs::read_to_string(mount.join("version")).expect("reads"), "1.0");
}

fn find(folder: &Path, end: &str) -> PathBuf {
    let mut names: Vec<PathBuf> =
        fs::read_dir(folder).expect("metadata").map(|e| e.expect("metadata").path()).collect();
    names.sort();
    let fits = |p: &&PathBuf| p.to_str().is_some_and(|n| n.ends_with(end));
    names.iter().find(fits).unwrap_or_else(|| panic!("no {end} in {names:?}")).clone()
}
