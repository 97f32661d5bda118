//! `streamfs revoke CONTENT/PACKAGE@VERSION`: withdraws a version. What is stored stays; whoever mounts the version,
//! or has it mounted, is warned.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::location::{Channel, PackageLocation, PackageVersion};
use fs_core::trust::keys::KeyStore;
use fs_core::trust::publisher::{PublishOptions, Publisher};
use serde_json::json;

use super::Context;
use super::renew::{keys_dir, package_dir};
use crate::report;

/// Arguments of `revoke`.
#[derive(Debug, Args)]
pub struct RevokeArguments {
    /// CONTENT/PACKAGE@VERSION; CONTENT is a folder
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
    let dir = package_dir(&location).with_context(what)?;
    let keys = KeyStore::new(keys_dir(arguments.keys.as_deref(), context).with_context(what)?);
    let mut publisher = Publisher::open(&dir, &keys, PublishOptions::default()).await.with_context(what)?;
    let already = publisher.catalog().versions.iter().any(|record| record.version == version && record.revoked);
    publisher.revoke(&version).with_context(what)?;
    publisher.commit().await.with_context(what)?;
    let channels = &publisher.catalog().channels;
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
