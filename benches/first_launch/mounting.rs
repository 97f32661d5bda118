//! The one place where every contender shows the application, and its end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// Something is mounted here; it is taken away when this is dropped.
#[derive(Debug)]
pub(crate) struct MountPoint(PathBuf);

impl MountPoint {
    /// Shows the folder `tree` at `point`.
    pub(crate) fn bind(tree: &Path, point: &Path) -> Result<Self> {
        mount_bind(tree, point).with_context(|| format!("showing {} at {}", tree.display(), point.display()))?;
        Ok(Self(point.to_owned()))
    }

    /// Takes charge of what another program mounts at `point`, or will.
    pub(crate) fn occupied(point: &Path) -> Self {
        Self(point.to_owned())
    }

    /// Takes it away, which must work: nothing may use it any more.
    pub(crate) fn free(self) -> Result<()> {
        if tests::is_mount_point(&self.0) {
            unmount(&self.0, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", self.0.display()))?;
        }
        ensure!(!tests::is_mount_point(&self.0), "something is still mounted at {}", self.0.display());
        Ok(())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        while tests::is_mount_point(&self.0) && unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}
