//! Verified blocks on local disk and in memory.
//!
//! On disk a *blob* is one sparse file per content: a file's bytes, or a version's tree pages. Its name is a hash of
//! the content, so files equal across versions are one blob. Nothing says which of a blob's blocks are there: a
//! block is there if its bytes have its hash. They are checked once after the agent started and remembered as
//! verified, so no crash, full disk or damaged file system can turn into a wrong byte: only into a fetch.
//!
//! The cache never talks to the network and does not know what will be read next.
//!
//! ```text
//! CACHE/blobs/ab/abcd…        one sparse file per content, readable by its owner only
//! CACHE/index.redb            sizes, last use, pins, where equal blocks are      index
//! ```

mod blob;
mod disk;
mod index;
mod memory;
mod open_files;
mod ranges;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

pub use self::blob::Blob;
use self::disk::Disk;
use self::memory::Memory;
use crate::error::Result;
use crate::package::Hash;

/// Limits of a cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes that must stay free on the disk.
    pub keep_free_bytes: u64,
    /// Decoded blocks in memory.
    pub memory_bytes: u64,
}

/// State of a cache, for people.
#[derive(Debug, Clone, Serialize)]
pub struct CacheStatus {
    /// Bytes of blocks on disk.
    pub used_bytes: u64,
    /// How many may be.
    pub quota_bytes: u64,
    /// Blobs on disk.
    pub entries: u64,
    /// Bytes that `load` keeps for offline use.
    pub pinned_bytes: u64,
    /// Why blocks are not being stored at the moment, if so.
    pub degraded: Option<String>,
    /// Decoded blocks in memory now.
    pub memory_bytes: u64,
}

/// A set of blobs that must not be evicted, while it lives: what a mount in use has touched.
#[derive(Debug, Default)]
pub struct InUse {
    blobs: Mutex<HashSet<Hash>>,
}

/// The cache of one agent.
#[derive(Debug)]
pub struct Cache {
    memory: Memory,
    disk: Disk,
}

impl Cache {
    /// Opens the cache in `dir`, making it if needed, without reading through it.
    ///
    /// # Errors
    /// `Local` if the folder cannot be made; `Busy` if another process has it open. A damaged index is put aside.
    pub fn open(dir: &Path, limits: CacheLimits) -> Result<Arc<Self>> {
        let disk = Disk::open(dir, limits.disk_bytes, limits.keep_free_bytes)?;
        Ok(Arc::new(Self { memory: Memory::new(limits.memory_bytes), disk }))
    }

    /// The blob of a content: `size_bytes` long, `stored_bytes` of them not holes.
    pub fn blob(&self, content: Hash, size_bytes: u64, stored_bytes: u64) -> Arc<Blob> {
        self.disk.blob(content, size_bytes, stored_bytes)
    }

    /// A set of blobs in use. Eviction takes them last.
    pub fn new_in_use(&self) -> Arc<InUse> {
        let set = Arc::new(InUse::default());
        self.disk.register(&set);
        set
    }

    /// Notes that `blob` is being used, for whom.
    pub fn touch(&self, blob: &Blob, by: &InUse) {
        if by.blobs.lock().insert(blob.content()) {
            self.disk.touch(blob);
        }
    }

    /// A decoded block in memory.
    pub fn in_memory(&self, hash: &Hash) -> Option<Bytes> {
        self.memory.get(hash)
    }

    /// Keeps a decoded, verified block in memory.
    pub fn remember(&self, hash: Hash, block: Bytes) {
        self.memory.insert(hash, block);
    }

    /// The block at `offset` of `blob`, from its file or from a copy in another blob, verified. Reads local disk.
    pub fn on_disk(&self, blob: &Blob, offset: u64, length: u32, hash: &Hash) -> Option<Bytes> {
        self.disk.read_block(blob, offset, length, hash)
    }

    /// Stores a verified block. Failing to is not an error: the cache then degrades to streaming.
    /// Returns whether it is on disk now.
    pub fn store(&self, blob: &Blob, offset: u64, hash: &Hash, block: &[u8]) -> bool {
        self.disk.store(blob, offset, hash, block)
    }

    /// Pins blobs for `owner` (a version) until unpinned. Durable when this returns.
    pub fn pin(&self, owner: &str, blobs: &[Hash]) -> Result<()> {
        self.disk.pin(owner, blobs)
    }

    /// Removes the pins of `owner`; bytes that are no longer pinned by anybody.
    pub fn unpin(&self, owner: &str) -> Result<u64> {
        self.disk.unpin(owner)
    }

    /// Owners that have pins.
    pub fn pinned_owners(&self) -> Vec<String> {
        self.disk.pinned_owners()
    }

    /// How full it is.
    pub fn status(&self) -> CacheStatus {
        let mut status = self.disk.status();
        status.memory_bytes = self.memory.bytes();
        status
    }

    /// Bytes that may be stored without anything being evicted for them; 0 while nothing can be stored.
    pub fn room_bytes(&self) -> u64 {
        self.disk.room_bytes()
    }

    /// Makes sure that `bytes` can be stored now, evicting for them what is neither pinned nor in use, then what is
    /// not pinned. Reads and writes local disk.
    ///
    /// # Errors
    /// Why there is no room, and what to do.
    pub fn make_room(&self, bytes: u64) -> Result<(), String> {
        self.disk.make_room(bytes)
    }

    /// Writes what the index has not yet; blocks are on disk already.
    pub fn flush(&self) {
        self.disk.flush();
    }
}

#[cfg(test)]
mod tests;
