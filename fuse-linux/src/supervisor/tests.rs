//! Deaths of worker and supervisor, as root and as an ordinary user. Each process is this test program started again
//! in a [`role`].

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use super::*;
use crate::mounter::tests::{as_user, toy};
use crate::mounter::{MountOptions, Mounter};
use crate::mounting::streamfs_mounts;

/// A running agent: supervisor and worker.
struct Agent {
    supervisor: Child,
    worker: Pid,
    said: Lines<BufReader<ChildStdout>>,
    dirs: Vec<PathBuf>,
    _root: TempDir,
}

impl Agent {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = fs::canonicalize(root.path()).unwrap();
        let dirs = vec![at.join("first"), at.join("second")];
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "supervisor::tests::role", "--nocapture"])
            .env("STREAMFS_TEST_ROLE", "supervisor")
            .env("STREAMFS_TEST_DIRS", std::env::join_paths(&dirs).unwrap())
            .stdout(Stdio::piped());
        // The test program has more threads than the supervisor's, which must not die of the signals either.
        // SAFETY: one async-signal-safe call between fork and exec.
        unsafe { command.pre_exec(signals::block_caught) };
        let mut supervisor = command.spawn().unwrap();
        let mut said = BufReader::new(supervisor.stdout.take().unwrap()).lines();
        let mut worker = None;
        for line in said.by_ref() {
            let line = line.unwrap();
            if let Some(pid) = line.strip_prefix("@worker ") {
                worker = Pid::from_raw(pid.parse().unwrap());
            }
            if line == "@ready" {
                break;
            }
        }
        let agent = Agent { supervisor, worker: worker.expect("the worker said its number"), said, dirs, _root: root };
        for dir in &agent.dirs {
            assert!(mounted(dir));
        }
        assert_eq!(fs::read_to_string(agent.dirs[0].join("version")).unwrap(), "2");
        agent
    }

    fn assert_clean(&self) {
        for dir in &self.dirs {
            assert!(!mounted(dir));
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "the directory is usable again");
        }
    }
}

fn mounted(dir: &Path) -> bool {
    streamfs_mounts().unwrap().iter().any(|mount| mount.dir == dir)
}

fn killed_worker() {
    let mut agent = Agent::start();
    // A file that is open on the dead mount must not keep the directory from being cleaned.
    let mut open = fs::File::open(agent.dirs[0].join("large")).unwrap();
    kill_process(agent.worker, Signal::KILL).unwrap();
    // The supervisor passes its worker's status on: see `role`.
    assert_eq!(agent.supervisor.wait().unwrap().code(), Some(100 + libc::SIGKILL));
    agent.assert_clean();
    assert!(open.read(&mut [0]).is_err(), "a dead version fails, it does not hang");
}

#[test]
fn a_killed_worker_leaves_clean_directories() {
    killed_worker();
}

#[test]
fn a_killed_worker_of_an_ordinary_user_leaves_clean_directories() {
    as_user("supervisor::tests::role", "killed-worker");
}

#[test]
fn a_killed_supervisor_makes_the_worker_unmount_and_end() {
    let mut agent = Agent::start();
    agent.supervisor.kill().unwrap();
    agent.supervisor.wait().unwrap();
    // Both processes write here: its end is the worker's end.
    let rest: Vec<String> = agent.said.by_ref().map(io::Result::unwrap).collect();
    assert!(rest.iter().any(|line| line == "@orphaned"), "{rest:?}");
    agent.assert_clean();
}

#[test]
fn sigterm_reaches_the_worker_and_its_status_comes_back() {
    let mut agent = Agent::start();
    kill_process(Pid::from_child(&agent.supervisor), Signal::TERM).unwrap();
    assert_eq!(agent.supervisor.wait().unwrap().code(), Some(7));
    agent.assert_clean();
}

#[test]
fn a_worker_that_cannot_be_started_is_an_error() {
    let error = run(Command::new("/nonexistent/worker"), || ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

/// Runs when another test starts this program again in a role; nothing otherwise.
#[test]
fn role() {
    match std::env::var("STREAMFS_TEST_ROLE").as_deref() {
        Ok("supervisor") => {
            let mut worker = Command::new(std::env::current_exe().unwrap());
            worker.args(["--exact", "supervisor::tests::role", "--nocapture"]).env("STREAMFS_TEST_ROLE", "worker");
            let status = run(worker, || println!("\n@ready")).unwrap();
            std::process::exit(status.code().unwrap_or_else(|| 100 + status.signal().unwrap_or(0)));
        }
        Ok("worker") => worker(),
        Ok("killed-worker") => {
            killed_worker();
            println!("\n@done");
        }
        _ => {}
    }
}

/// Mounts version 1, remounts it as version 2, shows it at a second directory, and serves until told to end.
fn worker() {
    let dirs = std::env::var_os("STREAMFS_TEST_DIRS").unwrap();
    let dirs: Vec<PathBuf> = std::env::split_paths(&dirs).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    println!("\n@worker {}", std::process::id());

    let mounter = Mounter::from_env().unwrap();
    assert!(Mounter::from_env().is_err(), "there is one socket");
    let options = MountOptions::default();
    let old = mounter.mount_tree(toy("1"), &dirs[0], &options, runtime.handle().clone()).unwrap();
    let first = mounter.remount_tree(&old, toy("2"), &options, runtime.handle().clone(), false).unwrap();
    runtime.block_on(old.ended()).unwrap();
    let second = mounter.clone_to(&first, &dirs[1]).unwrap();
    mounter.ready().unwrap();
    let code = runtime.block_on(async {
        tokio::select! {
            () = mounter.supervisor_gone() => 1,
            _ = terminate.recv() => 7,
        }
    });
    mounter.unmount(&first, true).unwrap();
    mounter.unmount(&second, true).unwrap();
    runtime.block_on(second.ended()).unwrap();
    if code == 1 {
        println!("\n@orphaned");
    }
    std::process::exit(code);
}
