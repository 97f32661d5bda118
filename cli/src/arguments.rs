//! What can be asked on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use fs_core::mount::prefetch::Prefetch;

use crate::commands::{
    agent, demo, gc, load, login, mount, passwd, profile, publish, remount, renew, revoke, run, serve, status, trace,
    unmount, verify, versions,
};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "streamfs",
    version,
    about = "Mounts remote application packages; their bytes are fetched as they are read"
)]
#[command(
    after_help = "A package is named CONTENT/PACKAGE[@VERSION|@CHANNEL]; CONTENT is a folder, file:// or http(s)://. \
    Example: streamfs mount https://apps.example/content/gimp@stable /mnt/gimp"
)]
pub struct Arguments {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Settings file (TOML) [environment: STREAMFS_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say more on standard error; twice for details
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print no progress and no remarks, only results, warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish a directory as a new version of a package
    Publish(publish::PublishArguments),
    /// List the versions and channels of a package
    Versions(versions::VersionsArguments),
    /// Mount a package at a directory
    Mount(mount::MountArguments),
    /// Show the newest version at a directory where a package is mounted; running programs keep theirs
    Remount(remount::RemountArguments),
    /// Unmount a directory
    Unmount(unmount::UnmountArguments),
    /// Tell what is mounted
    Status(status::StatusArguments),
    /// Run a program from a package, mounted for it alone
    Run(run::RunArguments),
    /// Record what starting a program reads, for publishing with it
    Profile(profile::ProfileArguments),
    /// Draw what starting a program reads and waits for
    Trace(trace::TraceArguments),
    /// Fetch a whole version and keep it for use without network
    Load(load::LoadArguments),
    /// No longer keep what `load` fetched
    Unload(load::UnloadArguments),
    /// Read and check every stored object of a version
    Verify(verify::VerifyArguments),
    /// Sign a package's timestamp anew, before it expires
    Renew(renew::RenewArguments),
    /// Withdraw a version: whoever uses it is warned
    Revoke(revoke::RevokeArguments),
    /// Remove what no version of a content root needs any more
    Gc(gc::GcArguments),
    /// Serve a content root over HTTP and RTSP, in clear or by TLS
    Serve(serve::ServeArguments),
    /// Keep the user and password, or the token, for a server
    Login(login::LoginArguments),
    /// Forget what `login` kept
    Logout(login::LogoutArguments),
    /// Add users to a password file of `serve`, change or remove them
    Passwd(passwd::PasswdArguments),
    /// Show the whole story on a sample, on this machine
    Demo(demo::DemoArguments),
    /// Supervises the worker of one cache directory
    #[command(hide = true)]
    Agent(agent::AgentArguments),
    /// Hosts the mounts of one cache directory
    #[command(hide = true)]
    AgentWorker(agent::AgentArguments),
}

/// Where the cache lies; understood by every command that uses the agent.
#[derive(Debug, Clone, Default, Args)]
pub struct CacheArguments {
    /// Folder of the cache; each has an agent of its own [environment: STREAMFS_CACHE]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Reads a size for clap.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    fs_core::config::parse_size(text).map_err(|e| e.to_string())
}

/// Reads when to bring what was not asked for.
pub(crate) fn prefetch(text: &str) -> Result<Prefetch, String> {
    text.parse().map_err(|e: fs_core::Error| e.to_string())
}

/// Reads a bandwidth: a size, with or without `/s`.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    match size(text.trim().strip_suffix("/s").unwrap_or(text))? {
        0 => Err("at that rate it would never end".to_owned()),
        rate => Ok(rate),
    }
}

/// Reads a duration for clap that may be zero.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    fs_core::config::parse_duration(text).map_err(|e| e.to_string())
}

/// Reads a duration that is not zero for clap.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = fs_core::config::parse_duration(text).map_err(|e| e.to_string())?;
    if duration.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn documented_command_lines_are_understood() {
        for line in [
            "publish app /srv/content/app --version 1.0 --channel stable --channel beta --json",
            "mount https://h/c/app@1.0 /mnt --foreground --cache /c --cache-size 10G --memory 32M --upgrade manual --trust-root r.json --allow-other --poll-interval 30s --deadline 60s",
            "remount /mnt --to beta --lazy",
            "mount https://h/c/app /mnt --launch calc",
            "run https://h/c/app@1.0 --app calc -- bin/calc --version",
            "profile /srv/content/app -o calc.profile --name calc --runs 3 --for 30s --dir /opt/app -- {mount}/bin/calc",
            "profile /srv/content/app -o calc.profile --report r.html --json -- bin/calc",
            "profile --show calc.profile",
            "profile --merge a.profile b.profile -o calc.profile",
            "trace /srv/content/app -o r.html --warm --launch none -- bin/calc",
            "unmount /mnt",
            "status --json",
            "status /mnt",
            "status --prometheus",
            "load /srv/content/app --rate 20MB/s --jitter 5m",
            "mount /srv/content/app /mnt --background-load --rate 512K --jitter 1h --prefetch none --no-learn",
            "unload /srv/content/app@1 --json",
            "verify /srv/content/app",
            "versions /srv/content/app --json",
            "renew /srv/content/app",
            "revoke /srv/content/app@1.0 --json",
            "gc /srv/content --dry-run --json",
            "gc /srv/content --keep 3 --older-than 30d --grace 0s --keys /k",
            "publish app https://h/content/app --version 1.0",
            "serve /srv/content --listen 127.0.0.1:0",
            "serve",
            "serve https://h/content --listen 0.0.0.0:443 --listen [::]:443 --tls-cert c --tls-key k --client-ca a --tls-only --drain 1m --json",
            "serve /srv/content --listen 127.0.0.1:0 --tls-trial /tmp/tls --poll-interval 5s --connections 100 --connections-per-address 10",
            "serve /srv/content --listen [::]:443 --access /etc/streamfs/access.toml --access-log - --client-rate 20M/s --total-rate 1G",
            "login https://h/c --user ann --store file --no-check",
            "login https://h/c --token --json",
            "login https://h/c --kerberos",
            "login",
            "logout https://h/c",
            "passwd /etc/streamfs/users ann --group staff --group release",
            "passwd /etc/streamfs/users ann --delete",
            "passwd /etc/streamfs/users --json",
            "demo",
            "--config /c.toml -vv --quiet status",
        ] {
            let words = std::iter::once("streamfs").chain(line.split(' '));
            Arguments::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "",
            "mount /a/b",
            "mount /a/b /mnt --cache-size much",
            "mount /a/b /mnt --poll-interval 0s",
            "mount /a/b /mnt --upgrade never",
            "load /a/b --rate 0",
            "publish app /srv/content/app",
            "gc",
            "gc /srv/content --keep 0",
            "serve /srv/content --tls-cert c",
            "serve /srv/content --tls-cert c --tls-key k --tls-trial d",
            "serve /srv/content --connections 0",
            "mount /a/b /mnt --token secret",
            "login https://h/c --user ann --password secret",
            "login https://h/c --user ann --token",
            "login --user ann",
            "passwd /etc/streamfs/users --group staff",
            "passwd /etc/streamfs/users ann --delete --group staff",
            "frobnicate",
            "run /a/b bin/calc",
            "profile /a/b -- bin/calc",
            "profile -o f",
            "profile /a/b --show f",
        ] {
            let words = std::iter::once("streamfs").chain(line.split(' ').filter(|w| !w.is_empty()));
            assert_eq!(Arguments::try_parse_from(words).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
