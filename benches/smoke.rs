//! Does the benchmark of first launches still work?

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_first-launch");

/// Whether it succeeded, what it said, and its process number.
fn run(arguments: &[&str]) -> (bool, String, u32) {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the benchmark starts");
    let pid = child.id();
    let output = child.wait_with_output().expect("the benchmark ends");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), said, pid)
}

/// What the benchmark of this process number leaves behind when it is not careful.
fn leftovers(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("first-launch-{pid}-");
    let folders = ["/var/tmp", "/dev/shm"].map(Path::new);
    let entries = folders.iter().flat_map(|f| std::fs::read_dir(f).expect("a folder of the machine"));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))).collect()
}

/// A tiny application once on the LAN; without root, a refusal that says so.
#[test]
fn a_small_benchmark_runs_to_its_end() {
    let streamfs = Path::new(PROGRAM).with_file_name("streamfs");
    assert!(streamfs.exists(), "{} is missing; build it with `cargo build --package cli`", streamfs.display());
    if !rustix::process::geteuid().is_root() {
        let (succeeded, said, _) = run(&["--smoke"]);
        assert!(!succeeded && said.contains("needs root"), "{said}");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("results.json");
    let out = folder.path().join("out");
    let (succeeded, said, pid) =
        run(&["--smoke", "--json", json.to_str().expect("plain"), "--out", out.to_str().expect("plain")]);
    assert!(succeeded, "{said}");
    let left = leftovers(pid);
    assert!(left.is_empty(), "the benchmark left {left:?} behind");

    let results: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("results")).expect("results are JSON");
    let rows = results["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4, "{results:#}");
    for row in rows {
        let first = row["spread"]["first_seconds"]["median"].as_f64().expect("a time");
        assert!(row["failure"].is_null() && first > 0.0, "{row:#}");
    }
    // What the product fetched is counted: on a busy machine all of it, and more than an archive, for it looks far away.
    let row = rows.iter().find(|row| row["column"] == "streamfs-no-profile").expect("the product");
    let bytes = row["spread"]["bytes"]["median"].as_f64().expect("bytes");
    let archive = results["apps"]["tiny"]["archive_bytes"].as_f64().expect("bytes");
    assert!(bytes > 0.0 && bytes < archive * 1.2, "fetched {bytes} of {archive}");
    // 20 files of 40,000 bytes, which is ten pages less 960 bytes each, and the script.
    let pages = results["apps"]["tiny"]["page_bytes"].as_u64().expect("bytes");
    assert!((800_000..810_000).contains(&pages), "a launch reads 800,000 bytes and a script, not {pages}");

    let plot = std::fs::read_to_string(out.join("first-launch.svg")).expect("a plot");
    assert!(plot.starts_with("<svg") && plot.contains("full download"), "{plot}");
    let table = std::fs::read_to_string(out.join("first-launch.md")).expect("a table");
    assert!(table.contains("| floor |"), "{table}");
}

/// Ctrl-C in the middle ends everything it started and removes everything it made.
#[test]
fn an_interrupted_benchmark_leaves_nothing_behind() {
    if !rustix::process::geteuid().is_root() {
        // It refuses to run at all, as the test above sees.
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(PROGRAM);
    command.args(["--smoke", "--runs", "1"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("HOME", folder.path());
    let mut child = command.spawn().expect("the benchmark starts");
    let mut said = BufReader::new(child.stdout.take().expect("piped"));
    // Its servers, the network and the publisher's agent run from here on.
    let mut line = String::new();
    while !line.starts_with("run 1") {
        line.clear();
        if said.read_line(&mut line).expect("text") == 0 {
            let output = child.wait_with_output().expect("the benchmark ends");
            panic!("it ended before it was interrupted: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let pid = child.id();
    let number = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(number, rustix::process::Signal::INT).expect("it runs");
    // Whatever it started holds this pipe: its end is the end of all of them.
    std::io::copy(&mut said, &mut std::io::sink()).expect("text");
    let output = child.wait_with_output().expect("the benchmark ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(130) && errors.contains("interrupted"), "{}: {errors}", output.status);
    assert_eq!(leftovers(pid), Vec::<PathBuf>::new());
}

#[test]
fn the_speed_of_the_server_is_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("serving.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_serving"));
    command.args(["--runs", "1", "--mebibytes", "16", "--json"]).arg(&file).stdin(Stdio::null());
    let output = command.output().expect("the benchmark starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let measured: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).expect("its results")).expect("JSON");
    let ratios = measured["ratios"].as_array().expect("ratios");
    assert!(ratios.len() == 4 && ratios.iter().all(|it| it["ratio"].as_f64() > Some(0.0)), "{measured}");
}
