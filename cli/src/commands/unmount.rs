//! `streamfs unmount DIR`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::Context;
use crate::agent::protocol::{Request, WirePath};
use crate::{agent, mount_point, report};

/// Arguments of `unmount`.
#[derive(Debug, Args)]
pub struct UnmountArguments {
    /// Directory where a package is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Also if programs use it: they keep what they have open
    #[arg(long)]
    lazy: bool,
    /// Print what was unmounted as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: UnmountArguments, _context: &Context) -> anyhow::Result<()> {
    let what = || format!("cannot unmount {}", arguments.dir.display());
    let dir = mount_point::resolve(&arguments.dir).with_context(what)?;
    // Whoever stands in the directory and unmounts it would else be told that this very command uses it.
    std::env::set_current_dir("/").with_context(what)?;
    let mut was_dead = false;
    match super::agent_of(&dir).await.with_context(what)? {
        Some((mut agent, _)) => {
            let request = Request::Unmount { dir: dir.as_path().into(), lazy: arguments.lazy };
            agent.request::<()>(&request, |_, _, _| {}).await.with_context(what)?;
        }
        None => {
            was_dead = agent::clean_stale(&dir).with_context(what)?;
            if !was_dead {
                Err(anyhow::anyhow!("nothing of streamfs is mounted there; see: streamfs status"))
                    .with_context(what)?;
            }
        }
    }
    if arguments.json {
        return report::json(&json!({ "dir": WirePath::from(dir.as_path()), "was_dead": was_dead }));
    }
    let remark = if was_dead { " (its agent was dead)" } else { "" };
    report::line(format!("unmounted {}{remark}", dir.display()))
}
