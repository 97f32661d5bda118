//! The upgrade story: a program runs from version 1 while version 2 is published and remounted.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tests::{MountGuard, Nginx, Streamfs, is_mount_point, wait_for, wait_for_exit};

use crate::in_folder;

/// The application. It stays in the mount's folder and opens its files only when told to, by relative path, and
/// itself through /proc/self/exe.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <string.h>
int main(void) {
    char line[256], text[256];
    FILE *held = fopen("data/held", "r");
    if (!held) { perror("data/held"); return 1; }
    setvbuf(held, NULL, _IONBF, 0);
    printf("ready %s\n", VERSION); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "end")) { printf("ended %s\n", VERSION); return 0; }
        if (!strcmp(line, "held")) {
            if (fseek(held, 0, SEEK_SET) || !fgets(text, sizeof text, held)) { perror("held"); return 1; }
        } else {
            FILE *f = fopen(strcmp(line, "self") ? line : "/proc/self/exe", "r");
            if (!f) { perror(line); return 1; }
            if (!strcmp(line, "self")) {
                size_t n = fread(text, 1, 4, f);
                strcpy(text, n == 4 && !memcmp(text, "\177ELF", 4) ? "elf" : "not elf");
            } else if (!fgets(text, sizeof text, f)) { perror("read"); return 1; }
            fclose(f);
        }
        printf("%s\n", text); fflush(stdout);
    }
    return 0;
}
"#;

/// Makes version `version` of the application at `folder`.
fn application(folder: &Path, version: &str) {
    fs::create_dir_all(folder.join("data")).expect("a folder of the test");
    fs::create_dir_all(folder.join("bin")).expect("a folder of the test");
    for i in 0..20 {
        fs::write(folder.join(format!("data/{i}")), format!("file {i} of {version}")).expect("a folder of the test");
    }
    fs::write(folder.join("data/held"), format!("held of {version}")).expect("a folder of the test");
    let source = folder.with_extension("c");
    fs::write(&source, PROGRAM).expect("a folder of the test");
    let built = Command::new("gcc")
        .arg(format!("-DVERSION=\"{version}\""))
        .arg("-o")
        .arg(folder.join("bin/app"))
        .arg(&source)
        .output()
        .expect("gcc is needed for the tests; `cargo xtask setup` installs it");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// A running application.
struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(mount: &MountGuard<'_>) -> Self {
        let mut child = Command::new(mount.join("bin/app"))
            .current_dir(mount.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the mounted program starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").expect("the program listens");
        self.line()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to do if it ended as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks at a path in a tight loop until told to stop; gives how often, and what failed.
fn watch(path: &Path, stop: &AtomicBool, looks: &AtomicU64) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Err(e) = fs::metadata(path) {
            failures.push(e.to_string());
        }
        looks.fetch_add(1, Ordering::Relaxed);
    }
    failures
}

/// Version 2 of the application takes version 1's place while that runs. `poll` is how often the client asks for news.
pub(crate) fn tell_the_story(user: &Streamfs, package: &str, location: &str, poll: &str) {
    let (one, two) = (user.folder("one"), user.folder("two"));
    application(&one, "1.0");
    application(&two, "2.0");
    user.publish(&one, package, "1.0");
    let mount = user.mount_with(location, "mnt", &["--poll-interval", poll]);
    let mut running = Running::start(&mount);
    assert_eq!(running.line(), "ready 1.0");
    assert_eq!(running.ask("data/0"), "file 0 of 1.0");
    let (stop, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    let watched = mount.join("bin/app");
    let failures = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&watched, &stop, &looks));
        // Set when this scope ends in whatever way, or the watcher would be waited for in vain.
        let _stopper = Stopper(&stop);
        user.publish(&two, package, "2.0");
        wait_for("status to tell of the newer version", Duration::from_secs(30), || {
            (user.status_of(mount.path())["newer"] == "2.0").then_some(())
        });
        // Published is not mounted.
        assert_eq!(fs::read_to_string(mount.join("data/1")).expect("reads"), "file 1 of 1.0");
        user.ok(["remount".as_ref(), mount.path().as_os_str()]);
        assert_eq!(fs::read_to_string(mount.join("data/2")).expect("reads"), "file 2 of 2.0");
        let seen = looks.load(Ordering::Relaxed);
        wait_for("the watcher to look again", Duration::from_secs(10), || {
            (looks.load(Ordering::Relaxed) > seen + 100).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("no panic")
    });
    assert_eq!(failures, Vec::<String>::new(), "of {} looks", looks.load(Ordering::Relaxed));
    // The old one: a file it holds, files it never opened before, its own program.
    assert_eq!(running.ask("held"), "held of 1.0");
    assert_eq!(running.ask("self"), "elf");
    for i in 3..20 {
        assert_eq!(running.ask(&format!("data/{i}")), format!("file {i} of 1.0"));
    }
    // A new start sees the new version, beside the old.
    let mut second = Running::start(&mount);
    assert_eq!(second.line(), "ready 2.0");
    assert_eq!(second.ask("data/3"), "file 3 of 2.0");
    assert_eq!(running.ask("end"), "ended 1.0");
    assert!(wait_for_exit(&mut running.child, "the program from version 1", Duration::from_secs(10)).success());
    assert_eq!(second.ask("end"), "ended 2.0");
    assert!(wait_for_exit(&mut second.child, "the program from version 2", Duration::from_secs(10)).success());
    wait_for("the mount of version 1 to end with its last user", Duration::from_secs(30), || {
        (!user.status().to_string().contains("\"1.0\"")).then_some(())
    });
    let dir = mount.path().to_owned();
    mount.unmount();
    assert!(!is_mount_point(&dir));
}

struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_running_program_keeps_its_version_from_a_folder() {
    let user = Streamfs::new();
    let package = in_folder(&user.folder("content"), "app");
    tell_the_story(&user, &package, &package, "1s");
}

#[test]
fn a_running_program_keeps_its_version_from_a_web_server() {
    let user = Streamfs::new();
    let content = user.folder("content");
    let server = Nginx::http(&content);
    tell_the_story(&user, &in_folder(&content, "app"), &format!("{}/app", server.url()), "1s");
}

/// An upgrade that changes 1 % stores and fetches at most 2 % new bytes.
#[test]
fn a_small_change_costs_little() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    let total = 50_usize << 20;
    for i in 0..50 {
        fs::write(source.join(format!("file{i}")), crate::noise(total / 50, i)).expect("a folder of the test");
    }
    let package = in_folder(&content, "app");
    user.publish(&source, &package, "1");
    let server = Nginx::http(&content);
    let location = format!("{}/app", server.url());
    let mount = user.mount(&location, "mnt");
    user.ok(["load", &location]);
    // Half of one file of fifty.
    let mut changed = crate::noise(total / 50, 0);
    let middle = changed.len() / 2;
    changed[middle..].copy_from_slice(&crate::noise(total / 50, 99)[middle..]);
    fs::write(source.join("file0"), &changed).expect("a folder of the test");
    let size = |folder: &Path| {
        let out = Command::new("du").args(["-sb", "--"]).arg(folder).output().expect("du");
        String::from_utf8_lossy(&out.stdout)
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .expect("a number")
    };
    let before = size(&content);
    user.publish(&source, &package, "2");
    let stored = size(&content) - before;
    let mark = server.mark();
    user.ok(["remount".as_ref(), mount.path().as_os_str()]);
    user.ok(["load", &location]);
    tests::assert_same_tree(&source, mount.path());
    let fetched: u64 = server.requests_since(mark).iter().map(|r| r.body_bytes).sum();
    let most = total as u64 / 50;
    assert!(stored <= most, "stored {stored} new bytes for a change of 1 %, at most {most} are allowed");
    assert!(fetched <= most, "fetched {fetched} bytes for a change of 1 %, at most {most} are allowed");
}
