//! `streamfs status [DIR]`

mod prometheus;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use fs_core::mount::host::{LoadState, LoadStatus, recorded_loads};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Context;
use super::versions::timestamp;
use crate::agent::client::AgentConnection;
use crate::agent::protocol::{Request, WirePath};
use crate::agent::registry::{self, AgentDescription};
use crate::agent::report_progress::load_in_words;
use crate::settings::InForce;
use crate::trust_report::FreshnessReport;
use crate::{agent, mount_point, report};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Tell about this directory only
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Print the mounts' counters in Prometheus' text format
    #[arg(long)]
    prometheus: bool,
}

/// In what state a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MountState {
    /// Shown at its directory.
    Mounted,
    /// Replaced or unmounted, but still used by somebody.
    Draining,
    /// Left behind by an agent that is dead.
    Dead,
}

/// One mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountStatus {
    pub(crate) dir: WirePath,
    pub(crate) state: MountState,
    pub(crate) location: String,
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) descriptor: String,
    pub(crate) origin: String,
    /// Channel that is followed; none if the version was named itself.
    pub(crate) follows: Option<String>,
    /// Seconds since 1970.
    pub(crate) since: u64,
    /// Newer version that a remount would show.
    pub(crate) newer: Option<String>,
    /// How new what is known of the package is.
    pub(crate) freshness: FreshnessReport,
    /// Whether the publisher withdrew the version that is shown.
    pub(crate) revoked: bool,
    pub(crate) statistics: Value,
}

/// One agent, and all it hosts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AgentReport {
    pub(crate) agent: AgentDescription,
    pub(crate) cache: Value,
    pub(crate) mounts: Vec<MountStatus>,
    /// Versions that are loaded or being loaded.
    #[serde(default)]
    pub(crate) loads: Vec<LoadStatus>,
}

/// What is loaded in a cache that no agent has open.
#[derive(Serialize)]
struct IdleCache {
    cache_dir: WirePath,
    loads: Vec<LoadStatus>,
}

#[derive(Serialize)]
struct StatusReport {
    agents: Vec<AgentReport>,
    /// The cache in force, if no agent runs for it and something is loaded in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<IdleCache>,
    /// Directories where mounts of dead agents stand.
    dead: Vec<WirePath>,
}

/// Asks all agents of this user.
pub(super) async fn ask_agents() -> anyhow::Result<Vec<(AgentReport, AgentConnection)>> {
    let mut reports = Vec::new();
    for (_, files) in registry::agents(&registry::runtime_dir()?)? {
        // An agent that died without a farewell left its files; the next one of its cache replaces them.
        let Some(mut connection) = AgentConnection::connect(&files).await? else { continue };
        let report: AgentReport = connection.request(&Request::Status {}, |_, _, _| {}).await?;
        reports.push((report, connection));
    }
    Ok(reports)
}

pub(super) async fn run(arguments: StatusArguments, context: &Context) -> anyhow::Result<()> {
    let what = "cannot tell the status";
    let settings = context.settings(None).context(what)?;
    let mut agents: Vec<_> = ask_agents().await.context(what)?.into_iter().map(|(report, _)| report).collect();
    let mut dead = agent::stale_mounts().context(what)?;
    if let Some(dir) = &arguments.dir {
        let dir = mount_point::resolve(dir).context(what)?;
        if agent::clean_stale(&dir).context(what)? {
            context.remark(format!("removed the mount of a dead agent at {}", dir.display()));
            dead.retain(|path| *path != dir);
        }
        for report in &mut agents {
            report.mounts.retain(|mount| mount.dir.0 == dir);
            let shown = |mount: &MountStatus| format!("{}/{}@{}", mount.origin, mount.package, mount.version);
            let shown: Vec<String> = report.mounts.iter().map(shown).collect();
            report.loads.retain(|load| shown.contains(&load.location));
        }
        agents.retain(|report| !report.mounts.is_empty());
        dead.retain(|path| *path == dir);
        if agents.is_empty() && dead.is_empty() {
            anyhow::bail!("nothing of streamfs is mounted at {}", dir.display());
        }
    }
    let idle = if arguments.dir.is_none() { idle_cache(&settings, &agents) } else { None };
    if arguments.prometheus {
        return report::text(&prometheus::text(&agents));
    }
    let dead = dead.into_iter().map(WirePath).collect();
    let status = StatusReport { agents, idle, dead };
    if arguments.json { report::json(&status) } else { print(&status) }
}

/// What is loaded in the cache in force, if no agent can be asked.
fn idle_cache(settings: &InForce, agents: &[AgentReport]) -> Option<IdleCache> {
    // A cache that is not there or may not be seen has nothing to tell.
    let cache_dir = settings.cache_dir().ok()?.canonicalize().ok()?;
    if agents.iter().any(|report| report.agent.cache_dir.0 == cache_dir) {
        return None;
    }
    let loads = recorded_loads(&cache_dir);
    (!loads.is_empty()).then_some(IdleCache { cache_dir: WirePath(cache_dir), loads })
}

fn print(status: &StatusReport) -> anyhow::Result<()> {
    if status.agents.is_empty() && status.dead.is_empty() {
        report::line("nothing is mounted")?;
    }
    if let Some(IdleCache { cache_dir, loads }) = &status.idle {
        report::line(format!("no agent runs for the cache {cache_dir}; in it are"))?;
        for load in loads {
            let (done, total) = (report::bytes(load.done_bytes), report::bytes(load.total_bytes));
            let words = match load.state {
                LoadState::Waiting => "not complete; the next agent goes on with it".to_owned(),
                _ => load_in_words(load),
            };
            report::line(format!("  {}: {words}, {done} of {total}", load.location))?;
        }
    }
    for AgentReport { agent, cache, mounts, loads } in &status.agents {
        let number = |name: &str| cache.get(name).and_then(Value::as_u64).unwrap_or(0);
        let (used, quota) = (report::bytes(number("used_bytes")), report::bytes(number("quota_bytes")));
        report::line(format!(
            "agent {} (streamfs {}), cache {}: {used} of {quota}",
            agent.pid, agent.version, agent.cache_dir
        ))?;
        if let Some(why) = cache.get("degraded").and_then(Value::as_str) {
            report::line(format!("  the cache is degraded: {why}"))?;
        }
        for mount in mounts {
            report::line(format!("  {}", in_words(mount)))?;
        }
        for load in loads {
            let (done, total) = (report::bytes(load.done_bytes), report::bytes(load.total_bytes));
            report::line(format!("  {}: {}, {done} of {total}", load.location, load_in_words(load)))?;
        }
    }
    for dir in &status.dead {
        report::line(format!("{dir}: dead (its agent is gone); remove it with: streamfs unmount {dir}"))?;
    }
    Ok(())
}

fn in_words(mount: &MountStatus) -> String {
    let MountStatus { dir, package, version, location, .. } = mount;
    let mut parts = vec![format!("{dir}: {package} {version} from {location}")];
    if mount.state == MountState::Draining {
        parts.push("old version, still in use".to_owned());
    }
    parts.push(format!("since {}", timestamp(i64::try_from(mount.since).unwrap_or(i64::MAX))));
    if let Some(count) = mount.statistics.get("bytes_fetched").and_then(Value::as_u64) {
        parts.push(format!("{} fetched", report::bytes(count)));
    }
    if let Some(rate) = mount.statistics.pointer("/launch/hit_rate").and_then(Value::as_f64) {
        parts.push(format!("{:.0} % of what its launch read in the launch set", rate * 100.0));
    }
    if mount.statistics.pointer("/prefetch/learned_ranges").and_then(Value::as_u64).is_some_and(|n| n > 0) {
        parts.push("helped by what earlier launches read".to_owned());
    }
    if mount.revoked {
        parts.push(format!("version {version} was REVOKED by its publisher"));
    }
    if let Some(newer) = &mount.newer {
        parts.push(format!("newer version available: {newer} (streamfs remount {dir})"));
    }
    if let Some(failure) = mount.statistics.get("last_failure").filter(|failure| failure.is_object()) {
        let count = mount.statistics.get("questions_failed").and_then(Value::as_u64).unwrap_or(1);
        let ago = failure.get("seconds_ago").and_then(Value::as_u64).unwrap_or(0);
        let reason = failure.get("reason").and_then(Value::as_str).unwrap_or_default();
        // The same words need not stand there twice.
        let reason = if mount.freshness.is_fresh() { format!(": {reason}") } else { String::new() };
        parts.push(format!("reads FAIL ({count}, the last {ago} s ago{reason})"));
    }
    parts.extend(mount.freshness.in_words());
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_in_one_line() {
        let mount = MountStatus {
            dir: std::path::Path::new("/mnt").into(),
            state: MountState::Draining,
            location: "/c/app".into(),
            package: "app".into(),
            version: "1".into(),
            descriptor: "00".into(),
            origin: "/c".into(),
            follows: Some("stable".into()),
            since: 0,
            newer: Some("2".into()),
            freshness: FreshnessReport::offline("no route".into()),
            revoked: true,
            statistics: serde_json::json!({
                "bytes_fetched": 2048,
                "questions_failed": 3,
                "last_failure": { "seconds_ago": 7, "reason": "no route", "is_away": true },
            }),
        };
        let words = in_words(&mount);
        for part in [
            "/mnt: app 1 from /c/app",
            "still in use",
            "2.00 KiB fetched",
            "newer version available: 2",
            "offline: no route",
            "reads FAIL (3, the last 7 s ago)",
            "REVOKED",
        ] {
            assert!(words.contains(part), "{words}");
        }
    }
}
