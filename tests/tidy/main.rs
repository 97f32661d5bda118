//! Rules of the repository that a machine can check.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file. Past 500 lines a file asks to be split; here it must be.
const LINES_MAX: usize = 700;

/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 9] = ["utils", "util", "common", "helpers", "helper", "manager", "types", "misc", "shared"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the checkout").to_owned()
}

/// Files of the checkout that are no build products, relative to it.
fn files() -> Vec<PathBuf> {
    let root = root();
    let mut out = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the checkout") {
            let entry = entry.expect("the checkout");
            let name = entry.file_name();
            let path = folder.join(&name);
            let skipped = [".git", "target", "corpus", "artifacts", "node_modules"].iter().any(|s| name == *s);
            match entry.file_type().expect("the checkout") {
                kind if kind.is_dir() && !skipped => folders.push(path),
                kind if kind.is_file() => out.push(path),
                _ => {}
            }
        }
    }
    out.sort();
    out
}

fn with_extension(extension: &str) -> Vec<(PathBuf, String)> {
    let wanted = files().into_iter().filter(|p| p.extension().is_some_and(|e| e == extension));
    wanted.map(|p| (p.clone(), fs::read_to_string(root().join(&p)).expect("text"))).collect()
}

#[track_caller]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn source_files_are_short() {
    let long = with_extension("rs").into_iter().filter_map(|(path, text)| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{} has {lines} lines; split it (at most {LINES_MAX})", path.display()))
    });
    none(long.collect());
}

#[test]
fn names_say_something() {
    let empty = files().into_iter().filter(|path| {
        let is_source = path.extension().is_some_and(|e| e == "rs");
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let parts = path.components().filter_map(|c| c.as_os_str().to_str());
        is_source && (EMPTY_NAMES.contains(&stem) || parts.into_iter().any(|part| EMPTY_NAMES.contains(&part)))
    });
    none(empty.map(|p| format!("{}: find a name for what is inside", p.display())).collect());
}

#[test]
fn nothing_is_left_to_do_or_left_out() {
    // Written so that this file does not find itself.
    let words = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ign", "ore"), concat!("FIX", "ME")];
    let mut problems = Vec::new();
    for (path, text) in with_extension("rs") {
        for (number, line) in text.lines().enumerate() {
            problems.extend(
                words.iter().filter(|w| line.contains(*w)).map(|w| format!("{}:{}: {w}", path.display(), number + 1)),
            );
        }
    }
    none(problems);
}

#[test]
fn the_core_forbids_unsafe_code() {
    let core = fs::read_to_string(root().join("fs-core/src/lib.rs")).expect("the core");
    assert!(core.contains("#![forbid(unsafe_code)]"));
}

/// The core does not know who uses it: no name of an adapter's world in its code.
#[test]
fn the_core_names_no_adapter() {
    let words = ["errno", "fuser", "FUSE", "ProjFS", "HRESULT"];
    let mut problems = Vec::new();
    for (path, text) in with_extension("rs").into_iter().filter(|(p, _)| p.starts_with("fs-core/src")) {
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (number, line) in code {
            let found = words.iter().filter(|w| line.split(|c: char| !c.is_alphanumeric()).any(|part| part == **w));
            problems.extend(found.map(|w| format!("{}:{}: names {w}", path.display(), number + 1)));
        }
    }
    none(problems);
}

/// A path in the documentation, in backticks or as a link's target, exists.
#[test]
fn paths_in_documents_exist() {
    let tops = [
        "fs-core",
        "fuse-linux",
        "projfs-windows",
        "stream-server",
        "cli",
        "tests",
        "benches",
        "fuzz",
        "xtask",
        "docs",
    ];
    let mut problems = Vec::new();
    for (document, text) in with_extension("md") {
        let folder = document.parent().unwrap_or(Path::new("")).to_owned();
        for path in quoted(&text) {
            let path = path.trim_end_matches('/').split('#').next().unwrap_or_default();
            let named = tops.iter().any(|top| path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/')));
            if named && !path.contains(['*', '<', '{', '…']) && !root().join(path).exists() {
                problems.push(format!("{}: {path} does not exist", document.display()));
            }
        }
        for path in link_targets(&text) {
            let path = path.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains(':') && !root().join(&folder).join(path).exists() {
                problems.push(format!("{}: the link to {path} leads nowhere", document.display()));
            }
        }
    }
    none(problems);
}

/// What stands between single backticks, without what follows a `:` or a blank.
fn quoted(text: &str) -> Vec<&str> {
    let inside = text.split('`').skip(1).step_by(2);
    inside.filter_map(|q| q.split([':', ' ', '\n']).next()).filter(|q| q.contains('/')).collect()
}

/// Targets of `[text](target)`.
fn link_targets(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()).collect()
}

#[test]
fn decisions_are_listed() {
    let folder = root().join("docs/decisions");
    let list = fs::read_to_string(folder.join("README.md")).expect("docs/decisions/README.md lists the decisions");
    let mut problems = Vec::new();
    for entry in fs::read_dir(&folder).expect("docs/decisions") {
        let name = entry.expect("docs/decisions").file_name().into_string().expect("plain names");
        if name != "README.md" && !list.contains(&name) {
            problems.push(format!("docs/decisions/README.md does not list {name}"));
        }
    }
    none(problems);
}

/// Under a virtual manifest only listed tests and benches run; nothing warns of a file that is not.
#[test]
fn tests_benches_and_fuzz_targets_are_registered() {
    let mut problems = Vec::new();
    let mut check = |manifest: &str, folder: &str, entries: Vec<PathBuf>| {
        let text = fs::read_to_string(root().join(manifest)).expect("a manifest");
        for entry in entries {
            let path = entry.strip_prefix(folder).expect("below it").to_str().expect("plain names").to_owned();
            if !text.contains(&format!("path = \"{path}\"")) {
                problems.push(format!("{manifest} does not list {path}"));
            }
        }
    };
    let all = files();
    let find = |fits: &dyn Fn(&Path) -> bool| all.iter().filter(|p| fits(p)).cloned().collect::<Vec<_>>();
    let is_source = |p: &Path| p.extension().is_some_and(|e| e == "rs");
    check("tests/Cargo.toml", "tests", find(&|p| p.starts_with("tests") && p.ends_with("main.rs")));
    let in_benches = |p: &Path| p.starts_with("benches") && !p.starts_with("benches/src") && is_source(p);
    // A bench's own modules lie in a folder of its name.
    check(
        "benches/Cargo.toml",
        "benches",
        find(&|p| in_benches(p) && (p.components().count() == 2 || p.ends_with("main.rs"))),
    );
    check("fuzz/Cargo.toml", "fuzz", find(&|p| p.starts_with("fuzz/fuzz_targets") && is_source(p)));
    none(problems);
}
