//! Placeholder: publishing.
use std::path::PathBuf;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::location::{Channel, PackageName, PackageVersion};

/// What to publish, and where.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct PublishRequest {
    pub source: PathBuf,
    pub content_root: PathBuf,
    pub package: PackageName,
    pub version: PackageVersion,
    pub channels: Vec<Channel>,
    pub keys_dir: PathBuf,
    pub level: i32,
    pub skip_special: bool,
    pub threads: usize,
}

/// What was published.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct PublishSummary {
    pub package: String,
    pub version: String,
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub bytes: u64,
    pub blocks: u64,
    pub new_blocks: u64,
    pub new_bytes_stored: u64,
    pub stored_bytes_of_version: u64,
    pub ratio: f64,
    pub skipped: Vec<String>,
    pub seconds: f64,
    pub descriptor_sha256: String,
    pub root_key_created: bool,
}

/// Watches long work, and may end it.
pub trait Progress: Send + Sync {
    /// How much there is to do.
    fn total(&self, bytes: u64, files: u64);
    /// So much more is done.
    fn advance(&self, bytes: u64);
    /// What is being done now.
    fn message(&self, text: &str);
    /// Whether to stop.
    fn cancelled(&self) -> bool;
}

/// Publishes a folder.
pub fn publish(_request: &PublishRequest, _progress: &dyn Progress) -> Result<PublishSummary> {
    Err(Error::Unsupported("placeholder: publishing".into()))
}
