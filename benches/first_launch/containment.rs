//! Everything that the benchmark starts ends with it.
//!
//! It works in a process and mount namespace of its own. Agents, servers and foreign file systems put themselves into
//! the background, but when the namespace's first process goes, for whatever reason, the kernel kills all others and
//! takes their mounts away. The process outside only waits, hears signals, and removes the files.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// Tells the inner process where it may put files: on the disk, and in memory.
const INSIDE: &str = "FIRST_LAUNCH_FOLDERS";

/// Folders for files that last as long as the benchmark runs.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    /// On a disk.
    pub(crate) disk: PathBuf,
    /// In memory.
    pub(crate) memory: PathBuf,
}

/// The folders, when this is the inner process. From then on it ends when the outer one does.
pub(crate) fn inside() -> Option<Folders> {
    let text = std::env::var_os(INSIDE)?;
    let mut paths = std::env::split_paths(&text);
    let folders = Folders { disk: paths.next()?, memory: paths.next()? };
    std::thread::spawn(|| {
        // The outer process never writes; the end of the pipe is its end.
        let mut nothing = [0];
        let _ = std::io::stdin().read(&mut nothing);
        std::process::exit(1);
    });
    Some(folders)
}

/// Runs this program again, contained, and waits for it.
pub(crate) fn run() -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "first-launch needs root: it drops the page cache and mounts; run it as root in a machine or a privileged \
         container"
    );
    // Short: sockets of agents lie below it, whose paths must not be long.
    let disk = folder_in(Path::new("/var/tmp"))?;
    let memory = folder_in(Path::new("/dev/shm"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    let outcome = runtime.block_on(contained(disk.path(), memory.path()));
    for folder in [disk, memory] {
        let path = folder.path().to_owned();
        folder.close().with_context(|| format!("removing {}", path.display()))?;
    }
    outcome
}

fn folder_in(parent: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("first-launch-").tempdir_in(parent);
    made.with_context(|| format!("cannot make a folder in {}", parent.display()))
}

async fn contained(disk: &Path, memory: &Path) -> Result<ExitCode> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listening for an end")?;
    let mut hangups = signal(SignalKind::hangup()).context("listening for a hang-up")?;
    let temporary = disk.join("tmp");
    std::fs::create_dir(&temporary)?;
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(std::env::current_exe().context("finding this program")?).args(std::env::args_os().skip(1));
    command.env(INSIDE, std::env::join_paths([disk, memory]).context("folders")?).env("TMPDIR", &temporary);
    // Signals of the terminal go to this process alone, which ends the inner one with all it started.
    command.stdin(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().context("starting unshare, of util-linux")?;
    // Kept open: its end is how the inner process learns that this one is gone.
    let _kept = child.stdin.take();
    let status = tokio::select! {
        status = child.wait() => Some(status.context("waiting for the contained part")?),
        _ = interrupts.recv() => None,
        _ = terminations.recv() => None,
        _ = hangups.recv() => None,
    };
    match status {
        Some(status) if status.success() => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => {
            // With --kill-child, unshare's end is the end of the namespace's first process.
            child.kill().await.context("ending the contained part")?;
            eprintln!("first-launch: interrupted; everything was ended");
            Ok(ExitCode::from(130))
        }
    }
}
