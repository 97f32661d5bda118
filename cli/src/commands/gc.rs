//! `streamfs gc CONTENT`: removes what no version needs any more. `--keep` and `--older-than` retire old versions before,
//! for which the packages' signing keys are needed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::package::collect::{
    CollectRequest, Collected, DEFAULT_GRACE, catalog, collect, packages_below, to_retire, versions_in_use,
};
use fs_core::trust::keys::KeyStore;
use fs_core::trust::publisher::{PublishOptions, Publisher};
use serde::Serialize;

use super::Context;
use super::signing::keys_dir;
use crate::{arguments, report};

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub struct GcArguments {
    /// Content root, or one package's folder in it
    #[arg(value_name = "CONTENT")]
    content: PathBuf,
    /// How long what nothing refers to any more is kept, for those who have it mounted [default: 7d]
    #[arg(long, value_name = "DURATION", value_parser = arguments::age)]
    grace: Option<Duration>,
    /// Retire all versions but the newest N of each package; never what a channel points at
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Retire versions published longer ago than this; with --keep, only those beyond the newest N
    #[arg(long, value_name = "DURATION", value_parser = arguments::duration)]
    older_than: Option<Duration>,
    /// Folder of the private signing keys, for retiring [default: ~/.config/streamfs/keys]
    #[arg(long, value_name = "DIR", env = "STREAMFS_KEYS")]
    keys: Option<PathBuf>,
    /// Change nothing, only tell
    #[arg(long)]
    dry_run: bool,
    /// Print what was removed as JSON
    #[arg(long)]
    json: bool,
}

/// What became of one package.
#[derive(Debug, Serialize)]
struct PackageReport {
    package: String,
    /// Versions that were taken out of the catalog.
    retired: Vec<String>,
    #[serde(flatten)]
    collected: Option<Collected>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn run(arguments: GcArguments, context: &Context) -> anyhow::Result<()> {
    let content = arguments.content.to_string_lossy();
    if content.contains("://") {
        bail!("cannot collect {content}: it must be a folder; run `streamfs gc` where the server keeps it");
    }
    let root = std::path::absolute(&arguments.content).with_context(|| format!("cannot collect {content}"))?;
    let packages = packages_below(&root).with_context(|| format!("cannot collect {content}"))?;
    let (mut reports, mut failed) = (Vec::new(), 0);
    for dir in &packages {
        let name = match dir.strip_prefix(&root) {
            Ok(name) if !name.as_os_str().is_empty() => name.display().to_string(),
            _ => dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let mut retired = Vec::new();
        let outcome = package(dir, &arguments, context, &mut retired).await;
        let (collected, error) = match outcome {
            Ok(collected) => (Some(collected), None),
            // One package that cannot be collected keeps nobody from the others.
            Err(error) => {
                failed += 1;
                let error = format!("{error:#}");
                report::warn(format!("nothing was collected of {name}: {error}"));
                (None, Some(error))
            }
        };
        let report = PackageReport { package: name, retired, collected, error };
        if !arguments.json {
            tell(&report, arguments.dry_run)?;
        }
        reports.push(report);
    }
    if arguments.json {
        report::json(&reports)?;
    } else if packages.is_empty() {
        report::line(format!("there are no packages in {content}"))?;
    }
    if failed > 0 {
        bail!("{failed} of {} packages could not be collected", packages.len());
    }
    Ok(())
}

async fn package(
    dir: &Path,
    arguments: &GcArguments,
    context: &Context,
    retired: &mut Vec<String>,
) -> anyhow::Result<Collected> {
    let now = SystemTime::now();
    if (arguments.keep.is_some() || arguments.older_than.is_some())
        && let Some(catalog) = catalog(dir).await?
    {
        let keep = arguments.keep.map(|keep| keep as usize);
        let old = to_retire(&catalog, &versions_in_use(dir, now)?, keep, arguments.older_than, now);
        if !arguments.dry_run && !old.is_empty() {
            let keys = KeyStore::new(keys_dir(arguments.keys.as_deref(), context)?);
            let mut publisher = Publisher::open(dir, &keys, PublishOptions::default()).await?;
            for version in &old {
                publisher.retire(version)?;
            }
            publisher.commit().await?;
        }
        retired.extend(old.iter().map(ToString::to_string));
    }
    let grace = arguments.grace.unwrap_or(DEFAULT_GRACE);
    Ok(collect(dir, &CollectRequest { grace, dry_run: arguments.dry_run, now: SystemTime::now() }).await?)
}

fn tell(report: &PackageReport, dry_run: bool) -> anyhow::Result<()> {
    let PackageReport { package, retired, collected, .. } = report;
    let would = if dry_run { "would be " } else { "" };
    if !retired.is_empty() {
        report::line(format!("{package}: {would}retired: {}", retired.join(", ")))?;
    }
    let Some(collected) = collected else { return Ok(()) };
    let mut words = format!(
        "{package}: {would}removed: {} objects, {}",
        collected.removed.len(),
        report::bytes(collected.removed_bytes)
    );
    if collected.waiting > 0 {
        words.push_str(&format!(
            "; {} more ({}) are too young",
            collected.waiting,
            report::bytes(collected.waiting_bytes)
        ));
    }
    if !collected.in_use.is_empty() {
        let versions: Vec<&str> = collected.in_use.iter().map(|version| version.as_str()).collect();
        words.push_str(&format!("; in use: {}", versions.join(", ")));
    }
    report::line(words)
}
