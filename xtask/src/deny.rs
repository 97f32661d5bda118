//! Licences, sources and advisories of the dependencies, by `cargo deny`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::steps::succeed;
use crate::{cargo, root, target_dir};

/// Pinned, so that a release of the tool breaks nobody's build.
const VERSION: &str = "0.20.2";

/// The advisory database comes from a git host, which not every network reaches; waiting longer does not help.
const FETCH_DEADLINE: Duration = Duration::from_secs(60);

/// Checks licences, bans and sources. Needs no network but cargo's own.
pub(crate) fn check_offline_parts() -> Result<()> {
    let program = program()?;
    succeed(Command::new(program).current_dir(root()).args(["check", "licenses", "bans", "sources"]))
}

/// Checks advisories if their database can be had, and says so if not. An outdated copy counts as none: it would
/// look like a check.
pub(crate) fn check_advisories() -> Result<()> {
    let program = program()?;
    let fetched = Command::new("timeout")
        .arg(FETCH_DEADLINE.as_secs().to_string())
        .arg(&program)
        .current_dir(root())
        .args(["fetch", "db"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start timeout")?;
    if !fetched.status.success() {
        let said = String::from_utf8_lossy(&fetched.stderr);
        let why = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no answer in time");
        println!("NOT CHECKED: advisories, because their database cannot be fetched from here ({})", why.trim());
        return Ok(());
    }
    succeed(Command::new(program).current_dir(root()).args(["check", "--disable-fetch", "advisories"]))
}

/// The tool; built below the target directory when it is missing.
fn program() -> Result<PathBuf> {
    let tools = target_dir()?.join("tools");
    let program = tools.join("bin/cargo-deny");
    let version = Command::new(&program).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    if String::from_utf8_lossy(&version).trim().ends_with(VERSION) {
        return Ok(program);
    }
    // A debug build takes a third of the time and checks as well.
    let mut install =
        cargo(["install", "cargo-deny", "--locked", "--debug", "--force", "--quiet", "--version", VERSION]);
    install.arg("--root").arg(&tools).env("CARGO_TARGET_DIR", tools.join("build")).env("CARGO_PROFILE_DEV_DEBUG", "0");
    succeed(&mut install)?;
    if !program.exists() {
        bail!("cargo install brought no {}", program.display());
    }
    Ok(program)
}
