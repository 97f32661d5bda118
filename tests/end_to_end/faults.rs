//! Servers that hang, die, lie and send rubbish: right bytes within the deadline, or EIO; never a wrong byte.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::{Fault, FaultServer, MountGuard, Rule, ServedRequest, Streamfs};

use crate::{in_folder, noise, sample};

const DEADLINE: Duration = Duration::from_secs(3);
/// What a read may take beyond its deadline on a busy machine.
const GRACE: Duration = Duration::from_secs(7);

struct World {
    user: Streamfs,
    server: FaultServer,
    source: PathBuf,
}

impl World {
    fn new() -> Self {
        let user = Streamfs::new();
        let (source, content) = (user.folder("source"), user.folder("content"));
        sample(&source);
        user.publish(&source, &in_folder(&content, "app"), "1.0");
        let server = FaultServer::start(&content);
        Self { user, server, source }
    }

    fn mount(&self) -> MountGuard<'_> {
        let location = format!("{}/app", self.server.url());
        // Polling would use up faults that are meant for reads.
        self.user.mount_with(&location, "mnt", &["--deadline", "3s", "--poll-interval", "1h"])
    }
}

/// Requests for file content: ranges of what is neither metadata nor descriptor.
fn for_data(request: &ServedRequest) -> bool {
    request.range.is_some() && !request.path.contains("metadata") && !request.path.ends_with("head")
}

fn all_faults() -> Vec<Fault> {
    vec![
        Fault::Close,
        Fault::DieAfter(1_000),
        Fault::Status(404),
        Fault::Status(416),
        Fault::Status(500),
        Fault::Status(503),
        Fault::ShortBody(1),
        Fault::HtmlPage,
        Fault::IgnoreRange,
        Fault::WrongRange,
        Fault::FlipByte(100),
        Fault::Hang,
        Fault::StallAfter(1_000),
    ]
}

/// A fault that passes is not noticed by who reads, unless the server said that the object does not exist.
#[test]
fn a_fault_that_passes_is_survived() {
    for fault in all_faults() {
        let world = World::new();
        let mount = world.mount();
        world.server.set_rules(vec![Rule::when(for_data, fault.clone()).times(1)]);
        let start = Instant::now();
        let found = fs::read(mount.join("folder/large"));
        assert!(start.elapsed() < DEADLINE + GRACE, "{fault:?}: took {:?}", start.elapsed());
        match found {
            Ok(bytes) => assert!(bytes == noise(3_000_000, 7), "{fault:?}: wrong bytes"),
            // Stalls may use up the deadline; a definite answer may be believed.
            Err(e) => {
                let may_fail = matches!(
                    fault,
                    Fault::Hang
                        | Fault::StallAfter(_)
                        | Fault::Status(404 | 416)
                        | Fault::HtmlPage
                        | Fault::IgnoreRange
                );
                assert!(may_fail, "{fault:?}: {e}");
                assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{fault:?}: {e}");
            }
        }
        // It heals.
        world.server.set_rules(Vec::new());
        let healed = fs::read(mount.join("folder/large")).unwrap_or_else(|e| panic!("{fault:?} is over: {e}"));
        assert!(healed == noise(3_000_000, 7), "{fault:?}");
    }
}

/// A fault that stays is EIO within the deadline, on exactly the reads that need the server, and heals with it.
#[test]
fn a_fault_that_stays_is_an_error_in_time() {
    for fault in all_faults() {
        if fault == Fault::IgnoreRange {
            // The whole object has the wanted bytes in it: using them is as good as refusing.
            continue;
        }
        let world = World::new();
        let mount = world.mount();
        assert_eq!(fs::read(mount.join("small")).expect("reads"), b"small content\n");
        world.server.set_rules(vec![Rule::always(fault.clone())]);
        let start = Instant::now();
        let error = fs::read(mount.join("folder/large")).expect_err("no server, no bytes");
        assert!(start.elapsed() < DEADLINE + GRACE, "{fault:?}: took {:?}", start.elapsed());
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{fault:?}: {error}");
        // What is here goes on working.
        assert_eq!(fs::read(mount.join("small")).expect("cached"), b"small content\n", "{fault:?}");
        world.server.set_rules(Vec::new());
        let healed = fs::read(mount.join("folder/large")).unwrap_or_else(|e| panic!("{fault:?} is over: {e}"));
        assert!(healed == noise(3_000_000, 7), "{fault:?}");
    }
}

/// Mounting from a faulty server fails with one line that names it, in time.
#[test]
fn mounting_from_a_faulty_server_fails_in_time() {
    for (fault, part) in [
        (Fault::Hang, ""),
        (Fault::Close, ""),
        (Fault::Status(404), "app"),
        (Fault::Status(500), "500"),
        (Fault::HtmlPage, "HTML"),
        (Fault::ShortBody(10), ""),
        (Fault::FlipByte(30), ""),
    ] {
        let world = World::new();
        world.server.set_rules(vec![Rule::always(fault.clone())]);
        let dir = world.user.folder("mnt");
        let location = format!("{}/app", world.server.url());
        let start = Instant::now();
        let line = world.user.fails(["mount", &location, dir.to_str().expect("plain"), "--deadline", "3s", "--quiet"]);
        assert!(start.elapsed() < DEADLINE + GRACE, "{fault:?}: took {:?}", start.elapsed());
        assert!(line.contains("127.0.0.1") && line.contains(part), "{fault:?}: {line}");
    }
}

#[test]
fn a_slow_server_is_slow_but_right() {
    let world = World::new();
    let mount = world.mount();
    world.server.set_rules(vec![Rule::when(for_data, Fault::Trickle(64 << 10, Duration::from_millis(10)))]);
    assert!(fs::read(mount.join("folder/large")).expect("reads") == noise(3_000_000, 7));
}

/// A proxy that keeps a damaged copy is asked to fetch anew.
#[test]
fn a_damaged_cache_on_the_way_heals() {
    let world = World::new();
    let mount = world.mount();
    world.server.set_rules(vec![Rule::when(|r| for_data(r) && !r.no_cache, Fault::FlipByte(50))]);
    assert!(fs::read(mount.join("folder/large")).expect("heals") == noise(3_000_000, 7));
    assert!(world.server.requests().iter().any(|r| r.no_cache));
}

/// Names and attributes do not depend on the server once they were seen.
#[test]
fn a_dead_server_does_not_take_the_tree_away() {
    let world = World::new();
    let mount = world.mount();
    let listed = fs::read_dir(mount.path()).expect("lists").count();
    assert_eq!(listed, fs::read_dir(&world.source).expect("lists").count());
    world.server.set_rules(vec![Rule::always(Fault::Hang)]);
    assert_eq!(fs::metadata(mount.join("small")).expect("known").len(), 14);
    assert_eq!(fs::metadata(mount.join("none")).expect_err("not there").kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_link(mount.join("link")).expect("known"), PathBuf::from("folder/large"));
}

/// The log named a number instead of the file and a passed deadline instead of what was wrong, and `status` knew
/// nothing before the next poll.
#[test]
fn a_read_that_fails_is_explained() {
    let world = World::new();
    let mount = world.mount();
    let path = world.server.url().trim_start_matches("http://").to_owned();
    let World { user, server, .. } = &world;
    server.set_rules(vec![Rule::when(for_data, Fault::Close)]);
    fs::read(mount.join("folder/large")).expect_err("nothing can be fetched");
    let status = user.status_of(mount.path());
    assert_eq!(status["freshness"]["state"], "offline", "{status}");
    assert!(user.ok(["status"]).stdout.contains("reads FAIL"), "{status}");
    let log = fs::read_to_string(user.cache().join("log/agent.log")).expect("own log");
    let line = log.lines().find(|line| line.contains("answered EIO")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("/folder/large") && line.contains(&path), "{line}");
    assert!(!line.contains("did not finish within"), "{line}");
    // What comes again is no longer called away.
    server.set_rules(Vec::new());
    fs::read(mount.join("folder/large")).expect("the server is well again");
    assert_eq!(user.status_of(mount.path())["freshness"]["state"], "fresh");
}
