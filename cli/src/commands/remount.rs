//! `streamfs remount DIR`
//!
//! A mount of a channel follows the channel. A mount of a version that was named itself stays, unless `--to` is given.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use fs_core::location::{PackageLocation, Selector};
use serde::{Deserialize, Serialize};

use super::Context;
use crate::agent::protocol::{Request, WirePath};
use crate::trust_report::TrustReport;
use crate::{mount_point, report};

/// Arguments of `remount`.
#[derive(Debug, Args)]
pub struct RemountArguments {
    /// Directory where a package is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Version to show, or channel to follow from now on
    #[arg(long, value_name = "VERSION|CHANNEL")]
    to: Option<String>,
    /// Also where the kernel cannot exchange mounts without a gap and the old one is in use
    #[arg(long)]
    lazy: bool,
    /// Print what is shown now as JSON
    #[arg(long)]
    json: bool,
}

/// What a remount did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RemountReport {
    pub(crate) dir: WirePath,
    pub(crate) package: String,
    /// Version shown before.
    pub(crate) from: String,
    /// Version shown now.
    pub(crate) version: String,
    pub(crate) descriptor: String,
    pub(crate) changed: bool,
    /// Whether it stays because the mount names a version.
    pub(crate) fixed: bool,
    #[serde(flatten)]
    pub(crate) trust: TrustReport,
}

pub(super) async fn run(arguments: RemountArguments, context: &Context) -> anyhow::Result<()> {
    let what = || format!("cannot remount {}", arguments.dir.display());
    if let Some(to) = &arguments.to {
        to.parse::<Selector>().with_context(what)?;
    }
    let dir = mount_point::resolve(&arguments.dir).with_context(what)?;
    let (mut agent, mount) = super::agent_of(&dir)
        .await
        .with_context(what)?
        .ok_or_else(|| anyhow!("no version of a package is mounted there; use: streamfs mount"))
        .with_context(what)?;
    let location: PackageLocation = mount.location.parse().with_context(what)?;
    let origin = Some(context.settings(None).with_context(what)?.origin_config(&location).into());
    let request =
        Request::Remount { dir: dir.as_path().into(), to: arguments.to.clone(), lazy: arguments.lazy, origin };
    let done: RemountReport = agent.request(&request, |_, _, _| {}).await.with_context(what)?;
    context.tell(&done.version, &done.trust);
    if arguments.json {
        return report::json(&done);
    }
    let RemountReport { dir, package, from, version, changed, fixed, .. } = &done;
    report::line(match (changed, fixed) {
        (true, _) => format!("{dir} shows {package} {version} now (was {from})"),
        (false, true) => {
            format!("{dir} stays at {package} {version}, which was mounted by its version; use --to to go elsewhere")
        }
        // What was named is shown, or there is nothing newer.
        (false, false) if arguments.to.is_some() => format!("{dir} shows {package} {version} already"),
        (false, false) if done.trust.freshness.in_words().is_some() => format!("{dir} stays at {package} {version}"),
        (false, false) => format!("{dir} is already at the newest version, {package} {version}"),
    })
}
