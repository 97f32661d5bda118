//! Decoded blocks in memory, bounded by bytes, least recently used first out.

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::package::Hash;

/// What a block costs beside its bytes: list node, table slot, allocation. It counts, because packages have files of a
/// few bytes by the hundred thousand.
const BLOCK_OVERHEAD_BYTES: u64 = 192;

fn cost(block: &Bytes) -> u64 {
    block.len() as u64 + BLOCK_OVERHEAD_BYTES
}

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
        inner.bytes += cost(&block);
        if let Some(old) = inner.blocks.put(hash, block) {
            inner.bytes -= cost(&old);
        }
        while inner.bytes > self.limit_bytes {
            let Some((_, oldest)) = inner.blocks.pop_lru() else { break };
            inner.bytes -= cost(&oldest);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.inner.lock().bytes
    }
}
