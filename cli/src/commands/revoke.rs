//! `streamfs revoke CONTENT/PACKAGE@VERSION`: withdraws a version. What is stored stays; whoever mounts the version,
//! or has it mounted, is warned.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::location::{Channel, PackageLocation, PackageVersion};
use serde_json::json;

use super::Context;
use super::signing::Signing;
use crate::report;

/// Arguments of `revoke`.
#[derive(Debug, Args)]
pub struct RevokeArguments {
    /// CONTENT/PACKAGE@VERSION; CONTENT is a folder, or http(s):// of `streamfs serve`
    #[arg(value_name = "CONTENT/PACKAGE@VERSION")]
    package: String,
    /// Folder of the private signing keys [environment: STREAMFS_KEYS] [default: ~/.config/streamfs/keys]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Print what was revoked as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: RevokeArguments, context: &Context) -> anyhow::Result<()> {
    let location: PackageLocation = arguments.package.parse()?;
    let what = || format!("cannot revoke {location}");
    let Some(selector) = &location.selector else {
        bail!("{}: name the version: {location}@VERSION", what());
    };
    // What is withdrawn is named itself: a channel may have moved since somebody looked.
    let version: PackageVersion = selector.as_str().parse().with_context(what)?;
    let mut signing = Signing::open(&location, arguments.keys.as_deref(), context).await.with_context(what)?;
    let publisher = &mut signing.publisher;
    let already = publisher.catalog().versions.iter().any(|record| record.version == version && record.revoked);
    publisher.revoke(&version).with_context(what)?;
    publisher.commit().await.with_context(what)?;
    signing.finish(context).await.with_context(what)?;
    let channels = &signing.publisher.catalog().channels;
    let channels: Vec<&Channel> = channels.iter().filter(|(_, v)| **v == version).map(|(name, _)| name).collect();
    for channel in &channels {
        context.remark(format_args!(
            "channel {channel} still points at {version}; publish another version, or an earlier one anew, with --channel {channel}"
        ));
    }
    let package = location.package_key();
    if arguments.json {
        let channels: Vec<&str> = channels.iter().map(|name| name.as_str()).collect();
        return report::json(
            &json!({ "package": package, "version": version.as_str(), "already": already, "channels": channels }),
        );
    }
    let already = if already { " (it was already)" } else { "" };
    report::line(format!("revoked {version} of {package}{already}; whoever uses it is warned"))
}
