//! Launch sets from recording to launching, on real mounts from real servers.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs_core::trust::head::HEAD_TAIL_BYTES;
use serde_json::Value;
use tests::{Fault, FaultServer, MountGuard, Nginx, Request, Rule, Served, Streamfs, wait_for};

use crate::{in_folder, noise, sample};

const DEADLINE: Duration = Duration::from_secs(60);
/// How much of `folder/large` a launch reads.
const LARGE_READ_BYTES: usize = 1_000_000;

/// A publisher, what was published with a recording of its launch, and where.
struct World {
    publisher: Streamfs,
    source: PathBuf,
    content: PathBuf,
    /// What `publish` told of the launch set.
    set: Value,
}

impl World {
    fn new() -> Self {
        let publisher = Streamfs::new();
        let (source, content) = (publisher.folder("source"), publisher.folder("content"));
        sample(&source);
        // Beside it, what no launch reads.
        for i in 0..200 {
            fs::write(source.join(format!("unread-{i}")), noise(5_000, i)).expect("a folder of the test");
        }
        let drafts = in_folder(&publisher.folder("drafts"), "app");
        publisher.publish(&source, &drafts, "1.0");
        let profile = publisher.home().join("app.profile");
        let script = format!("cat {{mount}}/small {{mount}}/text; head -c {LARGE_READ_BYTES} {{mount}}/folder/large");
        publisher.ok([
            OsStr::new("profile"),
            drafts.as_ref(),
            "-o".as_ref(),
            profile.as_os_str(),
            "--name".as_ref(),
            "calc".as_ref(),
            "--".as_ref(),
            "sh".as_ref(),
            "-c".as_ref(),
            format!("({script}) >/dev/null").as_ref(),
        ]);
        let mut world = Self { publisher, source, content, set: Value::Null };
        world.set = world.publish("1.0", Some(&profile))["launch"][0].clone();
        assert_eq!((&world.set["name"], &world.set["inherited"]), (&"calc".into(), &false.into()));
        world
    }

    fn publish(&self, version: &str, profile: Option<&Path>) -> Value {
        let location = in_folder(&self.content, "app");
        let fixed = [OsStr::new("publish"), self.source.as_os_str(), location.as_ref(), "--json".as_ref()];
        let version = [OsStr::new("--version"), version.as_ref()];
        let profile = profile.map(|file| [OsStr::new("--profile"), file.as_os_str()]);
        self.publisher.ok(fixed.into_iter().chain(version).chain(profile.into_iter().flatten())).json()
    }

    /// What a launch reads, which must be what was published.
    fn launch(&self, mount: &Path) -> std::io::Result<()> {
        for file in ["small", "text"] {
            let bytes = fs::read(mount.join(file))?;
            assert!(bytes == fs::read(self.source.join(file)).expect("own file"), "{file}");
        }
        let mut large = vec![0; LARGE_READ_BYTES];
        fs::File::open(mount.join("folder/large"))?.read_exact(&mut large)?;
        assert!(large == noise(3_000_000, 7)[..LARGE_READ_BYTES], "folder/large");
        Ok(())
    }
}

/// Counters of the launch set of the mount there.
fn launch_of(user: &Streamfs, mount: &MountGuard<'_>) -> Value {
    user.status_of(mount.path())["statistics"]["launch"].clone()
}

fn wait_for_phase(user: &Streamfs, mount: &MountGuard<'_>, phase: &str) -> Value {
    wait_for("the launch set", DEADLINE, || Some(launch_of(user, mount)).filter(|launch| launch["phase"] == phase))
}

/// Bytes of objects, and of the metadata besides.
fn bytes(requests: &[Request]) -> (u64, u64) {
    let is_object = |r: &&Request| ["/launch/", "/packs/", "/trees/"].iter().any(|folder| r.path.contains(folder));
    let (objects, metadata): (Vec<_>, Vec<_>) = requests.iter().partition(is_object);
    let sum = |requests: Vec<&Request>| requests.iter().map(|r| r.body_bytes).sum();
    (sum(objects), sum(metadata))
}

#[test]
fn a_cold_launch_takes_few_requests_and_little_more_than_its_launch_object() {
    let world = World::new();
    let server = Nginx::https(&world.content);
    let location = format!("{}/app", server.url());
    let object = world.set["bytes"].as_u64().expect("a length");
    assert!((LARGE_READ_BYTES as u64..LARGE_READ_BYTES as u64 * 11 / 10).contains(&object), "{}", world.set);

    let user = Streamfs::new().with_variable("SSL_CERT_FILE", server.ca_file());
    let mount = user.mount(&location, "mnt");
    world.launch(mount.path()).expect("the server is there");
    let launch = wait_for_phase(&user, &mount, "complete");
    let requests = server.requests();
    assert!(requests.len() < 20, "{} requests: {requests:#?}", requests.len());
    assert!(requests.iter().all(|r| r.protocol == "HTTP/2.0"), "{requests:#?}");
    assert_eq!(requests.iter().filter(|r| r.path.contains("/launch/")).count(), 1);
    let (objects, metadata) = bytes(&requests);
    // The beginning of the launch object comes behind the metadata.
    let (beginning, all) = (HEAD_TAIL_BYTES.min(object), objects + metadata);
    assert!(metadata < beginning + (64 << 10), "{metadata} bytes of metadata");
    assert!(all <= object * 12 / 10, "{all} bytes for a launch object of {object}: {requests:#?}");
    assert_eq!(launch["name"], "calc");
    assert_eq!((launch["bytes"].as_u64(), launch["bytes_received"].as_u64()), (Some(object), Some(object)));
    assert_eq!(launch["entries_here"], launch["entries"]);
    assert_eq!(launch["bytes_repeated"], 0);
    mount.unmount();

    // The next launch, of another agent, needs nothing but the question whether there is anything new.
    user.kill_agent();
    let mark = server.mark();
    let mount = user.mount(&location, "mnt");
    world.launch(mount.path()).expect("the server is there");
    wait_for_phase(&user, &mount, "complete");
    let (objects, _) = bytes(&server.requests_since(mark));
    assert_eq!(objects, 0, "{:#?}", server.requests_since(mark));
    mount.unmount();
}

/// Also where the stored `head` has another version's beginning behind it.
#[test]
fn a_streaming_server_sends_a_launch_with_its_first_answer() {
    let world = World::new();
    world.publish("2.0", None);
    let log = world.publisher.home().join("access.log");
    let server = Served::start(&world.publisher, &world.content, &["--access-log", log.to_str().expect("plain")]);
    let user = Streamfs::new();
    let mount = user.mount(&format!("{}/app@1.0", server.url("http")), "mnt");
    world.launch(mount.path()).expect("reads");
    wait_for_phase(&user, &mount, "complete");
    mount.unmount();
    // The request for news ends with the mount, and is the last that is logged.
    let lines: Vec<Value> = wait_for("the access log", DEADLINE, || {
        let text = fs::read_to_string(&log).ok()?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() > 1).then_some(lines)
    });
    let objects: Vec<&str> = lines.iter().filter_map(|line| line["object"].as_str()).collect();
    assert_eq!(objects, ["head"], "{lines:?}");
    let set_bytes = world.set["bytes"].as_u64().expect("the size of the launch object");
    assert!(lines[0]["bytes"].as_u64() > Some(set_bytes), "{lines:?}");
}

#[test]
fn a_version_without_a_recording_has_the_launch_set_of_the_one_before() {
    let world = World::new();
    fs::write(world.source.join("text"), "another line\n".repeat(30_000)).expect("own file");
    let told = world.publish("1.1", None)["launch"][0].clone();
    assert_eq!((&told["name"], &told["inherited"]), (&"calc".into(), &true.into()));
    let server = Nginx::https(&world.content);
    let user = Streamfs::new().with_variable("SSL_CERT_FILE", server.ca_file());
    let mount = user.mount(&format!("{}/app", server.url()), "mnt");
    world.launch(mount.path()).expect("the server is there");
    let launch = wait_for_phase(&user, &mount, "complete");
    assert_eq!(launch["bytes"], told["bytes"]);
    let requests = server.requests();
    let (objects, _) = bytes(&requests);
    assert!(requests.len() < 20 && objects <= told["bytes"].as_u64().unwrap_or(0) * 12 / 10, "{requests:#?}");
    mount.unmount();
}

#[test]
fn a_launch_set_is_chosen_or_left_by_name() {
    let world = World::new();
    let server = Nginx::http(&world.content);
    let location = format!("{}/app", server.url());
    let user = Streamfs::new();
    let dir = user.folder("mnt");
    let dir = dir.to_str().expect("plain");
    let line = user.fails(["--quiet", "mount", &location, dir, "--launch", "absent"]);
    assert!(line.contains("no launch set \"absent\"") && line.contains("it has: calc"), "{line}");
    let line = user.fails(["--quiet", "run", &location, "--app", "absent", "--", "true"]);
    assert!(line.contains("no launch set \"absent\"") && line.contains("it has: calc"), "{line}");

    let mount = user.mount_with(&location, "mnt", &["--launch", "none", "--prefetch", "none"]);
    assert_eq!(fs::read(mount.join("small")).expect("the server is there"), b"small content\n");
    assert_eq!(launch_of(&user, &mount)["phase"], "none");
    assert!(server.requests().iter().all(|r| !r.path.contains("/launch/")));
    mount.unmount();
    let mount = user.mount_with(&location, "mnt", &["--launch", "calc"]);
    assert_eq!(wait_for_phase(&user, &mount, "complete")["name"], "calc");
    mount.unmount();
}

#[test]
fn a_server_that_stalls_in_the_middle_of_a_stream_costs_what_has_not_come() {
    const READ_DEADLINE: Duration = Duration::from_secs(3);
    /// What a read may take beyond its deadline on a busy machine.
    const GRACE: Duration = Duration::from_secs(10);
    /// Of what does not come behind `head`.
    const CAME: usize = 100_000;
    let world = World::new();
    let server = FaultServer::start(&world.content);
    let user = Streamfs::new();
    server.set_rules(vec![Rule::on_path("/launch/", Fault::StallAfter(CAME))]);
    let location = format!("{}/app", server.url());
    let mount = user.mount_with(&location, "mnt", &["--deadline", "3s", "--poll-interval", "1h"]);
    wait_for("what comes", DEADLINE, || {
        (launch_of(&user, &mount)["bytes_received"].as_u64() >= Some(HEAD_TAIL_BYTES + CAME as u64)).then_some(())
    });
    // From now on the server answers nothing at all.
    server.set_rules(vec![Rule::always(Fault::Hang)]);
    assert_eq!(fs::read(mount.join("small")).expect("it came"), b"small content\n");
    assert!(fs::read(mount.join("text")).expect("it came") == fs::read(world.source.join("text")).expect("own"));
    let begun = Instant::now();
    let error = fs::read(mount.join("folder/large")).expect_err("it did not come whole");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    assert!(begun.elapsed() < READ_DEADLINE * 2 + GRACE, "it took {:?}", begun.elapsed());
    wait_for_phase(&user, &mount, "failed");
    // Nothing is lost once the server is well.
    server.set_rules(Vec::new());
    world.launch(mount.path()).expect("the server is back");
    assert!(fs::read(mount.join("folder/large")).expect("the server is back") == noise(3_000_000, 7));
    mount.unmount();
}

#[test]
fn a_stream_that_breaks_off_is_no_loss() {
    let world = World::new();
    let object = [Fault::Status(404), Fault::DieAfter(100_000), Fault::FlipByte(150_000), Fault::Hang];
    let beginning = [Fault::DieAfter(300_000), Fault::FlipByte(400_000), Fault::StallAfter(500_000)];
    let cases = object.map(|fault| ("/launch/", fault)).into_iter();
    for (path, fault) in cases.chain(beginning.map(|fault| ("/head", fault))) {
        let server = FaultServer::start(&world.content);
        server.set_rules(vec![Rule::on_path(path, fault.clone())]);
        let user = Streamfs::new();
        let mount = user.mount_with(&format!("{}/app", server.url()), "mnt", &["--deadline", "5s"]);
        world.launch(mount.path()).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        wait_for("the stream's end", DEADLINE, || {
            let phase = launch_of(&user, &mount)["phase"].clone();
            (phase == "complete" || phase == "failed").then_some(())
        });
        assert!(fs::read(mount.join("folder/large")).expect("the server is well") == noise(3_000_000, 7), "{fault:?}");
        mount.unmount();
    }
}
