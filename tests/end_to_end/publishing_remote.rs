//! Publishing to `streamfs serve`: by whom it is allowed, killed midway, by two at once; and what clients see of it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::{Served, Streamfs, assert_same_tree, wait_for, wait_for_exit};

use crate::{noise, sample};

/// Longer than anything here takes, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

const RULES: &str = "[passwords]\nfile = \"users\"\n\
    [default]\nread = { users = [\"reader\"] }\npublish = { users = [\"build\", \"other\"] }\n";

/// A server that takes publications, over TLS.
struct World {
    host: Streamfs,
    content: PathBuf,
    authority: PathBuf,
    server: Served,
}

impl World {
    fn new() -> Self {
        let host = Streamfs::new();
        let (content, settings, tls) = (host.folder("content"), host.folder("settings"), host.folder("tls"));
        fs::write(settings.join("access.toml"), RULES).expect("a folder of the test");
        let users = plain(&settings.join("users"));
        for user in ["reader", "build", "other", "stranger"] {
            let password = host.home().join("password");
            fs::write(&password, "right\n").expect("the own home");
            let mut add = host.streamfs(["passwd", &users, user]);
            add.stdin(fs::File::open(password).expect("just written")).stdout(Stdio::null());
            assert!(add.status().expect("the program starts").success());
        }
        let access = plain(&settings.join("access.toml"));
        let server = Served::start(&host, &content, &["--tls-trial", &plain(&tls), "--tls-only", "--access", &access]);
        Self { content, authority: tls.join("ca.pem"), server, host }
    }

    /// Somebody with a home of their own.
    fn somebody(&self, user: &str) -> Streamfs {
        let somebody = Streamfs::new().with_variable("SSL_CERT_FILE", &self.authority);
        match user {
            "" => somebody,
            user => somebody.with_variable("STREAMFS_HTTP_USER", user).with_variable("STREAMFS_HTTP_PASSWORD", "right"),
        }
    }

    fn package(&self) -> String {
        format!("{}/team/app", self.server.url("https"))
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.content.join("team/app").join(name)
    }

    fn begin(&self, user: &Streamfs, source: &Path, version: &str) -> Child {
        let package = self.package();
        let words = ["publish".as_ref(), source.as_os_str(), package.as_ref(), "--version".as_ref(), version.as_ref()];
        let mut publish = user.streamfs(words);
        publish.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
    }
}

fn plain(path: &Path) -> String {
    path.to_str().expect("tests use plain paths").to_owned()
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, |entries| entries.count())
}

fn sent(summary: &Value) -> u64 {
    summary["sent_bytes"].as_u64().unwrap_or_else(|| panic!("it does not say what was sent: {summary}"))
}

#[test]
fn what_is_published_over_https_is_seen_by_those_who_have_it_mounted() {
    let world = World::new();
    let (build, reader) = (world.somebody("build"), world.somebody("reader"));
    let source = build.folder("source");
    sample(&source);
    let first = build.publish(&source, &world.package(), "1.0");
    assert!(sent(&first) > 3_000_000, "{first}");
    let mount = reader.mount(&world.package(), "mnt");
    assert_same_tree(&source, mount.path());
    fs::write(source.join("small"), "changed\n").expect("a folder of the test");
    let second = build.publish(&source, &world.package(), "2.0");
    assert!(sent(&second) < 1_000_000, "what the server had was sent again: {second}");
    wait_for("the mount to hear of it", DEADLINE, || (reader.status_of(mount.path())["newer"] == "2.0").then_some(()));
    assert_eq!(fs::read(mount.join("small")).expect("reads"), b"small content\n");
    reader.ok([OsStr::new("remount"), mount.path().as_os_str()]);
    assert_same_tree(&source, mount.path());
    // The same store takes what is only signed anew.
    let package = world.package();
    build.ok(["revoke", &format!("{package}@1.0")]);
    build.ok(["renew", &package]);
    build.ok([
        OsStr::new("publish"),
        source.as_os_str(),
        package.as_ref(),
        "--version".as_ref(),
        "2.0".as_ref(),
        "--channel".as_ref(),
        "beta".as_ref(),
    ]);
    let versions = reader.ok(["versions", &package, "--json"]).stdout;
    assert!(versions.contains("\"beta\"") && versions.contains("\"revoked\":true"), "{versions}");
    // Keys stayed with the publisher, and no scratch anywhere.
    assert_eq!(count(&build.home().join("keys")), 4, "three keys, and what they signed");
    assert_eq!(count(&world.folder(".incoming")), 0);
    let verified = reader.ok(["verify", &package]);
    assert!(verified.stderr.is_empty(), "{}", verified.stderr);
    mount.unmount();
}

#[test]
fn those_who_may_not_publish_change_nothing() {
    let world = World::new();
    let build = world.somebody("build");
    let source = build.folder("source");
    sample(&source);
    build.publish(&source, &world.package(), "1.0");
    let before = fs::read(world.folder("head")).expect("it was published");
    for (user, words) in [("reader", "not publish"), ("stranger", "404"), ("", "refuses access")] {
        let somebody = world.somebody(user);
        let package = world.package();
        let line = somebody.fails([
            OsStr::new("publish"),
            source.as_os_str(),
            package.as_ref(),
            "--version".as_ref(),
            "2.0".as_ref(),
            "--quiet".as_ref(),
        ]);
        assert!(line.contains(words) && !line.contains("right"), "{user:?}: {line}");
    }
    // Who may publish, but has not the package's keys, cannot either.
    let other = world.somebody("other");
    let line = other.fails(["renew", &world.package()]);
    assert!(line.contains("private key"), "{line}");
    assert_eq!(fs::read(world.folder("head")).expect("it is there"), before);
    // Credentials do not cross the network in clear, and RTSP takes no publications.
    for location in ["http://192.0.2.1/team/app", "rtsp://127.0.0.1/app"] {
        let line = build.fails([
            OsStr::new("publish"),
            source.as_os_str(),
            location.as_ref(),
            "--version".as_ref(),
            "2.0".as_ref(),
            "--quiet".as_ref(),
        ]);
        assert!(line.contains("https"), "{location}: {line}");
    }
}

#[test]
fn a_publisher_killed_midway_leaves_the_old_version_and_goes_on_later() {
    let world = World::new();
    let (build, reader) = (world.somebody("build"), world.somebody("reader"));
    let (old, new) = (build.folder("old"), build.folder("new"));
    sample(&old);
    sample(&new);
    // Three packs.
    fs::write(new.join("more"), noise(150_000_000, 5)).expect("a folder of the test");
    build.publish(&old, &world.package(), "1.0");
    let head = fs::read(world.folder("head")).expect("it was published");
    let packs = count(&world.folder("packs"));

    let mut publish = world.begin(&build, &new, "2.0");
    wait_for("it to send something", DEADLINE, || (count(&world.folder(".incoming")) > 0).then_some(()));
    publish.kill().expect("it runs");
    wait_for_exit(&mut publish, "a killed publish", DEADLINE);
    assert_eq!(fs::read(world.folder("head")).expect("it is there"), head, "half a publication is visible");
    wait_for("the server to remove what is half", DEADLINE, || (count(&world.folder(".incoming")) == 0).then_some(()));
    let mount = reader.mount(&world.package(), "mnt");
    assert_same_tree(&old, mount.path());

    // Once more, a bit further.
    let mut publish = world.begin(&build, &new, "2.0");
    wait_for("a pack to arrive", DEADLINE, || (count(&world.folder("packs")) > packs).then_some(()));
    // It may be done already, which is as good.
    let _ = publish.kill();
    wait_for_exit(&mut publish, "a killed publish", DEADLINE);
    let summary = build.publish(&new, &world.package(), "2.0");
    assert!(sent(&summary) < 140_000_000, "what had arrived was sent again: {summary}");
    reader.ok([OsStr::new("remount"), mount.path().as_os_str()]);
    assert_same_tree(&new, mount.path());
    mount.unmount();
    assert_eq!(count(&build.cache().join("publishing")), 1, "one folder for the package");
}

/// Both go on from version 1.0, with the same keys and different versions: at least one gets through, the other is told
/// to begin anew, and nothing is lost.
#[test]
fn of_two_publishers_at_once_none_undoes_the_other() {
    let world = World::new();
    let build = world.somebody("build");
    let source = build.folder("source");
    sample(&source);
    build.publish(&source, &world.package(), "1.0");
    let publishers: Vec<(Streamfs, &str)> = ["2.0", "3.0"]
        .into_iter()
        .map(|version| {
            let other = world.somebody("other");
            for key in fs::read_dir(build.home().join("keys")).expect("made by the first publication").flatten() {
                if key.path().is_file() {
                    fs::copy(key.path(), other.home().join("keys").join(key.file_name())).expect("the own home");
                }
            }
            (other, version)
        })
        .collect();
    let mut running: Vec<(Child, &str)> =
        publishers.iter().map(|(user, version)| (world.begin(user, &source, version), *version)).collect();
    let through: Vec<&str> = running
        .iter_mut()
        .filter_map(|(child, version)| wait_for_exit(child, "a publisher", DEADLINE).success().then_some(*version))
        .collect();
    assert!(!through.is_empty(), "nobody got through");
    let versions = |user: &Streamfs| user.ok(["versions", &world.package(), "--json"]).stdout;
    let listed = versions(&build);
    for version in ["2.0", "3.0"] {
        assert_eq!(listed.contains(&format!("\"{version}\"")), through.contains(&version), "{through:?}: {listed}");
    }
    // Who was too late begins anew and gets through.
    for (user, version) in &publishers {
        user.publish(&source, &world.package(), version);
    }
    let listed = versions(&build);
    assert!(["1.0", "2.0", "3.0"].iter().all(|version| listed.contains(&format!("\"{version}\""))), "{listed}");
    drop(world.host);
}
