//! Room for what is stored: the quota, free space of the disk, and eviction.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Shared, now_seconds};
use crate::package::Hash;
use crate::package::block::BLOCK_MAX_BYTES;
use crate::platform;

/// Eviction begins when this share of the quota is used, so that storing need not stop for it ...
const EVICT_ABOVE_PERCENT: u64 = 95;
/// ... and ends here.
const EVICT_TO_PERCENT: u64 = 85;
/// Eviction for want of free space takes this part of what is there at a time, so that not every block asks for one.
const EVICT_AT_ONCE_PART: u64 = 20;
/// What the system said of free space is believed for so long, less what was stored meanwhile.
const FREE_SPACE_FOR: Duration = Duration::from_millis(100);
/// After an eviction that found nothing, none is tried for so long: it reads the whole index.
const IN_VAIN_FOR: Duration = Duration::from_secs(2);
/// What is made room for when a block could not be stored.
pub(super) const LARGEST_BLOCK_BYTES: u64 = BLOCK_MAX_BYTES as u64;
/// What a disk must have for a full one's index to be written again: some pages of the database and its growth.
const INDEX_NEEDS_BYTES: u64 = 4 << 20;

/// Free bytes of the disk, as they were lately.
#[derive(Debug)]
pub(super) struct FreeSpace {
    dir: PathBuf,
    asked: Option<Instant>,
    bytes: u64,
    /// A lack of it was logged already.
    is_short: bool,
}

impl FreeSpace {
    pub(super) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), asked: None, bytes: 0, is_short: false }
    }

    /// Where the system does not say, writes tell.
    fn ask(&mut self) -> u64 {
        self.bytes = platform::disk_space(&self.dir).map_or(u64::MAX, |(free, _)| free);
        self.asked = Some(Instant::now());
        self.bytes
    }
}

/// For people, as the command line writes sizes.
fn mib(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    }
}

impl Shared {
    /// Bytes at which eviction begins by itself.
    pub(super) fn evict_above(&self) -> u64 {
        self.quota / 100 * EVICT_ABOVE_PERCENT
    }

    /// Free bytes of the disk now.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free.lock().ask()
    }

    /// Whether the disk has room for `length` bytes beyond what must stay free; takes them off what is believed.
    pub(super) fn has_free_space(&self, length: u64) -> bool {
        let mut free = self.free.lock();
        let needed = self.keep_free.saturating_add(length);
        if free.bytes < needed || free.asked.is_none_or(|asked| asked.elapsed() > FREE_SPACE_FOR) {
            free.ask();
        }
        let has_room = free.bytes >= needed;
        if has_room {
            free.bytes -= length;
        }
        if !std::mem::replace(&mut free.is_short, !has_room) && !has_room {
            drop(free);
            tracing::warn!("{}", self.no_free_space());
        }
        has_room
    }

    /// Why nothing can be stored for want of free space, if so.
    pub(super) fn why_no_free_space(&self) -> Option<String> {
        (self.free_bytes() < self.keep_free.saturating_add(LARGEST_BLOCK_BYTES)).then(|| self.no_free_space())
    }

    fn no_free_space(&self) -> String {
        format!(
            "the disk of the cache {} has {} free, of which keep_free keeps {}; blocks are fetched each time",
            self.cache_dir().display(),
            mib(self.free_bytes()),
            mib(self.keep_free)
        )
    }

    fn cache_dir(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// Whether an eviction just found nothing that may go.
    pub(super) fn is_in_vain(&self) -> bool {
        self.in_vain.lock().is_some_and(|since| since.elapsed() < IN_VAIN_FOR)
    }

    /// Makes sure that `bytes` can be stored, evicting for them what may go; says why if they cannot.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), String> {
        if !self.is_degraded() && self.lack_of_room(bytes).is_none() {
            return Ok(());
        }
        self.flush();
        self.evict(bytes);
        if !self.index.retry(true) {
            return Err(self.index.why_unusable().unwrap_or_default());
        }
        if let Some(why) = self.lack_of_room(bytes) {
            return Err(why);
        }
        // There is room by all that the system says, so it is worth another try.
        *self.degraded.lock() = None;
        Ok(())
    }

    fn lack_of_room(&self, bytes: u64) -> Option<String> {
        let remedy = "give up a loaded version with `streamfs unload`, then load again, which goes on where this ended";
        let used = self.used.load(Ordering::Relaxed);
        if used.saturating_add(bytes) > self.quota {
            return Some(format!(
                "the cache {} is full ({} of {} used, and nothing in it may go); {remedy}, or raise cache_size in [agent] of the settings file (it counts when the agent starts anew)",
                self.cache_dir().display(),
                mib(used),
                mib(self.quota)
            ));
        }
        let free = self.free_bytes();
        (free < self.keep_free.saturating_add(bytes)).then(|| {
            format!(
                "the disk of the cache {} has {} free, and keep_free keeps {} of it; make room there, or {remedy}, or lower keep_free in [agent] of the settings file (it counts when the agent starts anew)",
                self.cache_dir().display(),
                mib(free),
                mib(self.keep_free)
            )
        })
    }

    /// Removes blobs, least recently used first, until quota and free space are kept with `needed` bytes more. Pinned
    /// ones stay; those of mounts in use go only when nothing else is left.
    pub(super) fn evict(&self, needed: u64) {
        // Where nothing can be written, nothing can be removed.
        if self.index.is_read_only() {
            return;
        }
        let used = self.used.load(Ordering::Relaxed);
        let is_over_quota = used > self.evict_above() || used.saturating_add(needed) > self.quota;
        let over_quota = match is_over_quota {
            true => used.saturating_add(needed).saturating_sub(self.quota / 100 * EVICT_TO_PERCENT),
            false => 0,
        };
        let short = self.keep_free.saturating_add(needed).saturating_sub(self.free_bytes());
        let short = if short > 0 { short.max(used / EVICT_AT_ONCE_PART) } else { 0 };
        self.remove(over_quota.max(short).min(used), None);
    }

    /// Makes the room that the index of a full disk needs to be written again: by removing what is pinned by nobody but
    /// `unpinning`, who gives it up.
    pub(super) fn remove_to_write_index(&self, unpinning: &str) {
        let wanted = self.keep_free.max(INDEX_NEEDS_BYTES).saturating_sub(self.free_bytes());
        self.remove(wanted, Some(unpinning));
    }

    /// Removes blobs of at least `wanted` bytes, if so many are pinned by nobody but `unpinning`.
    fn remove(&self, mut wanted: u64, unpinning: Option<&str>) {
        if wanted == 0 {
            return;
        }
        let _settling = self.settling.lock();
        let mut candidates = match self.index.entries(unpinning) {
            Ok(entries) => entries,
            Err(e) => return tracing::warn!("cannot evict: {e}"),
        };
        candidates.retain(|e| !e.pinned);
        let mut in_use = HashSet::new();
        for set in self.in_use.lock().iter().filter_map(Weak::upgrade) {
            in_use.extend(set.blobs.lock().iter().copied());
        }
        candidates.sort_by_key(|e| (in_use.contains(&e.content), e.last_use));
        let mut gone = Vec::new();
        for entry in candidates {
            if wanted == 0 {
                break;
            }
            let path = self.path(&entry.content);
            let blob = self.blobs.lock().get(&entry.content);
            let mut batch = self.batch.lock();
            let removed = match blob {
                Some(blob) => blob.remove(),
                None => std::fs::remove_file(&path),
            };
            match removed {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    tracing::warn!("cannot remove {}: {e}", path.display());
                    continue;
                }
            }
            // With what was stored in it since the index was written last.
            let unwritten = batch.entries.remove(&entry.content).map_or(0, |(bytes, _)| bytes);
            drop(batch);
            wanted = wanted.saturating_sub(entry.bytes + unwritten);
            self.release(entry.bytes + unwritten);
            gone.push(entry.content);
        }
        *self.in_vain.lock() = gone.is_empty().then(Instant::now);
        if gone.is_empty() {
            return;
        }
        self.free.lock().ask();
        // Until now there may have been no room to write it.
        self.index.retry(true);
        let set: HashSet<Hash> = gone.iter().copied().collect();
        if let Err(e) = self.index.remove(&gone).and_then(|()| self.index.remove_blocks_of(&set)) {
            tracing::warn!("{e}");
        }
        // What was degraded for want of space may be tried again.
        *self.degraded.lock() = None;
    }

    /// Files of blobs, and their bytes on disk.
    fn files(&self) -> impl Iterator<Item = (Hash, u64)> {
        let shards = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = shards.flat_map(|s| std::fs::read_dir(s.path()).into_iter().flatten()).flatten();
        files.filter_map(|file| {
            let content = file.file_name().to_str()?.parse::<Hash>().ok()?;
            let meta = file.metadata().ok()?;
            Some((content, platform::facts(&meta).allocated.min(meta.len())))
        })
    }

    /// After an unclean end: finds files that the index does not know, and forgets entries without a file. Files that
    /// this agent has begun to use meanwhile are left alone: their entries are being kept.
    pub(super) fn reconcile(&self) {
        let Ok(entries) = self.index.entries(None) else { return };
        let known: HashMap<Hash, u64> = entries.iter().map(|e| (e.content, e.bytes)).collect();
        let mut found = Vec::new();
        let mut there = HashSet::new();
        for (content, bytes) in self.files() {
            there.insert(content);
            if self.is_being_written(&content) {
                continue;
            }
            let before = known.get(&content).copied();
            if before != Some(bytes) {
                self.used.fetch_add(bytes, Ordering::Relaxed);
                self.release(before.unwrap_or(0));
                found.push((content, bytes, now_seconds()));
            }
        }
        let is_lost = |content: &&Hash| !there.contains(*content) && !self.is_being_written(content);
        let lost: Vec<Hash> = known.keys().filter(is_lost).copied().collect();
        self.release(lost.iter().map(|content| known[content]).sum());
        self.adopt(&found, &lost);
    }

    /// After the index was opened anew and so forgot what was not synced: enters all files again. What is stored in
    /// this moment may be counted wrong by a block or two.
    pub(super) fn recount(&self) {
        let _settling = self.settling.lock();
        let Ok(entries) = self.index.entries(None) else { return };
        let mut known: HashMap<Hash, u64> = entries.iter().map(|e| (e.content, e.bytes)).collect();
        let mut found = Vec::new();
        let mut used = 0;
        for (content, bytes) in self.files() {
            used += bytes;
            let waiting = self.batch.lock().entries.get(&content).map_or(0, |(bytes, _)| *bytes);
            let bytes = bytes.saturating_sub(waiting);
            if known.remove(&content) != Some(bytes) {
                found.push((content, bytes, now_seconds()));
            }
        }
        self.used.store(used, Ordering::Relaxed);
        self.adopt(&found, &known.into_keys().collect::<Vec<_>>());
    }

    fn adopt(&self, found: &[(Hash, u64, u64)], lost: &[Hash]) {
        if let Err(e) = self.index.adopt(found).and_then(|()| self.index.remove(lost)) {
            self.incomplete.store(true, Ordering::Relaxed);
            tracing::warn!("{e}");
        }
    }

    fn is_being_written(&self, content: &Hash) -> bool {
        self.blobs.lock().get(content).is_some_and(|blob| blob.is_written())
    }
}
