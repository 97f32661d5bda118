//! Everything that an agent has beside mount points: one cache, the trusted roots, and the packages it has open.
//!
//! ```text
//! Host ── Cache                     one a cache directory
//!      ── TrustStore                CACHE/trust
//!      ── Package (by location) ── Fetcher ── Backend
//!                               ── Mount (by version), shared by all who ask for it
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Identity, Mount};
use crate::backend::{self, Backend, Validator};
use crate::cache::{Cache, CacheLimits};
use crate::config::OriginTable;
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::Fetcher;
use crate::location::PackageLocation;
use crate::package::descriptor::Descriptor;
use crate::package::publish::Progress;
use crate::trust::client::{self, Freshness, LoadOptions, Loaded, Polled};
use crate::trust::store::TrustStore;
use crate::trust::{Catalog, VersionRecord};

pub use super::load::LoadSummary;
pub use super::verify::VerifySummary;
pub use crate::cache::CacheStatus;

/// What a host needs to know.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Where blocks and trusted metadata are kept.
    pub cache_dir: PathBuf,
    /// Bytes of blocks on disk.
    pub cache_size_bytes: u64,
    /// Bytes that must stay free on that disk.
    pub keep_free_bytes: u64,
    /// Decoded blocks in memory.
    pub memory_bytes: u64,
    /// How often to ask for newer versions; the caller's clockwork, kept here for it.
    pub poll_interval: Duration,
    /// How origins are reached.
    pub origins: OriginTable,
}

/// Cache, trust and open packages of one agent.
#[derive(Debug)]
pub struct Host {
    settings: HostSettings,
    cache: Arc<Cache>,
    trust: TrustStore,
    packages: Mutex<HashMap<String, Arc<Package>>>,
}

/// A package that was asked for.
#[derive(Debug)]
struct Package {
    key: String,
    fetcher: Arc<Fetcher>,
    mounts: Mutex<HashMap<String, Weak<Mount>>>,
    /// Held while a version is being opened, so that two who ask for it at once share it.
    opening: tokio::sync::Mutex<()>,
    /// The newest verified catalog, and how to ask whether it changed.
    catalog: tokio::sync::Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    loaded: Loaded,
    validator: Option<Validator>,
}

impl Host {
    /// Opens cache and trust store. Must be called within a runtime, which then runs the fetches.
    ///
    /// # Errors
    /// `Busy` if another agent has the cache; `Local`.
    pub async fn open(settings: HostSettings) -> Result<Arc<Self>> {
        let limits = CacheLimits {
            disk_bytes: settings.cache_size_bytes,
            keep_free_bytes: settings.keep_free_bytes,
            memory_bytes: settings.memory_bytes,
        };
        let dir = settings.cache_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Cache::open(&dir, limits)).await;
        let cache = opened.map_err(|_| Error::Cancelled)??;
        let trust = TrustStore::new(settings.cache_dir.join("trust"));
        Ok(Arc::new(Self { settings, cache, trust, packages: Mutex::default() }))
    }

    /// The settings it was opened with.
    pub fn settings(&self) -> &HostSettings {
        &self.settings
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    fn package(&self, location: &PackageLocation) -> Result<Arc<Package>> {
        let key = location.package_key();
        if let Some(package) = self.packages.lock().get(&key) {
            return Ok(package.clone());
        }
        let config = self.settings.origins.lookup(location);
        let backend = backend::open(location, &config)?;
        Ok(self
            .packages
            .lock()
            .entry(key.clone())
            .or_insert_with(|| self.open_package(key, backend, config.retry.read_deadline))
            .clone())
    }

    /// Uses `backend` for the package at `location` instead of opening its origin: how tests count requests and cause
    /// faults.
    pub fn set_backend(&self, location: &PackageLocation, backend: Arc<dyn Backend>, deadline: Duration) {
        let key = location.package_key();
        let package = self.open_package(key.clone(), backend, deadline);
        self.packages.lock().insert(key, package);
    }

    fn open_package(&self, key: String, backend: Arc<dyn Backend>, deadline: Duration) -> Arc<Package> {
        let fetcher = Fetcher::new(backend, self.cache.clone(), deadline);
        Arc::new(Package {
            key,
            fetcher,
            mounts: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            catalog: tokio::sync::Mutex::new(None),
        })
    }

    /// Forgets how a package is reached, so that changed credentials or settings are used the next time. Mounts
    /// that exist keep the old way.
    pub fn reopen_origin(&self, location: &PackageLocation) {
        self.packages.lock().remove(&location.package_key());
    }

    /// Pins the version that `location` means now. A version that is mounted already is shared.
    ///
    /// # Errors
    /// `NotFound` for an unknown version or channel; `Untrusted`; what the origin says.
    pub async fn mount(self: &Arc<Self>, location: &PackageLocation, trust_root: Option<&Path>) -> Result<Arc<Mount>> {
        let package = self.package(location)?;
        let loaded = package.load(&self.trust, trust_root).await?;
        let record = loaded.catalog.resolve(location.selector.as_ref(), &package.key)?;
        let _opening = package.opening.lock().await;
        if let Some(mount) = package.mounted(record) {
            return Ok(mount);
        }
        let bytes = loaded.descriptor(record).await?;
        let whence = format!("the descriptor of version {} of {}", record.version, package.key);
        let descriptor = Descriptor::parse(&bytes, &whence)?;
        if descriptor.package != location.package || descriptor.version != record.version {
            return Err(Error::Untrusted {
                package: package.key.clone(),
                reason: format!(
                    "{whence} is signed, but says that it is {} {}",
                    descriptor.package, descriptor.version
                ),
                source: None,
            });
        }
        let identity = Identity {
            package: location.package.to_string(),
            version: record.version.to_string(),
            descriptor: hex::encode(record.descriptor_sha256),
            origin: location.origin.to_string(),
        };
        let mount = Mount::open(descriptor, identity, package.fetcher.clone()).await?;
        package.mounts.lock().insert(identity_key(record), Arc::downgrade(&mount));
        Ok(mount)
    }

    /// What a mount of `location` made now would pin. Costs one conditional request if nothing changed.
    ///
    /// # Errors
    /// As [`Self::mount`]; also `Unreachable` when the origin is away.
    pub async fn newest(self: &Arc<Self>, location: &PackageLocation) -> Result<VersionRecord> {
        let package = self.package(location)?;
        let mut known = package.catalog.lock().await;
        let asked = known.as_ref().and_then(|k| k.validator.clone());
        let validator = match client::poll(package.fetcher.backend(), &package.key, asked).await? {
            Polled::NotModified => None,
            Polled::Changed { validator } => Some(validator),
        };
        if validator.is_some() || known.is_none() {
            let loaded =
                client::load(package.fetcher.backend(), &package.key, &self.trust, &LoadOptions::default()).await?;
            // The load's own validator is older than what it loaded at worst; the poll's may be newer.
            let validator = loaded.validator.clone().or(validator);
            *known = Some(Known { loaded, validator });
        }
        let known = known.as_ref().expect("it was loaded above if it was absent");
        known.loaded.catalog.resolve(location.selector.as_ref(), &package.key).cloned()
    }

    /// All versions and channels.
    pub async fn catalog(
        self: &Arc<Self>,
        location: &PackageLocation,
        trust_root: Option<&Path>,
    ) -> Result<(Catalog, Freshness)> {
        let loaded = self.package(location)?.load(&self.trust, trust_root).await?;
        Ok((loaded.catalog, loaded.freshness))
    }

    /// Brings everything of a version onto this machine and pins it there.
    pub async fn load(self: &Arc<Self>, mount: &Arc<Mount>, progress: Arc<dyn Progress>) -> Result<LoadSummary> {
        super::load::load(&self.cache, mount, progress).await
    }

    /// Removes the pins that `load` set for the version (without one: for all versions of the package). Bytes that
    /// may now be evicted.
    pub async fn unload(self: &Arc<Self>, location: &PackageLocation) -> Result<u64> {
        let owner = super::load::owner(&location.package_key(), location.selector.as_ref().map_or("", |s| s.as_str()));
        let owners = match location.selector {
            Some(_) => vec![owner],
            None => self.cache.pinned_owners().into_iter().filter(|o| o.starts_with(&owner)).collect(),
        };
        let mut bytes = 0;
        for owner in &owners {
            if !self.cache.pinned_owners().contains(owner) {
                return Err(Error::NotFound {
                    what: format!("a loaded version {location}"),
                    origin: "this machine".into(),
                });
            }
            bytes += self.cache.unpin(owner)?;
        }
        Ok(bytes)
    }

    /// Reads and checks every stored object of a version at its origin.
    pub async fn verify(self: &Arc<Self>, mount: &Arc<Mount>, progress: Arc<dyn Progress>) -> Result<VerifySummary> {
        super::verify::verify(mount, progress).await
    }

    /// How full the cache is.
    pub fn status(&self) -> CacheStatus {
        self.cache.status()
    }

    /// Writes what waits to be written.
    pub async fn close(&self) {
        let cache = self.cache.clone();
        // A failure here is the runtime going away; the index is only a hint.
        let _ = tokio::task::spawn_blocking(move || cache.flush()).await;
    }
}

fn identity_key(record: &VersionRecord) -> String {
    hex::encode(record.descriptor_sha256)
}

impl Package {
    fn mounted(&self, record: &VersionRecord) -> Option<Arc<Mount>> {
        let mut mounts = self.mounts.lock();
        mounts.retain(|_, mount| mount.strong_count() > 0);
        mounts.get(&identity_key(record))?.upgrade()
    }

    async fn load(&self, trust: &TrustStore, trust_root: Option<&Path>) -> Result<Loaded> {
        let trust_root = match trust_root {
            None => None,
            Some(path) => Some(Bytes::from(
                tokio::fs::read(path).await.map_err(|e| Error::local("read the trust root", path, e))?,
            )),
        };
        let mut known = self.catalog.lock().await;
        let loaded = client::load(self.fetcher.backend(), &self.key, trust, &LoadOptions { trust_root }).await?;
        *known = Some(Known { validator: loaded.validator.clone(), loaded: loaded.clone() });
        Ok(loaded)
    }
}

/// Whether an error means that the origin is away, not that it said something wrong.
pub fn is_away(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut)
}
