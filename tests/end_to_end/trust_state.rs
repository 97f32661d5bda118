//! What a user is told of trust: first use, an origin that is away, versions that were withdrawn, damage.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tests::{Nginx, Streamfs, is_mount_point, wait_for};

use crate::{in_folder, sample};

fn published() -> (Streamfs, PathBuf, String) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    (user, content, package)
}

/// Mounts and unmounts `location`; gives what was said on standard error.
#[track_caller]
fn said_by_mount(user: &Streamfs, location: &str) -> String {
    let dir = user.folder("mnt");
    let outcome = user.ok([OsStr::new("mount"), location.as_ref(), dir.as_os_str()]);
    assert!(outcome.took < Duration::from_secs(10), "took {:?}", outcome.took);
    user.ok([OsStr::new("unmount"), dir.as_os_str()]);
    assert!(!outcome.stderr.contains('\u{1b}'), "no colours in a file: {:?}", outcome.stderr);
    outcome.stderr
}

#[test]
fn a_mount_says_when_it_trusts_and_when_it_is_offline() {
    let (user, content, _) = published();
    let mut server = Nginx::http(&content);
    let location = format!("{}/app", server.url());
    assert!(said_by_mount(&user, &location).contains("first use"));
    assert_eq!(said_by_mount(&user, &location), "");
    user.ok(["load", &location]);
    server.stop();
    let said = said_by_mount(&user, &location);
    assert!(said.contains("warning") && said.contains("offline"), "{said}");
    let mount = user.mount(&location, "mnt");
    assert_eq!(user.status_of(mount.path())["freshness"]["state"], "offline");
    let line = user.fails(["verify", &location]);
    assert!(line.contains("cannot be read at present"), "{line}");
}

/// A share that is not mounted is an empty folder.
#[test]
fn a_loaded_version_mounts_without_its_share() {
    let (user, content, package) = published();
    user.ok(["load", &package]);
    user.kill_agent();
    fs::rename(&content, user.home().join("away")).expect("own folder");
    let said = said_by_mount(&user, &package);
    assert!(said.contains("share"), "{said}");
}

#[test]
fn whoever_uses_a_revoked_version_is_warned() {
    let (user, _, package) = published();
    let version = format!("{package}@1.0");
    let mount = user.mount_with(&version, "running", &["--poll-interval", "200ms"]);
    assert_eq!(user.status_of(mount.path())["revoked"], false);
    let line = user.fails(["revoke", &package]);
    assert!(line.contains("@VERSION"), "{line}");
    assert_eq!(user.ok(["revoke", &version, "--json"]).json()["version"], "1.0");
    wait_for("the running mount to learn of it", Duration::from_secs(20), || {
        user.status_of(mount.path())["revoked"].as_bool()?.then_some(())
    });
    assert!(user.ok(["status"]).stdout.contains("REVOKED"));
    let said = said_by_mount(&user, &package);
    assert!(said.contains("warning") && said.contains("1.0 was REVOKED"), "{said}");
    // It goes on working.
    assert_eq!(fs::read_to_string(mount.join("small")).expect("reads"), "small content\n");
}

#[test]
fn verify_names_what_is_damaged() {
    let (user, content, package) = published();
    assert!(user.ok(["verify", &package]).stdout.contains("all sound"));
    let packs = content.join("app/packs");
    let pack = fs::read_dir(&packs).expect("published").next().expect("a pack").expect("readable").path();
    let mut bytes = fs::read(&pack).expect("readable");
    bytes[1000] ^= 1;
    fs::write(&pack, bytes).expect("own folder");
    let line = user.fails(["verify", &package]);
    let name = pack.file_name().and_then(OsStr::to_str).expect("a hash");
    assert!(line.contains(&package) && line.matches(name).count() == 1, "{line}");
}

#[test]
fn a_channel_is_unloaded_by_its_name() {
    let (user, content, package) = published();
    let stable = format!("{package}@stable");
    user.ok(["load", &stable]);
    fs::rename(&content, user.home().join("away")).expect("own folder");
    assert!(user.ok(["unload", &stable, "--json"]).json()["bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    let line = user.fails(["unload", &stable]);
    assert!(line.contains("not loaded"), "{line}");
}

/// Services have no HOME; only publishers need a folder for keys.
#[test]
fn mounting_needs_no_home() {
    let (user, _, package) = published();
    let dir = user.folder("mnt");
    let mut command = user.streamfs([OsStr::new("mount"), package.as_ref(), dir.as_os_str()]);
    for variable in ["HOME", "XDG_CONFIG_HOME", "STREAMFS_KEYS"] {
        command.env_remove(variable);
    }
    // Not a pipe: the agent would hold it open.
    let status = command.stdout(std::process::Stdio::null()).status().expect("starts");
    assert!(status.success() && is_mount_point(&dir), "{status}");
    user.ok([OsStr::new("unmount"), dir.as_os_str()]);
}
