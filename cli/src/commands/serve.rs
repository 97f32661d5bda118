//! `streamfs serve CONTENT_DIR --listen ADDR`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use stream_server::{Server, ServerSettings};

use super::Context;
use crate::agent::protocol::WirePath;
use crate::report;

/// Transfers that run when the end is asked for may take this long: a pack of some hundred MB on a slow line.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Content root: the folder that `publish` publishes to
    #[arg(value_name = "CONTENT_DIR")]
    content_dir: PathBuf,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Print the address as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: ServeArguments, context: &Context) -> anyhow::Result<()> {
    let ServeArguments { content_dir, listen, json } = arguments;
    let server =
        Server::bind(ServerSettings { content_dir: content_dir.clone(), listen, drain_deadline: DRAIN_DEADLINE })
            .await?;
    let url = format!("http://{}", server.address());
    if json {
        let dir = WirePath::from(content_dir.as_path());
        report::json(&json!({ "content_dir": dir, "address": server.address().to_string(), "url": url }))?;
    } else {
        report::line(format!("serving {} at {url}", content_dir.display()))?;
    }
    let interrupt = context.interrupt.clone();
    server
        .run(async move {
            interrupt.wait().await;
        })
        .await?;
    Ok(())
}
