//! `streamfs renew CONTENT/PACKAGE`: signs the timestamp anew, before it expires.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::location::PackageLocation;
use serde_json::json;

use super::Context;
use super::signing::Signing;
use super::versions::timestamp;
use crate::report;

/// Arguments of `renew`.
#[derive(Debug, Args)]
pub struct RenewArguments {
    /// CONTENT/PACKAGE; CONTENT is a folder, or http(s):// of `streamfs serve`
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
    let mut signing = Signing::open(&location, arguments.keys.as_deref(), context).await.with_context(what)?;
    signing.publisher.renew().await.with_context(what)?;
    signing.finish(context).await.with_context(what)?;
    let expires =
        signing.publisher.timestamp_expires().context("the new timestamp cannot be read").with_context(what)?;
    if arguments.json {
        return report::json(&json!({ "package": location.package_key(), "expires": expires }));
    }
    report::line(format!("renewed {}: valid until {}", location.package_key(), timestamp(expires)))
}
