//! Placeholder: everything an agent has except mount points.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Mount;
use crate::config::OriginTable;
use crate::error::{Error, Result};
use crate::location::PackageLocation;
use crate::package::publish::Progress;
use crate::trust::client::Freshness;
use crate::trust::{Catalog, VersionRecord};

#[allow(missing_docs)]
#[derive(Debug, Clone)]
pub struct HostSettings {
    pub cache_dir: PathBuf,
    pub cache_size_bytes: u64,
    pub keep_free_bytes: u64,
    pub memory_bytes: u64,
    pub poll_interval: Duration,
    pub origins: OriginTable,
}

/// Cache, trust store and origins.
#[derive(Debug)]
pub struct Host {
    settings: HostSettings,
}

#[allow(missing_docs)]
#[derive(Debug, Clone, Serialize)]
pub struct LoadSummary {
    pub files: u64,
    pub bytes: u64,
    pub fetched_bytes: u64,
    pub seconds: f64,
}

#[allow(missing_docs)]
#[derive(Debug, Clone, Serialize)]
pub struct VerifySummary {
    pub objects: u64,
    pub blocks: u64,
    pub bytes: u64,
    pub damaged: Vec<String>,
}

#[allow(missing_docs)]
#[derive(Debug, Clone, Serialize)]
pub struct CacheStatus {
    pub used_bytes: u64,
    pub quota_bytes: u64,
    pub entries: u64,
    pub degraded: Option<String>,
    pub memory_bytes: u64,
}

#[allow(missing_docs)]
#[derive(Debug, Clone, Serialize)]
pub struct MountStatistics {
    pub bytes_fetched: u64,
    pub requests: u64,
    pub reads: u64,
    pub cached_bytes: u64,
}

fn placeholder<T>() -> Result<T> {
    Err(Error::Unsupported("placeholder: host".into()))
}

#[allow(missing_docs)]
impl Host {
    pub async fn open(settings: HostSettings) -> Result<Arc<Host>> {
        Ok(Arc::new(Host { settings }))
    }
    pub async fn mount(self: &Arc<Self>, _: &PackageLocation, _: Option<&Path>) -> Result<Arc<Mount>> {
        placeholder()
    }
    pub async fn newest(self: &Arc<Self>, _: &PackageLocation) -> Result<VersionRecord> {
        placeholder()
    }
    pub async fn catalog(self: &Arc<Self>, _: &PackageLocation, _: Option<&Path>) -> Result<(Catalog, Freshness)> {
        placeholder()
    }
    pub async fn load(self: &Arc<Self>, _: &Arc<Mount>, _: Arc<dyn Progress>) -> Result<LoadSummary> {
        placeholder()
    }
    pub async fn unload(self: &Arc<Self>, _: &PackageLocation) -> Result<u64> {
        placeholder()
    }
    pub async fn verify(self: &Arc<Self>, _: &Arc<Mount>, _: Arc<dyn Progress>) -> Result<VerifySummary> {
        placeholder()
    }
    pub fn status(&self) -> CacheStatus {
        CacheStatus {
            used_bytes: 0,
            quota_bytes: self.settings.cache_size_bytes,
            entries: 0,
            degraded: None,
            memory_bytes: 0,
        }
    }
    pub async fn close(&self) {}
}

#[allow(missing_docs)]
impl Mount {
    pub fn statistics(&self) -> MountStatistics {
        MountStatistics { bytes_fetched: 0, requests: 0, reads: 0, cached_bytes: 0 }
    }
}
