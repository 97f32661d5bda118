//! Decoded blocks in memory, bounded by bytes, least recently used first out.

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::package::Hash;

#[derive(Debug)]
pub(super) struct Memory {
    limit_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    blocks: LruCache<Hash, Bytes>,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, inner: Mutex::new(Inner { blocks: LruCache::unbounded(), bytes: 0 }) }
    }

    pub(super) fn get(&self, hash: &Hash) -> Option<Bytes> {
        self.inner.lock().blocks.get(hash).cloned()
    }

    pub(super) fn insert(&self, hash: Hash, block: Bytes) {
        let mut inner = self.inner.lock();
        inner.bytes += block.len() as u64;
        if let Some(old) = inner.blocks.put(hash, block) {
            inner.bytes -= old.len() as u64;
        }
        while inner.bytes > self.limit_bytes {
            let Some((_, oldest)) = inner.blocks.pop_lru() else { break };
            inner.bytes -= oldest.len() as u64;
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.inner.lock().bytes
    }
}
