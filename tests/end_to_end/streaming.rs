//! The streaming server and its clients over every scheme of its one port: real applications, upgrades that are told
//! unasked, who is let in, and what an administrator sees of it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tests::{Browser, Served, Streamfs, assert_same_tree, python_tree, wait_for};

use crate::upgrade::tell_the_story;
use crate::{in_folder, sample};

/// Longer than anything here takes, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);
const SCHEMES: [&str; 4] = ["http", "https", "rtsp", "rtsps"];

/// A publisher with a content root, and a server of it that speaks everything.
struct World {
    publisher: Streamfs,
    content: PathBuf,
    trial: PathBuf,
    server: Served,
}

impl World {
    fn new(more: &[&str]) -> Self {
        let publisher = Streamfs::new();
        let (content, trial) = (publisher.folder("content"), publisher.folder("tls"));
        let arguments = ["--tls-trial", trial.to_str().expect("plain")];
        let server = Served::start(&publisher, &content, &[&arguments, more].concat());
        Self { publisher, content, trial, server }
    }

    /// With the sample as `app` 1.0.
    fn with_sample(more: &[&str]) -> (Self, PathBuf) {
        let world = Self::new(more);
        let source = world.publisher.folder("source");
        sample(&source);
        world.publish(&source, "1.0");
        (world, source)
    }

    fn publish(&self, source: &Path, version: &str) {
        self.publisher.publish(source, &in_folder(&self.content, "app"), version);
    }

    /// Somebody with nothing cached who trusts the server.
    fn user(&self) -> Streamfs {
        Streamfs::new().with_variable("SSL_CERT_FILE", self.trial.join("ca.pem"))
    }

    fn app(&self, scheme: &str) -> String {
        format!("{}/app", self.server.url(scheme))
    }
}

#[test]
fn python_runs_the_same_over_every_scheme() {
    let world = World::new(&[]);
    let source = python_tree();
    world.publish(&source, "1.0");
    let script = "import sys, numpy, pandas
frame = pandas.DataFrame({'a': numpy.arange(10), 'b': numpy.arange(10) ** 2})
print(sys.prefix, frame.b.sum(), frame.groupby(frame.a % 2).b.sum().tolist())";
    for scheme in SCHEMES {
        let user = world.user();
        let mount = user.mount(&world.app(scheme), "mnt");
        let mut python = user.command(mount.join("bin/python3.11"));
        python.env("LD_LIBRARY_PATH", mount.join("lib")).args(["-c", script]);
        let output = python.stdin(Stdio::null()).output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{scheme}: {said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.trim(), format!("{} 285 [120, 165]", mount.path().display()), "{scheme}");
        assert_same_tree(&source, mount.path());
        mount.unmount();
    }
}

/// Nobody asks for news before an hour has passed: they are told, or the story does not go on.
#[test]
fn a_running_program_keeps_its_version_over_every_scheme() {
    for scheme in SCHEMES {
        let world = World::new(&[]);
        let user = Streamfs::new().with_variable("SSL_CERT_FILE", world.trial.join("ca.pem"));
        tell_the_story(&user, &in_folder(&world.content, "app"), &world.app(scheme), "1h");
    }
}

/// The lines of an access log.
fn log_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last one may be coming.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn packages_are_for_those_whom_the_access_file_names() {
    let folder = Streamfs::new();
    let settings = folder.folder("settings");
    let (access, log) = (settings.join("access.toml"), settings.join("access.log"));
    fs::write(&access, "[passwords]\nfile = \"users\"\n[[package]]\nname = \"app\"\nread = { groups = [\"staff\"] }\n")
        .expect("a folder of the test");
    for (user, group) in [("ann", "staff"), ("bob", "guests")] {
        let file = settings.join("users");
        let arguments = [OsStr::new("passwd"), file.as_os_str(), user.as_ref(), "--group".as_ref(), group.as_ref()];
        let input = settings.join("password");
        fs::write(&input, "s3cret\n").expect("a folder of the test");
        let mut command = folder.streamfs(arguments);
        let done = command.stdin(fs::File::open(&input).expect("just written")).output().expect("the program runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let plain = |path: &Path| path.to_str().expect("plain").to_owned();
    let (world, source) = World::with_sample(&["--access", &plain(&access), "--access-log", &plain(&log)]);
    for scheme in ["https", "rtsps"] {
        let as_user = |name: &str, password: &str| {
            let user = world.user();
            let file = user.home().join("password");
            fs::write(&file, password).expect("the own home");
            let config = user.home().join("config/streamfs");
            fs::create_dir_all(&config).expect("the own home");
            let url = world.server.url(scheme);
            let text = format!(
                "[[origin]]\nurl = \"{url}\"\ncredentials = {{ user = \"{name}\", password_file = \"{}\" }}\n",
                file.display()
            );
            fs::write(config.join("config.toml"), text).expect("the own home");
            rustix::fs::chmod(&file, rustix::fs::Mode::RUSR).expect("the own home");
            user
        };
        let ann = as_user("ann", "s3cret");
        let mount = ann.mount(&world.app(scheme), "mnt");
        assert_same_tree(&source, mount.path());
        mount.unmount();
        // Who may not read finds nothing there; who is not known is told so.
        for (name, password, words) in [
            ("bob", "s3cret", "does not exist"),
            ("ann", "wr0ng", "refuses access"),
            ("eve", "s3cret", "refuses access"),
        ] {
            let line = as_user(name, password).fails(["versions", &world.app(scheme)]);
            assert!(line.contains(words) && !line.contains(password), "{scheme} {name}: {line}");
        }
        let line = world.user().fails(["versions", &world.app(scheme)]);
        assert!(line.contains("refuses access"), "{scheme}: {line}");
    }
    wait_for("the access log", DEADLINE, || {
        let lines = log_lines(&log);
        let ann = |line: &&Value| line["user"] == "ann" && line["package"] == "app";
        let read = lines.iter().filter(ann).any(|line| line["event"] == "request" && line["status"] == 206);
        let session =
            lines.iter().filter(ann).any(|line| line["event"] == "session" && line["bytes"].as_u64() > Some(0));
        let failed = lines.iter().filter(|line| line["event"] == "failed_login").count();
        (read && session && failed >= 4).then_some(())
    });
    let text = fs::read_to_string(&log).expect("a log");
    assert!(!text.contains("s3cret") && !text.contains("wr0ng"), "{text}");
}

/// Text of the status page's table of that name.
fn table(name: &str) -> String {
    format!("(document.querySelector('#{name} tbody') || {{ innerText: '' }}).innerText")
}

#[test]
fn the_status_page_follows_what_happens() {
    let (world, source) = World::with_sample(&[]);
    let mut page = Browser::open(&world.publisher, &format!("{}/status", world.server.url("https")));
    page.wait_until(&format!("{}.includes('stable: 1.0')", table("packages")));
    page.wait_until("document.getElementById('line').className === 'live'");
    // A browser listens already; whoever mounts is told from it by what they read.
    let reads = |version: &str| format!("{}.includes('app {version}')", table("clients"));
    let uses = |count: usize| format!("{}.match(/app\\s+1\\.0\\s+{count}/) !== null", table("uses"));
    let user = world.user();
    let by_http = user.mount(&world.app("https"), "by-http");
    page.wait_until(&reads("1.0"));
    page.wait_until(&uses(1));
    let by_rtsp = user.mount(&world.app("rtsp"), "by-rtsp");
    fs::read(by_rtsp.join("folder/large")).expect("reads");
    page.wait_until(&uses(2));
    page.wait_until(&format!("{}.match(/rtsp\\s+app 1\\.0/) !== null", table("clients")));
    fs::write(source.join("small"), "changed\n").expect("a folder of the test");
    world.publish(&source, "2.0");
    page.wait_until(&format!("{}.includes('stable: 2.0')", table("packages")));
    by_http.unmount();
    page.wait_until(&uses(1));
    by_rtsp.unmount();
    page.wait_until(&format!("{} === ''", table("uses")));
    assert_eq!(page.evaluate("document.scripts.length"), 1);
}

#[test]
fn clients_that_agree_tell_how_long_launches_took() {
    let folder = Streamfs::new();
    let log = folder.home().join("access.log");
    let (world, _) = World::with_sample(&["--access-log", log.to_str().expect("plain")]);
    let silent = world.user();
    let quiet = silent.mount(&world.app("http"), "mnt");
    fs::read(quiet.join("small")).expect("reads");
    for scheme in ["http", "rtsp"] {
        let user = world.user();
        let config = user.home().join("config/streamfs");
        fs::create_dir_all(&config).expect("the own home");
        let text = format!("[[origin]]\nurl = \"{}\"\nreport_launches = true\n", world.server.url(scheme));
        fs::write(config.join("config.toml"), text).expect("the own home");
        let before = log_lines(&log).iter().filter(|line| line["event"] == "launch").count();
        let mount = user.mount(&world.app(scheme), "mnt");
        fs::read(mount.join("folder/large")).expect("reads");
        let told = wait_for("the launch to be told", DEADLINE, || {
            log_lines(&log).into_iter().filter(|line| line["event"] == "launch").nth(before)
        });
        let facts = (told["package"].as_str(), told["version"].as_str());
        assert_eq!(facts, (Some("app"), Some("1.0")), "{scheme}: {told}");
        assert!(told["ms"].as_f64() < Some(30_000.0), "{told}");
        mount.unmount();
    }
    quiet.unmount();
    assert_eq!(
        log_lines(&log).iter().filter(|line| line["event"] == "launch").count(),
        2,
        "who did not agree told nothing"
    );
}

/// Lets openssl work in `folder`.
fn openssl(folder: &Path, arguments: &str) {
    let mut command = std::process::Command::new("openssl");
    let done = command.current_dir(folder).args(arguments.split(' ')).stdin(Stdio::null()).output();
    let done = done.expect("openssl is installed (cargo xtask setup)");
    assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_certificate_says_who_somebody_is() {
    let folder = Streamfs::new();
    let files = folder.folder("files");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&files, &format!("req -x509 -days 30 -subj /CN=clients -keyout ca.key -out ca.pem {key}"));
    let leaf = "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=clientAuth\n";
    fs::write(files.join("leaf.ext"), leaf).expect("a folder of the test");
    for (authority, user) in [("ca", "ann"), ("ca", "bob")] {
        openssl(&files, &format!("req -subj /CN={user} -keyout {user}.key -out {user}.csr {key}"));
        let signed = format!("-CA {authority}.pem -CAkey {authority}.key -CAcreateserial -out {user}.pem");
        openssl(&files, &format!("x509 -req -days 30 -in {user}.csr -extfile leaf.ext {signed}"));
    }
    // Of nobody whom the server knows.
    openssl(&files, &format!("req -x509 -days 30 -subj /CN=ann -keyout eve.key -out eve.pem {key}"));
    fs::write(
        files.join("access.toml"),
        "[certificates]\nuser_from = \"common_name\"\n[[package]]\nname = \"app\"\nread = { users = [\"ann\"] }\n",
    )
    .expect("a folder of the test");
    let plain = |name: &str| files.join(name).to_str().expect("plain").to_owned();
    let (world, source) =
        World::with_sample(&["--access", &plain("access.toml"), "--client-ca", &plain("ca.pem"), "--tls-only"]);
    for scheme in ["https", "rtsps"] {
        let with_certificate = |name: &str| {
            let user = world.user();
            let config = user.home().join("config/streamfs");
            fs::create_dir_all(&config).expect("the own home");
            let (url, cert, key) =
                (world.server.url(scheme), plain(&format!("{name}.pem")), plain(&format!("{name}.key")));
            let text = format!("[[origin]]\nurl = \"{url}\"\nclient_cert = \"{cert}\"\nclient_key = \"{key}\"\n");
            fs::write(config.join("config.toml"), text).expect("the own home");
            user
        };
        let ann = with_certificate("ann");
        let mount = ann.mount(&world.app(scheme), "mnt");
        assert_same_tree(&source, mount.path());
        mount.unmount();
        let line = with_certificate("bob").fails(["versions", &world.app(scheme)]);
        assert!(line.contains("does not exist"), "{scheme}: {line}");
        with_certificate("eve").fails(["versions", &world.app(scheme)]);
        world.user().fails(["versions", &world.app(scheme)]);
    }
}
