//! `streamfs renew CONTENT/PACKAGE`: signs the timestamp anew, before it expires.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::location::{Origin, PackageLocation};
use fs_core::trust::METADATA_DIR;
use fs_core::trust::keys::KeyStore;
use fs_core::trust::publisher::{PublishOptions, Publisher};
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
    /// Folder of the private signing keys [environment: STREAMFS_KEYS] [default: ~/.config/streamfs/keys]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Print the new expiry as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: RenewArguments, context: &Context) -> anyhow::Result<()> {
    let location: PackageLocation = arguments.package.parse()?;
    let what = || format!("cannot renew {location}");
    if let Some(selector) = &location.selector {
        bail!("{}: a package is renewed as a whole; leave @{selector} out", what());
    }
    let dir = package_dir(&location).with_context(what)?;
    let keys = KeyStore::new(keys_dir(arguments.keys.as_deref(), context).with_context(what)?);
    let mut publisher = Publisher::open(&dir, &keys, PublishOptions::default()).await.with_context(what)?;
    publisher.renew().await.with_context(what)?;
    let expires = publisher.timestamp_expires().context("the new timestamp cannot be read").with_context(what)?;
    if arguments.json {
        return report::json(&json!({ "package": location.package_key(), "expires": expires }));
    }
    report::line(format!("renewed {}: valid until {}", location.package_key(), timestamp(expires)))
}

/// The folder of a package that was published.
///
/// # Errors
/// If it is no folder, or nothing was published there: opening a publisher would begin a package.
pub(super) fn package_dir(location: &PackageLocation) -> anyhow::Result<PathBuf> {
    let Origin::Folder(content_root) = &location.origin else {
        bail!("only a folder can be signed anew; name the folder that the server shows");
    };
    let dir = content_root.join(location.package.as_str());
    if !dir.join(METADATA_DIR).is_dir() {
        bail!("nothing was published there");
    }
    Ok(dir)
}

/// The folder of the private keys: the one that was named, else the one that applies.
pub(super) fn keys_dir(named: Option<&Path>, context: &Context) -> anyhow::Result<PathBuf> {
    match named {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display())),
        None => Ok(context.settings(None)?.keys_dir()?.to_owned()),
    }
}
