//! Mounting, remounting and unmounting through a real kernel, as root and as an ordinary user.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fs_core::package::NodeId;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::adapter::memory_tree::MemoryTree;
use crate::mounting::{Liveness, is_dead, liveness, streamfs_mounts};

/// An account without rights that every system has.
const NOBODY: u32 = 65534;

pub(crate) fn toy(version: &str) -> Arc<MemoryTree> {
    let mut tree = MemoryTree::new(version);
    tree.file(NodeId::ROOT, "version", version);
    tree.file(NodeId::ROOT, "large", vec![version.as_bytes()[0]; 1 << 20]);
    Arc::new(tree)
}

struct Place {
    _root: TempDir,
    dir: PathBuf,
    runtime: Runtime,
    mounter: Mounter,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(root.path()).unwrap().join("a place, with \\ signs");
        fs::create_dir(&dir).unwrap();
        Place { _root: root, dir, runtime: Runtime::new().unwrap(), mounter: Mounter::standalone() }
    }

    fn mount(&self, version: &str) -> Result<Mounted> {
        self.mount_with(version, &MountOptions::default())
    }

    fn mount_with(&self, version: &str, options: &MountOptions) -> Result<Mounted> {
        self.mounter.mount_tree(toy(version), &self.dir, options, self.runtime.handle().clone())
    }

    fn remount(&self, old: &Mounted, version: &str, lazy: bool) -> Result<Mounted> {
        let options = MountOptions::default();
        self.mounter.remount_tree(old, toy(version), &options, self.runtime.handle().clone(), lazy)
    }

    fn ended(&self, mounted: &Mounted) {
        self.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), mounted.ended()).await.expect("the session ends").unwrap();
        });
    }

    fn version(&self) -> String {
        fs::read_to_string(self.dir.join("version")).unwrap()
    }
}

#[test]
fn a_mount_is_seen_as_what_it_is_and_leaves_nothing() {
    let place = Place::new();
    let mounted = place.mount("1.0").unwrap();
    assert_eq!(place.version(), "1.0");
    let entry = streamfs_mounts().unwrap().into_iter().find(|m| m.mount_id == mounted.mount_id()).unwrap();
    assert_eq!((&entry.dir, entry.fs_type.as_str(), entry.source.as_str()), (&place.dir, "fuse.streamfs", "toy@1.0"));
    let bdi = format!("/sys/class/bdi/{}:{}/read_ahead_kb", entry.device.0, entry.device.1);
    assert_eq!(fs::read_to_string(bdi).unwrap().trim(), "1024");
    assert_eq!(liveness(&place.dir, Duration::from_secs(5)), Liveness::Alive);
    assert!(mounted.is_attached() && !mounted.has_ended());
    place.mounter.unmount(&mounted, false).unwrap();
    place.ended(&mounted);
    assert!(!mounted.is_attached() && mounted.has_ended());
    assert_eq!(fs::read_dir(&place.dir).unwrap().count(), 0);
    let again = place.mounter.unmount(&mounted, false);
    assert_eq!(again, Err(MountError::NotMounted { dir: place.dir.clone() }));
}

#[test]
fn unsuitable_directories_are_refused_with_the_reason() {
    let place = Place::new();
    let mount = |dir: &Path| {
        let options = MountOptions::default();
        place.mounter.mount_tree(toy("1"), dir, &options, place.runtime.handle().clone()).unwrap_err()
    };
    let absent = place.dir.join("absent");
    assert_eq!(mount(&absent), MountError::NoDirectory { dir: absent.clone() });
    let file = place.dir.join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(mount(&file), MountError::NotADirectory { dir: file.clone() });
    assert_eq!(mount(&place.dir), MountError::NotEmpty { dir: place.dir.clone() });

    let covering = place.mount_with("1", &MountOptions { nonempty: true, ..MountOptions::default() }).unwrap();
    assert!(matches!(mount(&place.dir), MountError::AlreadyMounted { what, .. } if what == "toy@1 (fuse.streamfs)"));
    place.mounter.unmount(&covering, false).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "x");
}

#[test]
fn unmounting_by_hand_ends_the_session() {
    let place = Place::new();
    let mounted = place.mount("1").unwrap();
    assert!(Command::new("umount").arg(&place.dir).status().unwrap().success());
    place.ended(&mounted);
    assert!(!mounted.is_attached());
}

#[test]
fn a_busy_mount_names_its_users_and_lives_on_when_detached() {
    let place = Place::new();
    let mounted = place.mount("1").unwrap();
    let mut user =
        Command::new("cat").current_dir(&place.dir).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let busy = place.mounter.unmount(&mounted, false);
    assert_eq!(busy, Err(MountError::Busy { dir: place.dir.clone(), users: vec![format!("cat ({})", user.id())] }));
    place.mounter.unmount(&mounted, true).unwrap();
    assert!(!mounted.is_attached() && !mounted.has_ended());
    drop(user.stdin.take());
    user.wait().unwrap();
    place.ended(&mounted);
}

#[test]
fn a_remount_never_fails_a_look_up_and_leaves_open_files_on_the_old_version() {
    let place = Place::new();
    let mut mounted = place.mount("0").unwrap();
    let first = mounted.clone();
    let mut open = File::open(place.dir.join("large")).unwrap();
    let (stop, looked_up) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    fs::metadata(place.dir.join("version")).expect("a path in the mount is always there");
                    looked_up.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for version in 1..=20 {
            let before = looked_up.load(Ordering::Relaxed);
            mounted = place.remount(&mounted, &version.to_string(), false).unwrap();
            assert_eq!(place.version(), version.to_string());
            while looked_up.load(Ordering::Relaxed) < before + 10 {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(streamfs_mounts().unwrap().iter().filter(|mount| mount.dir == place.dir).count(), 1);

    assert!(!first.is_attached() && !first.has_ended());
    let mut content = Vec::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.read_to_end(&mut content).unwrap();
    assert!(content.len() == 1 << 20 && content.iter().all(|byte| *byte == b'0'));
    drop(open);
    place.ended(&first);
    assert_eq!(place.version(), "20");
    place.mounter.unmount(&mounted, false).unwrap();
    place.ended(&mounted);
}

#[test]
fn a_second_directory_shares_the_connection() {
    let place = Place::new();
    let mounted = place.mount("1").unwrap();
    let second = tempfile::tempdir().unwrap();
    let copy = place.mounter.clone_to(&mounted, second.path()).unwrap();
    assert_ne!(copy.mount_id(), mounted.mount_id());
    place.mounter.unmount(&mounted, false).unwrap();
    assert!(!copy.has_ended());
    assert_eq!(fs::read_to_string(second.path().join("version")).unwrap(), "1");
    place.mounter.unmount(&copy, false).unwrap();
    place.ended(&copy);
}

/// Runs the scenario `name` of the test `role` as an ordinary user with a directory of its own.
///
/// In a mount namespace where everybody may open /dev/fuse, which is what distributions set and bare containers do not.
pub(crate) fn as_user(role: &str, name: &str) {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (exe, home, device) = (root.path().join("tests"), root.path().join("home"), root.path().join("device"));
    // By another process: one forked here meanwhile would inherit the descriptor and make the program "busy".
    assert!(Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&exe).status().unwrap().success());
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::create_dir(&device).unwrap();
    let script = format!(
        "mount -t tmpfs device . && mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse && cd / && \
         exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all -- \"$@\""
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
        .arg(&exe)
        .args(["--exact", role, "--nocapture"])
        .env("STREAMFS_TEST_ROLE", name)
        .env("TMPDIR", &home)
        .current_dir(&device)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("@done"), "{said}");
}

#[test]
fn an_ordinary_user_mounts_remounts_and_unmounts() {
    as_user("mounter::tests::role", "user");
}

#[test]
fn an_ordinary_user_without_the_helper_is_told_which_package_to_install() {
    as_user("mounter::tests::role", "user-without-helper");
}

#[test]
fn an_ordinary_user_may_not_mount_on_foreign_directories() {
    as_user("mounter::tests::role", "user-elsewhere");
}

/// Runs when another test starts this program again in a role; nothing otherwise.
#[test]
fn role() {
    match std::env::var("STREAMFS_TEST_ROLE").as_deref() {
        Ok("user") => user(),
        Ok("user-without-helper") => user_without_helper(),
        Ok("user-elsewhere") => user_elsewhere(),
        Ok("user-recording") => single_pages(),
        _ => return,
    }
    println!("\n@done");
}

fn user() {
    let place = Place::new();
    let mounted = place.mount("1").unwrap();
    assert_eq!(place.version(), "1");
    let entry = streamfs_mounts().unwrap().into_iter().find(|m| m.mount_id == mounted.mount_id()).unwrap();
    assert_eq!((&entry.dir, entry.fs_type.as_str(), entry.source.as_str()), (&place.dir, "fuse.streamfs", "toy@1"));
    assert!(matches!(place.mount("1"), Err(MountError::AlreadyMounted { .. })));
    assert_eq!(fs::write(place.dir.join("x"), "x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);

    let second = tempfile::tempdir().unwrap();
    let other = place.mounter.clone_to(&mounted, second.path()).unwrap();
    assert_eq!(fs::read_to_string(second.path().join("version")).unwrap(), "1");
    place.mounter.unmount(&other, false).unwrap();
    place.ended(&other);

    let open = File::open(place.dir.join("large")).unwrap();
    assert!(matches!(place.remount(&mounted, "2", false), Err(MountError::Busy { .. })));
    assert!(matches!(place.mounter.unmount(&mounted, false), Err(MountError::Busy { .. })));
    assert_eq!(place.version(), "1");
    let newer = place.remount(&mounted, "2", true).unwrap();
    assert_eq!(place.version(), "2");
    assert!(!mounted.has_ended());
    drop(open);
    place.ended(&mounted);

    let newest = place.remount(&newer, "3", false).unwrap();
    assert_eq!(place.version(), "3");
    place.ended(&newer);
    place.mounter.unmount(&newest, false).unwrap();
    place.ended(&newest);
    assert_eq!(fs::read_dir(&place.dir).unwrap().count(), 0);
}

fn user_without_helper() {
    // SAFETY: nothing else reads or writes the environment: this process runs this one test.
    unsafe { std::env::set_var("PATH", "/nonexistent") };
    let error = Place::new().mount("1").unwrap_err();
    assert_eq!(error, MountError::FusermountMissing);
    assert!(error.to_string().contains("fuse3"));
}

fn user_elsewhere() {
    let place = Place::new();
    let options = MountOptions { nonempty: true, ..MountOptions::default() };
    let runtime = place.runtime.handle().clone();
    let error = place.mounter.mount_tree(toy("1"), Path::new("/usr"), &options, runtime).unwrap_err();
    assert!(matches!(error, MountError::NotPermitted { .. }), "{error:?}");
}

#[test]
fn a_dead_mount_is_recognised_and_cleaned() {
    let place = Place::new();
    let request = Request::Create {
        dir: place.dir.clone(),
        spec: spec(&MountOptions::default(), Tree::identity(&*toy("1"))),
        replaces: None,
        lazy: false,
    };
    let (_, device) = place.mounter.ask(request).unwrap();
    place.mounter.ask(Request::Attach { dir: place.dir.clone(), replaces: None, lazy: false }).unwrap();
    assert!(!is_dead(&place.dir), "not answering yet is not dead");
    drop(device);
    assert!(is_dead(&place.dir));
    let refused = place.mount("1").unwrap_err();
    assert_eq!(refused, MountError::Stale { dir: place.dir.clone() });
    crate::mounting::clean(&place.dir).unwrap();
    let mounted = place.mount("1").unwrap();
    place.mounter.unmount(&mounted, false).unwrap();
}

/// The kernel asks for the pages that are used, one at a time and none around them.
fn single_pages() {
    let place = Place::new();
    let tree = toy("1");
    let options = MountOptions { exact_reads: true, ..MountOptions::default() };
    let runtime = place.runtime.handle().clone();
    let mounted = place.mounter.mount_tree(tree.clone(), &place.dir, &options, runtime).unwrap();
    let entry = streamfs_mounts().unwrap().into_iter().find(|m| m.mount_id == mounted.mount_id()).unwrap();
    let bdi = format!("/sys/class/bdi/{}:{}/read_ahead_kb", entry.device.0, entry.device.1);
    assert_eq!(fs::read_to_string(bdi).unwrap().trim(), "0");
    let mut file = File::open(place.dir.join("large")).unwrap();
    let mut reads_of = |from: u64, bytes: usize| {
        let before = tree.reads.load(Ordering::Relaxed);
        file.seek(SeekFrom::Start(from)).unwrap();
        file.read_exact(&mut vec![0; bytes]).unwrap();
        tree.reads.load(Ordering::Relaxed) - before
    };
    assert_eq!(reads_of(500_000, 1), 1);
    assert_eq!(reads_of(500_000, 1), 0, "kept by the kernel");
    assert_eq!(reads_of(0, 10 * 4096), 10, "one by one");
    drop(file);
    place.mounter.unmount(&mounted, false).unwrap();
    place.ended(&mounted);
}

#[test]
fn a_mount_for_recording_is_asked_for_single_pages_by_root_and_by_others() {
    single_pages();
    as_user("mounter::tests::role", "user-recording");
}
