//! Blobs on disk within a quota.

mod room;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use self::room::{FreeSpace, LARGEST_BLOCK_BYTES};
use super::index::{Batch, Index};
use super::open_files::OpenFiles;
use super::{Blob, CacheStatus, InUse};
use crate::error::{Error, Result};
use crate::package::Hash;
use crate::platform;

/// Blobs whose verified parts are remembered though nobody holds them; beyond that they are verified again.
const RECENT_BLOBS_MAX: NonZeroUsize = NonZeroUsize::new(2048).expect("it is not zero");
/// Folder of the blobs in the cache directory.
const BLOBS_DIR: &str = "blobs";
/// How long changes of the index may wait.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// After a failed write, storing is tried again after this long.
const DEGRADED_FOR: Duration = Duration::from_secs(10);
/// Stays free whatever is configured: index, trusted metadata and log are on the same disk.
const KEEP_FREE_MIN_BYTES: u64 = 1 << 20;

/// Disk cache and its background thread.
#[derive(Debug)]
pub(super) struct Disk {
    shared: Arc<Shared>,
    wake: mpsc::Sender<Wake>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Evict,
    Stop,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    quota: u64,
    keep_free: u64,
    free: Mutex<FreeSpace>,
    index: Index,
    blobs: Mutex<Blobs>,
    open_files: Arc<OpenFiles>,
    used: AtomicU64,
    /// Locked before a blob's own state: what is stored is noted, and what is evicted struck out, in one step each.
    batch: Mutex<Batch>,
    /// Held while the index is written: an eviction must not miss what is being added to what it removes.
    settling: Mutex<()>,
    degraded: Mutex<Option<(String, Instant)>>,
    in_use: Mutex<Vec<Weak<InUse>>>,
    wake: mpsc::Sender<Wake>,
    /// An eviction was asked for and has not begun.
    evict_asked: AtomicBool,
    /// When an eviction found nothing that may go.
    in_vain: Mutex<Option<Instant>>,
    /// The index lacks something; the next agent must look through the files.
    incomplete: AtomicBool,
}

/// Every blob that somebody holds, so that there are never two of one content: what one of them does to the file,
/// the other would not know.
#[derive(Debug)]
struct Blobs {
    live: HashMap<Hash, Weak<Blob>>,
    recent: LruCache<Hash, Arc<Blob>>,
    /// Entries of `live` at which those that are gone are swept out.
    sweep_at: usize,
}

impl Blobs {
    fn get(&mut self, content: &Hash) -> Option<Arc<Blob>> {
        self.recent.get(content).cloned().or_else(|| self.live.get(content)?.upgrade())
    }

    fn insert(&mut self, blob: &Arc<Blob>) {
        if self.live.len() >= self.sweep_at {
            self.live.retain(|_, blob| blob.strong_count() > 0);
            self.sweep_at = (self.live.len() * 2).max(RECENT_BLOBS_MAX.get() * 2);
        }
        self.live.insert(blob.content(), Arc::downgrade(blob));
        self.recent.put(blob.content(), blob.clone());
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs().max(1))
}

impl Disk {
    pub(super) fn open(dir: &Path, quota: u64, keep_free: u64) -> Result<Self> {
        platform::create_private_dir(dir).map_err(|e| Error::local("create the cache directory", dir, e))?;
        let index = Index::open(&dir.join("index.redb"), dir.join(BLOBS_DIR).exists())?;
        let used = index.used_bytes()?;
        let was_clean = index.was_clean;
        let (wake, woken) = mpsc::channel();
        let shared = Arc::new(Shared {
            dir: dir.join(BLOBS_DIR),
            quota,
            keep_free: keep_free.max(KEEP_FREE_MIN_BYTES),
            free: Mutex::new(FreeSpace::of(dir)),
            index,
            blobs: Mutex::new(Blobs { live: HashMap::new(), recent: LruCache::new(RECENT_BLOBS_MAX), sweep_at: 0 }),
            open_files: Arc::default(),
            used: AtomicU64::new(used),
            batch: Mutex::default(),
            settling: Mutex::default(),
            degraded: Mutex::default(),
            in_use: Mutex::default(),
            wake: wake.clone(),
            evict_asked: AtomicBool::new(false),
            in_vain: Mutex::default(),
            incomplete: AtomicBool::new(false),
        });
        let background = shared.clone();
        let thread = std::thread::Builder::new()
            .name("cache".into())
            .spawn(move || background.run(&woken, was_clean))
            .map_err(|e| Error::local("start the thread of", dir, e))?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    pub(super) fn blob(&self, content: Hash, size: u64, stored: u64) -> Arc<Blob> {
        let shared = &self.shared;
        let mut blobs = shared.blobs.lock();
        if let Some(blob) = blobs.get(&content) {
            return blob;
        }
        let blob = Blob::new(content, size, stored, shared.path(&content), shared.open_files.clone());
        blobs.insert(&blob);
        blob
    }

    pub(super) fn register(&self, set: &Arc<InUse>) {
        let mut all = self.shared.in_use.lock();
        all.retain(|w| w.strong_count() > 0);
        all.push(Arc::downgrade(set));
    }

    pub(super) fn touch(&self, blob: &Blob) {
        let mut batch = self.shared.batch.lock();
        // Entries that do not exist on disk are not made by being asked for.
        if let Some(entry) = batch.entries.get_mut(&blob.content()) {
            entry.1 = now_seconds();
        } else if blob.may_hold_more() && blob.path().exists() {
            batch.entries.insert(blob.content(), (0, now_seconds()));
        }
    }

    pub(super) fn read_block(&self, blob: &Blob, offset: u64, length: u32, hash: &Hash) -> Option<Bytes> {
        let range = offset..offset + u64::from(length);
        if let Some(block) = blob.read(&range) {
            // Verified as something, which need not be this: a launch set that is wrong has wrong pages in its places.
            if Hash::of(&block) == *hash {
                return Some(block);
            }
        } else if blob.may_hold_more()
            && let Some((block, generation)) = blob.read_unverified(&range)
            && Hash::of(&block) == *hash
        {
            blob.mark_verified(range, generation);
            return Some(block);
        }
        self.copy_from_elsewhere(blob, offset, length, hash)
    }

    /// A block that another content has too (the file of an earlier version, most often), or this one elsewhere.
    fn copy_from_elsewhere(&self, blob: &Blob, offset: u64, length: u32, hash: &Hash) -> Option<Bytes> {
        // A file of one block is named by its block, and not in the index of blocks.
        let places = self.shared.index.find_block(hash).into_iter().chain([(*hash, 0)]);
        let block = places.filter(|place| *place != (blob.content(), offset)).find_map(|(content, at)| {
            let file = std::fs::File::open(self.shared.path(&content)).ok()?;
            let block = platform::read_exact_at(&file, length as usize, at).ok()?;
            (Hash::of(&block) == *hash).then_some(block)
        })?;
        self.store(blob, offset, hash, &block);
        Some(block.into())
    }

    pub(super) fn store(&self, blob: &Blob, offset: u64, hash: &Hash, block: &[u8]) -> bool {
        let shared = &self.shared;
        let length = block.len() as u64;
        let range = offset..offset + length;
        if blob.is_verified(&range) {
            // Brought twice: counting it twice would fill the cache with nothing.
            return true;
        }
        if shared.is_degraded() {
            return false;
        }
        if !shared.has_free_space(length) {
            shared.ask_for_eviction();
            return false;
        }
        // Reserved before it is written: many threads store at once, and all together must keep the quota.
        let within = |used: u64| used.checked_add(length).filter(|after| *after <= shared.quota);
        let reserved = shared.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        match reserved {
            Ok(before) if before + length <= shared.evict_above() => {}
            Ok(_) => shared.ask_for_eviction(),
            Err(_) => {
                shared.ask_for_eviction();
                return false;
            }
        }
        let written = blob
            .opened_for_writing()
            .and_then(|writing| platform::write_all_at(&writing.file, block, offset).map(|()| writing.generation));
        let mut batch = shared.batch.lock();
        let stored = match written {
            Ok(generation) => blob.mark_verified(range, generation),
            Err(e) => {
                blob.forget();
                shared.degrade(&e);
                shared.ask_for_eviction();
                false
            }
        };
        if !stored {
            shared.release(length);
            return false;
        }
        let entry = batch.entries.entry(blob.content()).or_default();
        *entry = (entry.0 + length, now_seconds());
        if *hash != blob.content() {
            batch.blocks.push((*hash, blob.content(), offset));
        }
        true
    }

    pub(super) fn pin(&self, owner: &str, blobs: &[Hash]) -> Result<()> {
        self.flush();
        self.shared.index.pin(owner, blobs)
    }

    pub(super) fn unpin(&self, owner: &str) -> Result<u64> {
        self.flush();
        let shared = &self.shared;
        let before = shared.index.entries(None)?;
        let after = shared.index.entries(Some(owner))?;
        if let Err(e) = shared.index.unpin(owner) {
            // A full disk cannot even take this note: what only this owner keeps makes room for it.
            tracing::info!("{e}; making room for that");
            shared.remove_to_write_index(owner);
            shared.index.retry(true);
            shared.index.unpin(owner)?;
        }
        *shared.in_vain.lock() = None;
        let kept: HashSet<Hash> = before.iter().filter(|e| e.pinned).map(|e| e.content).collect();
        Ok(after.iter().filter(|e| !e.pinned && kept.contains(&e.content)).map(|e| e.bytes).sum())
    }

    pub(super) fn pinned_owners(&self) -> Vec<String> {
        self.shared.index.owners().unwrap_or_default()
    }

    pub(super) fn status(&self) -> CacheStatus {
        let shared = &self.shared;
        shared.flush();
        let entries = shared.index.entries(None).unwrap_or_default();
        CacheStatus {
            used_bytes: shared.used.load(Ordering::Relaxed),
            quota_bytes: shared.quota,
            entries: entries.len() as u64,
            pinned_bytes: entries.iter().filter(|e| e.pinned).map(|e| e.bytes).sum(),
            degraded: shared.why_degraded().or_else(|| shared.why_no_free_space()),
            memory_bytes: 0,
        }
    }

    pub(super) fn room_bytes(&self) -> u64 {
        let shared = &self.shared;
        if shared.is_degraded() {
            return 0;
        }
        let within_quota = shared.evict_above().saturating_sub(shared.used.load(Ordering::Relaxed));
        within_quota.min(shared.free_bytes().saturating_sub(shared.keep_free))
    }

    pub(super) fn make_room(&self, bytes: u64) -> Result<(), String> {
        self.shared.make_room(bytes)
    }

    pub(super) fn flush(&self) {
        self.shared.flush();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.flush();
        if !self.shared.incomplete.load(Ordering::Relaxed) {
            self.shared.index.close();
        }
    }
}

impl Shared {
    fn path(&self, content: &Hash) -> PathBuf {
        let name = content.to_string();
        self.dir.join(&name[..2]).join(name)
    }

    fn run(&self, woken: &mpsc::Receiver<Wake>, was_clean: bool) {
        if !was_clean {
            self.reconcile();
        }
        loop {
            if self.index.take_forgetful() {
                self.recount();
            }
            match woken.recv_timeout(FLUSH_EVERY) {
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Evict) => {
                    // One eviction answers all that asked meanwhile.
                    while let Ok(wake) = woken.try_recv() {
                        if wake == Wake::Stop {
                            return;
                        }
                    }
                    // What is asked for from now on may not be seen by this eviction.
                    self.evict_asked.store(false, Ordering::SeqCst);
                    self.flush();
                    self.evict(LARGEST_BLOCK_BYTES);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.flush();
                    let used = self.used.load(Ordering::Relaxed);
                    let is_too_much = used > self.evict_above() || (self.free_bytes() < self.keep_free && used > 0);
                    if is_too_much && !self.is_in_vain() {
                        self.evict(0);
                    }
                }
            }
        }
    }

    fn ask_for_eviction(&self) {
        if !self.is_in_vain() && !self.evict_asked.swap(true, Ordering::SeqCst) {
            // It fails only when the cache is being closed.
            let _ = self.wake.send(Wake::Evict);
        }
    }

    /// Gives back bytes that were reserved or are gone.
    fn release(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // The closure always gives a value, so this cannot fail.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn why_degraded(&self) -> Option<String> {
        if let Some(why) = self.index.why_unusable() {
            return Some(why);
        }
        self.degraded.lock().as_ref().map(|(why, _)| why.clone())
    }

    fn is_degraded(&self) -> bool {
        if self.index.is_unusable() {
            return true;
        }
        let mut degraded = self.degraded.lock();
        match &*degraded {
            Some((_, since)) if since.elapsed() < DEGRADED_FOR => true,
            Some(_) => {
                *degraded = None;
                false
            }
            None => false,
        }
    }

    fn degrade(&self, e: &std::io::Error) {
        let why = if platform::is_disk_full(e) {
            format!("the disk of the cache {} is full; blocks are fetched each time", self.dir.display())
        } else {
            format!("the cache {} cannot be written ({e}); blocks are fetched each time", self.dir.display())
        };
        tracing::warn!("{why}");
        *self.degraded.lock() = Some((why, Instant::now()));
    }

    fn flush(&self) {
        let _settling = self.settling.lock();
        let batch = std::mem::take(&mut *self.batch.lock());
        if batch.entries.is_empty() && batch.blocks.is_empty() {
            return;
        }
        if let Err(e) = self.index.apply(&batch) {
            self.incomplete.store(true, Ordering::Relaxed);
            tracing::debug!("{e}");
            self.batch.lock().put_back(batch);
        }
    }
}
