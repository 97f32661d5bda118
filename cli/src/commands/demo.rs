//! `streamfs demo`: publish, serve, mount, launch, publish again, remount; with this very program, in a temporary
//! folder that is removed afterwards.

mod sample;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::Value;

use super::Context;
use crate::report;
use stage::{Application, Stage};

/// The agent asks once a second here; a machine under load gets a good while longer.
const NOTICE_DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Keep going silently, print the last line only
    #[arg(long)]
    brief: bool,
}

pub(super) async fn run(arguments: DemoArguments, context: &Context) -> anyhow::Result<()> {
    let mut stage = Stage::set().context("cannot prepare the demo")?;
    let started = Instant::now();
    let told = context.interrupt.or(story(&mut stage, arguments.brief)).await;
    // Whatever happened, nothing stays behind.
    let cleared = stage.clear().await.context("cannot clear up after the demo");
    told.context("the demo failed")?;
    cleared?;
    report::line(format!(
        "the demo succeeded in {:.1} s; everything it made is removed",
        started.elapsed().as_secs_f64()
    ))
}

async fn story(stage: &mut Stage, brief: bool) -> anyhow::Result<()> {
    let say = |text: String| if brief { Ok(()) } else { report::line(text) };
    let path = |name: &str| stage.path(name).display().to_string();
    let (v1, v2, mnt) = (path("v1"), path("v2"), path("mnt"));
    let package = path("content/hello");
    sample::write(stage.path("v1").as_ref(), "1.0").context("cannot write the sample")?;
    sample::write(stage.path("v2").as_ref(), "2.0").context("cannot write the sample")?;

    say("An administrator publishes an application into a content root, and serves that by HTTP:".to_owned())?;
    let published = stage.streamfs(&["publish", &v1, &package, "--version", "1.0"], &say).await?;
    say(format!("    {}", counts(&published)))?;
    let content = path("content");
    let url = stage.serve(&content, &say).await?;
    let remote = format!("{url}/hello");

    say("A user mounts it and starts the application, which runs on:".to_owned())?;
    let begin = Instant::now();
    let mounted = stage.streamfs(&["mount", &remote, &mnt, "--poll-interval", "1s"], &say).await?;
    ensure!(mounted["version"] == "1.0", "version 1.0 should be mounted, not {}", mounted["version"]);
    say(format!("    usable after {} ms", begin.elapsed().as_millis()))?;
    let begin = Instant::now();
    let mut running = Application::start(&mnt, &say).await?;
    running.expect("started 1.0").await?;
    say(format!("    started 1.0 after {} ms; {}", begin.elapsed().as_millis(), fetched(stage, &mnt).await?))?;

    say("The administrator publishes version 2.0 meanwhile; only what changed is stored:".to_owned())?;
    let published = stage.streamfs(&["publish", &v2, &package, "--version", "2.0"], &say).await?;
    say(format!("    {}", counts(&published)))?;
    let begin = Instant::now();
    let noticed = stage.wait_for(&mnt, NOTICE_DEADLINE, |mounts| mounts.iter().any(|m| m["newer"] == "2.0")).await?;
    ensure!(noticed, "the agent did not notice version 2.0 within {} s", NOTICE_DEADLINE.as_secs());
    say(format!("    status shows after {} ms: newer version available: 2.0", begin.elapsed().as_millis()))?;

    say("The user goes over to it. The running application keeps version 1.0, a new start gets 2.0:".to_owned())?;
    let begin = Instant::now();
    let remounted = stage.streamfs(&["remount", &mnt, "--lazy"], &say).await?;
    ensure!(remounted["version"] == "2.0", "version 2.0 should be shown, not {}", remounted["version"]);
    say(format!("    exchanged in {} ms", begin.elapsed().as_millis()))?;
    let mut fresh = Application::start(&mnt, &say).await?;
    fresh.expect("started 2.0").await?;
    fresh.finish("2.0").await?;
    say("    started 2.0, finished 2.0".to_owned())?;
    running.finish("1.0").await?;
    say("    the first one, all the while: finished 1.0, every part of it read from 1.0".to_owned())?;
    let alone = |mounts: &[Value]| mounts.iter().all(|mount| mount["state"] == "mounted");
    ensure!(
        stage.wait_for(&mnt, NOTICE_DEADLINE, alone).await?,
        "version 1.0 is still mounted although nobody uses it"
    );
    say(format!("    version 1.0 is no longer mounted; {}", fetched(stage, &mnt).await?))?;

    stage.streamfs(&["unmount", &mnt], &say).await?;
    let left = std::fs::read_dir(&mnt).context("cannot look into the directory after unmounting")?.count();
    ensure!(left == 0, "the directory should be empty after unmounting");
    Ok(())
}

fn counts(published: &Value) -> String {
    let bytes = |name: &str| report::bytes(published[name].as_u64().unwrap_or(0));
    format!(
        "{} files, {}; new in the store: {} in {} blocks of {}",
        published["files"],
        bytes("bytes"),
        bytes("new_bytes_stored"),
        published["new_blocks"],
        published["blocks"]
    )
}

async fn fetched(stage: &Stage, dir: &str) -> anyhow::Result<String> {
    let mounts = stage.mounts(dir).await?;
    let count = |name: &str| mounts.first().and_then(|m| m["statistics"][name].as_u64()).unwrap_or(0);
    Ok(format!("{} fetched so far in {} requests", report::bytes(count("bytes_fetched")), count("requests")))
}
