//! Loads as their users see them: in the background of a mount, through the end of an agent, in `status`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tests::{Streamfs, assert_same_tree, wait_for};

use crate::served_sample;

const DEADLINE: Duration = Duration::from_secs(60);

/// What `status` says of the only load.
fn load_status(user: &Streamfs) -> Value {
    user.ok(["status", "--json"]).json().pointer("/agents/0/loads/0").cloned().unwrap_or_default()
}

/// A load in the background of a mount outlives the agent, and what had come does not come again.
#[test]
fn a_killed_agent_leaves_its_load_to_the_next_one() {
    let (user, source, server, location) = served_sample();
    let dir = user.folder("slow");
    let dir = dir.to_str().expect("a path of the test");
    user.ok(["mount", &location, dir, "--background-load", "--rate", "1M/s"]);
    wait_for("a first part of the load", DEADLINE, || {
        let status = load_status(&user);
        assert_eq!(status["offline_ready"], false, "{status}");
        status["fetched_bytes"].as_u64().is_some_and(|bytes| bytes > 500_000).then_some(())
    });
    user.kill_agent();
    let mount = user.mount(&location, "mnt");
    wait_for("the end of the load", DEADLINE, || (load_status(&user)["offline_ready"] == true).then_some(()));
    let bytes: u64 = server.requests().iter().map(|r| r.body_bytes).sum();
    // 3 MB do not compress; a piece that was under way when the agent was killed comes again.
    assert!((3_000_000..4_200_000).contains(&bytes), "{bytes} bytes were fetched");
    assert_same_tree(&source, mount.path());
}

/// Unmounting stops what was to be loaded while the version was mounted; `load` goes on with it.
#[test]
fn unmounting_stops_a_load_in_its_background() {
    let (user, _, _server, location) = served_sample();
    let dir = user.folder("slow");
    let dir = dir.to_str().expect("a path of the test");
    let _keeps_the_agent = user.mount(&location, "mnt");
    user.ok(["mount", &location, dir, "--background-load", "--rate", "64K"]);
    user.ok(["unmount", dir]);
    wait_for("the load to stop", DEADLINE, || (load_status(&user)["state"] == "stopped").then_some(()));
    user.ok(["load", &location]);
    assert_eq!(load_status(&user)["state"], "offline_ready");
    assert!(user.ok(["status"]).stdout.contains("ready for offline use"));
    user.kill_agent();
    // Nobody can be asked, but it stands on disk.
    let idle = user.ok(["status", "--json"]).json();
    assert_eq!(idle["idle"]["loads"][0]["state"], "offline_ready", "{idle}");
    assert!(user.ok(["status"]).stdout.contains("ready for offline use"));
    user.ok(["unload", &location]);
    assert_eq!(load_status(&user), Value::Null);
}

/// What was trusted stays trusted although the load was broken off, so it must have been said.
#[test]
fn a_load_that_is_broken_off_has_said_whom_it_trusts() {
    let (user, _, _server, location) = served_sample();
    let mut load = user.streamfs(["load", &location, "--rate", "64K"]);
    let mut load = load.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("streamfs starts");
    let mut said = String::new();
    let mut words = BufReader::new(load.stderr.take().expect("it was asked for"));
    words.read_line(&mut said).expect("it says something");
    assert!(said.contains("trusted the package's root key on first use"), "{said}");
    let id = rustix::process::Pid::from_child(&load);
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("it runs");
    assert_eq!(load.wait().expect("own child").code(), Some(130));
    let mut rest = String::new();
    words.read_to_string(&mut rest).expect("text");
    assert!(rest.contains("streamfs load") && rest.contains("streamfs unload"), "{rest}");
}
