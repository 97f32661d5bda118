//! What each request does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fs_core::ErrorKind;
use fs_core::location::PackageLocation;
use fs_core::mount::host::Pinned;
use fs_core::trust::client::Freshness;
use serde::Serialize;
use serde_json::Value;

use super::protocol::{MountRequest, OriginWire, PackageWire, Reply, Request, WirePath};
use super::report_progress::{follow_load, with_progress};
use super::session::Replies;
use super::table::{MountWish, Remounted, Table};
use super::worker::Shared;
use crate::commands::mount::MountReport;
use crate::commands::remount::RemountReport;
use crate::commands::status::AgentReport;
use crate::commands::versions::VersionsReport;
use crate::trust_report::OfVersion;

/// Answers one request. Dropping the answer cancels the work.
pub(crate) async fn answer(request: Request, shared: &Arc<Shared>, replies: Replies) -> anyhow::Result<Value> {
    let table = &shared.table;
    match request {
        Request::Ping {} => Ok(Value::Null),
        Request::Mount(request) => mount(request, shared).await,
        Request::Hold { dir } => hold(dir, table).await,
        Request::Recording { dir, name, profile, trace } => {
            let watching = table.entry(&dir.0)?.watching()?;
            value(&watching.write(name, profile.map(|path| path.0), trace.map(|path| path.0)).await?)
        }
        Request::Unmount { dir, lazy } => {
            let entry = table.entry(&dir.0)?;
            table.unmount(&dir.0, lazy).await?;
            table.stop_background_load(&entry);
            Ok(Value::Null)
        }
        Request::Remount { dir, to, lazy, origin } => remount(dir, to, lazy, origin, table).await,
        Request::Status {} => value(&AgentReport {
            agent: shared.description.clone(),
            cache: serde_json::to_value(table.host().status())?,
            mounts: table.status(),
            loads: table.host().loads(),
        }),
        Request::Versions { package } => {
            let (location, trust_root) = learn(package, table)?;
            let loaded = table.host().catalog(&location, trust_root.as_deref()).await?;
            value(&VersionsReport::new(&location, &loaded))
        }
        Request::Load { package, load } => {
            let (location, trust_root) = learn(package, table)?;
            let pinned = table.host().pin(&location, trust_root.as_deref()).await?;
            replies.send(begun(&pinned)).await;
            let load = table.host().begin_load(&pinned.mount, &load.wish(false))?;
            value(&of_version(&pinned, follow_load(&load, &replies).await.map_err(what_came_is_kept)?))
        }
        Request::Unload { package } => {
            let (location, _) = learn(package, table)?;
            value(&table.host().unload(&location).await?)
        }
        Request::Verify { package } => {
            let (location, trust_root) = learn(package, table)?;
            let pinned = table.host().pin(&location, trust_root.as_deref()).await?;
            if let Freshness::Offline { reason } = &pinned.freshness {
                anyhow::bail!("what is stored there cannot be read at present: {reason}");
            }
            replies.send(begun(&pinned)).await;
            let summary = with_progress(&replies, |progress| table.host().verify(&pinned.mount, progress)).await?;
            value(&of_version(&pinned, summary))
        }
        Request::Shutdown {} => {
            table.unmount_all().await;
            shared.end.send_replace(true);
            Ok(Value::Null)
        }
    }
}

/// What to do about a load whose origin is away.
fn what_came_is_kept(e: fs_core::Error) -> anyhow::Error {
    match e.kind() {
        ErrorKind::Unreachable | ErrorKind::TimedOut => {
            anyhow::anyhow!("{e}; what came is kept, and another `streamfs load` goes on with it")
        }
        _ => e.into(),
    }
}

fn begun(pinned: &Pinned) -> Reply {
    Reply::Begun { version: pinned.mount.identity().version.clone(), trust: pinned.into() }
}

fn of_version<T>(pinned: &Pinned, summary: T) -> OfVersion<T> {
    OfVersion { version: pinned.mount.identity().version.clone(), summary, trust: pinned.into() }
}

fn value<T: Serialize>(result: &T) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(result)?)
}

/// Takes over how the package is reached, as its user has it at present.
fn learn(package: PackageWire, table: &Table) -> anyhow::Result<(PackageLocation, Option<PathBuf>)> {
    let location: PackageLocation = package.location.parse()?;
    table.origins().set(&location.package_key(), package.origin.into())?;
    table.host().retry_loads(&location.package_key());
    Ok((location, package.trust_root.map(|path| path.0)))
}

async fn mount(request: MountRequest, shared: &Shared) -> anyhow::Result<Value> {
    let read_deadline = request.package.origin.read_deadline();
    let (location, trust_root) = learn(request.package, &shared.table)?;
    let wish = MountWish {
        read_deadline,
        location,
        trust_root,
        allow_other: request.allow_other,
        open_policy: request.open_policy,
        launch: request.launch.into(),
        watch: request.watch,
        prefetch: request.prefetch,
        background_load: request.background_load.map(|load| load.wish(true)),
        poll_interval: Duration::from_millis(request.poll_interval_ms.max(1)),
    };
    let (entry, trust) = shared.table.mount(&request.dir.0, wish).await?;
    let mut remarks = Vec::new();
    let running = &shared.arguments;
    for (flag, asked, has) in [
        ("--cache-size", request.cache_size_bytes, running.cache_size_bytes),
        ("--memory", request.memory_bytes, running.memory_bytes),
    ] {
        if asked.is_some_and(|asked| asked != has) {
            remarks.push(format!("the agent already runs with {flag} {has}; another takes effect when it starts anew"));
        }
    }
    value(&MountReport::new(&entry.status(), trust, remarks))
}

async fn remount(
    dir: WirePath,
    to: Option<String>,
    lazy: bool,
    origin: Option<OriginWire>,
    table: &Arc<Table>,
) -> anyhow::Result<Value> {
    let to = to.map(|to| to.parse()).transpose()?;
    if let Some(mut origin) = origin {
        let entry = table.entry(&dir.0)?;
        let location: PackageLocation = entry.status().location.parse()?;
        // Deadlines are those that it was mounted with.
        origin.set_read_deadline(entry.read_deadline());
        table.origins().set(&location.package_key(), origin.into())?;
    }
    let (entry, outcome, trust) = table.remount(&dir.0, to, lazy).await?;
    let now = entry.status();
    let from = match &outcome {
        Remounted::Changed { from } => from.clone(),
        Remounted::Newest | Remounted::Fixed => now.version.clone(),
    };
    let changed = matches!(outcome, Remounted::Changed { .. });
    let fixed = matches!(outcome, Remounted::Fixed);
    value(&RemountReport {
        dir,
        package: now.package,
        from,
        version: now.version,
        descriptor: now.descriptor,
        changed,
        fixed,
        trust,
    })
}

/// Waits for the end of the mount at `dir`; ends it if the wait is cancelled.
async fn hold(dir: WirePath, table: &Arc<Table>) -> anyhow::Result<Value> {
    struct Holder {
        table: Arc<Table>,
        dir: PathBuf,
        held: bool,
    }
    impl Drop for Holder {
        fn drop(&mut self) {
            if !self.held {
                return;
            }
            let (table, dir) = (self.table.clone(), std::mem::take(&mut self.dir));
            tokio::spawn(async move {
                if let Err(error) = table.unmount(&dir, true).await {
                    tracing::debug!(error = format!("{error:#}"), "a mount whose holder left is gone already");
                }
            });
        }
    }
    let entry = table.entry(&dir.0)?;
    let mut holder = Holder { table: table.clone(), dir: dir.0, held: true };
    entry.gone().await;
    holder.held = false;
    Ok(Value::Null)
}
