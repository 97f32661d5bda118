//! Recording launches: exactly what is used, in order, from fresh mounts, however the program ends.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fs_core::package::profile::{Profile, Use};
use rustix::process::{Pid, Signal, kill_process};
use tests::{Streamfs, python_tree, wait_for, wait_for_exit};

use crate::{in_folder, sample};

const PYTHON: &str = "/usr/bin/python3.11";

/// A user and a published sample.
fn published() -> (Streamfs, String) {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    let location = in_folder(&content, "app");
    user.publish(&source, &location, "1.0");
    (user, location)
}

fn read(file: &Path) -> Profile {
    Profile::parse(&fs::read(file).expect("the profile was written"), "profile").expect("it is one")
}

/// What was used of `path`.
fn uses(profile: &Profile, path: &str) -> Vec<Use> {
    profile.events.iter().filter(|e| e.path == path.as_bytes()).map(|e| e.use_).collect()
}

/// Records `command`, whose words follow `--`, into the file of that name.
fn record(user: &Streamfs, location: &str, file: &str, more: &[&str], command: &[&str]) -> (Profile, tests::Outcome) {
    let file = user.folder("out").join(file);
    let fixed = [OsStr::new("profile"), location.as_ref(), "-o".as_ref(), file.as_os_str(), "--json".as_ref()];
    let command = std::iter::once("--").chain(command.iter().copied());
    let outcome = user.run(fixed.into_iter().chain(more.iter().copied().chain(command).map(OsStr::new)));
    assert!(!mounted_below(user.home()), "nothing stays mounted");
    assert!(file.exists(), "{outcome:?}");
    (read(&file), outcome)
}

/// What was told of a recording, after whatever the program said.
fn facts(outcome: &tests::Outcome) -> serde_json::Value {
    serde_json::from_str(outcome.stdout.lines().last().expect("facts")).expect("JSON")
}

fn mounted_below(home: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").expect("a mount table").contains(home.to_str().expect("plain"))
}

#[test]
fn exactly_the_pages_that_are_used_are_recorded() {
    let (user, location) = published();
    let script = "import mmap, os
root = os.environ['STREAMFS_MOUNT']
with open(root + '/link', 'rb') as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    m[1_000_000]
    m[2_000_000]
open(root + '/text', 'rb').read()
os.path.exists(root + '/absent')
os.listdir(root)";
    let (profile, outcome) = record(&user, &location, "exact", &["--name", "calc"], &[PYTHON, "-c", script]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let header = &profile.header;
    assert_eq!((&*header.package, &*header.version, &*header.name), ("app", "1.0", "calc"));
    let page = |of: u64| Use::Read { offset: of - of % 4096, length: 4096 };
    let read: Vec<Use> = uses(&profile, "/folder/large");
    assert_eq!(read, [Use::Lookup, page(1_000_000), page(2_000_000)], "one page for each byte, no page around it");
    assert_eq!(uses(&profile, "/link"), [Use::Lookup, Use::ReadLink]);
    assert_eq!(uses(&profile, "/absent"), [Use::Lookup]);
    assert_eq!(uses(&profile, "/"), [Use::List]);
    assert_eq!(uses(&profile, "/small"), [], "listed and not read");
    let text: u64 = 540_000;
    let bytes: u64 =
        uses(&profile, "/text").iter().map(|u| if let Use::Read { length, .. } = u { *length } else { 0 }).sum();
    assert!((text..text + 4096).contains(&bytes), "a sequential reader uses all: {bytes}");
    let told = facts(&outcome);
    assert_eq!((told["exit_status"].as_u64(), told["files_read"].as_u64()), (Some(0), Some(2)));
    assert!(profile.events.is_sorted_by_key(|e| e.at_micros));
}

#[test]
fn several_launches_are_merged_and_each_sees_a_fresh_mount() {
    let (user, location) = published();
    let counter = user.home().join("counter");
    let script = format!(
        "cat {{mount}}/small; if test -e {0}; then head -c 100 {{mount}}/folder/large >{0}.2; fi; touch {0}",
        counter.display()
    );
    let (profile, outcome) = record(&user, &location, "merged", &["--runs", "2"], &["sh", "-c", &script]);
    assert_eq!((outcome.code, facts(&outcome)["runs"].as_u64()), (0, Some(2)));
    assert_eq!(uses(&profile, "/small"), [Use::Lookup, Use::Read { offset: 0, length: 4096 }], "each once");
    assert_eq!(uses(&profile, "/folder/large").len(), 2, "only the second read it");

    // By hand, the same comes of single recordings.
    let (one, _) = record(&user, &location, "one", &[], &["cat", "{mount}/text"]);
    let out = user.home().join("out");
    let both = out.join("both");
    user.ok(["profile", "--merge", out.join("merged").to_str().unwrap(), out.join("one").to_str().unwrap(), "-o"]
        .into_iter()
        .map(OsStr::new)
        .chain([both.as_os_str()]));
    assert_eq!(read(&both), Profile::merge(&[profile, one]).unwrap());
    let shown = user.ok([OsStr::new("profile"), "--show".as_ref(), both.as_os_str()]).stdout;
    assert_eq!(shown, read(&both).to_text());
}

#[test]
fn a_failing_program_is_recorded_and_its_status_told() {
    let (user, location) = published();
    let (profile, outcome) = record(&user, &location, "failing", &[], &["sh", "-c", "cat {mount}/small; exit 9"]);
    assert_eq!(outcome.code, 9, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("ended with status 9"), "{}", outcome.stderr);
    assert_eq!(uses(&profile, "/small").len(), 2);
}

#[test]
fn what_cannot_be_written_is_said_before_anything_is_started() {
    let (user, location) = published();
    let touched = user.home().join("touched");
    let line = user.fails([
        OsStr::new("--quiet"),
        "profile".as_ref(),
        location.as_ref(),
        "-o".as_ref(),
        "/nowhere/at/all".as_ref(),
        "--".as_ref(),
        "touch".as_ref(),
        touched.as_os_str(),
    ]);
    assert!(line.contains("cannot write /nowhere/at/all") && !touched.exists(), "{line}");
    let line = user.fails(["--quiet", "profile", &location, "-o", "x", "--", "bin/absent"]);
    assert!(line.contains("cannot record a launch of") && line.contains("cannot run bin/absent"), "{line}");
    assert!(!mounted_below(user.home()));
}

#[test]
fn a_program_that_stays_open_is_recorded_until_it_is_interrupted_or_its_time_is_up() {
    let (user, location) = published();
    let opened = user.home().join("opened");
    let script = format!("cat {{mount}}/small; echo $$ >{}; exec sleep 1000", opened.display());
    let file = user.folder("out").join("open");
    let arguments = |more: &[&str]| {
        let mut command = user.streamfs([OsStr::new("profile"), location.as_ref(), "-o".as_ref(), file.as_os_str()]);
        command.args(more).args(["--", "sh", "-c", &script]).stdout(Stdio::null());
        command
    };
    let pid = || fs::read_to_string(&opened).ok().and_then(|text| text.trim().parse::<i32>().ok());
    for more in [&[][..], &["--for", "2s"]] {
        let mut child = arguments(more).spawn().expect("the built program");
        let program = wait_for("the program to be open", Duration::from_secs(60), pid);
        if more.is_empty() {
            kill_process(Pid::from_child(&child), Signal::INT).expect("own child");
        }
        let status = wait_for_exit(&mut child, "profile", Duration::from_secs(60));
        assert!(status.success(), "{status}");
        assert_eq!(uses(&read(&file), "/small").len(), 2);
        assert!(!Path::new(&format!("/proc/{program}")).exists(), "it was ended");
        assert!(!mounted_below(user.home()));
        for left in [&file, &opened] {
            fs::remove_file(left).expect("own file");
        }
    }
}

#[test]
fn python_importing_json_uses_these_files() {
    let source = python_tree();
    let user = Streamfs::new();
    let location = in_folder(&user.folder("content"), "python");
    user.publish(&source, &location, "1.0");
    let command = ["env", "LD_LIBRARY_PATH={mount}/lib", "{mount}/bin/python3.11", "-c", "import json"];
    let (first, outcome) = record(&user, &location, "first", &[], &command);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let is_read = |profile: &Profile, part: &str| {
        let mut read = profile.events.iter().filter(|e| matches!(e.use_, Use::Read { .. }));
        read.any(|e| String::from_utf8_lossy(&e.path).contains(part))
    };
    for part in ["/bin/python3.11", "/json/__pycache__/decoder.", "/json/__pycache__/encoder.", "/encodings/"] {
        assert!(is_read(&first, part), "{part} is read by that import");
    }
    for part in ["/numpy/", "/pandas/", "/sqlite3/"] {
        assert!(!is_read(&first, part), "{part} has nothing to do with it");
    }
    let size = fs::metadata(source.join("bin/python3.11")).expect("the tree").len();
    let used =
        uses(&first, "/bin/python3.11").into_iter().map(|u| if let Use::Read { length, .. } = u { length } else { 0 });
    assert!(used.sum::<u64>() < size, "not all of the interpreter is needed");
    // The next launch, on a mount of its own, uses the same.
    let (second, _) = record(&user, &location, "second", &[], &command);
    let (a, b) = (first.read_bytes(), second.read_bytes());
    assert!(a.abs_diff(b) <= a / 20, "{a} and {b} bytes");
}

/// A recording of nothing was written without a word, and published in the place of a good one.
#[test]
fn a_recording_of_nothing_is_refused() {
    let (user, location) = published();
    let file = user.folder("out").join("nothing");
    let file = file.to_str().expect("plain");
    let line = user.fails(["--quiet", "profile", &location, "-o", file, "--", "/bin/true"]);
    assert!(line.contains("read nothing of the package"), "{line}");
    assert!(!Path::new(file).exists() && !mounted_below(user.home()));
    // One of what another package has is as good as none.
    let other_source = user.folder("other");
    fs::write(other_source.join("file"), "x").expect("own folder");
    let other = in_folder(&user.home().join("content"), "other");
    user.publish(&other_source, &other, "1.0");
    let (_, outcome) = record(&user, &other, "other", &[], &["/bin/cat", "{mount}/file"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let profile = user.home().join("out/other");
    let source = user.home().join("source");
    let arguments = ["publish", source.to_str().expect("plain"), &location, "--version", "1.1", "--profile"];
    let line = user.fails(arguments.into_iter().chain([profile.to_str().expect("plain")]));
    assert!(line.contains("names nothing to read in this version"), "{line}");
    assert!(!user.ok(["versions", &location]).stdout.contains("1.1"));
    fs::write(&profile, "junk").expect("own file");
    let line = user.fails(arguments.into_iter().chain([profile.to_str().expect("plain")]));
    assert!(line.contains("as `streamfs profile` makes them"), "{line}");
}
