//! Every stored object of a package × every kind of damage: an error that names the object, EIO on the reads that
//! need it, never a wrong byte, never a crash.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{RngCore as _, SeedableRng as _};
use tests::{Streamfs, tier, wait_for};

/// Objects that only save requests: what they say stands elsewhere too, so their damage may go unnoticed.
const HINTS: [&str; 1] = ["head"];

/// Folders of what launches come from and were recorded as. All of it stands elsewhere too; `verify` looks at it.
const LAUNCH: &str = "launch";
const PROFILES: &str = "profiles";

/// A launch of the sample.
const RECORDING: &str = r#"{"streamfs_profile":1,"package":"app","version":"1.0","name":"app"}
{"t":0,"lookup":"/folder"}
{"t":100,"read":"/folder/noise","at":8192,"bytes":65536}
{"t":200,"list":"/folder/deeper"}
{"t":300,"read":"/folder/deeper/text","at":0,"bytes":4096}
{"t":400,"read":"/folder/deeper/small007","at":0,"bytes":4096}
{"t":500,"lookup":"/folder/absent"}
"#;

/// Cases that run side by side.
const CASES_AT_ONCE: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Delete,
    Empty,
    Truncate,
    FlipFirst,
    FlipMiddle,
    FlipLast,
    Swap,
    Append,
}

const ALL: [Damage; 8] = [
    Damage::Delete,
    Damage::Empty,
    Damage::Truncate,
    Damage::FlipFirst,
    Damage::FlipMiddle,
    Damage::FlipLast,
    Damage::Swap,
    Damage::Append,
];

impl Damage {
    /// Damages `object`; `other` is one to swap it with.
    fn inflict(self, object: &Path, other: &Path) {
        let length = fs::metadata(object).expect("an object").len();
        let flip = |at: u64| {
            let file = File::options().read(true).write(true).open(object).expect("an object");
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("inside");
            file.write_all_at(&[byte[0] ^ 0x01], at).expect("inside");
        };
        match self {
            Damage::Delete => fs::remove_file(object).expect("an object"),
            Damage::Empty => fs::write(object, "").expect("an object"),
            Damage::Truncate => {
                let file = File::options().write(true).open(object).expect("an object");
                file.set_len(length * 2 / 3).expect("an object");
            }
            Damage::FlipFirst => flip(0),
            Damage::FlipMiddle => flip(length / 2),
            Damage::FlipLast => flip(length - 1),
            Damage::Swap => {
                let spare = object.with_extension("spare");
                fs::rename(object, &spare).expect("an object");
                fs::rename(other, object).expect("an object");
                fs::rename(&spare, other).expect("an object");
            }
            Damage::Append => {
                let file = File::options().write(true).open(object).expect("an object");
                file.write_all_at(b"more", length).expect("an object");
            }
        }
    }
}

/// Objects of the package's folder, relative to it, sorted.
fn objects(package: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(package.join(&folder)).expect("the package") {
            let entry = entry.expect("the package");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("the package").is_dir() {
                folders.push(path);
            } else if entry.metadata().expect("the package").len() > 0 {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

fn sample(root: &Path) {
    let mut noise = vec![0; 1_500_000];
    rand::rngs::StdRng::seed_from_u64(5).fill_bytes(&mut noise);
    fs::create_dir_all(root.join("folder/deeper")).expect("a folder of the test");
    fs::write(root.join("folder/noise"), &noise).expect("a folder of the test");
    fs::write(root.join("folder/deeper/text"), "text\n".repeat(100_000)).expect("a folder of the test");
    for i in 0..300 {
        fs::write(root.join(format!("folder/deeper/small{i:03}")), format!("content {i}"))
            .expect("a folder of the test");
    }
    std::os::unix::fs::symlink("folder/noise", root.join("link")).expect("a folder of the test");
}

/// Reads everything below `mounted`; gives the number of failed operations.
///
/// # Panics
/// On a wrong byte, a wrong length, a name that should not be there, or an error other than EIO.
fn read_all(source: &Path, mounted: &Path, what: &str) -> usize {
    let mut failed = 0;
    let mut failure = |e: std::io::Error, path: &Path| {
        assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{what}: {}: {e}", path.display());
        failed += 1;
    };
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        // What must be there, by the source: a name that is not found is wrong as a wrong byte is.
        for entry in fs::read_dir(source.join(&folder)).expect("the source") {
            let path = folder.join(entry.expect("the source").file_name());
            let expected = fs::symlink_metadata(source.join(&path)).expect("the source");
            match fs::symlink_metadata(mounted.join(&path)) {
                Err(e) => {
                    failure(e, &path);
                    continue;
                }
                Ok(found) => {
                    assert_eq!(found.file_type(), expected.file_type(), "{what}: {}", path.display());
                    assert!(found.is_dir() || found.len() == expected.len(), "{what}: {}", path.display());
                }
            }
            if expected.is_dir() {
                folders.push(path);
            } else if expected.is_symlink() {
                match fs::read_link(mounted.join(&path)) {
                    Ok(target) => assert_eq!(target, fs::read_link(source.join(&path)).expect("the source"), "{what}"),
                    Err(e) => failure(e, &path),
                }
            } else {
                match fs::read(mounted.join(&path)) {
                    Ok(found) => {
                        let right = found == fs::read(source.join(&path)).expect("the source");
                        assert!(right, "{what}: wrong bytes in {}", path.display());
                    }
                    Err(e) => failure(e, &path),
                }
            }
        }
    }
    failed
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("--").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

/// Whether `text` names `object`: its file name, which for objects named by hash is unmistakable.
fn names(text: &str, object: &Path) -> bool {
    let name = object.file_name().and_then(OsStr::to_str).expect("plain names");
    // Trust metadata is named with its version in front, and people know it without.
    let plain =
        name.split_once('.').filter(|(n, _)| n.bytes().all(|b| b.is_ascii_digit())).map_or(name, |(_, rest)| rest);
    text.contains(name) || text.contains(plain)
}

#[test]
fn every_object_and_every_damage() {
    let publisher = Streamfs::new();
    let (source, content) = (publisher.folder("source"), publisher.folder("content"));
    sample(&source);
    let package = content.join("app");
    let recording = publisher.home().join("recording");
    fs::write(&recording, RECORDING).expect("a folder of the test");
    let arguments = ["publish", "--version", "1.0", "--profile"].map(OsStr::new);
    publisher.ok(arguments.into_iter().chain([recording.as_os_str(), source.as_os_str(), package.as_os_str()]));
    let all = objects(&package);
    for folder in [LAUNCH, PROFILES] {
        assert!(all.iter().any(|object| object.starts_with(folder)), "{all:?}");
    }
    assert!(all.len() >= 7, "{all:?}");
    let kinds: &[Damage] = tier().choose(&[Damage::Delete, Damage::FlipMiddle][..], &ALL[..], &ALL[..]);
    let cases: Vec<(usize, Damage)> =
        (0..all.len()).flat_map(|object| kinds.iter().map(move |damage| (object, *damage))).collect();
    let next = AtomicUsize::new(0);
    // Many of them wait for a deadline, which several can do at once.
    let work = || {
        while let Some((i, damage)) = cases.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let object = &all[i];
            let what = format!("{damage:?} of {}", object.display());
            let user = Streamfs::new();
            let damaged = user.folder("content").join("app");
            copy(&package, &damaged);
            let other = &all[(i + 1) % all.len()];
            damage.inflict(&damaged.join(object), &damaged.join(other));
            // Two that changed places are both damaged; either may be seen first.
            let victims = if damage == Damage::Swap { vec![object, other] } else { vec![object] };
            check(&user, &source, &damaged, &victims, damage, &what);
        }
    };
    std::thread::scope(|scope| (0..CASES_AT_ONCE).for_each(|_| drop(scope.spawn(work))));
}

fn check(user: &Streamfs, source: &Path, package: &Path, victims: &[&PathBuf], damage: Damage, what: &str) {
    let location = package.to_str().expect("plain");
    let hint = victims.iter().all(|object| HINTS.iter().any(|h| Path::new(h) == *object));
    let names_one = |text: &str| victims.iter().any(|object| names(text, object));
    // `verify` reads everything, so it sees everything.
    let verified = user.run(["verify", location, "--quiet"]);
    assert!(
        verified.code == 0 || verified.code == 1,
        "{what}: verify ended with {}: {}",
        verified.code,
        verified.stderr
    );
    if !hint && damage != Damage::Append {
        assert_eq!(verified.code, 1, "{what}: verify found nothing");
    }
    if verified.code == 1 {
        let said = format!("{}{}", verified.stdout, verified.stderr);
        assert!(names_one(&said), "{what}: verify does not name it: {said}");
    }
    let dir = user.folder("mnt");
    let mounted =
        user.run([OsStr::new("mount"), location.as_ref(), dir.as_os_str(), "--deadline".as_ref(), "3s".as_ref()]);
    match mounted.code {
        0 => {
            let failed = read_all(source, &dir, what);
            let only_faster = |object: &&PathBuf| object.starts_with(LAUNCH) || object.starts_with(PROFILES);
            assert!(failed == 0 || !victims.iter().all(only_faster), "{what}: launch sets are never needed");
            println!("{what}: mounted, {failed} operations failed");
            assert!(!user.agent_pids().is_empty(), "{what}: the agent is gone");
            user.ok([OsStr::new("unmount"), dir.as_os_str()]);
        }
        1 => {
            println!("{what}: {}", mounted.stderr.trim());
            assert_eq!(mounted.stderr.lines().count(), 1, "{what}: {}", mounted.stderr);
            assert!(names_one(&mounted.stderr), "{what}: the error does not name it: {}", mounted.stderr);
        }
        code => panic!("{what}: mount ended with {code}: {}", mounted.stderr),
    }
}

/// Damage that happens while the package is mounted, and is mended: reads fail, then succeed again.
#[test]
fn damage_under_a_live_mount_heals() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = content.join("app");
    user.publish(&source, package.to_str().expect("plain"), "1.0");
    let spare = user.home().join("spare");
    copy(&package, &spare);
    let mount = user.mount_with(package.to_str().expect("plain"), "mnt", &["--deadline", "3s"]);
    for object in objects(&package) {
        let length = fs::metadata(package.join(&object)).expect("an object").len();
        // In place, because whoever holds it open reads the damage too.
        let file = File::options().write(true).open(package.join(&object)).expect("an object");
        file.write_all_at(&vec![0xa5; length as usize], 0).expect("an object");
    }
    read_all(&source, mount.path(), "everything overwritten");
    for object in objects(&spare) {
        let bytes = fs::read(spare.join(&object)).expect("a copy");
        File::options()
            .write(true)
            .open(package.join(&object))
            .and_then(|f| f.write_all_at(&bytes, 0))
            .expect("an object");
    }
    wait_for("reads to succeed again", std::time::Duration::from_secs(30), || {
        (read_all(&source, mount.path(), "mended") == 0).then_some(())
    });
}
