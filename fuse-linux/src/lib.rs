//! Placeholder: mounts on Linux.
#![allow(missing_docs, clippy::unused_async)]
pub mod mounting;
pub mod supervisor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_core::mount::Mount;
pub use mounting::{MountError, Result};

#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    pub allow_other: bool,
}
#[derive(Debug)]
pub struct Mounter;
impl Mounter {
    pub fn from_env() -> Result<Self> {
        Ok(Self)
    }
    pub async fn mount(&self, _mount: Arc<Mount>, dir: &Path, _options: &MountOptions) -> Result<Mounted> {
        Err(MountError(format!("placeholder: mounting at {}", dir.display())))
    }
    pub async fn remount(&self, _old: &Mounted, _mount: Arc<Mount>, _lazy: bool) -> Result<Mounted> {
        Err(MountError("placeholder: remounting".into()))
    }
}
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
}
impl Mounted {
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub async fn clone_to(&self, _dir: &Path) -> Result<Mounted> {
        Err(MountError("placeholder: cloning".into()))
    }
    pub async fn unmount(&self, _lazy: bool) -> Result<()> {
        Ok(())
    }
    pub async fn ended(&self) {
        std::future::pending().await
    }
}
