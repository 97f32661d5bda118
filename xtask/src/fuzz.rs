//! Fuzzing with coverage guidance on the stable compiler.
//!
//! libFuzzer wants its targets instrumented. `cargo fuzz` asks the nightly compiler for that with `-Z` options;
//! the same LLVM pass can be asked for with `-C passes`, which is stable. The targets in `fuzz/` are ordinary
//! `cargo fuzz` targets nevertheless, for who has a nightly compiler and wants address sanitizing too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::steps::{output, succeed};
use crate::{cargo, root, target_dir};

/// What `cargo fuzz` would set, in options of the stable compiler: coverage of edges by counters, with the table of
/// program counters that libFuzzer needs to tell edges apart, and operands of comparisons as hints.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longest input. Every parser has limits of its own; what lies beyond 64 KiB only repeats.
const INPUT_MAX_BYTES: usize = 64 << 10;

/// One input may take so long (seconds) and so much memory (MiB) until it counts as a finding.
const INPUT_DEADLINE_S: u32 = 10;
const MEMORY_LIMIT_MIB: u32 = 2048;

#[derive(Debug, Args)]
pub(crate) struct FuzzArguments {
    /// Only this target; all without it
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Builds and runs targets; the first finding ends it.
pub(crate) fn run(arguments: &FuzzArguments) -> Result<()> {
    let all = targets()?;
    let chosen = match &arguments.target {
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no fuzz target {name}; there are: {}", all.join(", ")),
        None => all,
    };
    let programs = build()?;
    chosen.iter().try_for_each(|name| fuzz(&programs, name, arguments.seconds))
}

/// Names of the targets: the files in `fuzz/fuzz_targets`.
pub(crate) fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(name) = path.file_stem().and_then(|s| s.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; gives the folder with the programs.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = target_dir()?.join("fuzz");
    let about = output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names the host")?.to_owned();
    // With --target given, build scripts and procedural macros are not instrumented.
    let mut command = cargo(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host]);
    command.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", INSTRUMENTATION).env_remove("CARGO_ENCODED_RUSTFLAGS");
    succeed(&mut command)?;
    Ok(folder.join(host).join("release"))
}

/// Runs one target. Seeds in `fuzz/seeds/TARGET` are read, new inputs are kept below the target directory.
pub(crate) fn fuzz(programs: &Path, name: &str, seconds: u32) -> Result<()> {
    let folder = target_dir()?.join("fuzz");
    let (corpus, findings) = (folder.join("corpus").join(name), folder.join("artifacts").join(name));
    for made in [&corpus, &findings] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let mut command = Command::new(programs.join(name));
    command.arg(&corpus);
    let seeds = root().join("fuzz/seeds").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={INPUT_MAX_BYTES}"));
    command.arg(format!("-timeout={INPUT_DEADLINE_S}"));
    command.arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"));
    command.arg(format!("-artifact_prefix={}/", findings.display()));
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    println!("fuzzing {name} for {seconds} s");
    succeed(&mut command).with_context(|| {
        format!("{name} found an input; it lies in {} (run the program with it as argument)", findings.display())
    })
}
