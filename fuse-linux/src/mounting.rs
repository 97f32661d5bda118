//! Placeholder.
use std::path::{Path, PathBuf};
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MountError(pub String);
pub type Result<T, E = MountError> = std::result::Result<T, E>;
#[derive(Debug, Clone)]
pub struct MountEntry {
    pub dir: PathBuf,
    pub source: String,
}
pub fn is_dead(_dir: &Path) -> bool {
    false
}
pub fn clean(_dir: &Path) -> Result<()> {
    Ok(())
}
pub fn streamfs_mounts() -> Result<Vec<MountEntry>> {
    Ok(Vec::new())
}
