//! `streamfs versions CONTENT/PACKAGE`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use fs_core::location::{Channel, PackageLocation};
use fs_core::trust::client::Loaded;
use serde::{Deserialize, Serialize};

use super::{Context, Package};
use crate::agent::client::AgentConnection;
use crate::agent::protocol::Request;
use crate::arguments::CacheArguments;
use crate::report;
use crate::trust_report::{FreshnessReport, TrustReport};

/// Arguments of `versions`.
#[derive(Debug, Args)]
pub struct VersionsArguments {
    /// CONTENT/PACKAGE
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// File with the package's trusted root keys (root.json)
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All versions of a package.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VersionsReport {
    /// The package's location.
    package: String,
    /// How new this is.
    freshness: FreshnessReport,
    /// Whether the package's root key was trusted for being the first that was seen, just now.
    trusted_on_first_use: bool,
    /// In order of publishing.
    versions: Vec<VersionReport>,
}

#[derive(Debug, Serialize, Deserialize)]
struct VersionReport {
    version: String,
    sequence: u64,
    /// Seconds since 1970.
    published: i64,
    channels: Vec<String>,
    revoked: bool,
    descriptor_sha256: String,
}

impl VersionsReport {
    pub(crate) fn new(location: &PackageLocation, loaded: &Loaded) -> Self {
        let catalog = &loaded.catalog;
        let channels_of = |version: &str| -> Vec<String> {
            let pointing = catalog.channels.iter().filter(|(_, target)| target.as_str() == version);
            pointing.map(|(channel, _): (&Channel, _)| channel.to_string()).collect()
        };
        let versions = catalog.versions.iter().map(|record| VersionReport {
            version: record.version.to_string(),
            sequence: record.sequence,
            published: record.published,
            channels: channels_of(record.version.as_str()),
            revoked: record.revoked,
            descriptor_sha256: hex::encode(record.descriptor_sha256),
        });
        Self {
            package: location.package_key(),
            freshness: (&loaded.freshness).into(),
            trusted_on_first_use: loaded.trusted_on_first_use,
            versions: versions.collect(),
        }
    }
}

pub(super) async fn run(arguments: VersionsArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, arguments.trust_root.as_deref())?;
    let settings = context.settings(Some(&arguments.cache))?;
    let work = async {
        let mut agent = AgentConnection::connect_or_start(&settings).await?;
        agent.request(&Request::Versions { package: package.wire(&settings) }, |_, _, _| {}).await
    };
    let found: VersionsReport =
        work.await.with_context(|| format!("cannot list the versions of {}", package.location))?;
    let trust = TrustReport { trusted_on_first_use: found.trusted_on_first_use, ..TrustReport::default() };
    if let Some(remark) = trust.remark() {
        context.remark(remark);
    }
    if let Some(why) = found.freshness.in_words() {
        report::warn(format!("this may not be the newest state, {why}"));
    }
    if arguments.json {
        return report::json(&found);
    }
    for version in &found.versions {
        let mut remarks = version.channels.clone();
        if version.revoked {
            remarks.push("REVOKED".to_owned());
        }
        report::line(format!("{}\t{}\t{}", version.version, timestamp(version.published), remarks.join(",")))?;
    }
    Ok(())
}

/// `seconds` since 1970 as UTC, like `2026-01-31T12:00:00Z`.
pub(super) fn timestamp(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date: H. Hinnant, "chrono-compatible low-level date algorithms". Years begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
