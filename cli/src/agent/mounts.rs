//! How Linux mounts are made, replaced and removed: the only file of the command line that talks to `fuse-linux`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fs_core::mount::Mount;
use fuse_linux::{MountError, MountOptions, Mounted, Mounter, OpenPolicy};
use tokio::runtime::Handle;

use super::protocol::Watch;
use crate::commands::mount::OpenAnswer;

/// How long programs that are ending may keep a directory from being unmounted: the kernel closes a process's files
/// some time after whoever waited for it goes on, and a process just forked still holds its parent's.
const LEAVING_MAX: Duration = Duration::from_secs(1);
/// How often it is tried again meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A launch is over when its launch set is here and nothing was read for so long,
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// or this many times as long have passed: an application that always reads was launched long ago.
const QUIET_MAX: u32 = 5;

/// Makes mounts.
pub(crate) struct Mounting {
    mounter: Arc<Mounter>,
}

/// A mount of ours at a directory.
pub(crate) struct LiveMount {
    mounter: Arc<Mounter>,
    mounted: Mounted,
    options: MountOptions,
}

impl Mounting {
    /// Connects to the supervisor that started this process.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let mounter = Mounter::from_env().context("cannot prepare mounting")?;
        Ok(Self { mounter: Arc::new(mounter) })
    }

    /// Tells the supervisor that this process serves.
    pub(crate) fn ready(&self) -> anyhow::Result<()> {
        self.mounter.ready().context("the supervisor does not answer")
    }

    /// Waits until the supervisor is gone, with which nobody would clean up after this process.
    pub(crate) async fn supervisor_gone(&self) {
        self.mounter.supervisor_gone().await;
    }

    /// Shows `mount` at `dir`, removing a dead mount that stands there.
    pub(crate) async fn attach(
        &self,
        mount: Arc<Mount>,
        dir: &Path,
        allow_other: bool,
        open_policy: Option<OpenAnswer>,
        watch: Option<Watch>,
    ) -> anyhow::Result<LiveMount> {
        let (mounter, dir) = (self.mounter.clone(), dir.to_owned());
        let runtime = Handle::current();
        blocking(move || {
            if clean_stale(&dir)? {
                tracing::info!(dir = %dir.display(), "removed the mount of a dead agent");
            }
            let mut options = MountOptions { allow_other, ..MountOptions::default() };
            match watch {
                Some(Watch::Record) => options.exact_reads = true,
                // What is handed to the kernel ahead of reads is read without anybody seeing it.
                Some(Watch::Trace) => options.push_max_bytes = 0,
                None => {}
            }
            match open_policy {
                Some(OpenAnswer::Passthrough) => options.open_policy = OpenPolicy::Passthrough,
                Some(OpenAnswer::ZeroMessage) => options.open_policy = OpenPolicy::ZeroMessage,
                None => {}
            }
            let mounted = mounter.mount(mount.clone(), &dir, &options, runtime.clone())?;
            follow_launch(&runtime, mount, mounted.clone());
            Ok(LiveMount { mounter, mounted, options })
        })
        .await
    }

    /// Shows `mount` where `old` stood; `old` lives on for its users. `lazy` allows this even where the kernel
    /// cannot exchange them without a gap while the old one is in use.
    pub(crate) async fn replace(&self, old: &LiveMount, mount: Arc<Mount>, lazy: bool) -> anyhow::Result<LiveMount> {
        let mounter = self.mounter.clone();
        let (old, options) = (old.mounted.clone(), old.options.clone());
        let runtime = Handle::current();
        blocking(move || {
            let mounted = mounter.remount(&old, mount.clone(), &options, runtime.clone(), lazy)?;
            follow_launch(&runtime, mount, mounted.clone());
            Ok(LiveMount { mounter, mounted, options })
        })
        .await
    }
}

impl LiveMount {
    /// Takes it away from its directory; `lazy` does so while it is in use. Users that leave within
    /// [`LEAVING_MAX`] are waited for.
    pub(crate) async fn detach(&self, lazy: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let (mounter, mounted) = (self.mounter.clone(), self.mounted.clone());
            let removed = tokio::task::spawn_blocking(move || mounter.unmount(&mounted, lazy)).await;
            match removed.context("unmounting broke off")? {
                // The kernel does not tell when the last user leaves, so it is asked again.
                Err(MountError::Busy { .. }) if began.elapsed() < LEAVING_MAX => tokio::time::sleep(ASK_AGAIN).await,
                other => return Ok(other?),
            }
        }
    }

    /// Waits until its last user is gone.
    pub(crate) async fn ended(&self) {
        if let Err(error) = self.mounted.ended().await {
            tracing::warn!(dir = %self.mounted.dir().display(), %error, "a mount ended with an error");
        }
    }
}

/// Tells the adapter when nothing that is near a launch's reads must be fetched any more, and when the launch is over.
fn follow_launch(runtime: &Handle, mount: Arc<Mount>, mounted: Mounted) {
    mount.launch_begins();
    runtime.spawn(async move {
        let launch = async {
            let mut phase = mount.launch_phase();
            // The mount lives as long as this, so the phase does not end before it changes.
            let _ = phase.wait_for(|phase| !phase.is_under_way()).await;
            let files = mount.clone();
            if tokio::task::spawn_blocking(move || files.launch_files_are_here()).await.unwrap_or(false) {
                mounted.launch_set_is_here();
            }
            let mut reads = mount.statistics().reads;
            for _ in 0..QUIET_MAX {
                tokio::time::sleep(QUIET_AFTER).await;
                let now = mount.statistics().reads;
                if std::mem::replace(&mut reads, now) == now {
                    break;
                }
            }
            mount.launch_is_over();
            mounted.launch_is_over();
        };
        tokio::select! {
            () = launch => {}
            // Then it does not matter any more.
            _ = mounted.ended() => {}
        }
    });
}

/// Mounting waits for the supervisor, a helper and the kernel: not on a thread that others need.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("mounting broke off")?
}

/// Removes the mount at `dir` if the process behind it is dead; tells whether it did.
pub(crate) fn clean_stale(dir: &Path) -> anyhow::Result<bool> {
    if !fuse_linux::mounting::is_dead(dir) {
        return Ok(false);
    }
    fuse_linux::mounting::clean(dir)
        .with_context(|| format!("the mount of a dead agent at {} cannot be removed", dir.display()))?;
    Ok(true)
}

/// Directories where mounts of dead agents stand.
pub(crate) fn stale_mounts() -> anyhow::Result<Vec<PathBuf>> {
    let mut dirs: Vec<PathBuf> = fuse_linux::mounting::streamfs_mounts()
        .context("cannot read the mount table")?
        .into_iter()
        .map(|m| m.dir)
        .collect();
    dirs.retain(|dir| fuse_linux::mounting::is_dead(dir));
    dirs.sort();
    dirs.dedup();
    Ok(dirs)
}
