//! Blobs on disk within a quota.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::index::{Batch, Index};
use super::{Blob, CacheStatus, InUse};
use crate::error::{Error, Result};
use crate::package::Hash;
use crate::platform;

/// Blobs whose verified parts are remembered; beyond that they are verified again. Each may hold a descriptor.
const OPEN_BLOBS_MAX: NonZeroUsize = NonZeroUsize::new(2048).expect("it is not zero");
/// How long changes of the index may wait.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// After a failed write, storing is tried again after this long.
const DEGRADED_FOR: Duration = Duration::from_secs(10);
/// Eviction begins when this share of the quota is used, so that storing need not stop for it ...
const EVICT_ABOVE_PERCENT: u64 = 95;
/// ... and ends here.
const EVICT_TO_PERCENT: u64 = 85;

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
    index: Index,
    open: Mutex<LruCache<Hash, Arc<Blob>>>,
    used: AtomicU64,
    entries: AtomicU64,
    batch: Mutex<Batch>,
    degraded: Mutex<Option<(String, Instant)>>,
    in_use: Mutex<Vec<Weak<InUse>>>,
    wake: mpsc::Sender<Wake>,
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs().max(1))
}

impl Disk {
    pub(super) fn open(dir: &Path, quota: u64, keep_free: u64) -> Result<Self> {
        platform::create_private_dir(dir).map_err(|e| Error::local("create the cache directory", dir, e))?;
        let index = Index::open(&dir.join("index.redb"))?;
        let (used, entries) = index.totals()?;
        let was_clean = index.was_clean;
        let (wake, woken) = mpsc::channel();
        let shared = Arc::new(Shared {
            dir: dir.join("blobs"),
            quota,
            keep_free,
            index,
            open: Mutex::new(LruCache::new(OPEN_BLOBS_MAX)),
            used: AtomicU64::new(used),
            entries: AtomicU64::new(entries),
            batch: Mutex::default(),
            degraded: Mutex::default(),
            in_use: Mutex::default(),
            wake: wake.clone(),
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
        let mut open = shared.open.lock();
        open.get_or_insert(content, || Arc::new(Blob::new(content, size, stored, shared.path(&content)))).clone()
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
            return Some(block);
        }
        if blob.may_hold_more()
            && let Some(block) = blob.read_unverified(&range)
            && Hash::of(&block) == *hash
        {
            blob.mark_verified(range);
            return Some(block);
        }
        self.copy_from_elsewhere(blob, offset, length, hash)
    }

    /// A block that another content has too: the file of an earlier version, most often.
    fn copy_from_elsewhere(&self, blob: &Blob, offset: u64, length: u32, hash: &Hash) -> Option<Bytes> {
        let (content, at) = match self.shared.index.find_block(hash) {
            Some(place) => place,
            // A file of one block is named by its block.
            None => (*hash, 0),
        };
        let path = self.shared.path(&content);
        if content == blob.content() {
            return None;
        }
        let file = std::fs::File::open(path).ok()?;
        let mut block = vec![0; length as usize];
        platform::read_exact_at(&file, &mut block, at).ok()?;
        if Hash::of(&block) != *hash {
            return None;
        }
        self.store(blob, offset, hash, &block);
        Some(block.into())
    }

    pub(super) fn store(&self, blob: &Blob, offset: u64, hash: &Hash, block: &[u8]) -> bool {
        let shared = &self.shared;
        let length = block.len() as u64;
        if shared.is_degraded() {
            return false;
        }
        let used = shared.used.load(Ordering::Relaxed);
        if used + length > shared.quota * EVICT_ABOVE_PERCENT / 100 {
            let _ = self.wake.send(Wake::Evict);
            if used + length > shared.quota {
                return false;
            }
        }
        let written = blob.opened_for_writing().and_then(|file| platform::write_all_at(&file, block, offset));
        if let Err(e) = written {
            blob.forget();
            shared.degrade(&e);
            let _ = self.wake.send(Wake::Evict);
            return false;
        }
        blob.mark_verified(offset..offset + length);
        shared.used.fetch_add(length, Ordering::Relaxed);
        let mut batch = shared.batch.lock();
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
        let gone: HashSet<Hash> = self.shared.index.unpin(owner)?.into_iter().collect();
        let entries = self.shared.index.entries()?;
        Ok(entries.iter().filter(|e| !e.pinned && gone.contains(&e.content)).map(|e| e.bytes).sum())
    }

    pub(super) fn pinned_owners(&self) -> Vec<String> {
        self.shared.index.owners().unwrap_or_default()
    }

    pub(super) fn status(&self) -> CacheStatus {
        let shared = &self.shared;
        let pinned = shared.index.entries().map_or(0, |all| all.iter().filter(|e| e.pinned).map(|e| e.bytes).sum());
        CacheStatus {
            used_bytes: shared.used.load(Ordering::Relaxed),
            quota_bytes: shared.quota,
            entries: shared.entries.load(Ordering::Relaxed),
            pinned_bytes: pinned,
            degraded: shared.degraded.lock().as_ref().map(|(why, _)| why.clone()),
            memory_bytes: 0,
        }
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
        self.shared.index.close();
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
            match woken.recv_timeout(FLUSH_EVERY) {
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Evict) => {
                    // One eviction answers all that asked meanwhile.
                    while let Ok(wake) = woken.try_recv() {
                        if wake == Wake::Stop {
                            return;
                        }
                    }
                    self.flush();
                    self.evict();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.flush();
                    let free = platform::disk_space(&self.dir).map_or(u64::MAX, |(free, _)| free);
                    if free < self.keep_free && self.used.load(Ordering::Relaxed) > 0 {
                        self.evict();
                    }
                }
            }
        }
    }

    fn is_degraded(&self) -> bool {
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
        let batch = std::mem::take(&mut *self.batch.lock());
        if batch.entries.is_empty() && batch.blocks.is_empty() {
            return;
        }
        match self.index.apply(batch) {
            Ok(new) => drop(self.entries.fetch_add(new, Ordering::Relaxed)),
            Err(e) => tracing::warn!("{e}"),
        }
    }

    /// Removes blobs, least recently used first, until quota and free space are kept. Pinned ones stay; those of
    /// mounts in use go only when nothing else is left.
    fn evict(&self) {
        let used = self.used.load(Ordering::Relaxed);
        let over_quota = match used > self.quota * EVICT_ABOVE_PERCENT / 100 {
            true => used - self.quota * EVICT_TO_PERCENT / 100,
            false => 0,
        };
        let free = platform::disk_space(&self.dir).map_or(u64::MAX, |(free, _)| free);
        let mut wanted = over_quota.max(self.keep_free.saturating_sub(free).min(used));
        if wanted == 0 {
            return;
        }
        let mut in_use = HashSet::new();
        for set in self.in_use.lock().iter().filter_map(Weak::upgrade) {
            in_use.extend(set.blobs.lock().iter().copied());
        }
        let mut candidates = match self.index.entries() {
            Ok(entries) => entries,
            Err(e) => return tracing::warn!("cannot evict: {e}"),
        };
        candidates.retain(|e| !e.pinned);
        candidates.sort_by_key(|e| (in_use.contains(&e.content), e.last_use));
        let mut gone = Vec::new();
        for entry in candidates {
            if wanted == 0 {
                break;
            }
            self.open.lock().pop(&entry.content).inspect(|blob| blob.forget());
            match std::fs::remove_file(self.path(&entry.content)) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    tracing::warn!("cannot remove {}: {e}", self.path(&entry.content).display());
                    continue;
                }
            }
            wanted = wanted.saturating_sub(entry.bytes);
            let _ =
                self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |u| Some(u.saturating_sub(entry.bytes)));
            gone.push(entry.content);
        }
        self.entries.fetch_sub(gone.len() as u64, Ordering::Relaxed);
        let set: HashSet<Hash> = gone.iter().copied().collect();
        if let Err(e) = self.index.remove(&gone).and_then(|()| self.index.remove_blocks_of(&set)) {
            tracing::warn!("{e}");
        }
        // What was degraded for want of space may be tried again.
        *self.degraded.lock() = None;
    }

    /// After an unclean end: finds files that the index does not know, and forgets entries without a file.
    fn reconcile(&self) {
        let Ok(entries) = self.index.entries() else { return };
        let known: HashMap<Hash, u64> = entries.iter().map(|e| (e.content, e.bytes)).collect();
        let mut found = Vec::new();
        let mut there = HashSet::new();
        let shards = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for file in shards.flat_map(|s| std::fs::read_dir(s.path()).into_iter().flatten()).flatten() {
            let Some(content) = file.file_name().to_str().and_then(|n| n.parse::<Hash>().ok()) else { continue };
            let Ok(meta) = file.metadata() else { continue };
            let bytes = platform::facts(&meta).allocated.min(meta.len());
            there.insert(content);
            if known.get(&content) != Some(&bytes) {
                found.push((content, bytes, now_seconds()));
            }
        }
        let lost: Vec<Hash> = known.keys().filter(|c| !there.contains(c)).copied().collect();
        let settled =
            self.index.adopt(&found).and_then(|()| self.index.remove(&lost)).and_then(|()| self.index.totals());
        match settled {
            Ok((used, entries)) => {
                self.used.store(used, Ordering::Relaxed);
                self.entries.store(entries, Ordering::Relaxed);
            }
            Err(e) => tracing::warn!("{e}"),
        }
        let _ = self.wake.send(Wake::Evict);
    }
}
