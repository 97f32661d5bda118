//! `streamfs renew CONTENT/PACKAGE`: signs the timestamp anew, before it expires.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::location::{Origin, PackageLocation};
use serde_json::json;

use super::Context;
use super::versions::timestamp;
use crate::report;

/// Arguments of `renew`.
#[derive(Debug, Args)]
pub struct RenewArguments {
    /// CONTENT/PACKAGE; CONTENT is a folder
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// Folder of the private signing keys [default: ~/.config/streamfs/keys]
    #[arg(long, value_name = "DIR", env = "STREAMFS_KEYS")]
    keys: Option<PathBuf>,
    /// Print the new expiry as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: RenewArguments, context: &Context) -> anyhow::Result<()> {
    let location: PackageLocation = arguments.package.parse()?;
    let Origin::Folder(content_root) = location.origin.clone() else {
        bail!("cannot renew {location}: only a folder can be signed anew; name the folder that the server shows");
    };
    let keys_dir = match &arguments.keys {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?,
        None => context.settings(None)?.keys_dir,
    };
    let what = format!("cannot renew {location}");
    let package = location.package.clone();
    let work =
        tokio::task::spawn_blocking(move || fs_core::trust::publisher::renew(&content_root, &package, &keys_dir));
    let expires = work.await.context("signing broke off")?.context(what)?;
    if arguments.json {
        return report::json(&json!({ "package": location.package_key(), "expires": expires }));
    }
    report::line(format!("renewed {}: valid until {}", location.package_key(), timestamp(expires)))
}
