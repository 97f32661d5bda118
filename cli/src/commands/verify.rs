//! `streamfs verify CONTENT/PACKAGE[@…]`

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Context, Package};
use crate::agent::client::AgentConnection;
use crate::agent::protocol::Request;
use crate::arguments::CacheArguments;
use crate::report;
use crate::trust_report::OfVersion;

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

/// What was checked.
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    objects: u64,
    bytes: u64,
    /// Each with the object's path first.
    damaged: Vec<String>,
}

pub(super) async fn run(arguments: VerifyArguments, context: &Context) -> anyhow::Result<()> {
    let package = Package::parse(&arguments.package, arguments.trust_root.as_deref())?;
    let settings = context.settings(Some(&arguments.cache))?;
    let bar = context.bar();
    let work = async {
        let mut agent = AgentConnection::connect_or_start(&settings).await?;
        context.tell_when_begun(&mut agent, &bar);
        let request = Request::Verify { package: package.wire(&settings) };
        agent.request::<OfVersion<Summary>>(&request, |done, total, message| bar.show(done, total, message)).await
    };
    let verified = work.await.with_context(|| format!("cannot verify {}", package.location))?;
    drop(bar);
    let Summary { objects, bytes, damaged } = &verified.summary;
    if arguments.json {
        report::json(&verified)?;
    } else if damaged.is_empty() {
        let (location, version, bytes) = (&package.location, &verified.version, report::bytes(*bytes));
        report::line(format!("verified {location}: version {version}, {objects} objects, {bytes}: all sound"))?;
    }
    if !damaged.is_empty() {
        let (location, version, count) = (&package.location, &verified.version, damaged.len());
        bail!(
            "{location}: {count} of {objects} stored objects of version {version} are damaged ({}); restore them, or publish the version's files anew",
            damaged.iter().map(|line| without_repetition(line)).collect::<Vec<_>>().join("; ")
        );
    }
    Ok(())
}

/// `line` begins with the object's path; most reasons name it once more.
fn without_repetition(line: &str) -> &str {
    line.split_once(": ").filter(|(path, reason)| reason.contains(path)).map_or(line, |(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_once() {
        assert_eq!(without_repetition("packs/a: packs/a is damaged: cut"), "packs/a is damaged: cut");
        assert_eq!(without_repetition("packs/a: it is damaged"), "packs/a: it is damaged");
    }
}
