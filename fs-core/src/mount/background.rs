//! Loads under way: started, joined, stopped, and taken up again by the next agent.
//!
//! What is to be loaded stands in a file for each version before anything is fetched:
//!
//! ```text
//! CACHE/loads/<hash of the version's location>.json
//! ```
//!
//! An agent that starts goes on with every load that was under way when the last one ended, however that was. Files
//! that are complete are looked for then; only after that is a version called ready for offline use again. The files
//! hold no credentials: where an origin wants some, the load waits until a command brings them.

mod record;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use self::record::{Record, Recorded};
use super::Mount;
use super::host::{Host, LoadSummary};
use super::load::{self, Counters};
use crate::config::{Credentials, OriginConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::Urgency;
use crate::fetch::pace::Pace;
use crate::location::PackageLocation;
use crate::package::block::BLOCK_MAX_BYTES;
use crate::package::{Hash, NodeId};
use crate::trust::files::{self, Access};

/// Folder of the records in the cache directory.
const LOADS_DIR: &str = "loads";
/// Most records that an agent takes up.
const RECORDS_MAX: usize = 1024;
/// Pause before a load that nobody waits for is tried again; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(15);
const RETRY_LONGEST: Duration = Duration::from_secs(600);

/// A load of which nothing came for so long is said to stand still.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// How a version is to be loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadWish {
    /// Most stored bytes a second; `None` is no limit.
    pub bytes_per_second: Option<u64>,
    /// It starts after a random time of up to this, so that many machines do not start at once.
    pub jitter: Duration,
    /// It goes on although nobody waits for it.
    pub in_background: bool,
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadState {
    /// It has not started yet: its random delay is not over.
    Waiting,
    /// It is looked for whether everything is still there.
    Checking,
    /// It is being fetched.
    Loading,
    /// It is being fetched, but gives way to a read that waits at present.
    Paused,
    /// Everything is here and pinned.
    OfflineReady,
    /// It was stopped; what is here stays.
    Stopped,
    /// It failed; where nobody waits for it, it will be tried again.
    Failed,
}

/// What is to be said of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadStatus {
    /// The version.
    pub location: String,
    /// How far it is.
    pub state: LoadState,
    /// Whether the version can be used without any network.
    pub offline_ready: bool,
    /// Bytes of content here.
    pub done_bytes: u64,
    /// Of how many.
    pub total_bytes: u64,
    /// Stored bytes fetched by this agent.
    pub fetched_bytes: u64,
    /// Most stored bytes a second.
    pub bytes_per_second: Option<u64>,
    /// When a waiting one starts.
    pub starts_in_seconds: Option<u64>,
    /// For how long nothing has come of one that is being fetched, if that is longer than usual.
    #[serde(default)]
    pub stalled_seconds: Option<u64>,
    /// Why it failed.
    pub reason: Option<String>,
}

/// One version that is being loaded, or was.
#[derive(Debug)]
pub struct Load {
    location: PackageLocation,
    owner: String,
    path: PathBuf,
    record: Mutex<Record>,
    phase: Mutex<(LoadState, Option<String>)>,
    pace: Arc<Pace>,
    counters: Arc<Counters>,
    total_bytes: AtomicU64,
    /// To tell whether somebody reads at present.
    mount: Mutex<Weak<Mount>>,
    in_background: AtomicBool,
    holders: AtomicUsize,
    stop: watch::Sender<bool>,
    try_again: Notify,
    outcome: watch::Sender<Option<std::result::Result<LoadSummary, Arc<Error>>>>,
}

/// Keeps a load going that is not in the background: when the last one is dropped, it stops.
#[derive(Debug)]
pub struct Holder(Arc<Load>);

impl Drop for Holder {
    fn drop(&mut self) {
        if self.0.holders.fetch_sub(1, Ordering::AcqRel) == 1 && !self.0.in_background.load(Ordering::Acquire) {
            self.0.stop();
        }
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Load {
    fn new(dir: &Path, location: PackageLocation, record: Record, state: LoadState) -> Arc<Self> {
        let selector = location.selector.as_ref().map_or("", |s| s.as_str());
        let owner = load::owner(&location.package_key(), selector);
        let path = dir.join(format!("{}.json", Hash::of(owner.as_bytes())));
        Arc::new(Self {
            location,
            owner,
            path,
            phase: Mutex::new((state, record.reason.clone())),
            pace: Arc::new(Pace::new(record.bytes_per_second)),
            counters: Arc::new(Counters { done_bytes: AtomicU64::new(record.done_bytes), ..Counters::default() }),
            total_bytes: AtomicU64::new(record.total_bytes),
            mount: Mutex::default(),
            in_background: AtomicBool::new(record.in_background),
            record: Mutex::new(record),
            holders: AtomicUsize::new(0),
            stop: watch::Sender::new(false),
            try_again: Notify::new(),
            outcome: watch::Sender::new(None),
        })
    }

    /// How far it is.
    pub fn status(&self) -> LoadStatus {
        let (mut state, reason) = self.phase.lock().clone();
        if state == LoadState::Loading && self.mount.lock().upgrade().is_some_and(|m| m.fetcher.has_demand()) {
            state = LoadState::Paused;
        }
        let starts_at = self.record.lock().starts_at;
        // At a rate below that of a block, nothing may be due for longer.
        let is_fast = self.pace.bytes_per_second().is_none_or(|rate| rate >= BLOCK_MAX_BYTES as u64);
        let moved = self.counters.moved.lock().filter(|_| state == LoadState::Loading && is_fast);
        let stalled = moved.map(|moved| moved.elapsed()).filter(|since| *since >= STALLED_AFTER);
        LoadStatus {
            location: self.location.to_string(),
            state,
            offline_ready: state == LoadState::OfflineReady,
            done_bytes: self.counters.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            fetched_bytes: self.counters.fetched_bytes.load(Ordering::Relaxed),
            bytes_per_second: self.pace.bytes_per_second(),
            starts_in_seconds: (state == LoadState::Waiting).then(|| starts_at.saturating_sub(now_seconds())),
            stalled_seconds: stalled.map(|since| since.as_secs()),
            reason,
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What it failed with; `Cancelled` if it was stopped.
    pub async fn finished(&self) -> Result<LoadSummary> {
        let outcome = self.outcome.subscribe().wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(Ok(summary))) => Ok(summary),
            Ok(Some(Err(e))) => Err(Error::Shared(e)),
            // The sender lives in `self`.
            Ok(None) | Err(_) => Err(Error::Cancelled),
        }
    }

    /// Lets it go on for as long as the result lives.
    pub fn hold(self: &Arc<Self>) -> Holder {
        self.holders.fetch_add(1, Ordering::AcqRel);
        Holder(self.clone())
    }

    /// Stops it; what is here stays, pinned. Nothing happens if it has ended.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    fn enter(&self, state: LoadState, reason: Option<String>) {
        *self.phase.lock() = (state, reason);
    }

    /// Writes what the next agent must know.
    fn save(&self, state: Recorded, reason: Option<String>) -> Result<()> {
        let mut record = self.record.lock();
        record.state = state;
        record.reason = reason;
        record.bytes_per_second = self.pace.bytes_per_second();
        record.in_background = self.in_background.load(Ordering::Acquire);
        record.done_bytes = self.counters.done_bytes.load(Ordering::Relaxed);
        record.total_bytes = self.total_bytes.load(Ordering::Relaxed);
        let bytes = serde_json::to_vec(&*record).map_err(|e| Error::local("write", &self.path, e.into()))?;
        record::write(&self.path, bytes)
    }

    fn save_or_warn(&self, state: Recorded, reason: Option<String>) {
        if let Err(e) = self.save(state, reason) {
            tracing::warn!("{e}; the next agent will not know how far the load of {} is", self.location);
        }
    }

    /// From its random delay to its end. `mount` is what to load; if there is none, it is opened first.
    async fn run(self: &Arc<Self>, host: Weak<Host>, mount: Option<Arc<Mount>>, first: Recorded) {
        let mut stop = self.stop.subscribe();
        let mut first = (first, mount);
        let mut pause = RETRY_FIRST;
        let outcome = loop {
            let attempt = self.attempt(&host, std::mem::replace(&mut first, (Recorded::UnderWay, None)));
            let failed = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break Err(Error::Cancelled),
                result = attempt => match result {
                    Ok(summary) => break Ok(summary),
                    Err(e) => e,
                },
            };
            let waited_for = self.holders.load(Ordering::Acquire) > 0;
            // Room may be made by anybody who uses the disk.
            let by_itself = self.in_background.load(Ordering::Acquire) && matches!(failed, Error::NoRoom { .. });
            if waited_for || !(may_pass(&failed) || by_itself) {
                break Err(failed);
            }
            tracing::info!("loading {} failed ({failed}); it is tried again in {} s", self.location, pause.as_secs());
            self.enter(LoadState::Failed, Some(failed.to_string()));
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break Err(Error::Cancelled),
                () = self.try_again.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY_LONGEST);
        };
        match &outcome {
            Ok(_) => {
                self.save_or_warn(Recorded::Complete, None);
                self.enter(LoadState::OfflineReady, None);
            }
            Err(Error::Cancelled) => {
                self.save_or_warn(Recorded::Stopped, None);
                self.enter(LoadState::Stopped, None);
            }
            Err(e) => {
                tracing::warn!("loading {} failed: {e}", self.location);
                self.save_or_warn(Recorded::Stopped, Some(e.to_string()));
                self.enter(LoadState::Failed, Some(e.to_string()));
            }
        }
        self.outcome.send_replace(Some(outcome.map_err(Arc::new)));
    }

    async fn attempt(
        self: &Arc<Self>,
        host: &Weak<Host>,
        (recorded, mount): (Recorded, Option<Arc<Mount>>),
    ) -> Result<LoadSummary> {
        if recorded == Recorded::Complete {
            self.enter(LoadState::Checking, None);
            if let Some(summary) = self.check(host).await {
                return Ok(summary);
            }
        }
        let delay = Duration::from_secs(self.record.lock().starts_at.saturating_sub(now_seconds()));
        if !delay.is_zero() {
            self.enter(LoadState::Waiting, None);
            tokio::time::sleep(delay).await;
        }
        let (mount, cache) = {
            let host = host.upgrade().ok_or(Error::Cancelled)?;
            let credentials = host.settings().origins.lookup(&self.location).credentials;
            if mount.is_none() && self.record.lock().needs_credentials && credentials == Credentials::None {
                return Err(Error::Denied {
                    object: self.location.to_string(),
                    origin: self.location.origin.to_string(),
                    reason: "credentials are kept in no file; any command on this package brings them".to_owned(),
                });
            }
            let mount = match mount {
                Some(mount) => mount,
                None => host.mount(&self.location, None).await?,
            };
            (mount, host.cache().clone())
        };
        self.enter(LoadState::Loading, None);
        *self.mount.lock() = Arc::downgrade(&mount);
        self.total_bytes.store(mount.descriptor.totals.allocated_bytes, Ordering::Relaxed);
        self.save_or_warn(Recorded::UnderWay, None);
        let first = first_of_all(host, &mount).await;
        load::load(&cache, &mount, first, &self.pace, &self.counters).await
    }

    /// Whether a version that was loaded by an earlier agent is still all here.
    async fn check(&self, host: &Weak<Host>) -> Option<LoadSummary> {
        let started = std::time::Instant::now();
        let host = host.upgrade()?;
        // What is missing would have to be fetched; then the load is taken up again, and says why if it cannot.
        let mount = host.mount_offline(&self.location).await.ok()?;
        let pinned = host.cache().pinned_owners().contains(&self.owner);
        drop(host);
        if !pinned || !load::is_all_here(&mount).await.unwrap_or(false) {
            return None;
        }
        let totals = mount.descriptor.totals;
        Some(LoadSummary {
            files: totals.files,
            bytes: totals.allocated_bytes,
            fetched_bytes: 0,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// What a version's start reads: the publisher's launch sets, then what this machine learned.
async fn first_of_all(host: &Weak<Host>, mount: &Arc<Mount>) -> Vec<(NodeId, Range<u64>)> {
    let mut ranges = load::launch_sets(mount).await.unwrap_or_else(|e| {
        tracing::warn!("a launch set of {} is not loaded first: {e}", mount.identity.package_key());
        Vec::new()
    });
    let Some(learned) = host.upgrade().map(|host| host.learned.clone()) else { return ranges };
    for learned in learned.ranges(&mount.identity.package_key()).await {
        let path = learned.path;
        let found = mount.answer_for(Urgency::Background, move |this, held| this.node_at(held, &path)).await;
        ranges.extend(found.ok().flatten().map(|node| (node, learned.range)));
    }
    ranges
}

/// Whether another try may succeed without anybody changing what was asked for.
fn may_pass(e: &Error) -> bool {
    use ErrorKind as K;
    matches!(e.kind(), K::Unreachable | K::TimedOut | K::Denied | K::BadAnswer | K::Damaged | K::NotFound)
}

/// A load, and its task if it has one.
type Known = (Arc<Load>, Option<tokio::task::JoinHandle<()>>);

/// All loads of one agent, by the version's location.
#[derive(Debug)]
pub(super) struct Loads {
    dir: PathBuf,
    all: Mutex<BTreeMap<String, Known>>,
}

impl Drop for Loads {
    fn drop(&mut self) {
        self.pause_all();
    }
}

impl Loads {
    pub(super) fn new(cache_dir: &Path) -> Self {
        Self { dir: cache_dir.join(LOADS_DIR), all: Mutex::default() }
    }

    /// Ends all work; the next agent goes on with it.
    pub(super) fn pause_all(&self) {
        for (_, task) in self.all.lock().values() {
            if let Some(task) = task {
                task.abort();
            }
        }
    }

    fn insert(&self, host: &Arc<Host>, load: Arc<Load>, mount: Option<Arc<Mount>>, recorded: Recorded) {
        let (host, running) = (Arc::downgrade(host), load.clone());
        let task = match recorded {
            Recorded::Stopped => {
                load.outcome.send_replace(Some(Err(Arc::new(Error::Cancelled))));
                None
            }
            _ => Some(tokio::spawn(async move { running.run(host, mount, recorded).await })),
        };
        self.all.lock().insert(load.owner.clone(), (load, task));
    }

    fn of_package(&self, package_key: &str) -> Vec<Arc<Load>> {
        let all = self.all.lock();
        all.values().map(|(load, _)| load).filter(|l| l.location.package_key() == package_key).cloned().collect()
    }
}

/// What stands on disk of the loads in a cache that no agent has open: as the last one left them. A load that was under
/// way is waiting; the next agent goes on with it. Whether all files are still there was not looked at.
pub fn recorded_loads(cache_dir: &Path) -> Vec<LoadStatus> {
    let dir = cache_dir.join(LOADS_DIR);
    let records = std::fs::read_dir(&dir).into_iter().flatten().flatten().take(RECORDS_MAX);
    let mut loads: Vec<LoadStatus> = records
        .filter_map(|entry| record::read(&entry.path()).ok())
        .map(|(location, record)| {
            let state = match (record.state, &record.reason) {
                (Recorded::Complete, _) => LoadState::OfflineReady,
                (Recorded::UnderWay, _) => LoadState::Waiting,
                (Recorded::Stopped, Some(_)) => LoadState::Failed,
                (Recorded::Stopped, None) => LoadState::Stopped,
            };
            Load::new(&dir, location, record, state).status()
        })
        .collect();
    loads.sort_by(|a, b| a.location.cmp(&b.location));
    loads
}

impl Host {
    /// Begins to bring everything of `mount`'s version here and to pin it, or joins the load that does so already.
    ///
    /// # Errors
    /// `Local` if it cannot be noted down, so that the next agent would not know of it.
    pub fn begin_load(self: &Arc<Self>, mount: &Arc<Mount>, wish: &LoadWish) -> Result<Arc<Load>> {
        let identity = mount.identity();
        let location = PackageLocation {
            selector: Some(identity.version.parse()?),
            ..identity.package_key().parse::<PackageLocation>()?
        };
        let owner = load::owner(&identity.package_key(), &identity.version);
        let known = self.loads.all.lock().get(&owner).map(|(load, _)| load.clone());
        if let Some(load) = known.filter(|load| !load.has_ended() && !*load.stop.borrow()) {
            load.in_background.fetch_or(wish.in_background, Ordering::AcqRel);
            load.pace.set(wish.bytes_per_second);
            load.try_again.notify_one();
            return Ok(load);
        }
        let config = self.settings().origins.lookup(&location);
        let jitter = rand::rng().random_range(0..=wish.jitter.as_secs());
        let record = Record {
            streamfs_load: record::FORMAT,
            location: location.to_string(),
            state: Recorded::UnderWay,
            reason: None,
            bytes_per_second: wish.bytes_per_second,
            starts_at: now_seconds() + jitter,
            in_background: wish.in_background,
            done_bytes: 0,
            total_bytes: mount.descriptor.totals.allocated_bytes,
            needs_credentials: config.credentials != Credentials::None,
            ca_files: config.ca_files,
        };
        files::create_dir(&self.loads.dir, Access::Private)?;
        let load = Load::new(&self.loads.dir, location, record, LoadState::Loading);
        load.save(Recorded::UnderWay, None)?;
        self.loads.insert(self, load.clone(), Some(mount.clone()), Recorded::UnderWay);
        Ok(load)
    }

    /// Goes on with what earlier agents had under way, and looks for what they had loaded.
    pub fn resume_loads(self: &Arc<Self>) {
        files::remove_unfinished(&self.loads.dir);
        let Ok(entries) = std::fs::read_dir(&self.loads.dir) else { return };
        for entry in entries.flatten().take(RECORDS_MAX) {
            let path = entry.path();
            match record::read(&path) {
                Ok((location, record)) => {
                    let config = OriginConfig { ca_files: record.ca_files.clone(), ..OriginConfig::default() };
                    // What a command brought since this agent started is newer than what stands in the file.
                    if !record.ca_files.is_empty() && self.settings().origins.lookup(&location).ca_files.is_empty() {
                        // It came from a location that was one.
                        let _ = self.settings().origins.set(&location.package_key(), config);
                    }
                    let recorded = record.state;
                    let state = match (recorded, &record.reason) {
                        (Recorded::Stopped, Some(_)) => LoadState::Failed,
                        (Recorded::Stopped, None) => LoadState::Stopped,
                        (Recorded::UnderWay | Recorded::Complete, _) => LoadState::Checking,
                    };
                    self.loads.insert(self, Load::new(&self.loads.dir, location, record, state), None, recorded);
                }
                Err(e) => {
                    tracing::warn!("a load is not taken up again: {e}");
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
    }

    /// All loads, by location.
    pub fn loads(&self) -> Vec<LoadStatus> {
        self.loads.all.lock().values().map(|(load, _)| load.status()).collect()
    }

    /// The load of the version that `mount` shows.
    pub fn load_of(&self, mount: &Mount) -> Option<Arc<Load>> {
        let owner = load::owner(&mount.identity().package_key(), &mount.identity().version);
        self.loads.all.lock().get(&owner).map(|(load, _)| load.clone())
    }

    /// Whether a load is under way that the agent must stay alive for.
    pub fn is_loading(&self) -> bool {
        self.loads.all.lock().values().any(|(load, _)| !load.has_ended())
    }

    /// Lets loads of the package that failed try again: something was learned of how to reach it.
    pub fn retry_loads(&self, package_key: &str) {
        for load in self.loads.of_package(package_key) {
            load.try_again.notify_one();
        }
    }

    /// Versions of the package that are loaded or being loaded.
    pub(super) fn load_owners(&self, package_key: &str) -> Vec<String> {
        self.loads.of_package(package_key).iter().map(|load| load.owner.clone()).collect()
    }

    /// Ends a load for good and forgets it.
    pub(super) async fn forget_load(&self, owner: &str) {
        let Some((load, task)) = self.loads.all.lock().remove(owner) else { return };
        load.stop();
        if let Some(task) = task {
            // It ends by itself; that it may have been ended with the runtime makes no difference here.
            let _ = task.await;
        }
        if let Err(e) = std::fs::remove_file(&load.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}; the next agent will load {} again", load.path.display(), owner);
        }
    }
}

#[cfg(test)]
mod tests;
