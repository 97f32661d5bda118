//! `streamfs serve`: one port for everything, settings that are read again, an end that nobody notices.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{CacheKind, CachingProxy, Served, Streamfs, assert_same_tree, wait_for};

use crate::{in_folder, noise, sample};

/// Longer than anything here takes, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// A user, the sample's folder, and a content root with it published as `app` 1.0.
fn published() -> (Streamfs, PathBuf, PathBuf) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    (user, source, content)
}

/// Sends a request in clear; the connection stays open.
fn ask(server: &Served, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
    stream
}

/// Reads until `end` has come; gives all that did.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let (mut all, mut piece) = (String::new(), [0; 4096]);
    while !all.contains(end) {
        let read = stream.read(&mut piece).unwrap_or_else(|e| panic!("{end:?} did not come ({e}): {all}"));
        assert!(read > 0, "the connection ended before {end:?}: {all}");
        all.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    all
}

#[test]
fn one_port_serves_mounts_in_clear_and_by_tls() {
    let (user, source, content) = published();
    let trial = user.folder("tls");
    let server = Served::start(&user, &content, &["--tls-trial", trial.to_str().expect("plain")]);
    let user = user.with_variable("SSL_CERT_FILE", trial.join("ca.pem"));
    for scheme in ["http", "https", "rtsp", "rtsps"] {
        let mount = user.mount(&format!("{}/app", server.url(scheme)), &format!("mnt-{scheme}"));
        assert_same_tree(&source, mount.path());
        mount.unmount();
    }
}

#[test]
fn a_published_version_is_told_within_a_second() {
    let (user, source, content) = published();
    let server = Served::start(&user, &content, &[]);
    let mut events = ask(&server, "/app/events");
    read_until(&mut events, "\"stable\":\"1.0\"");
    fs::write(source.join("small"), "changed\n").expect("a folder of the test");
    user.publish(&source, &in_folder(&content, "app"), "2.0");
    let published = Instant::now();
    read_until(&mut events, "\"stable\":\"2.0\"");
    assert!(published.elapsed() < Duration::from_secs(1), "{:?}", published.elapsed());
}

#[test]
fn a_server_that_is_killed_and_comes_back_goes_on() {
    for scheme in ["http", "rtsp"] {
        killed_and_back(scheme);
    }
}

fn killed_and_back(scheme: &str) {
    let (user, source, content) = published();
    let mut server = Served::start(&user, &content, &[]);
    let mount = user.mount(&format!("{}/app", server.url(scheme)), "mnt");
    assert_eq!(fs::read(mount.join("small")).expect("reads"), b"small content\n");
    server.signal(Signal::KILL);
    server.ended();
    let path = mount.join("folder/large");
    let reader = std::thread::spawn(move || fs::read(path));
    server.restart(&user);
    let found = reader.join().expect("no panic").expect("the read waits for the server to come back");
    assert!(found == fs::read(source.join("folder/large")).expect("the source"));
}

/// SIGTERM: what runs finishes, who listens is sent home, nobody new is taken.
#[test]
fn the_end_waits_for_transfers_and_for_nothing_else() {
    let (user, _, content) = published();
    // Some more than the sockets between hold.
    let object = content.join("app/packs").join("0a".repeat(32));
    fs::write(&object, noise(64 << 20, 3)).expect("a folder of the test");
    let mut server = Served::start(&user, &content, &[]);
    let mut events = ask(&server, "/app/events");
    read_until(&mut events, "event: state");
    let mut transfer = ask(&server, &format!("/app/packs/{}", "0a".repeat(32)));
    let mut first = [0; 1000];
    transfer.read_exact(&mut first).expect("it begins");
    server.signal(Signal::TERM);
    wait_for("the server to take nobody any more", DEADLINE, || TcpStream::connect(server.address()).err());
    let mut rest = Vec::new();
    transfer.read_to_end(&mut rest).expect("it ends");
    assert!(first.len() + rest.len() > 64 << 20, "only {} bytes came", first.len() + rest.len());
    assert!(server.ended().success());
}

#[test]
fn settings_are_read_again_and_mistakes_change_nothing() {
    let (user, _, content) = published();
    let settings = user.folder("settings").join("config.toml");
    let trial = user.folder("tls");
    fs::write(&settings, "[server]\ndrain = \"1s\"\n").expect("a folder of the test");
    let arguments =
        ["--tls-trial", trial.to_str().expect("plain"), "--config", settings.to_str().expect("plain"), "--verbose"];
    let mut server = Served::start(&user, &content, &arguments);
    let health = || read_until(&mut ask(&server, "/healthz"), "ok\n");
    fs::write(&settings, "[server]\nnonsense = 1\n").expect("a folder of the test");
    server.signal(Signal::HUP);
    health();
    // Clear text is refused from then on.
    fs::write(&settings, "[server]\ntls_only = true\n").expect("a folder of the test");
    server.signal(Signal::HUP);
    wait_for("the new settings", DEADLINE, || {
        let mut answer = ask(&server, "/healthz");
        let mut status = [0; 12];
        answer.read_exact(&mut status).ok()?;
        (status == *b"HTTP/1.1 400").then_some(())
    });
    server.signal(Signal::TERM);
    assert!(server.ended().success());
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    let (user, _, content) = published();
    let content = content.to_str().expect("plain");
    for (arguments, words) in [
        (vec!["serve"], "what to serve"),
        (vec!["serve", content], "--listen"),
        (vec!["serve", "/does/not/exist", "--listen", "127.0.0.1:0"], "/does/not/exist"),
        (
            vec!["serve", content, "--listen", "127.0.0.1:0", "--tls-cert", "/no/cert", "--tls-key", "/no/key"],
            "/no/cert",
        ),
    ] {
        let line = user.fails(&arguments);
        assert!(line.contains(words), "{arguments:?}: {line}");
    }
}

/// Bytes that the server has sent over HTTP so far.
fn sent_bytes(server: &Served) -> u64 {
    // An answer counts when its connection has let go of it, so the counter may be late by an answer.
    let text = read_until(&mut ask(server, "/metrics"), "streamfs_server_connections");
    let line = text.lines().find(|line| line.starts_with("streamfs_server_sent_bytes_total{protocol=\"http\"}"));
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    value.unwrap_or_else(|| panic!("the bytes are not told: {text}")) as u64
}

/// Whoever comes second gets from the cache what never changes; what changes is asked for anew.
fn is_cached_by(kind: CacheKind) {
    let (user, source, content) = published();
    let server = Served::start(&user, &content, &[]);
    let cache = CachingProxy::start(kind, server.address());
    let location = format!("{}/app", cache.url());
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
    let first = sent_bytes(&server);
    let second = Streamfs::new();
    let other = second.mount(&location, "mnt");
    assert_same_tree(&source, other.path());
    other.unmount();
    let again = sent_bytes(&server) - first;
    assert!(
        first > 3_000_000 && again < 200_000,
        "{kind:?}: {first} bytes for the first client, {again} for the second"
    );
    // A new version is seen through it at once.
    fs::write(source.join("small"), "changed\n").expect("a folder of the test");
    user.publish(&source, &in_folder(&content, "app"), "2.0");
    user.ok([OsStr::new("remount"), mount.path().as_os_str()]);
    assert_same_tree(&source, mount.path());
    mount.unmount();
}

#[test]
fn nginx_with_slices_in_front_keeps_what_never_changes() {
    is_cached_by(CacheKind::NginxSlices);
}

#[test]
fn squid_in_front_keeps_what_never_changes() {
    is_cached_by(CacheKind::Squid);
}
