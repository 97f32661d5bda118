//! `streamfs verify CONTENT/PACKAGE[@…]`

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::{Context, Package};
use crate::agent::client::AgentConnection;
use crate::agent::protocol::Request;
use crate::arguments::CacheArguments;
use crate::report;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// CONTENT/PACKAGE[@VERSION|@CHANNEL]
    #[arg(value_name = "CONTENT/PACKAGE")]
    package: String,
    /// File with the package's trusted root keys (root.json)
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArguments,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: VerifyArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, arguments.trust_root.as_deref())?;
    let settings = context.settings(Some(&arguments.cache))?;
    let bar = context.bar();
    let work = async {
        let mut agent = AgentConnection::connect_or_start(&settings).await?;
        let request = Request::Verify { package: package.wire(&settings) };
        agent.request::<Value>(&request, |done, total, message| bar.show(done, total, message)).await
    };
    let summary = work.await.with_context(|| format!("cannot verify {}", package.location))?;
    drop(bar);
    let damaged: Vec<&str> =
        summary.get("damaged").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if arguments.json {
        report::json(&summary)?;
    } else {
        let number = |name: &str| summary.get(name).and_then(Value::as_u64).unwrap_or(0);
        let (objects, blocks, bytes) = (number("objects"), number("blocks"), report::bytes(number("bytes")));
        let result = if damaged.is_empty() { "all sound".to_owned() } else { format!("{} damaged", damaged.len()) };
        report::line(format!("verified {}: {objects} objects, {blocks} blocks, {bytes}: {result}", package.location))?;
        for object in &damaged {
            report::line(format!("damaged: {object}"))?;
        }
    }
    if !damaged.is_empty() {
        bail!(
            "{} of {} damaged; publish the version anew or restore the content root",
            damaged.len(),
            package.location
        );
    }
    Ok(())
}
