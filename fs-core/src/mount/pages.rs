//! The tree pages of one version: parsed ones in memory, encoded ones in the cache.
//!
//! Index pages are few and needed by every walk: they stay. Leaves come and go.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use crate::backend::ObjectPath;
use crate::cache::{Blob, Cache};
use crate::error::Result;
use crate::fetch::Wanted;
use crate::package::Hash;
use crate::package::descriptor::TreeRef;
use crate::package::tree::page::{Page, PageKind};
use crate::package::tree::walk::{Miss, Pages, Walked};
use crate::package::tree::{PAGE_MAX_BYTES, PageAddress, PageTreeKind, TreeLayout};

/// Parsed leaves in memory: 8 MiB at most.
const LEAVES_MAX: NonZeroUsize = NonZeroUsize::new(512).expect("it is not zero");

#[derive(Debug)]
pub(super) struct PageStore {
    object: Arc<ObjectPath>,
    cache: Arc<Cache>,
    blob: Arc<Blob>,
    indexes: RwLock<HashMap<u32, Arc<Page>>>,
    leaves: Mutex<LruCache<u32, Arc<Page>>>,
}

/// What one question has been brought, so that nothing is evicted between asking and answering.
#[derive(Default)]
pub(super) struct Held {
    pages: HashMap<Hash, Arc<Page>>,
    /// Decoded blocks.
    pub(super) blocks: HashMap<Hash, Bytes>,
}

impl Held {
    pub(super) fn keep_page(&mut self, hash: Hash, bytes: Bytes) -> Result<()> {
        let page = Page::parse(bytes, &|| format!("the tree page {hash}"))?;
        self.pages.insert(hash, Arc::new(page));
        Ok(())
    }
}

/// The pages of a store and of one question together.
pub(super) struct Reader<'a> {
    store: &'a PageStore,
    held: &'a mut Held,
}

/// Name of the blob of a tree's pages. It covers all by which pages are found and verified: the name of the object alone
/// is only what the descriptor says, and another package's descriptor might say the same of other pages.
fn blob_name(tree: &TreeRef) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("streamfs 1 cached tree pages");
    hasher.update(&serde_json::to_vec(tree).expect("a descriptor has only string keys"));
    Hash(*hasher.finalize().as_bytes())
}

impl PageStore {
    pub(super) fn new(tree: &TreeRef, layout: &TreeLayout, cache: &Arc<Cache>) -> Self {
        // Pages stand in the blob at their number times the size of the largest, whatever their own.
        let size = u64::from(layout.pages()) * PAGE_MAX_BYTES as u64;
        Self {
            object: Arc::new(tree.path()),
            cache: cache.clone(),
            blob: cache.blob(blob_name(tree), size, size),
            indexes: RwLock::default(),
            leaves: Mutex::new(LruCache::new(LEAVES_MAX)),
        }
    }

    /// The blob that holds the pages on disk.
    pub(super) fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }

    pub(super) fn reader<'a>(&'a self, held: &'a mut Held) -> Reader<'a> {
        Reader { store: self, held }
    }

    pub(super) fn wanted(&self, address: &PageAddress) -> Wanted {
        Wanted {
            object: self.object.clone(),
            offset: address.offset,
            stored: address.sum.stored,
            length: address.sum.length,
            hash: address.sum.hash,
            home: Some((self.blob.clone(), u64::from(address.number) * PAGE_MAX_BYTES as u64)),
            remember: false,
        }
    }

    fn in_memory(&self, number: u32) -> Option<Arc<Page>> {
        if let Some(page) = self.indexes.read().get(&number) {
            return Some(page.clone());
        }
        self.leaves.lock().get(&number).cloned()
    }

    fn keep(&self, number: u32, page: Arc<Page>) {
        match page.kind() {
            PageKind::NodeIndex | PageKind::ExtentIndex => drop(self.indexes.write().insert(number, page)),
            PageKind::NodeLeaf | PageKind::ExtentLeaf => drop(self.leaves.lock().put(number, page)),
        }
    }
}

impl Pages for Reader<'_> {
    fn page(&mut self, kind: PageTreeKind, address: &PageAddress) -> Walked<Arc<Page>> {
        if let Some(page) = self.store.in_memory(address.number) {
            return Ok(page);
        }
        if let Some(page) = self.held.pages.get(&address.sum.hash) {
            self.store.keep(address.number, page.clone());
            return Ok(page.clone());
        }
        let store = self.store;
        let at = u64::from(address.number) * PAGE_MAX_BYTES as u64;
        let sum = &address.sum;
        let local = store.cache.on_disk(&store.blob, at, sum.length, &sum.hash);
        // Memory has what a launch stream brought and the disk did not take.
        match local.or_else(|| store.cache.in_memory(&sum.hash)) {
            Some(bytes) => {
                let page = Page::parse(bytes, &|| format!("the tree page {}", sum.hash)).map_err(Miss::Failed)?;
                let page = Arc::new(page);
                store.keep(address.number, page.clone());
                Ok(page)
            }
            None => Err(Miss::Page(kind, *address)),
        }
    }
}
