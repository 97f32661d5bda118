//! Publishing: what comes out, what is refused, and that nobody sees a half-published version.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use rand::Rng as _;
use tests::{Streamfs, assert_same_tree, seeds, tier, wait_for_exit};

use crate::{in_folder, noise, sample};

/// Every file below `root` with its content.
fn stored(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the content root") {
            let path = entry.expect("the content root").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below it").to_str().expect("plain names").to_owned();
                out.insert(name, fs::read(&path).expect("the content root"));
            }
        }
    }
    out
}

#[test]
fn a_second_version_stores_only_what_is_new() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let before: usize = stored(&content).values().map(Vec::len).sum();
    fs::write(source.join("added"), noise(30_000, 3)).expect("a folder of the test");
    user.publish(&source, &package, "2.0");
    let added = stored(&content).values().map(Vec::len).sum::<usize>() - before;
    assert!(added < 150_000, "an added file of 30 kB made {added} bytes more in the content root");
    let versions = user.ok(["versions", &package, "--json"]).stdout;
    assert!(versions.contains("1.0") && versions.contains("2.0") && versions.contains("stable"), "{versions}");
    // Both are whole.
    fs::remove_file(source.join("added")).expect("a file of the test");
    let old = user.mount(&format!("{package}@1.0"), "old");
    let missing = fs::metadata(old.join("added")).expect_err("not in that version");
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(fs::read(old.join("folder/large")).expect("reads"), noise(3_000_000, 7));
    let new = user.mount(&format!("{package}@2.0"), "new");
    assert_eq!(fs::read(new.join("added")).expect("reads"), noise(30_000, 3));
}

#[test]
fn the_same_input_makes_the_same_objects() {
    let user = Streamfs::new();
    let source = user.folder("source");
    sample(&source);
    let data = |folder: &str| {
        let content = user.folder(folder);
        user.publish(&source, &in_folder(&content, "app"), "1.0");
        let mut objects = stored(&content.join("app"));
        // Signatures carry keys and times; everything else is the input's.
        objects.retain(|name, _| !name.starts_with("metadata/") && name != "head");
        objects
    };
    let (first, second) = (data("one"), data("two"));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    assert!(first == second, "objects of the same name differ");
    assert!(!first.is_empty());
}

#[test]
fn a_version_cannot_be_published_twice() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let before = stored(&content);
    fs::write(source.join("small"), "other").expect("a folder of the test");
    let line = user.fails([
        "publish".as_ref(),
        source.as_os_str(),
        package.as_ref(),
        "--version".as_ref(),
        "1.0".as_ref(),
        "--quiet".as_ref(),
    ]);
    assert!(line.contains("1.0") && line.contains("app"), "{line}");
    assert!(stored(&content) == before, "a refused publish changed the content root");
}

#[test]
fn what_cannot_be_stored_is_named() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let _socket = std::os::unix::net::UnixListener::bind(source.join("folder/socket")).expect("a free name");
    let package = in_folder(&content, "app");
    let line = user.fails([
        "publish".as_ref(),
        source.as_os_str(),
        package.as_ref(),
        "--version".as_ref(),
        "1".as_ref(),
        "--quiet".as_ref(),
    ]);
    assert!(line.contains("folder/socket") && line.contains("socket"), "{line}");
}

#[test]
fn private_keys_stay_outside_and_closed() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let keys = stored(&user.home().join("keys"));
    // What was signed last is noted beside the keys, and is public.
    let is_private_key = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("PRIVATE KEY");
    assert!(keys.values().any(|key| is_private_key(key)), "the first publish makes keys in STREAMFS_KEYS");
    for (name, key) in &keys {
        let mode = fs::metadata(user.home().join("keys").join(name)).expect("just listed").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}: others may read it");
        for (object, bytes) in stored(&content) {
            let found = is_private_key(key) && bytes.windows(key.len()).any(|w| w == *key);
            assert!(!found && !is_private_key(&bytes), "{object} holds the private key {name}");
        }
    }
}

/// A publish that dies at any moment leaves the version before it whole, and can be repeated.
#[test]
fn a_killed_publish_changes_nothing_for_readers() {
    seeds(tier().choose(2, 6, 40), |seed| {
        let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        let user = Streamfs::new();
        let (old, new, content) = (user.folder("old"), user.folder("new"), user.folder("content"));
        sample(&old);
        sample(&new);
        fs::write(new.join("more"), noise(20_000_000, seed)).expect("a folder of the test");
        let package = in_folder(&content, "app");
        let took = std::time::Instant::now();
        user.publish(&old, &package, "1");
        let most = (took.elapsed() * 4).as_millis() as u64;
        let mut child = user
            .streamfs(["publish".as_ref(), new.as_os_str(), package.as_ref(), "--version".as_ref(), "2".as_ref()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the program starts");
        // The moment is the point; any will do.
        std::thread::sleep(Duration::from_millis(rng.random_range(0..most.max(2))));
        // It may be done already: then the second version is there, which is as good.
        let _ = child.kill();
        wait_for_exit(&mut child, "a killed publish", Duration::from_secs(10));
        let before = user.mount(&format!("{package}@1"), "before");
        assert_same_tree(&old, before.path());
        let again = user.run([
            "publish".as_ref(),
            new.as_os_str(),
            package.as_ref(),
            "--version".as_ref(),
            "2".as_ref(),
            "--quiet".as_ref(),
        ]);
        assert!(again.code == 0 || again.stderr.contains('2'), "{}", again.stderr);
        let after = user.mount(&format!("{package}@2"), "after");
        assert_same_tree(&new, after.path());
    });
}

/// Two publishers at once: both versions end up whole, or one is told that it must wait or try again.
#[test]
fn two_publishers_at_once_do_not_corrupt() {
    let user = Streamfs::new();
    let content = user.folder("content");
    let package = in_folder(&content, "app");
    let sources: Vec<_> = ["a", "b"].iter().map(|name| user.folder(name)).collect();
    for (i, source) in sources.iter().enumerate() {
        sample(source);
        fs::write(source.join("own"), noise(5_000_000, i as u64)).expect("a folder of the test");
    }
    // Keys are made by the first publish.
    user.publish(&sources[0], &package, "0");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = sources
            .iter()
            .zip(["a", "b"])
            .map(|(source, version)| {
                let (user, package) = (&user, &package);
                scope.spawn(move || {
                    user.run([
                        "publish".as_ref(),
                        source.as_os_str(),
                        package.as_ref(),
                        "--version".as_ref(),
                        version.as_ref(),
                        "--quiet".as_ref(),
                    ])
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    assert!(outcomes.iter().any(|o| o.code == 0), "{outcomes:?}");
    user.ok(["verify", &package]);
    for ((outcome, source), version) in outcomes.iter().zip(&sources).zip(["a", "b"]) {
        if outcome.code == 0 {
            let mount = user.mount(&format!("{package}@{version}"), &format!("mount of {version}"));
            assert_same_tree(source, mount.path());
        } else {
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        }
    }
}
