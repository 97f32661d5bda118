//! How Linux mounts are made, replaced and removed: the only file of the command line that talks to `fuse-linux`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use fs_core::mount::Mount;
use fuse_linux::{MountOptions, Mounted, Mounter};

/// Makes mounts.
pub(crate) struct Mounting {
    mounter: Mounter,
}

/// A mount of ours at a directory.
pub(crate) struct LiveMount {
    mounted: Mounted,
}

impl Mounting {
    /// Connects to the supervisor that started this process.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let mounter = Mounter::from_env().context("cannot prepare mounting")?;
        Ok(Self { mounter })
    }

    /// Shows `mount` at `dir`, removing a dead mount that stands there.
    pub(crate) async fn attach(&self, mount: Arc<Mount>, dir: &Path, allow_other: bool) -> anyhow::Result<LiveMount> {
        if clean_stale(dir)? {
            tracing::info!(dir = %dir.display(), "removed the mount of a dead agent");
        }
        let options = MountOptions { allow_other, ..MountOptions::default() };
        Ok(LiveMount { mounted: self.mounter.mount(mount, dir, &options).await? })
    }

    /// Shows `mount` where `old` stood; `old` lives on for its users. `lazy` allows this even where the kernel
    /// cannot exchange them without a gap while the old one is in use.
    pub(crate) async fn replace(&self, old: &LiveMount, mount: Arc<Mount>, lazy: bool) -> anyhow::Result<LiveMount> {
        Ok(LiveMount { mounted: self.mounter.remount(&old.mounted, mount, lazy).await? })
    }
}

impl LiveMount {
    /// Takes it away from its directory; `lazy` does so while it is in use.
    pub(crate) async fn detach(&self, lazy: bool) -> anyhow::Result<()> {
        Ok(self.mounted.unmount(lazy).await?)
    }

    /// Waits until its last user is gone.
    pub(crate) async fn ended(&self) {
        self.mounted.ended().await;
    }
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
    let mut dirs: Vec<PathBuf> =
        fuse_linux::mounting::streamfs_mounts().context("cannot read the mount table")?.into_iter().map(|m| m.dir).collect();
    dirs.retain(|dir| fuse_linux::mounting::is_dead(dir));
    dirs.sort();
    dirs.dedup();
    Ok(dirs)
}
