//! Everything that an agent has beside mount points: one cache, the trusted roots, and the packages it has open.
//!
//! ```text
//! Host ── Cache                     one a cache directory
//!      ── TrustStore                CACHE/trust
//!      ── Package (by location and deadlines) ── Fetcher ── Backend
//!                                             ── Mount (by version), shared by all who ask for it
//! ```
//!
//! Credentials and certificate authorities may change at any time: whatever is asked for next exchanges the backend
//! of the packages that are open, so mounts that exist go on with the new ones. Deadlines belong to whoever asked, so
//! other deadlines mean another [`Package`].

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::background::Loads;
use super::launch::LaunchChoice;
use super::learn::LearnedSets;
use super::prefetch::{self, PrefetchPolicy};
use super::{Identity, Mount};
use crate::backend::swappable::Swappable;
use crate::backend::{self, Backend, LaunchWish, Validator};
use crate::cache::{Cache, CacheLimits};
use crate::config::{OriginConfig, OriginTable, RetryPolicy};
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::Fetcher;
use crate::location::PackageLocation;
use crate::package::descriptor::Descriptor;
use crate::package::publish::Progress;
use crate::trust::client::{self, Freshness, LoadOptions, Loaded, Polled};
use crate::trust::store::TrustStore;
use crate::trust::tail::Tail;
use crate::trust::{Catalog, VersionRecord};

pub use super::background::{Holder, Load, LoadState, LoadStatus, LoadWish};
pub use super::load::LoadSummary;
pub use super::verify::VerifySummary;
pub use crate::cache::CacheStatus;

/// How long an origin may take for each file of metadata where this machine has a trusted copy to go on with: longer
/// than a slow line needs, short enough for somebody who waits for a program to start.
const FALL_BACK_AFTER: Duration = Duration::from_secs(3);

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
    /// By location; several where mounts of different deadlines were asked for.
    packages: Mutex<HashMap<String, Vec<Arc<Package>>>>,
    pub(super) loads: Loads,
    pub(super) learned: Arc<LearnedSets>,
}

/// A package that was asked for.
#[derive(Debug)]
struct Package {
    key: String,
    /// How the backend was opened; `None` if it was set and shall stay.
    config: Mutex<Option<OriginConfig>>,
    backend: Arc<Swappable>,
    fetcher: Arc<Fetcher>,
    mounts: Mutex<HashMap<String, Weak<Mount>>>,
    /// Held while a version is being opened, so that two who ask for it at once share it.
    opening: tokio::sync::Mutex<()>,
    /// The newest verified catalog, and how to ask whether it changed. Never locked while an origin is asked: a poll
    /// that hangs must not hold up somebody who mounts.
    catalog: Mutex<Option<Known>>,
}

/// A pinned version, and what is to be said of how it was chosen.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The version as a file tree.
    pub mount: Arc<Mount>,
    /// How new the metadata is that it was chosen by.
    pub freshness: Freshness,
    /// Whether the package's root was trusted for being the first that was seen, just now.
    pub trusted_on_first_use: bool,
    /// Whether the publisher withdrew the version.
    pub revoked: bool,
}

/// Answer of [`Host::newest`].
#[derive(Debug, Clone)]
pub struct Newest {
    /// What a mount made now would pin.
    pub record: VersionRecord,
    /// All versions and channels.
    pub catalog: Catalog,
    /// How new they are.
    pub freshness: Freshness,
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
        let loads = Loads::new(&settings.cache_dir);
        let learned = LearnedSets::new(&settings.cache_dir);
        Ok(Arc::new(Self { settings, cache, trust, packages: Mutex::default(), loads, learned }))
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
        let config = self.settings.origins.lookup(location);
        let mut packages = self.packages.lock();
        let open = packages.entry(key.clone()).or_default();
        for package in open.iter() {
            package.reopen_if_changed(location, &config)?;
        }
        if let Some(package) = open.iter().find(|package| package.serves(&config.retry)) {
            return Ok(package.clone());
        }
        let backend = backend::open(location, &config)?;
        let deadline = config.retry.read_deadline;
        let package = self.open_package(key, backend, Some(config), deadline);
        // Whoever asked once with deadlines of their own leaves nothing behind.
        open.retain(|other| other.is_used());
        open.push(package.clone());
        Ok(package)
    }

    /// Uses `backend` for the package at `location` instead of opening its origin: how tests count requests and cause
    /// faults.
    pub fn set_backend(&self, location: &PackageLocation, backend: Arc<dyn Backend>, deadline: Duration) {
        let key = location.package_key();
        let package = self.open_package(key.clone(), backend, None, deadline);
        self.packages.lock().insert(key, vec![package]);
    }

    fn open_package(
        &self,
        key: String,
        backend: Arc<dyn Backend>,
        config: Option<OriginConfig>,
        deadline: Duration,
    ) -> Arc<Package> {
        let backend = Arc::new(Swappable::new(backend));
        let fetcher = Fetcher::new(backend.clone(), self.cache.clone(), deadline);
        Arc::new(Package {
            key,
            config: Mutex::new(config),
            backend,
            fetcher,
            mounts: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            catalog: Mutex::default(),
        })
    }

    /// Pins the version that `location` means now. A version that is mounted already is shared.
    ///
    /// # Errors
    /// `NotFound` for an unknown version or channel; `Untrusted`; what the origin says.
    pub async fn mount(self: &Arc<Self>, location: &PackageLocation, trust_root: Option<&Path>) -> Result<Arc<Mount>> {
        Ok(self.pin(location, trust_root).await?.mount)
    }

    /// As [`Self::mount`], and tells how far what it was chosen by can be relied on.
    ///
    /// # Errors
    /// As [`Self::mount`].
    pub async fn pin(self: &Arc<Self>, location: &PackageLocation, trust_root: Option<&Path>) -> Result<Pinned> {
        self.pin_to_launch(location, trust_root, &LaunchChoice::Off).await
    }

    /// As [`Self::pin`], for somebody who is about to start an application from it: begins to bring that launch set.
    ///
    /// # Errors
    /// As [`Self::mount`]; also `InvalidInput` if the version has no launch set of that name.
    pub async fn pin_to_launch(
        self: &Arc<Self>,
        location: &PackageLocation,
        trust_root: Option<&Path>,
        launch: &LaunchChoice,
    ) -> Result<Pinned> {
        let package = self.package(location)?;
        let (loaded, tail) = package.load(&self.trust, trust_root, launch.wish(location)).await?;
        // Who does not want it ends its transfer at once.
        let tail = tail.filter(|_| *launch != LaunchChoice::Off);
        let record = loaded.catalog.resolve(location.selector.as_ref(), &package.key)?;
        let mount = match package.mounted(record) {
            Some(mount) => {
                mount.start_launch_with(launch, tail)?;
                mount
            }
            None => open_once(location, &package, &loaded, record, launch, tail).await?,
        };
        let Loaded { ref freshness, trusted_on_first_use, .. } = loaded;
        Ok(Pinned { mount, freshness: freshness.clone(), trusted_on_first_use, revoked: record.revoked })
    }

    /// As [`Self::pin_to_launch`], but the version is shared with nobody, so that whoever watches it sees one user's
    /// questions only. What is on this machine is shared all the same. `prepare` sees the mount before anything is
    /// asked of it.
    ///
    /// # Errors
    /// As [`Self::pin_to_launch`].
    pub async fn pin_apart(
        self: &Arc<Self>,
        location: &PackageLocation,
        trust_root: Option<&Path>,
        launch: &LaunchChoice,
        prepare: impl FnOnce(&Arc<Mount>),
    ) -> Result<Pinned> {
        let package = self.package(location)?;
        let (loaded, tail) = package.load(&self.trust, trust_root, launch.wish(location)).await?;
        // Who does not want it ends its transfer at once.
        let tail = tail.filter(|_| *launch != LaunchChoice::Off);
        let record = loaded.catalog.resolve(location.selector.as_ref(), &package.key)?;
        let mount = open_soon(location, &package, &loaded, record, launch, tail, prepare).await?;
        let Loaded { ref freshness, trusted_on_first_use, .. } = loaded;
        Ok(Pinned { mount, freshness: freshness.clone(), trusted_on_first_use, revoked: record.revoked })
    }

    /// Helps launches of `mount` as `policy` says, if the publisher gave no launch set. Does nothing where that is being
    /// done already. Best called before anything is asked of the mount.
    pub fn help_launches(&self, mount: &Arc<Mount>, policy: PrefetchPolicy) {
        if !mount.has_launch_set() {
            prefetch::begin(mount, policy, &self.learned);
        }
    }

    /// What a mount of `location` made now would pin. Costs one conditional request if nothing changed.
    ///
    /// # Errors
    /// As [`Self::mount`]; also `Unreachable` when the origin is away.
    pub async fn newest(self: &Arc<Self>, location: &PackageLocation) -> Result<Newest> {
        let package = self.package(location)?;
        let known = package.catalog.lock().clone();
        let asked = known.as_ref().and_then(|k| k.validator.clone());
        let polled = client::poll(package.fetcher.backend(), &package.key, asked).await?;
        let loaded = match (polled, known) {
            (Polled::NotModified, Some(known)) => known.loaded,
            (polled, _) => {
                let (loaded, _) = package.load_with(&self.trust, &LoadOptions::default()).await?;
                let offline = matches!(loaded.freshness, Freshness::Offline { .. });
                if let (Polled::Changed { validator }, None, false) = (polled, &loaded.validator, offline) {
                    // An origin without `head`: its timestamp was asked about.
                    *package.catalog.lock() = Some(Known { loaded: loaded.clone(), validator: Some(validator) });
                }
                loaded
            }
        };
        let record = loaded.catalog.resolve(location.selector.as_ref(), &package.key)?.clone();
        Ok(Newest { record, catalog: loaded.catalog, freshness: loaded.freshness })
    }

    /// Changes whenever the origin tells, unasked, that the package at `location` has changed; `None` if it never does, or
    /// cannot be opened. It ends when the origin is opened anew, for other credentials.
    pub fn changes(&self, location: &PackageLocation) -> Option<watch::Receiver<u64>> {
        self.package(location).ok()?.backend.changes()
    }

    /// All versions and channels.
    pub async fn catalog(self: &Arc<Self>, location: &PackageLocation, trust_root: Option<&Path>) -> Result<Loaded> {
        Ok(self.package(location)?.load(&self.trust, trust_root, None).await?.0)
    }

    /// A version as this machine has it, without asking its origin anything.
    ///
    /// # Errors
    /// `NotFound` if there is no trusted metadata here, or the version is not in it.
    pub async fn mount_offline(self: &Arc<Self>, location: &PackageLocation) -> Result<Arc<Mount>> {
        let package = self.package(location)?;
        let loaded = client::load_offline(&package.key, &self.trust).await?;
        let record = loaded.catalog.resolve(location.selector.as_ref(), &package.key)?;
        match package.mounted(record) {
            Some(mount) => Ok(mount),
            None => open_once(location, &package, &loaded, record, &LaunchChoice::Off, None).await,
        }
    }

    /// Ends the loads of the version (without one: of all versions of the package) and removes their pins. Bytes that
    /// may now be evicted. A channel is looked up in the metadata that was accepted last; nothing is asked for.
    ///
    /// # Errors
    /// `InvalidInput` if nothing of that name is loaded.
    pub async fn unload(self: &Arc<Self>, location: &PackageLocation) -> Result<u64> {
        let key = location.package_key();
        let all = super::load::owner(&key, "");
        let pinned = self.cache.pinned_owners().into_iter().filter(|o| o.starts_with(&all));
        let loaded: BTreeSet<String> = pinned.chain(self.load_owners(&key)).collect();
        let owners: Vec<&String> = match &location.selector {
            None => loaded.iter().collect(),
            Some(selector) => {
                let trusted = client::load_offline(&key, &self.trust).await;
                // Without metadata it can only be the version itself.
                let version = match trusted.as_ref().map(|t| t.catalog.resolve(Some(selector), &key)) {
                    Ok(Ok(record)) => record.version.as_str(),
                    Ok(Err(_)) | Err(_) => selector.as_str(),
                };
                let owner = super::load::owner(&key, version);
                loaded.iter().filter(|loaded| **loaded == owner).collect()
            }
        };
        if owners.is_empty() {
            let names: Vec<&str> = loaded.iter().filter_map(|owner| owner.strip_prefix(&all)).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::InvalidInput(format!("it is not loaded; loaded versions of the package: {names}")));
        }
        let mut bytes = 0;
        for owner in owners {
            self.forget_load(owner).await;
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

    /// Ends loads, which the next agent goes on with, and writes what waits to be written.
    pub async fn close(&self) {
        self.loads.pause_all();
        let cache = self.cache.clone();
        // A failure here is the runtime going away; the index is only a hint.
        let _ = tokio::task::spawn_blocking(move || cache.flush()).await;
    }
}

/// Opens a version, or shares it with somebody who was opening it meanwhile.
async fn open_once(
    location: &PackageLocation,
    package: &Arc<Package>,
    loaded: &Loaded,
    record: &VersionRecord,
    launch: &LaunchChoice,
    tail: Option<Tail>,
) -> Result<Arc<Mount>> {
    let _opening = package.opening.lock().await;
    if let Some(mount) = package.mounted(record) {
        // Who opened it may have wanted none.
        mount.start_launch_with(launch, tail)?;
        return Ok(mount);
    }
    let mount = open_soon(location, package, loaded, record, launch, tail, |_| {}).await?;
    package.mounts.lock().insert(identity_key(record), Arc::downgrade(&mount));
    Ok(mount)
}

/// Opens a version; soon or not at all if its origin is away.
async fn open_soon(
    location: &PackageLocation,
    package: &Arc<Package>,
    loaded: &Loaded,
    record: &VersionRecord,
    launch: &LaunchChoice,
    tail: Option<Tail>,
    prepare: impl FnOnce(&Arc<Mount>),
) -> Result<Arc<Mount>> {
    let Freshness::Offline { reason } = &loaded.freshness else {
        return open_mount(location, package, loaded, record, launch, tail, prepare).await;
    };
    // What is on this machine is there at once; the rest will hardly come.
    let patience = package.retry().metadata_deadline;
    let opened =
        tokio::time::timeout(patience, open_mount(location, package, loaded, record, launch, tail, prepare)).await;
    opened.unwrap_or(Err(Error::Cancelled)).map_err(|e| not_here(e, record, package, reason))
}

/// Opens one version of `package`.
async fn open_mount(
    location: &PackageLocation,
    package: &Package,
    loaded: &Loaded,
    record: &VersionRecord,
    launch: &LaunchChoice,
    tail: Option<Tail>,
    prepare: impl FnOnce(&Arc<Mount>),
) -> Result<Arc<Mount>> {
    let bytes = loaded.descriptor(record).await?;
    let whence = format!("the descriptor of version {} of {}", record.version, package.key);
    let descriptor = Descriptor::parse(&bytes, &whence)?;
    if descriptor.package != location.package || descriptor.version != record.version {
        return Err(Error::Untrusted {
            package: package.key.clone(),
            reason: format!("{whence} is signed, but says that it is {} {}", descriptor.package, descriptor.version),
            source: None,
        });
    }
    let identity = Identity {
        package: location.package.to_string(),
        version: record.version.to_string(),
        descriptor: hex::encode(record.descriptor_sha256),
        origin: location.origin.to_string(),
    };
    Mount::open_prepared(descriptor, identity, package.fetcher.clone(), launch, tail, prepare).await
}

/// Why a version could not be mounted without its origin. What says that something is wrong with the version itself
/// stays as it is.
fn not_here(e: Error, record: &VersionRecord, package: &Package, reason: &str) -> Error {
    if !is_away(&e) && !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::BadAnswer | ErrorKind::Cancelled) {
        return e;
    }
    Error::Unreachable {
        object: format!("version {} (of which too little is on this machine)", record.version),
        origin: package.key.clone(),
        reason: reason.to_owned(),
    }
}

fn identity_key(record: &VersionRecord) -> String {
    hex::encode(record.descriptor_sha256)
}

impl Package {
    /// Goes over to what is configured now, if that differs in more than deadlines.
    fn reopen_if_changed(&self, location: &PackageLocation, now: &OriginConfig) -> Result<()> {
        let mut config = self.config.lock();
        let Some(config) = &mut *config else { return Ok(()) };
        let wanted = OriginConfig { retry: config.retry.clone(), ..now.clone() };
        if *config != wanted {
            self.backend.set(backend::open(location, &wanted)?);
            *config = wanted;
        }
        Ok(())
    }

    /// Whether this may answer whoever wants `retry`.
    fn serves(&self, retry: &RetryPolicy) -> bool {
        self.config.lock().as_ref().is_none_or(|config| config.retry == *retry)
    }

    fn is_used(&self) -> bool {
        self.mounts.lock().values().any(|mount| mount.strong_count() > 0)
    }

    fn retry(&self) -> RetryPolicy {
        self.config.lock().as_ref().map(|config| config.retry.clone()).unwrap_or_default()
    }

    fn mounted(&self, record: &VersionRecord) -> Option<Arc<Mount>> {
        let mut mounts = self.mounts.lock();
        mounts.retain(|_, mount| mount.strong_count() > 0);
        mounts.get(&identity_key(record))?.upgrade()
    }

    /// `launch` is what is about to be started.
    async fn load(
        &self,
        trust: &TrustStore,
        trust_root: Option<&Path>,
        launch: Option<LaunchWish>,
    ) -> Result<(Loaded, Option<Tail>)> {
        let trust_root = match trust_root {
            None => None,
            Some(path) => Some(Bytes::from(
                tokio::fs::read(path).await.map_err(|e| Error::local("read the trust root", path, e))?,
            )),
        };
        let options = LoadOptions { trust_root, fall_back_after: Some(FALL_BACK_AFTER), launch };
        self.load_with(trust, &options).await
    }

    async fn load_with(&self, trust: &TrustStore, options: &LoadOptions) -> Result<(Loaded, Option<Tail>)> {
        let (loaded, tail) = client::load_with_tail(self.fetcher.backend(), &self.key, trust, options).await?;
        // Without a validator the next poll loads again.
        *self.catalog.lock() = Some(Known { validator: loaded.validator.clone(), loaded: loaded.clone() });
        Ok((loaded, tail))
    }
}

/// Whether an error means that the origin is away, not that it said something wrong.
pub fn is_away(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests;
