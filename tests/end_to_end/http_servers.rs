//! Web servers that ask for a password, use a private CA, break off and come back.

use std::ffi::OsStr;
use std::fs;

use tests::{Nginx, NginxOptions, Scheme, Streamfs, assert_same_tree};

use crate::{in_folder, sample};

fn published() -> (Streamfs, std::path::PathBuf, std::path::PathBuf) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    (user, source, content)
}

#[test]
fn a_password_is_needed_and_never_shown() {
    let (user, source, content) = published();
    let basic_auth = Some(("reader".to_owned(), "s3cret-pass".to_owned()));
    let server = Nginx::start(&content, &NginxOptions { scheme: Scheme::Https, basic_auth, ..NginxOptions::default() });
    let user = user.with_variable("SSL_CERT_FILE", server.ca_file());
    let location = format!("{}/app", server.url());
    let dir = user.folder("mnt");
    let line = user.fails([OsStr::new("mount"), location.as_ref(), dir.as_os_str()]);
    assert!(line.contains("STREAMFS_HTTP_USER"), "says what to do: {line}");
    let user =
        user.with_variable("STREAMFS_HTTP_USER", "reader").with_variable("STREAMFS_HTTP_PASSWORD", "s3cret-pass");
    let mount = user.mount(&location, "mnt");
    assert_same_tree(&source, mount.path());
    assert!(!user.status().to_string().contains("s3cret-pass"));
    for pid in user.agent_pids() {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains("s3cret-pass"), "others can see a process' arguments");
    }
    mount.unmount();
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let (user, _, content) = published();
    let server = Nginx::https(&content);
    let dir = user.folder("mnt");
    let arguments = ["mount", &format!("{}/app", server.url()), dir.to_str().expect("plain"), "--deadline", "5s"];
    let outcome = user.run(arguments);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.to_lowercase().contains("certificate"), "{}", outcome.stderr);
    assert!(server.requests().iter().all(|r| r.status >= 400), "nothing may be fetched from it");
}

#[test]
fn a_server_that_restarts_is_taken_up_again() {
    let (user, source, content) = published();
    let mut server = Nginx::http(&content);
    let mount = user.mount(&format!("{}/app", server.url()), "mnt");
    assert_eq!(fs::read(mount.join("small")).expect("reads"), b"small content\n");
    server.kill();
    let path = mount.join("folder/large");
    let reader = std::thread::spawn(move || fs::read(path));
    server.restart();
    let found = reader.join().expect("no panic").expect("the read waits for the server to come back");
    assert!(found == fs::read(source.join("folder/large")).expect("the source"));
}

#[test]
fn every_byte_is_fetched_once() {
    let (user, source, content) = published();
    let server = Nginx::http(&content);
    let mount = user.mount(&format!("{}/app", server.url()), "mnt");
    // Four readers at once want the same.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_same_tree(&source, mount.path()));
        }
    });
    let mut seen: std::collections::BTreeMap<String, Vec<(u64, u64)>> = std::collections::BTreeMap::new();
    for request in server.requests() {
        let Some(range) = request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")) else { continue };
        // One byte is asked for to open a second connection, for whoever waits beside what comes in advance.
        if range == "0-0" {
            continue;
        }
        let (first, last) = range.split_once('-').expect("a range");
        let (first, last) = (first.parse().expect("a number"), last.parse().expect("a number"));
        let others = seen.entry(request.path.clone()).or_default();
        let again = others.iter().any(|(a, b)| first <= *b && *a <= last);
        assert!(!again, "{} bytes {first}-{last} overlap what was fetched before: {others:?}", request.path);
        others.push((first, last));
    }
    assert!(!seen.is_empty());
}
