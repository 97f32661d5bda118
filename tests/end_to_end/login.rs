//! Credentials that `streamfs login` keeps, and password files that `streamfs passwd` writes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Output, Stdio};

use tests::{Nginx, NginxOptions, Streamfs};

use super::{in_folder, sample};

/// Runs `command` with `input` as its standard input.
pub(super) fn with_input(user: &Streamfs, mut command: Command, input: &str) -> Output {
    let path = user.home().join("input");
    fs::write(&path, input).expect("the own home");
    command.stdin(fs::File::open(path).expect("just written")).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn login_keeps_what_the_server_takes() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let basic_auth = Some(("reader".to_owned(), "pass word".to_owned()));
    let server = Nginx::start(&content, &NginxOptions { basic_auth, ..NginxOptions::default() });
    let (url, app) = (server.url(), format!("{}/app", server.url()));
    let login = |more: &[&str]| user.streamfs(["login", url.as_str()].iter().chain(more));

    let line = user.fails(["versions", app.as_str()]);
    assert!(line.contains("refuses access"), "{line}");
    let refused = with_input(&user, login(&["--user", "reader"]), "wr0ng\n");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("does not take them (401") && !said.contains("wr0ng"), "{said}");
    user.fails(["versions", app.as_str()]);

    // There is no session with a keyring here.
    let kept = with_input(&user, login(&["--user", "reader", "--json"]), "pass word\n");
    let (out, said) = (text(&kept.stdout), text(&kept.stderr));
    assert!(kept.status.success(), "{said}");
    assert!(out.contains("\"store\":\"file\"") && !out.contains("pass word"), "{out}");
    let file = user.home().join("config/streamfs/logins.toml");
    assert_eq!(fs::metadata(&file).expect("kept in a file").mode() & 0o777, 0o600);
    user.ok(["versions", app.as_str()]);
    let listed = user.ok(["login"]);
    assert!(listed.stdout.contains("reader") && !listed.stdout.contains("pass word"), "{}", listed.stdout);

    user.ok(["logout", url.as_str()]);
    user.fails(["versions", app.as_str()]);
    let line = user.fails(["logout", url.as_str()]);
    assert!(line.contains("no login"), "{line}");
}

#[test]
fn login_does_not_keep_what_cannot_be_checked() {
    let user = Streamfs::new();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/content", gone.local_addr().expect("bound"));
    drop(gone);
    let unreachable = with_input(&user, user.streamfs(["login", url.as_str(), "--token"]), "t0ken\n");
    let said = text(&unreachable.stderr);
    assert!(!unreachable.status.success() && said.contains("--no-check") && !said.contains("t0ken"), "{said}");
    let unchecked = with_input(&user, user.streamfs(["login", url.as_str(), "--token", "--no-check"]), "t0ken\n");
    assert!(unchecked.status.success(), "{}", text(&unchecked.stderr));
    let empty = with_input(&user, user.streamfs(["login", url.as_str(), "--token", "--no-check"]), "");
    assert!(text(&empty.stderr).contains("no secret"), "{}", text(&empty.stderr));
}

#[test]
fn passwd_writes_password_files() {
    let user = Streamfs::new();
    let users = in_folder(user.home(), "users");
    let add = |name: &str, more: &[&str]| {
        let arguments = ["passwd", users.as_str(), name].into_iter().chain(more.iter().copied());
        let added = with_input(&user, user.streamfs(arguments), "hunter2\n");
        assert!(added.status.success(), "{}", text(&added.stderr));
    };
    add("ann", &["--group", "staff", "--group", "release"]);
    add("bob", &[]);
    let content = fs::read_to_string(&users).expect("written");
    assert!(content.contains("ann:$argon2id$") && !content.contains("hunter2"), "{content}");
    assert_eq!(fs::metadata(&users).expect("written").mode() & 0o777, 0o600);
    let listed = user.ok(["passwd", users.as_str(), "--json"]).json();
    assert_eq!(listed[0]["groups"][1], "release");
    assert_eq!(listed[1]["user"], "bob");
    user.ok(["passwd", users.as_str(), "bob", "--delete"]);
    let line = user.fails(["passwd", users.as_str(), "bob", "--delete"]);
    assert!(line.contains("bob"), "{line}");
}
