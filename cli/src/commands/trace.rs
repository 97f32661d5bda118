//! `streamfs trace CONTENT/PACKAGE[@…] -o FILE -- CMD ARG...`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use fs_core::mount::record::RecordedTotals;
use fs_core::trust::store::TrustStore;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use super::profile::Output;
use super::run::LaunchArguments;
use super::{Context, Package};
use crate::agent;
use crate::agent::client::AgentConnection;
use crate::agent::protocol::{LaunchWish, Request, Watch, WirePath};
use crate::arguments;
use crate::child::{self, Child, Over};
use crate::launch_report::{self, Circumstances};
use crate::private_mount::{PrivateMount, PrivateMountOptions, RunFolder};
use crate::report;
use crate::settings::InForce;

/// How long an agent that was started for one launch may take to end.
const ENDING_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct TraceArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]; without @ the channel "stable"
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// File that the report is written to (HTML)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Launch set to bring, "none" for none [default: the version's first]
    #[arg(long = "launch", value_name = "NAME")]
    set: Option<String>,
    /// Use the cache with what is in it, instead of an empty one that is removed afterwards
    #[arg(long)]
    warm: bool,
    /// End the program and the report after this time
    #[arg(long = "for", value_name = "TIME", value_parser = arguments::duration)]
    longest: Option<Duration>,
    /// Print what was seen as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    launch: LaunchArguments,
}

/// A launch that is to be looked at.
pub(super) struct Launch<'a> {
    pub(super) package: &'a Package,
    pub(super) arguments: &'a LaunchArguments,
    pub(super) launch: LaunchWish,
    pub(super) longest: Option<Duration>,
    /// Whether with nothing cached.
    pub(super) cold: bool,
}

/// What became of it.
pub(super) struct Traced {
    /// The report.
    pub(super) page: String,
    summary: launch_report::Summary,
    version: String,
    over: Over,
}

#[derive(Debug, Serialize)]
struct TraceReport {
    report: WirePath,
    package: String,
    version: String,
    exit_status: Option<u8>,
    #[serde(flatten)]
    summary: launch_report::Summary,
}

pub(super) async fn run(arguments: TraceArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, arguments.launch.trust_root.as_deref())?;
    let what = || format!("cannot look at a launch of {}", package.location);
    arguments.launch.command().with_context(what)?;
    let settings = context.settings(Some(&arguments.launch.cache)).with_context(what)?;
    let output = Output::begin(&arguments.output)?;
    let launch = Launch {
        package: &package,
        arguments: &arguments.launch,
        launch: LaunchWish::named(arguments.set.as_deref()),
        longest: arguments.longest,
        cold: !arguments.warm,
    };
    let traced = trace(&launch, settings, context).await.with_context(what)?;
    output.finish(traced.page.as_bytes())?;
    let status = match traced.over {
        Over::Ended(status) => Some(status),
        Over::Interrupted | Over::TimeUp => None,
    };
    if arguments.json {
        report::json(&TraceReport {
            report: arguments.output.as_path().into(),
            package: package.location.package.to_string(),
            version: traced.version,
            exit_status: status.map(child::code),
            summary: traced.summary,
        })?;
    } else {
        report::line(format!("{}; report: {}", traced.summary.in_words(), arguments.output.display()))?;
    }
    status.map_or(Ok(()), child::check)
}

/// Launches it and draws what happened.
pub(super) async fn trace(launch: &Launch<'_>, settings: InForce, context: &Context) -> anyhow::Result<Traced> {
    let empty = if launch.cold { Some(EmptyCache::make(launch, &settings)?) } else { None };
    let mut settings = settings;
    if let Some(empty) = &empty {
        settings.set_cache_dir(empty.folder.path())?;
    }
    let traced = trace_with(launch, &settings, empty.as_ref(), context).await;
    if let Some(empty) = empty {
        empty.remove(&settings).await;
    }
    traced
}

async fn trace_with(
    launch: &Launch<'_>,
    settings: &InForce,
    empty: Option<&EmptyCache>,
    context: &Context,
) -> anyhow::Result<Traced> {
    let mut folder = RunFolder::make()?;
    let dir = folder.mount_point(&launch.package.location.package.to_string())?;
    let file = folder.file("trace");
    let mut wire = launch.arguments.wire(launch.package, settings);
    if let Some(root) = empty.and_then(|empty| empty.trust_root.as_deref()) {
        wire.trust_root.get_or_insert(root.into());
    }
    let options = PrivateMountOptions { package: wire, launch: launch.launch.clone(), watch: Some(Watch::Trace) };
    // The agent is there before the launch begins, as it is on a machine where anything is mounted.
    drop(context.interrupt.or(AgentConnection::connect_or_start(settings)).await?);
    let mut mount = PrivateMount::make(&dir, options, settings, &context.interrupt).await?;
    if empty.is_none() {
        context.tell(&mount.report().version, &mount.report().trust);
    }
    let seen = async {
        let command = launch.arguments.command()?;
        let mut child = Child::start(command, mount.dir())?;
        let over = child.wait(launch.longest, &context.interrupt).await;
        let took = child.age();
        let request = Request::Recording {
            dir: dir.as_path().into(),
            name: String::new(),
            profile: None,
            trace: Some(file.as_path().into()),
        };
        let seen = mount.agent().request::<RecordedTotals>(&request, |_, _, _| {}).await;
        let after = child.age();
        if !matches!(over, Ok(Over::Ended(_))) {
            child.end().await;
        }
        seen?;
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let trace: Value = serde_json::from_slice(&text).context("the agent's recording cannot be understood")?;
        let words: Vec<String> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let circumstances = Circumstances {
            command: words,
            cold: launch.cold,
            launch_micros: micros(took),
            since_start_micros: micros(after),
        };
        anyhow::Ok((trace, circumstances, over?))
    };
    let seen = seen.await;
    let version = mount.report().version.clone();
    super::run::end(mount, context).await;
    let (trace, circumstances, over) = seen?;
    let summary = launch_report::Summary::of(&trace, &circumstances);
    let page = launch_report::page(&trace, &circumstances, &summary);
    Ok(Traced { page, summary, version, over })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A cache that nothing is in, with an agent of its own.
struct EmptyCache {
    folder: TempDir,
    /// The root that this machine has pinned: an empty cache must not make it trust another.
    trust_root: Option<PathBuf>,
}

impl EmptyCache {
    fn make(launch: &Launch<'_>, settings: &InForce) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("streamfs-trace-").tempdir();
        let folder = folder.context("cannot make a temporary folder for an empty cache")?;
        let store = TrustStore::new(settings.cache_dir()?.join("trust"));
        let pinned = store.package_dir(&launch.package.location.package_key()).join("root.json");
        Ok(Self { folder, trust_root: pinned.is_file().then_some(pinned) })
    }

    /// Ends its agent and removes it.
    async fn remove(self, settings: &InForce) {
        let path = self.folder.path().to_owned();
        if let Err(error) = end_agent(&path, settings).await {
            report::warn(format!("the agent of the temporary cache {} does not end: {error:#}", path.display()));
        }
        if let Err(error) = self.folder.close() {
            report::warn(format!("cannot remove the temporary cache {}: {error}", path.display()));
        }
    }
}

async fn end_agent(cache: &Path, settings: &InForce) -> anyhow::Result<()> {
    if agent::is_running(cache) {
        AgentConnection::connect_or_start(settings).await?.request::<()>(&Request::Shutdown {}, |_, _, _| {}).await?;
        let gone = async {
            while agent::is_running(cache) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(ENDING_MAX, gone).await.context("it takes too long")?;
    }
    Ok(())
}
