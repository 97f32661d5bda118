//! `streamfs load` and `streamfs unload`: whole versions, kept for use without network.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::{Context, Package};
use crate::agent::client::AgentConnection;
use crate::agent::protocol::{LoadWire, Request};
use crate::arguments::{self, CacheArguments};
use crate::interrupt::Interrupted;
use crate::report;
use crate::trust_report::OfVersion;

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// File with the package's trusted root keys (root.json)
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    #[command(flatten)]
    load: RateArguments,
    #[command(flatten)]
    cache: CacheArguments,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// How fast a version is loaded.
#[derive(Debug, Args)]
pub struct RateArguments {
    /// Most stored bytes a second (20MB/s, 512K) [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = arguments::rate)]
    rate: Option<u64>,
    /// Start after a random time of up to this, so that many machines do not start at once
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    jitter: Option<Duration>,
}

impl RateArguments {
    /// On the wire.
    pub(super) fn wire(&self) -> LoadWire {
        let jitter = self.jitter.unwrap_or_default();
        let jitter_ms = u64::try_from(jitter.as_millis()).unwrap_or(u64::MAX);
        LoadWire { bytes_per_second: self.rate, jitter_ms }
    }

    /// Whether anything was said.
    pub(super) fn is_given(&self) -> bool {
        self.rate.is_some() || self.jitter.is_some()
    }
}

/// Arguments of `unload`.
#[derive(Debug, Args)]
pub struct UnloadArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    #[command(flatten)]
    cache: CacheArguments,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: LoadArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, arguments.trust_root.as_deref())?;
    let settings = context.settings(Some(&arguments.cache))?;
    let bar = context.bar();
    let work = async {
        let mut agent = AgentConnection::connect_or_start(&settings).await?;
        context.tell_when_begun(&mut agent, &bar);
        let request = Request::Load { package: package.wire(&settings), load: arguments.load.wire() };
        agent.request::<OfVersion<Value>>(&request, |done, total, message| bar.show(done, total, message)).await
    };
    let loaded = context.interrupt.or(work).await;
    drop(bar);
    if loaded.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
        let location = &package.location;
        context.remark(format!(
            "broken off; what came is kept: `streamfs load {location}` goes on with it, `streamfs unload {location}` gives it up"
        ));
    }
    let loaded = loaded.with_context(|| format!("cannot load {}", package.location))?;
    if arguments.json {
        return report::json(&loaded);
    }
    let OfVersion { version, summary, .. } = &loaded;
    let number = |name: &str| summary.get(name).and_then(Value::as_u64).unwrap_or(0);
    let seconds = summary.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
    let (bytes, fetched) = (report::bytes(number("bytes")), report::bytes(number("fetched_bytes")));
    let location = &package.location;
    report::line(format!(
        "loaded {location}: version {version}, {} files, {bytes}, fetched {fetched} in {seconds:.1} s",
        number("files")
    ))
}

pub(super) async fn run_unload(arguments: UnloadArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, None)?;
    let settings = context.settings(Some(&arguments.cache))?;
    let work = async {
        let mut agent = AgentConnection::connect_or_start(&settings).await?;
        agent.request::<u64>(&Request::Unload { package: package.wire(&settings) }, |_, _, _| {}).await
    };
    let bytes = work.await.with_context(|| format!("cannot unload {}", package.location))?;
    if arguments.json {
        return report::json(&json!({ "bytes": bytes }));
    }
    report::line(format!("unloaded {}: {} may be evicted from the cache now", package.location, report::bytes(bytes)))
}
