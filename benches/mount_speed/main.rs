//! How fast is a mount beside the local file system that holds its cache?
//!
//! `cargo run --release -p benches --bin mount-speed -- [--runs N] [--json FILE]`, as root, after
//! `cargo build --release -p cli`. Both sides read the same bytes in the same run, turn by turn, so that what else the
//! machine does hits both; the table gives medians and their ratios (local / mount: 1 is as fast as local, less is
//! slower). The cache is loaded first and the origin is a folder: the network plays no part here.
//!
//! `--open-policy zero-message` measures root's mount without the kernel's passthrough.
//! With `--user UID` mount and agent run as that user, through `fusermount3` (the caller must let that user open
//! /dev/fuse).

mod measure;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use benches::program_like;
use measure::{Case, drop_caches};

const FILE_BYTES: usize = 1 << 30;
const SMALL_FILES: usize = 50_000;

struct Options {
    runs: usize,
    json: Option<PathBuf>,
    user: Option<u32>,
    open_policy: Option<String>,
}

fn options() -> Result<Options> {
    let mut options = Options { runs: 5, json: None, user: None, open_policy: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--runs" => options.runs = value.parse().context("--runs takes a number")?,
            "--json" => options.json = Some(value.into()),
            "--user" => options.user = Some(value.parse().context("--user takes a number")?),
            "--open-policy" => options.open_policy = Some(value),
            _ => bail!("unknown argument {flag}; known are --runs N, --json FILE, --user UID, --open-policy POLICY"),
        }
    }
    ensure!(options.runs > 0, "--runs must be at least 1");
    Ok(options)
}

/// The product under test, with a home of its own.
struct Product {
    program: PathBuf,
    root: PathBuf,
    user: Option<u32>,
}

impl Product {
    fn command(&self) -> Command {
        let mut command = match self.user {
            None => Command::new(&self.program),
            Some(uid) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={uid}")).arg("--clear-groups").arg(&self.program);
                command
            }
        };
        command.env("HOME", self.root.join("home")).env("STREAMFS_CACHE", self.root.join("cache"));
        command.env("XDG_RUNTIME_DIR", self.root.join("run")).env_remove("XDG_CONFIG_HOME").current_dir("/");
        command
    }

    fn run(&self, arguments: &[&std::ffi::OsStr]) -> Result<()> {
        let output = self.command().args(arguments).output().context("starting streamfs")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "streamfs {arguments:?} failed: {errors}");
        Ok(())
    }
}

/// Unmounts whatever happens.
struct Mounted<'a>(&'a Product, PathBuf);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.0.run(&["unmount".as_ref(), "--lazy".as_ref(), self.1.as_ref()]) {
            eprintln!("mount-speed: {e:#}");
        }
    }
}

fn make_input(source: &Path) -> Result<()> {
    std::fs::create_dir_all(source)?;
    // One GiB by parts: each is different, so no block occurs twice.
    let mut file = std::fs::File::create(source.join("large"))?;
    for part in 0..64 {
        std::io::Write::write_all(&mut file, &program_like(part, FILE_BYTES / 64))?;
    }
    for i in 0..SMALL_FILES {
        let folder = source.join(format!("many/d{:03}", i / 100));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("f{:02}.txt", i % 100)), format!("file {i}\n"))?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let options = options()?;
    ensure!(rustix::process::geteuid().is_root(), "dropping the page cache needs root");
    let program = std::env::current_exe()?.with_file_name("streamfs");
    ensure!(program.exists(), "{} is missing; run: cargo build --release -p cli", program.display());
    // Not in memory: both sides shall read from the same disk.
    let dir = tempfile::Builder::new().prefix("mount-speed-").tempdir_in("/var/tmp")?;
    let root = dir.path().to_owned();
    let source = root.join("source");
    eprintln!("making the input ({} MiB and {SMALL_FILES} files)", FILE_BYTES >> 20);
    make_input(&source)?;
    let mut copy = program;
    for made in ["home", "run", "mnt"] {
        std::fs::create_dir(root.join(made))?;
    }
    if let Some(uid) = options.user {
        let target = root.join("streamfs");
        std::fs::copy(&copy, &target)?;
        copy = target;
        for path in [&root, &root.join("home"), &root.join("run"), &root.join("mnt")] {
            std::os::unix::fs::chown(path, Some(uid), None)?;
        }
    }
    let product = Product { program: copy, root: root.clone(), user: options.user };
    let package = root.join("content/p");
    let mount = root.join("mnt");
    eprintln!("publishing, mounting and loading");
    product.run(&["publish".as_ref(), source.as_ref(), package.as_ref(), "--version".as_ref(), "1".as_ref()])?;
    let mut how: Vec<&std::ffi::OsStr> =
        vec!["mount".as_ref(), package.as_os_str(), mount.as_os_str(), "--cache-size".as_ref(), "8G".as_ref()];
    if let Some(policy) = &options.open_policy {
        how.push("--open-policy".as_ref());
        how.push(policy.as_ref());
    }
    product.run(&how)?;
    let _mounted = Mounted(&product, mount.clone());
    product.run(&["load".as_ref(), package.as_ref()])?;

    let cases = measure::cases();
    let mut results: Vec<(&Case, Vec<f64>, Vec<f64>)> = cases.iter().map(|c| (c, Vec::new(), Vec::new())).collect();
    for run in 0..options.runs {
        eprintln!("run {} of {}", run + 1, options.runs);
        for (case, local, mounted) in &mut results {
            for (dir, times) in [(&source, &mut *local), (&mount, &mut *mounted)] {
                if case.cold {
                    drop_caches()?;
                } else {
                    (case.work)(dir, options.user)?;
                }
                times.push((case.work)(dir, options.user)?.as_secs_f64());
            }
        }
    }
    report(&results, &options)
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn report(results: &[(&Case, Vec<f64>, Vec<f64>)], options: &Options) -> Result<()> {
    let who = if options.user.is_some() { "an ordinary user" } else { "root" };
    println!("Mounted by {who}; medians of {} runs, seconds.\n", options.runs);
    println!("| what | local | mount | local / mount |");
    println!("|---|---|---|---|");
    let mut rows = Vec::new();
    for (case, local, mounted) in results {
        let (l, m) = (median(local), median(mounted));
        println!("| {} | {l:.3} | {m:.3} | {:.2} |", case.name, l / m);
        rows.push(serde_json::json!({
            "what": case.name, "local_seconds": local, "mount_seconds": mounted, "ratio": l / m,
        }));
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&serde_json::json!({ "mounted_by": who, "cases": rows }))?)?;
    }
    Ok(())
}
