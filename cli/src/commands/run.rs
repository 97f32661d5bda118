//! `streamfs run CONTENT/PACKAGE[@…] [--app NAME] -- CMD ARG...`

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Context, Package};
use crate::agent::protocol::{LaunchWish, PackageWire};
use crate::arguments::{self, CacheArguments};
use crate::child::{self, Child};
use crate::private_mount::{PrivateMount, PrivateMountOptions, RunFolder};
use crate::settings::InForce;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]; without @ the channel "stable"
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// Which of the package's applications is started: names the launch set to bring, "none" for none
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    #[command(flatten)]
    launch: LaunchArguments,
}

/// What every command that starts a program from a mount of its own understands.
#[derive(Debug, Args)]
pub struct LaunchArguments {
    #[command(flatten)]
    pub(super) cache: CacheArguments,
    /// File with the package's trusted root keys (root.json); else they are pinned on first use
    #[arg(long, value_name = "FILE")]
    pub(super) trust_root: Option<PathBuf>,
    /// A fetch that did not succeed for this long fails; a read may need several in turn [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    pub(super) deadline: Option<Duration>,
    /// What to run. {mount} stands for the directory that shows the package; a program like bin/x is the package's
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

impl LaunchArguments {
    /// The package on the wire.
    pub(super) fn wire(&self, package: &Package, settings: &InForce) -> PackageWire {
        let mut wire = package.wire(settings);
        if let Some(deadline) = self.deadline {
            wire.origin.set_read_deadline(deadline);
        }
        wire
    }

    /// The words of the command.
    pub(super) fn command(&self) -> anyhow::Result<&[OsString]> {
        anyhow::ensure!(!self.command.is_empty(), "there is nothing to run; name a program after --");
        Ok(&self.command)
    }
}

pub(super) async fn run(arguments: RunArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, arguments.launch.trust_root.as_deref())?;
    let what = || format!("cannot run from {}", package.location);
    let command = arguments.launch.command().with_context(what)?;
    let settings = context.settings(Some(&arguments.launch.cache)).with_context(what)?;
    let mut folder = RunFolder::make().with_context(what)?;
    let dir = folder.mount_point(&package.location.package.to_string()).with_context(what)?;
    let options = PrivateMountOptions {
        package: arguments.launch.wire(&package, &settings),
        launch: LaunchWish::named(arguments.app.as_deref()),
        watch: None,
    };
    let mount = PrivateMount::make(&dir, options, &settings, &context.interrupt).await.with_context(what)?;
    context.tell(&mount.report().version, &mount.report().trust);
    let ended = async { Child::start(command, mount.dir())?.wait_passing_signals().await }.await;
    end(mount, context).await;
    child::check(ended.with_context(what)?)
}

/// Takes a mount away. That it cannot be is no failure of what was done with it.
pub(super) async fn end(mount: PrivateMount, context: &Context) {
    let dir = mount.dir().to_owned();
    match mount.end().await {
        Ok(false) => {}
        Ok(true) => context.remark(format!("{} is still in use; it ends with its last user", dir.display())),
        Err(error) => crate::report::warn(format!("{error:#}")),
    }
}
