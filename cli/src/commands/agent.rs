//! `streamfs agent` and `streamfs agent-worker`: not for people. The supervisor stays small and starts the worker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::settings::InForce;

/// Settings of an agent, worked out by the command that starts it.
#[derive(Debug, Clone, Args)]
pub struct AgentArguments {
    /// Folder of the cache
    #[arg(long, value_name = "DIR")]
    pub cache: PathBuf,
    /// Most bytes of blocks on disk
    #[arg(long, value_name = "BYTES")]
    pub cache_size_bytes: u64,
    /// Bytes of the disk that stay free
    #[arg(long, value_name = "BYTES")]
    pub keep_free_bytes: Option<u64>,
    /// Most bytes of decoded blocks in memory
    #[arg(long, value_name = "BYTES")]
    pub memory_bytes: u64,
    /// How often packages are asked for newer versions
    #[arg(long, value_name = "MS")]
    pub poll_interval_ms: u64,
    /// End after this long without mounts and requests
    #[arg(long, value_name = "MS")]
    pub idle_exit_ms: u64,
}

impl AgentArguments {
    /// Arguments for the agent of `cache_dir`.
    pub(crate) fn of(cache_dir: &Path, settings: &InForce) -> Self {
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            cache: cache_dir.to_owned(),
            cache_size_bytes: settings.cache_size_bytes,
            keep_free_bytes: settings.keep_free_bytes,
            memory_bytes: settings.memory_bytes,
            poll_interval_ms: millis(settings.poll_interval),
            idle_exit_ms: millis(settings.idle_exit),
        }
    }

    /// As words of a command line.
    pub(crate) fn to_command_line(&self) -> Vec<OsString> {
        let mut words = vec!["--cache".into(), self.cache.clone().into()];
        for (flag, value) in [
            ("--cache-size-bytes", Some(self.cache_size_bytes)),
            ("--keep-free-bytes", self.keep_free_bytes),
            ("--memory-bytes", Some(self.memory_bytes)),
            ("--poll-interval-ms", Some(self.poll_interval_ms)),
            ("--idle-exit-ms", Some(self.idle_exit_ms)),
        ] {
            if let Some(value) = value {
                words.extend([flag.into(), value.to_string().into()]);
            }
        }
        words
    }
}

/// Runs the supervisor of one worker until that has ended for good.
pub(crate) fn supervise(arguments: &AgentArguments) -> anyhow::Result<()> {
    // A session of its own: closing the terminal, or Ctrl-C in it, is not meant for the agent. It fails only for a
    // process that leads a group already, as when started from a shell; then it is in the foreground on purpose.
    let _ = rustix::process::setsid();
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg("agent-worker").args(arguments.to_command_line());
    // The worker itself tells whoever waits for it: it has more to say when it fails.
    let status = fuse_linux::supervisor::run(command, || {}).context("cannot supervise the worker")?;
    if !status.success() {
        bail!("the worker ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command as Subcommand};

    #[test]
    fn arguments_survive_the_command_line() {
        let arguments = AgentArguments {
            cache: "/a cache".into(),
            cache_size_bytes: 1,
            keep_free_bytes: None,
            memory_bytes: 3,
            poll_interval_ms: 4,
            idle_exit_ms: 5,
        };
        let words = ["streamfs".into(), "agent-worker".into()].into_iter().chain(arguments.to_command_line());
        let Subcommand::AgentWorker(back) = Arguments::parse_from(words).command else { panic!("another command") };
        assert_eq!(format!("{arguments:?}"), format!("{back:?}"));
    }
}
