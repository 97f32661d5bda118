//! The index of the disk cache: what is there, when it was used, who pins it, where equal blocks are.
//!
//! Nothing in it decides what a reader sees; it decides only what is evicted, and where to look for a copy. So its
//! writes are batched and not synced (but for pins), and a damaged one is put aside and begun anew.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::InMemoryBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::{Error, Result};
use crate::package::Hash;

/// Content hash -> (bytes on disk, last use in seconds since 1970).
const ENTRIES: TableDefinition<'_, [u8; 32], (u64, u64)> = TableDefinition::new("entries");
/// Block hash -> (content hash, position): one place where the block may be found.
const BLOCKS: TableDefinition<'_, [u8; 32], ([u8; 32], u64)> = TableDefinition::new("blocks");
/// (owner, content hash): pins.
const PINS: TableDefinition<'_, (&str, [u8; 32]), ()> = TableDefinition::new("pins");
/// Facts about the index itself.
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");
/// Every so many changes one is synced.
const DURABLE_EVERY: u64 = 64;
const CLEAN: &str = "closed cleanly";

/// Changes that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Bytes added and last use.
    pub(super) entries: HashMap<Hash, (u64, u64)>,
    /// Blocks and where they are now.
    pub(super) blocks: Vec<(Hash, Hash, u64)>,
}

/// An entry, for eviction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) content: Hash,
    pub(super) bytes: u64,
    pub(super) last_use: u64,
    pub(super) pinned: bool,
}

#[derive(Debug)]
pub(super) struct Index {
    database: Database,
    /// Whether the last agent closed it, so that it knows every file.
    pub(super) was_clean: bool,
    /// Why the one on disk cannot be used, if so: then this one is in memory and knows nothing, not even pins.
    pub(super) unusable: Option<String>,
    changes: AtomicU64,
}

fn failed(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::local("use", "the index of the cache", io::Error::other(e))
}

/// Whether an error tells of the disk, not of what stands in the file.
fn is_of_the_disk(e: &redb::Error) -> bool {
    use io::ErrorKind as K;
    let redb::Error::Io(e) = e else { return false };
    matches!(
        e.kind(),
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge | K::ReadOnlyFilesystem | K::PermissionDenied
    )
}

impl Index {
    /// Opens the index at `path`. `has_blobs` tells whether there is anything that it should know.
    pub(super) fn open(path: &Path, has_blobs: bool) -> Result<Self> {
        match Self::try_open(path, has_blobs) {
            Ok(index) => Ok(index),
            Err(redb::Error::DatabaseAlreadyOpen) => Err(Error::Busy {
                what: format!("the cache {}", path.parent().unwrap_or(path).display()),
                reason: "another agent has it open; use its mounts, or another cache directory".into(),
            }),
            Err(e) if is_of_the_disk(&e) => Self::in_memory(path, &e),
            Err(e) => {
                tracing::warn!("the index of the cache is damaged ({e}); beginning a new one");
                let aside = path.with_extension("damaged");
                std::fs::rename(path, &aside).map_err(|e| Error::local("put aside", path, e))?;
                match Self::try_open(path, has_blobs) {
                    Err(e) if is_of_the_disk(&e) => Self::in_memory(path, &e),
                    other => other.map_err(failed),
                }
            }
        }
    }

    /// What is cached can be read without an index; it only cannot grow.
    fn in_memory(path: &Path, why: &redb::Error) -> Result<Self> {
        let unusable = format!(
            "the index of the cache, {}, cannot be written ({why}); blocks are fetched each time",
            path.display()
        );
        tracing::warn!("{unusable}");
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).map_err(failed)?;
        let mut index = Self::prepare(database, false).map_err(failed)?;
        index.unusable = Some(unusable);
        Ok(index)
    }

    fn try_open(path: &Path, has_blobs: bool) -> std::result::Result<Self, redb::Error> {
        let existed = path.exists();
        // The whole index of a large cache fits; redb's default of 1 GiB would make a mockery of a bounded agent.
        let database = Database::builder().set_cache_size(4 << 20).create(path)?;
        // A new index knows nothing of blobs that were there before it.
        Self::prepare(database, !existed && !has_blobs)
    }

    fn prepare(database: Database, knows_everything: bool) -> std::result::Result<Self, redb::Error> {
        let write = database.begin_write()?;
        let was_clean = {
            write.open_table(ENTRIES)?;
            write.open_table(BLOCKS)?;
            write.open_table(PINS)?;
            let mut facts = write.open_table(FACTS)?;
            let was = facts.get(CLEAN)?.is_some_and(|v| v.value() == 1);
            facts.insert(CLEAN, 0)?;
            was
        };
        write.commit()?;
        let was_clean = was_clean || knows_everything;
        Ok(Self { database, was_clean, unusable: None, changes: AtomicU64::new(0) })
    }

    fn change<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&redb::WriteTransaction) -> std::result::Result<T, redb::Error>,
    ) -> Result<T> {
        // Space that changes free is used again only after a durable one.
        let number = self.changes.fetch_add(1, Ordering::Relaxed);
        let durability = if number % DURABLE_EVERY == DURABLE_EVERY - 1 { Durability::Immediate } else { durability };
        let mut write = self.database.begin_write().map_err(failed)?;
        write.set_durability(durability).map_err(failed)?;
        let result = work(&write).map_err(failed)?;
        write.commit().map_err(failed)?;
        Ok(result)
    }

    /// Sum of all entries.
    pub(super) fn used_bytes(&self) -> Result<u64> {
        Ok(self.entries()?.iter().map(|e| e.bytes).sum())
    }

    /// Writes a batch.
    pub(super) fn apply(&self, batch: Batch) -> Result<()> {
        self.change(Durability::None, |write| {
            let mut entries = write.open_table(ENTRIES)?;
            for (content, (added, last_use)) in batch.entries {
                let (bytes, before) = entries.get(content.0)?.map_or((0, 0), |v| v.value());
                entries.insert(content.0, (bytes + added, last_use.max(before)))?;
            }
            let mut blocks = write.open_table(BLOCKS)?;
            for (hash, content, offset) in batch.blocks {
                blocks.insert(hash.0, (content.0, offset))?;
            }
            Ok(())
        })
    }

    /// Sets the bytes of entries found on disk that the index did not know.
    pub(super) fn adopt(&self, found: &[(Hash, u64, u64)]) -> Result<()> {
        self.change(Durability::None, |write| {
            let mut entries = write.open_table(ENTRIES)?;
            for (content, bytes, last_use) in found {
                let before = entries.get(content.0)?.map(|v| v.value());
                entries.insert(content.0, (*bytes, before.map_or(*last_use, |b| b.1)))?;
            }
            Ok(())
        })
    }

    /// Where a copy of the block may be.
    pub(super) fn find_block(&self, hash: &Hash) -> Option<(Hash, u64)> {
        let read = self.database.begin_read().ok()?;
        let blocks = read.open_table(BLOCKS).ok()?;
        let (content, offset) = blocks.get(hash.0).ok()??.value();
        Some((Hash(content), offset))
    }

    /// All entries.
    pub(super) fn entries(&self) -> Result<Vec<Entry>> {
        let read = self.database.begin_read().map_err(failed)?;
        let pins = read.open_table(PINS).map_err(failed)?;
        let mut pinned = HashSet::new();
        for item in pins.iter().map_err(failed)? {
            pinned.insert(item.map_err(failed)?.0.value().1);
        }
        let entries = read.open_table(ENTRIES).map_err(failed)?;
        let mut all = Vec::new();
        for item in entries.iter().map_err(failed)? {
            let (content, value) = item.map_err(failed)?;
            let (bytes, last_use) = value.value();
            let content = content.value();
            all.push(Entry { content: Hash(content), bytes, last_use, pinned: pinned.contains(&content) });
        }
        Ok(all)
    }

    pub(super) fn remove(&self, contents: &[Hash]) -> Result<()> {
        self.change(Durability::None, |write| {
            let mut entries = write.open_table(ENTRIES)?;
            for content in contents {
                entries.remove(content.0)?;
            }
            Ok(())
        })
    }

    /// Forgets where blocks of these contents were. Others' places of equal blocks are kept.
    pub(super) fn remove_blocks_of(&self, contents: &HashSet<Hash>) -> Result<()> {
        self.change(Durability::None, |write| {
            let mut blocks = write.open_table(BLOCKS)?;
            blocks.retain(|_, (content, _)| !contents.contains(&Hash(content)))?;
            Ok(())
        })
    }

    pub(super) fn pin(&self, owner: &str, contents: &[Hash]) -> Result<()> {
        self.change(Durability::Immediate, |write| {
            let mut pins = write.open_table(PINS)?;
            for content in contents {
                pins.insert((owner, content.0), ())?;
            }
            Ok(())
        })
    }

    pub(super) fn unpin(&self, owner: &str) -> Result<Vec<Hash>> {
        self.change(Durability::Immediate, |write| {
            let mut pins = write.open_table(PINS)?;
            let mut gone = Vec::new();
            pins.retain_in((owner, [0; 32])..=(owner, [255; 32]), |(_, content), ()| {
                gone.push(Hash(content));
                false
            })?;
            Ok(gone)
        })
    }

    pub(super) fn owners(&self) -> Result<Vec<String>> {
        let read = self.database.begin_read().map_err(failed)?;
        let pins = read.open_table(PINS).map_err(failed)?;
        let mut owners: Vec<String> = Vec::new();
        for item in pins.iter().map_err(failed)? {
            let key = item.map_err(failed)?.0;
            let owner = key.value().0;
            if owners.last().is_none_or(|last| last != owner) {
                owners.push(owner.to_owned());
            }
        }
        Ok(owners)
    }

    /// Notes that it knows every file, and syncs.
    pub(super) fn close(&self) {
        let closed = self.change(Durability::Immediate, |write| {
            write.open_table(FACTS)?.insert(CLEAN, 1)?;
            Ok(())
        });
        if let Err(e) = closed {
            tracing::debug!("the next agent will look through the cache: {e}");
        }
    }
}
