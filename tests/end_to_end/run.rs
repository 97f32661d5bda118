//! Running programs from a mount of their own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tests::{Streamfs, wait_for, wait_for_exit};

use crate::{in_folder, sample};

fn published() -> (Streamfs, String) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    fs::create_dir(source.join("bin")).expect("a folder of the test");
    fs::write(source.join("bin/tool"), "#!/bin/sh\ncat \"$STREAMFS_MOUNT/small\"\necho \"$0 $*\"\nexit 5\n")
        .expect("own");
    fs::set_permissions(source.join("bin/tool"), fs::Permissions::from_mode(0o755)).expect("own");
    let location = in_folder(&content, "app");
    user.publish(&source, &location, "1.0");
    (user, location)
}

/// Mounts of this user that stand, and folders that runs left.
fn left_over(home: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let home_text = home.to_str().expect("plain");
    let mounts = table.lines().filter(|line| line.contains(home_text)).map(str::to_owned);
    let folders = fs::read_dir(home.join("run/streamfs/run")).into_iter().flatten().flatten();
    mounts.chain(folders.map(|entry| entry.path().display().to_string())).collect()
}

#[test]
fn a_program_of_the_package_runs_and_its_status_is_told() {
    let (user, location) = published();
    let outcome = user.run(["run", &location, "--", "bin/tool", "{mount}/x", "plain"]);
    assert_eq!(outcome.code, 5, "{}", outcome.stderr);
    let mut lines = outcome.stdout.lines();
    assert_eq!(lines.next(), Some("small content"));
    let words: Vec<&str> = lines.next().expect("two lines").split(' ').collect();
    let mount = words[0].strip_suffix("/bin/tool").expect("taken from the package");
    assert_eq!(words[1..], [format!("{mount}/x").as_str(), "plain"]);
    assert!(mount.starts_with(user.home().to_str().unwrap()) && mount.ends_with("/app"), "{mount}");
    assert_eq!(left_over(user.home()), Vec::<String>::new());

    let outcome = user.run(["run", &location, "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(outcome.code, 137);
    let outcome = user.run(["run", &location, "--", "true"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
}

#[test]
fn mistakes_are_told_and_leave_nothing() {
    let (user, location) = published();
    let line = user.fails(["--quiet", "run", &location, "--", "bin/absent"]);
    assert!(line.contains("cannot run from") && line.contains("cannot run bin/absent: No such file"), "{line}");
    let line = user.fails(["--quiet", "run", &location]);
    assert!(line.contains("name a program after --"), "{line}");
    let line = user.fails(["--quiet", "run", &location, "--app", "nosuch", "--", "true"]);
    assert!(line.contains("no launch set \"nosuch\""), "{line}");
    assert_eq!(left_over(user.home()), Vec::<String>::new());
}

#[test]
fn signals_reach_the_program_which_decides() {
    let (user, location) = published();
    let ready = user.home().join("ready");
    let script = format!("trap 'echo told; exit 3' TERM; echo up >{}; while :; do sleep 0.05; done", ready.display());
    let mut command = user.streamfs(["run", &location, "--", "sh", "-c", &script]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the built program");
    wait_for("the program to be up", Duration::from_secs(60), || fs::read(&ready).ok().filter(|text| !text.is_empty()));
    kill_process(Pid::from_child(&child), Signal::TERM).expect("own child");
    let status = wait_for_exit(&mut child, "run", Duration::from_secs(60));
    assert_eq!(status.code(), Some(3));
    assert_eq!(std::io::read_to_string(child.stdout.take().expect("piped")).expect("text"), "told\n");
    assert_eq!(left_over(user.home()), Vec::<String>::new());
}

#[test]
fn the_mount_ends_with_the_command_even_if_it_is_killed() {
    let (user, location) = published();
    let ready = user.home().join("ready");
    let script = format!("echo $$ >{}; exec sleep 1000", ready.display());
    let mut child = user.streamfs(["run", &location, "--", "sh", "-c", &script]).spawn().expect("the built program");
    let program = wait_for("the program to be up", Duration::from_secs(60), || {
        fs::read_to_string(&ready).ok().and_then(|text| text.trim().parse::<i32>().ok())
    });
    assert!(user.status().to_string().contains("/run/streamfs/run/"));
    kill_process(Pid::from_child(&child), Signal::KILL).expect("own child");
    assert_eq!(wait_for_exit(&mut child, "run", Duration::from_secs(60)).signal(), Some(9));
    let home = user.home().to_str().expect("plain");
    wait_for("the mount to be gone", Duration::from_secs(60), || {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
        (!table.contains(home)).then_some(())
    });
    kill_process(Pid::from_raw(program).expect("a process"), Signal::KILL).expect("the test's own program");
}

#[test]
fn launch_sets_are_chosen_by_name() {
    let (user, location) = published();
    let profile = user.home().join("calc.profile");
    user.ok([
        OsStr::new("profile"),
        location.as_ref(),
        "--name".as_ref(),
        "calc".as_ref(),
        "-o".as_ref(),
        profile.as_os_str(),
        "--".as_ref(),
        "cat".as_ref(),
        "{mount}/small".as_ref(),
    ]);
    user.ok([
        OsStr::new("publish"),
        user.home().join("source").as_os_str(),
        location.as_ref(),
        "--version".as_ref(),
        "2.0".as_ref(),
        "--profile".as_ref(),
        profile.as_os_str(),
    ]);
    assert_eq!(user.ok(["run", &location, "--app", "calc", "--", "cat", "{mount}/small"]).stdout, "small content\n");
    for (choice, name) in [(&["--launch", "calc"][..], "calc"), (&[], "calc"), (&["--launch", "none"], "")] {
        let user = Streamfs::new();
        let mount = user.mount_with(&location, "mnt", choice);
        assert_eq!(fs::read(mount.join("small")).expect("a file of the mount"), b"small content\n");
        wait_for("the launch set to come", Duration::from_secs(60), || {
            (user.status_of(mount.path())["statistics"]["launch"]["name"] == name).then_some(())
        });
        mount.unmount();
    }
}
