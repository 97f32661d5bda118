//! `streamfs renew CONTENT/PACKAGE`: signs the timestamp anew, before it expires.

use std::path::PathBuf;
use std::time::SystemTime;

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
    let package_dir = content_root.join(location.package.as_str());
    // Opening a publisher begins a package where none is; renewing must not.
    if !package_dir.join(METADATA_DIR).is_dir() {
        bail!("{what}: nothing was published there");
    }
    let options = PublishOptions::default();
    let valid = options.timestamp_valid;
    let work = async {
        let mut publisher = Publisher::open(&package_dir, &KeyStore::new(keys_dir), options).await?;
        publisher.renew().await?;
        let until = SystemTime::now() + valid;
        Ok::<_, fs_core::Error>(until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    };
    let expires = i64::try_from(work.await.context(what)?).unwrap_or(i64::MAX);
    if arguments.json {
        return report::json(&json!({ "package": location.package_key(), "expires": expires }));
    }
    report::line(format!("renewed {}: valid until {}", location.package_key(), timestamp(expires)))
}
