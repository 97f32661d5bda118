//! The agent killed at any moment, and agents that end properly.

use std::ffi::OsStr;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use tests::{Nginx, Streamfs, assert_same_tree, is_mount_point, seeds, tier, wait_for, wait_for_exit};

use crate::{in_folder, noise, sample};

/// SIGKILL while readers read. The stale mount is recognised and replaced, and the cache is right.
#[test]
fn a_killed_agent_leaves_a_cache_that_is_right() {
    seeds(tier().choose(2, 8, 100), |seed| {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let user = Streamfs::new();
        let (source, content) = (user.folder("source"), user.folder("content"));
        sample(&source);
        for i in 0..20 {
            let length = rng.random_range(1..3_000_000);
            fs::write(source.join(format!("file{i}")), noise(length, seed ^ i)).expect("a folder of the test");
        }
        let package = in_folder(&content, "app");
        user.publish(&source, &package, "1.0");
        let server = Nginx::http(&content);
        let location = format!("{}/app", server.url());
        for round in 0..3 {
            let mount = user.mount(&location, "mnt");
            let pause = Duration::from_millis(rng.random_range(0..150));
            std::thread::scope(|scope| {
                for reader in 0..3_u64 {
                    let dir = mount.path();
                    let source = &source;
                    scope.spawn(move || {
                        for i in 0..20 {
                            let name = format!("file{}", (i * 7 + reader * 5) % 20);
                            // Errors are what a dead agent gives; wrong bytes are what none may give.
                            if let Ok(found) = fs::read(dir.join(&name)) {
                                let expected = fs::read(source.join(&name)).expect("the source");
                                assert!(found == expected, "{name}: wrong bytes");
                            }
                        }
                    });
                }
                // The moment is the point; any will do.
                std::thread::sleep(pause);
                user.kill_agent();
            });
            // The stale mount is left to the next `mount`, which must clean it up.
            std::mem::forget(mount);
            let again = user.mount(&location, "mnt");
            assert_same_tree(&source, again.path());
            again.unmount();
            assert_eq!(user.folder("mnt").read_dir().map(Iterator::count).expect("lists"), 0, "round {round}");
        }
    });
}

#[test]
fn a_stale_mount_can_be_unmounted_and_is_not_listed_as_alive() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let mount = user.mount(&package, "mnt");
    user.kill_agent();
    user.run(["status", "--json"]).json();
    mount.unmount();
}

/// Ctrl-C and SIGTERM on a foreground mount unmount it.
#[test]
fn a_signal_ends_a_foreground_mount_cleanly() {
    for signal in [Signal::INT, Signal::TERM] {
        let user = Streamfs::new();
        let (source, content) = (user.folder("source"), user.folder("content"));
        sample(&source);
        let package = in_folder(&content, "app");
        user.publish(&source, &package, "1.0");
        let dir = user.folder("mnt");
        let mut child = user
            .streamfs([OsStr::new("mount"), package.as_ref(), dir.as_os_str(), "--foreground".as_ref()])
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        wait_for("the mount", Duration::from_secs(30), || is_mount_point(&dir).then_some(()));
        assert_same_tree(&source, &dir);
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, signal).expect("own child");
        wait_for_exit(&mut child, "a foreground mount after a signal", Duration::from_secs(20));
        assert!(!is_mount_point(&dir), "{signal:?}: still mounted");
        assert_eq!(fs::read_dir(&dir).expect("an empty folder").count(), 0);
    }
}

/// SIGTERM to the agent itself, as at a shutdown of the machine.
#[test]
fn an_agent_that_is_told_to_end_unmounts() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1.0");
    let mount = user.mount(&package, "mnt");
    for pid in user.agent_pids().into_iter().filter_map(Pid::from_raw) {
        // One may already have ended because of the other.
        let _ = kill_process(pid, Signal::TERM);
    }
    wait_for("the agent to end", Duration::from_secs(20), || user.agent_pids().is_empty().then_some(()));
    assert!(!is_mount_point(mount.path()));
}
