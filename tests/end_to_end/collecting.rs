//! `streamfs gc`: what goes, what stays, and that nobody who reads notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tests::{Served, Streamfs, assert_same_tree, wait_for};

use crate::{in_folder, noise, sample};

/// Longer than anything here takes, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Versions 1.0, 2.0 and 3.0 of `app`, each with a file of its own that shares nothing; and their sources.
fn three_versions() -> (Streamfs, PathBuf, Vec<PathBuf>) {
    let user = Streamfs::new();
    let content = user.folder("content");
    let sources = ["1.0", "2.0", "3.0"].into_iter().enumerate().map(|(number, version)| {
        let source = user.folder(&format!("source-{version}"));
        // The first version's pack has nothing that others have, so that it can go as a whole.
        if number > 0 {
            sample(&source);
        }
        fs::write(source.join("own"), noise(1_000_000, number as u64 + 20)).expect("a folder of the test");
        user.publish(&source, &in_folder(&content, "app"), version);
        source
    });
    let sources = sources.collect();
    (user, content, sources)
}

fn gc(user: &Streamfs, content: &Path, more: &[&str]) -> Value {
    let content = content.to_str().expect("tests use plain paths");
    let words = ["gc", content, "--json"].into_iter().chain(more.iter().copied());
    user.ok(words).json()[0].clone()
}

fn list(report: &Value, field: &str) -> usize {
    report[field].as_array().unwrap_or_else(|| panic!("no {field}: {report}")).len()
}

fn bytes_below(folder: &Path) -> u64 {
    fs::read_dir(folder).map_or(0, |entries| {
        let sizes = entries.flatten().map(|entry| match entry.path().is_dir() {
            true => bytes_below(&entry.path()),
            false => entry.metadata().map_or(0, |meta| meta.len()),
        });
        sizes.sum()
    })
}

#[test]
fn retired_versions_go_and_the_others_stay_whole() {
    let (user, content, sources) = three_versions();
    let app = in_folder(&content, "app");
    let before = bytes_below(&content);
    let told = gc(&user, &content, &["--keep", "1", "--grace", "0s", "--dry-run"]);
    assert_eq!((list(&told, "retired"), bytes_below(&content)), (2, before), "{told}");
    // Without keys nothing is retired, and nothing of what is published goes.
    let none = user.folder("no-keys");
    let line = {
        let outcome = user.run([
            "gc",
            content.to_str().expect("plain"),
            "--keep",
            "1",
            "--keys",
            none.to_str().expect("plain"),
            "--quiet",
        ]);
        assert_eq!(outcome.code, 1, "{}", outcome.stdout);
        outcome.stderr
    };
    assert!(line.contains("private key"), "{line}");
    let nothing = gc(&user, &content, &[]);
    assert_eq!(list(&nothing, "removed"), 0, "{nothing}");
    // Retired now, removed after the grace period.
    let retired = gc(&user, &content, &["--keep", "2"]);
    assert_eq!((list(&retired, "retired"), list(&retired, "removed")), (1, 0), "{retired}");
    let listed = user.ok(["versions", &app, "--json"]).stdout;
    assert!(!listed.contains("\"1.0\"") && listed.contains("\"2.0\""), "{listed}");
    let removed = gc(&user, &content, &["--grace", "0s"]);
    assert!(list(&removed, "removed") >= 2 && removed["removed_bytes"].as_u64() > Some(900_000), "{removed}");
    for (version, source) in ["2.0", "3.0"].iter().zip(&sources[1..]) {
        let mount = user.mount(&format!("{app}@{version}"), &format!("mnt-{version}"));
        assert_same_tree(source, mount.path());
        mount.unmount();
    }
    // Publishing goes on from there.
    user.publish(&sources[0], &app, "4.0");
    user.ok(["verify", &app]);
}

#[test]
fn what_is_in_use_is_not_collected() {
    for scheme in ["http", "rtsp"] {
        let (user, content, sources) = three_versions();
        let server = Served::start(&user, &content, &[]);
        let mount = user.mount(&format!("{}/app@1.0", server.url(scheme)), "mnt");
        let uses = content.join("app/.uses");
        let leases = || fs::read_dir(&uses).map_or(0, |entries| entries.count());
        wait_for("the server to say so", DEADLINE, || (leases() == 1).then_some(()));
        let kept = gc(&user, &content, &["--keep", "1", "--grace", "0s"]);
        assert_eq!(kept["retired"], serde_json::json!(["2.0"]), "{scheme}: {kept}");
        assert_eq!(kept["in_use"], serde_json::json!(["1.0"]), "{scheme}: {kept}");
        // Nothing of it was read before.
        assert_same_tree(&sources[0], mount.path());
        mount.unmount();
        wait_for("the server to say no more", DEADLINE, || (leases() == 0).then_some(()));
        let gone = gc(&user, &content, &["--keep", "1", "--grace", "0s"]);
        assert_eq!(gone["retired"], serde_json::json!(["1.0"]), "{scheme}: {gone}");
        assert!(list(&gone, "removed") > 0, "{scheme}: {gone}");
    }
}

/// Publications, collections and a reader at the same time: whatever is seen is whole.
#[test]
fn nobody_notices_a_collection_beside_them() {
    let (user, content, _) = three_versions();
    let app = in_folder(&content, "app");
    let stray = content.join("app/packs").join("0a".repeat(32));
    fs::write(&stray, "left by somebody").expect("a folder of the test");
    let server = Served::start(&user, &content, &[]);
    let source = user.folder("next");
    sample(&source);
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            for _ in 0..6 {
                gc(&user, &content, &["--keep", "1", "--grace", "0s"]);
            }
        });
        for number in 4..8 {
            fs::write(source.join("own"), noise(500_000, number)).expect("a folder of the test");
            user.publish(&source, &app, &format!("{number}.0"));
            let mount = user.mount(&format!("{}/app", server.url("http")), &format!("mnt-{number}"));
            assert_same_tree(&source, mount.path());
            mount.unmount();
        }
        collecting.join().expect("no panic");
    });
    gc(&user, &content, &["--grace", "0s"]);
    assert!(!stray.exists());
    user.ok(["verify", &app]);
}
