//! One file a subcommand: its arguments, the checks that need no network, the request, and what is printed.

pub mod agent;
pub mod demo;
pub mod gc;
pub mod load;
pub mod login;
pub mod mount;
pub mod passwd;
pub mod profile;
pub mod publish;
pub mod remount;
pub mod renew;
pub mod revoke;
pub mod run;
pub mod serve;
mod signing;
pub mod status;
pub mod trace;
pub mod unmount;
pub mod verify;
pub mod versions;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fs_core::location::PackageLocation;

use crate::agent::client::AgentConnection;
use crate::agent::protocol::{PackageWire, WirePath};
use crate::arguments::{CacheArguments, Command, Global};
use crate::interrupt::Interrupt;
use crate::settings::{InForce, process_environment};
use crate::trust_report::TrustReport;

/// What every command is run with.
pub struct Context {
    config: Option<PathBuf>,
    quiet: bool,
    interrupt: Interrupt,
}

impl Context {
    /// Takes the signals over; to be called within a runtime. `hang_up_ends` is whether SIGHUP is one that ends the command.
    pub(crate) fn new(global: &Global, hang_up_ends: bool) -> anyhow::Result<Self> {
        let interrupt = Interrupt::listen(hang_up_ends).context("cannot handle signals")?;
        // An empty variable counts as unset, as everywhere.
        let config = global.config.clone().filter(|path| !path.as_os_str().is_empty());
        Ok(Self { config, quiet: global.quiet, interrupt })
    }

    /// The settings in force, `cache` going first.
    fn settings(&self, cache: Option<&CacheArguments>) -> anyhow::Result<InForce> {
        let mut settings = InForce::load(self.config.as_deref(), &process_environment)?;
        if let Some(dir) =
            cache.and_then(|arguments| arguments.cache.as_deref()).filter(|dir| !dir.as_os_str().is_empty())
        {
            settings.set_cache_dir(dir)?;
        }
        Ok(settings)
    }

    /// Prints a remark, unless remarks were not wanted.
    fn remark(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            crate::report::note(text);
        }
    }

    /// Says what is unusual about `version` and how it was chosen.
    fn tell(&self, version: &str, trust: &TrustReport) {
        tell(self.quiet, version, trust);
    }

    /// Says so as soon as the agent begins to work on the version: what was trusted then stays trusted, also if the
    /// work is broken off.
    fn tell_when_begun(&self, agent: &mut AgentConnection, bar: &crate::progress::Bar) {
        let (quiet, bar) = (self.quiet, bar.lines());
        agent.on_begun(move |version, trust| bar.suspend(|| tell(quiet, version, trust)));
    }

    fn bar(&self) -> crate::progress::Bar {
        crate::progress::Bar::new(self.quiet, self.interrupt.clone())
    }
}

fn tell(quiet: bool, version: &str, trust: &TrustReport) {
    if let Some(remark) = trust.remark().filter(|_| !quiet) {
        crate::report::note(remark);
    }
    for warning in trust.warnings(version) {
        crate::report::warn(warning);
    }
}

/// Runs `command`.
pub(crate) async fn dispatch(command: Command, context: &Context) -> anyhow::Result<()> {
    let interrupt = &context.interrupt;
    match command {
        // These end in an orderly way of their own.
        Command::Publish(arguments) => publish::run(arguments, context).await,
        Command::Mount(arguments) => mount::run(arguments, context).await,
        Command::Run(arguments) => run::run(arguments, context).await,
        Command::Profile(arguments) => profile::run(arguments, context).await,
        Command::Trace(arguments) => trace::run(arguments, context).await,
        Command::Serve(arguments) => serve::run(arguments, context).await,
        Command::Demo(arguments) => demo::run(arguments, context).await,
        Command::AgentWorker(arguments) => crate::agent::worker::run(&arguments, interrupt.clone()).await,
        // These are simply dropped; closing the connection makes the agent stop, too.
        Command::Versions(arguments) => interrupt.or(versions::run(arguments, context)).await,
        Command::Remount(arguments) => interrupt.or(remount::run(arguments, context)).await,
        Command::Unmount(arguments) => interrupt.or(unmount::run(arguments, context)).await,
        Command::Status(arguments) => interrupt.or(status::run(arguments, context)).await,
        Command::Load(arguments) => load::run(arguments, context).await,
        Command::Unload(arguments) => interrupt.or(load::run_unload(arguments, context)).await,
        Command::Verify(arguments) => interrupt.or(verify::run(arguments, context)).await,
        Command::Revoke(arguments) => interrupt.or(revoke::run(arguments, context)).await,
        Command::Renew(arguments) => interrupt.or(renew::run(arguments, context)).await,
        Command::Gc(arguments) => interrupt.or(gc::run(arguments, context)).await,
        Command::Login(arguments) => interrupt.or(login::run(arguments, context)).await,
        Command::Logout(arguments) => interrupt.or(login::run_logout(arguments, context)).await,
        Command::Passwd(arguments) => interrupt.or(passwd::run(arguments, context)).await,
        Command::Agent(arguments) => agent::supervise(&arguments),
    }
}

/// A package on the command line and how it is reached, checked as far as that needs no network.
struct Package {
    location: PackageLocation,
    trust_root: Option<PathBuf>,
}

impl Package {
    fn parse(location: &str, trust_root: Option<&Path>) -> anyhow::Result<Self> {
        let location = location.parse()?;
        let trust_root = trust_root
            .map(|path| {
                std::fs::canonicalize(path).with_context(|| format!("cannot read the trust root {}", path.display()))
            })
            .transpose()?;
        Ok(Self { location, trust_root })
    }

    fn wire(&self, settings: &InForce) -> PackageWire {
        PackageWire {
            location: self.location.to_string(),
            trust_root: self.trust_root.as_deref().map(WirePath::from),
            origin: settings.origin_config(&self.location).into(),
        }
    }
}

/// The agent that has something at `dir` (resolved), if one has.
async fn agent_of(dir: &Path) -> anyhow::Result<Option<(AgentConnection, status::MountStatus)>> {
    for (report, connection) in status::ask_agents().await? {
        let here = report.mounts.into_iter().find(|m| m.dir.0 == dir && m.state == status::MountState::Mounted);
        if let Some(mount) = here {
            return Ok(Some((connection, mount)));
        }
    }
    Ok(None)
}
