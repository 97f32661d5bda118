//! `streamfs publish DIR CONTENT/PACKAGE --version V`

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use fs_core::location::{Channel, DEFAULT_CHANNEL, Origin, PackageLocation, PackageVersion};
use fs_core::package::profile::{PROFILE_MAX_BYTES, Profile};
use fs_core::package::publish::staged::ServerPackage;
use fs_core::package::publish::{LaunchSummary, PublishRequest, PublishSummary, publish, publish_to_server};

use super::Context;
use crate::interrupt::Interrupted;
use crate::report;

/// Fast, and within a few per cent of the size that much slower levels reach.
const DEFAULT_LEVEL: i32 = 3;

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct PublishArguments {
    /// Directory whose tree becomes the version
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// CONTENT/PACKAGE; CONTENT is a folder, made if it is missing, or http(s):// of `streamfs serve`
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// Name of the new version
    #[arg(long, value_name = "V")]
    version: String,
    /// Channel that points at the new version; may be repeated
    #[arg(long, value_name = "NAME", default_value = DEFAULT_CHANNEL)]
    channel: Vec<String>,
    /// Folder of the private signing keys, made on first use [environment: STREAMFS_KEYS] [default: ~/.config/streamfs/keys]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// zstd level, 1 (fast) to 19 (small)
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LEVEL, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Leave out sockets, devices and pipes instead of refusing them
    #[arg(long)]
    skip_special: bool,
    /// Recording of a launch, made by `streamfs profile`; may be repeated, also for several applications
    #[arg(long, value_name = "FILE")]
    profile: Vec<PathBuf>,
    /// Do not take over the previous version's recordings
    #[arg(long, conflicts_with = "profile")]
    no_profile: bool,
    /// Threads [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: PublishArguments, context: &Context) -> anyhow::Result<()> {
    let ((request, server), json) = (prepare(&arguments, context)?, arguments.json);
    let keys_dir = request.keys_dir.clone();
    let what = format!("cannot publish {} {}", request.package, request.version);
    let bar = context.bar();
    // Publishing watches for the interrupt itself and leaves the old state behind.
    let work = move || match server {
        Some(server) => publish_to_server(&request, &server, &bar),
        None => publish(&request, &bar),
    };
    let summary = tokio::task::spawn_blocking(work).await.context("publishing broke off")?;
    let summary = match (summary, context.interrupt.signalled()) {
        (Err(fs_core::Error::Cancelled), Some(signal)) => return Err(Interrupted(signal).into()),
        (result, _) => result.context(what)?,
    };
    if summary.root_key_created {
        context.remark(format!(
            "made new signing keys for {} in {}; keep a copy of them",
            summary.package,
            keys_dir.display()
        ));
    }
    for skipped in &summary.skipped {
        context.remark(format!("left out {skipped}"));
    }
    for name in &summary.launch_sets_dropped {
        context.remark(format!(
            "the previous version has a launch set {name}, this one has not; publish with its recording, too, to have it"
        ));
    }
    for LaunchSummary { name, inherited, not_applicable, left_out, .. } in &summary.launch {
        if *not_applicable > 0 {
            let whose = if *inherited { "the inherited recording" } else { "the recording" };
            context.remark(format!(
                "{whose} of {name} asks {not_applicable} things about files that this version does not have; they are left out"
            ));
        }
        if *left_out > 0 {
            context.remark(format!(
                "the launch set {name} is as long as one may be; the last {left_out} things of its recording are left out"
            ));
        }
    }
    if json { report::json(&summary) } else { report::line(in_words(&summary)) }
}

fn prepare(arguments: &PublishArguments, context: &Context) -> anyhow::Result<(PublishRequest, Option<ServerPackage>)> {
    let location: PackageLocation = arguments.package.parse()?;
    if let Some(selector) = &location.selector {
        bail!(
            "cannot publish to {}@{selector}: name the version with --version and the channel with --channel",
            location.package
        );
    }
    let (content_root, server) = match &location.origin {
        Origin::Folder(content_root) => (content_root.clone(), None),
        Origin::Http(_) => (PathBuf::new(), Some(server_package(&location, context)?)),
        Origin::Rtsp(_) => bail!(
            "cannot publish to {}: publish by https:// to the same server, or to the folder that it shows",
            location.origin
        ),
    };
    let version: PackageVersion = arguments.version.parse()?;
    let channels = arguments.channel.iter().map(|name| name.parse()).collect::<fs_core::Result<Vec<Channel>>>()?;
    let meta = std::fs::metadata(&arguments.source)
        .with_context(|| format!("cannot publish {}", arguments.source.display()))?;
    if !meta.is_dir() {
        bail!("cannot publish {}: it is not a directory", arguments.source.display());
    }
    let source = std::path::absolute(&arguments.source)?;
    let keys_dir = match &arguments.keys {
        Some(dir) => std::path::absolute(dir).map_err(|e| anyhow!("cannot use {}: {e}", dir.display()))?,
        None => context.settings(None)?.keys_dir()?.to_owned(),
    };
    let threads =
        arguments.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let profiles = arguments.profile.iter().map(|file| read_profile(file)).collect::<anyhow::Result<_>>()?;
    let request = PublishRequest {
        source,
        content_root,
        package: location.package,
        version,
        channels,
        keys_dir,
        level: arguments.level,
        skip_special: arguments.skip_special,
        threads,
        profiles,
        inherit_profiles: !arguments.no_profile,
    };
    Ok((request, server))
}

/// A package on a server, as the settings say how it is reached.
pub(super) fn server_package(location: &PackageLocation, context: &Context) -> anyhow::Result<ServerPackage> {
    let settings = context.settings(None)?;
    let scratch = settings.cache_dir()?.join("publishing");
    Ok(ServerPackage { location: location.clone(), config: settings.origin_config(location), scratch })
}

fn read_profile(path: &Path) -> anyhow::Result<Profile> {
    let reading = || format!("cannot read the recording {}", path.display());
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to refuse it.
    let file = File::open(path).with_context(reading)?;
    file.take(PROFILE_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).with_context(reading)?;
    super::profile::parse_profile(&bytes, path)
}

fn in_words(summary: &PublishSummary) -> String {
    let PublishSummary { package, version, files, directories, symlinks, blocks, new_blocks, seconds, ratio, .. } =
        summary;
    let (bytes, new_bytes) = (report::bytes(summary.bytes), report::bytes(summary.new_bytes_stored));
    let mut words = format!(
        "published {package} {version}: {files} files, {directories} directories, {symlinks} links, {bytes}; \
         stored {new_bytes} in {new_blocks} new blocks of {blocks} (ratio {ratio:.2}) in {seconds:.1} s"
    );
    if let Some(sent) = summary.sent_bytes {
        words.push_str(&format!("\nsent {} to the server", report::bytes(sent)));
    }
    for LaunchSummary { name, inherited, blocks, pages, bytes, raw_bytes, .. } in &summary.launch {
        let (bytes, raw_bytes) = (report::bytes(*bytes), report::bytes(*raw_bytes));
        let inherited = if *inherited { " (inherited)" } else { "" };
        words.push_str(&format!(
            "\nlaunch set {name}{inherited}: {raw_bytes} in {blocks} blocks and {pages} pages, {bytes} stored"
        ));
    }
    words
}
