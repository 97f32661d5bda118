//! Starting an agent in the background, and waiting until it is ready or has said why not.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, BufReader};

use super::log_file;
use super::protocol::next_line;
use crate::commands::agent::AgentArguments;
use crate::settings::InForce;

/// Opening a cache never scans it; an agent that is not ready by then hangs on something (a dead disk, say).
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Longest first line of an agent.
const READINESS_MAX_BYTES: u64 = 64 << 10;

/// Variables that the agent must not inherit: credentials come with each request, and its own settings as arguments.
const NOT_INHERITED: [&str; 6] = [
    "STREAMFS_TOKEN",
    "STREAMFS_HTTP_USER",
    "STREAMFS_HTTP_PASSWORD",
    "STREAMFS_CONFIG",
    "STREAMFS_CACHE",
    "STREAMFS_KEYS",
];

/// The one line that a worker prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Readiness {
    /// It listens.
    Ready,
    /// It cannot start.
    Failed(String),
}

/// Makes the cache folder if it is missing, and gives its canonical path: what an agent is known by.
pub(crate) fn prepare_cache_dir(cache_dir: &Path) -> anyhow::Result<PathBuf> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(cache_dir)
        .and_then(|()| std::fs::canonicalize(cache_dir))
        .with_context(|| format!("cannot use the cache folder {}; choose another with --cache", cache_dir.display()))
}

/// Starts the agent of `cache_dir` (canonical).
pub(crate) async fn start(cache_dir: &Path, settings: &InForce) -> anyhow::Result<()> {
    let what = || format!("cannot start the agent of the cache {}", cache_dir.display());
    let log_path = log_file::path(cache_dir);
    let log =
        log_file::open(&log_path).with_context(|| format!("cannot write {}", log_path.display())).with_context(what)?;
    let logged = log.metadata().map_or(0, |meta| meta.len());
    let program = std::env::current_exe().context("cannot find this program's own file").with_context(what)?;
    let mut command = tokio::process::Command::new(program);
    command.arg("agent").args(AgentArguments::of(cache_dir, settings).to_command_line());
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    // The agent outlives this command: it must hold neither its terminal nor its folder nor its pipes.
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().with_context(what)?;
    let stdout = child.stdout.take().ok_or_else(|| anyhow!("its output is not connected")).with_context(what)?;
    let mut reader = BufReader::new(stdout.take(READINESS_MAX_BYTES));
    let line = match tokio::time::timeout(READY_DEADLINE, next_line(&mut reader, READINESS_MAX_BYTES)).await {
        Ok(line) => line.with_context(what)?,
        Err(_) => bail!("{}: it is not ready after {} s; see {}", what(), READY_DEADLINE.as_secs(), log_path.display()),
    };
    match line.as_deref().map(serde_json::from_slice) {
        Some(Ok(Readiness::Ready)) => Ok(()),
        Some(Ok(Readiness::Failed(why))) => Err(anyhow!(why)),
        _ => {
            let why = log_file::last_line(&log_path, logged).unwrap_or_else(|| why_silent(cache_dir));
            Err(anyhow!("{why} (see {})", log_path.display())).with_context(what)
        }
    }
}

/// What is to be said of an agent that ended and logged nothing.
fn why_silent(cache_dir: &Path) -> String {
    // A process needs a page at least to write anything.
    let is_full = rustix::fs::statvfs(cache_dir).is_ok_and(|disk| disk.f_bavail * disk.f_frsize < 64 << 10);
    if is_full {
        format!("no space left on the disk of {}: make room there", cache_dir.display())
    } else {
        "it died without a word".to_owned()
    }
}
