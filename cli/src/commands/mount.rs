//! `streamfs mount CONTENT/PACKAGE[@…] DIR`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use fs_core::mount::prefetch::Prefetch;
use serde::{Deserialize, Serialize};

use super::load::RateArguments;
use super::status::MountStatus;
use super::{Context, Package};
use crate::agent::client::AgentConnection;
use crate::agent::protocol::{LaunchWish, MountRequest, Request, WirePath};
use crate::arguments::{self, CacheArguments};
use crate::interrupt::Interrupted;
use crate::trust_report::TrustReport;
use crate::{mount_point, report};

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]; without @ the channel "stable"
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// An empty directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Stay until interrupted or unmounted, and unmount on Ctrl-C
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    cache: CacheArguments,
    /// Most bytes of the cache on disk (K, M, G, T) [default: 20G]
    #[arg(long, value_name = "N", value_parser = arguments::size)]
    cache_size: Option<u64>,
    /// Most bytes of decoded blocks in memory [default: 64M]
    #[arg(long, value_name = "N", value_parser = arguments::size)]
    memory: Option<u64>,
    /// When a newer version is shown at DIR
    #[arg(long, value_enum, default_value_t = Upgrade::Manual)]
    upgrade: Upgrade,
    /// File with the package's trusted root keys (root.json); else they are pinned on first use
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Let other users in
    #[arg(long)]
    allow_other: bool,
    /// How opening a file is answered: by letting the kernel read large complete files itself (needs root), or not at
    /// all [default: passthrough for root]
    #[arg(long, value_enum, hide = true)]
    open_policy: Option<OpenAnswer>,
    /// Launch set to bring, "none" for none [default: the version's first]
    #[arg(long, value_name = "NAME")]
    launch: Option<String>,
    /// Bring the whole version in the background while it is mounted
    #[arg(long)]
    background_load: bool,
    #[command(flatten)]
    load: RateArguments,
    /// Whether a program that starts may be brought what it has not asked for yet: launch or none [default: launch]
    #[arg(long, value_name = "WHEN", value_parser = arguments::prefetch)]
    prefetch: Option<Prefetch>,
    /// Neither learn from launches nor use what was learned
    #[arg(long)]
    no_learn: bool,
    /// How often to ask for newer versions [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    poll_interval: Option<Duration>,
    /// A fetch that did not succeed for this long fails; a read may need several in turn [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    deadline: Option<Duration>,
    /// Print what was mounted as JSON
    #[arg(long)]
    json: bool,
}

/// When a mount goes over to a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Upgrade {
    /// When `streamfs remount` is run.
    Manual,
}

/// How opening a file is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenAnswer {
    /// Large complete files are read by the kernel.
    Passthrough,
    /// The kernel does not ask.
    ZeroMessage,
}

/// What was mounted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MountReport {
    dir: WirePath,
    location: String,
    pub(crate) package: String,
    pub(crate) version: String,
    descriptor: String,
    #[serde(flatten)]
    pub(crate) trust: TrustReport,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
}

impl MountReport {
    pub(crate) fn new(status: &MountStatus, trust: TrustReport, remarks: Vec<String>) -> Self {
        Self {
            dir: status.dir.clone(),
            location: status.location.clone(),
            package: status.package.clone(),
            version: status.version.clone(),
            descriptor: status.descriptor.clone(),
            trust,
            remarks,
        }
    }
}

pub(super) async fn run(arguments: MountArguments, context: &Context) -> anyhow::Result<()> {
    let Upgrade::Manual = arguments.upgrade;
    let package = Package::parse(&arguments.package, arguments.trust_root.as_deref())?;
    let what = || format!("cannot mount {} at {}", package.location, arguments.dir.display());
    if arguments.load.is_given() && !arguments.background_load {
        anyhow::bail!("--rate and --jitter are for --background-load");
    }
    let dir = mount_point::resolve(&arguments.dir).with_context(what)?;
    let mut settings = context.settings(Some(&arguments.cache)).with_context(what)?;
    if let Some((_, here)) = super::agent_of(&dir).await.with_context(what)? {
        let shown = format!("{} {} is mounted there already", here.package, here.version);
        return Err(anyhow::anyhow!("{shown}; use: streamfs remount, or streamfs unmount")).with_context(what);
    }
    mount_point::check_mountable(&dir).with_context(what)?;
    settings.cache_size_bytes = arguments.cache_size.unwrap_or(settings.cache_size_bytes);
    settings.memory_bytes = arguments.memory.unwrap_or(settings.memory_bytes);
    let mut wire = package.wire(&settings);
    if let Some(deadline) = arguments.deadline {
        wire.origin.set_read_deadline(deadline);
    }
    let poll_interval = arguments.poll_interval.unwrap_or(settings.poll_interval);
    let mut prefetch = settings.prefetch;
    prefetch.prefetch = arguments.prefetch.unwrap_or(prefetch.prefetch);
    prefetch.learn &= !arguments.no_learn;
    let request = Request::Mount(MountRequest {
        package: wire,
        dir: dir.as_path().into(),
        allow_other: arguments.allow_other,
        open_policy: arguments.open_policy,
        launch: LaunchWish::named(arguments.launch.as_deref()),
        watch: None,
        prefetch,
        background_load: arguments.background_load.then(|| arguments.load.wire()),
        poll_interval_ms: u64::try_from(poll_interval.as_millis()).unwrap_or(u64::MAX),
        cache_size_bytes: arguments.cache_size,
        memory_bytes: arguments.memory,
    });
    let work = async {
        let mut agent = AgentConnection::connect_or_start(&settings).await.with_context(what)?;
        let mounted: MountReport = agent.request(&request, |_, _, _| {}).await.with_context(what)?;
        Ok((agent, mounted))
    };
    let (agent, mounted) = context.interrupt.or(work).await?;
    context.tell(&mounted.version, &mounted.trust);
    for remark in &mounted.remarks {
        context.remark(remark);
    }
    if arguments.json {
        report::json(&mounted)?;
    } else {
        report::line(format!("mounted {} {} at {}", mounted.package, mounted.version, mounted.dir))?;
    }
    if arguments.foreground { stay(agent, &dir, context).await } else { Ok(()) }
}

/// Waits until the mount at `dir` is unmounted, or unmounts it on a signal.
async fn stay(mut agent: AgentConnection, dir: &Path, context: &Context) -> anyhow::Result<()> {
    let what = || format!("the mount at {} ended", dir.display());
    let hold = Request::Hold { dir: dir.into() };
    match context.interrupt.or(agent.request::<()>(&hold, |_, _, _| {})).await {
        // The usual way to end a mount in the foreground is no failure.
        Err(error) if error.is::<Interrupted>() => unmount(dir).await,
        result => result.with_context(what),
    }
}

async fn unmount(dir: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot unmount {}", dir.display());
    let Some((mut agent, _)) = super::agent_of(dir).await.with_context(what)? else { return Ok(()) };
    let ask = |lazy| Request::Unmount { dir: dir.into(), lazy };
    if agent.request::<()>(&ask(false), |_, _, _| {}).await.is_ok() {
        return Ok(());
    }
    // Somebody uses it. It leaves the directory now, and ends with its last user.
    agent.request::<()>(&ask(true), |_, _, _| {}).await.with_context(what)
}
