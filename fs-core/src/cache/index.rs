//! The index of the disk cache: what is there, when it was used, who pins it, where equal blocks are.
//!
//! Nothing in it decides what a reader sees; it decides only what is evicted, and where to look for a copy. So its
//! writes are batched and not synced (but for pins), and a damaged one is put aside and begun anew.
//!
//! A disk that cannot take another write leaves the database unusable, also for reading. It is opened anew then; while
//! that fails, too, it is used as it stands on disk, [frozen](frozen), so that what is pinned is known and eviction
//! can make room for it to be written again.

mod frozen;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redb::backends::InMemoryBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use self::frozen::Frozen;
use crate::error::{Error, Result};
use crate::package::Hash;
use crate::platform;

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
/// The whole index of a large cache fits; redb's default of 1 GiB would make a mockery of a bounded agent.
const DATABASE_MEMORY_BYTES: usize = 4 << 20;
/// An index that cannot be written is tried again after this long.
const REOPEN_AFTER: Duration = Duration::from_secs(10);
/// Places of blocks that wait to be written, at most: without them, blocks are fetched that could have been copied.
const WAITING_BLOCKS_MAX: usize = 1 << 16;

/// Changes that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Bytes added and last use.
    pub(super) entries: HashMap<Hash, (u64, u64)>,
    /// Blocks and where they are now.
    pub(super) blocks: Vec<(Hash, Hash, u64)>,
}

impl Batch {
    /// Takes back what could not be written.
    pub(super) fn put_back(&mut self, unwritten: Batch) {
        for (content, (bytes, last_use)) in unwritten.entries {
            let entry = self.entries.entry(content).or_default();
            *entry = (entry.0 + bytes, entry.1.max(last_use));
        }
        let room = WAITING_BLOCKS_MAX.saturating_sub(self.blocks.len());
        self.blocks.extend(unwritten.blocks.into_iter().take(room));
    }
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
    path: PathBuf,
    /// Whether the last agent closed it, so that it knows every file.
    pub(super) was_clean: bool,
    state: RwLock<State>,
    changes: AtomicU64,
    /// It was opened anew, so changes that were not synced are gone.
    forgetful: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// `None` only if not even what stands on disk can be read.
    database: Option<Database>,
    unusable: Option<Unusable>,
}

/// Why the index on disk cannot be written at present: then what is used is that index as it stands, or nothing.
#[derive(Debug, Clone)]
struct Unusable {
    why: String,
    is_full: bool,
    tried: Instant,
}

/// Whether an error tells of the disk, not of what stands in the file.
fn is_of_the_disk(e: &redb::Error) -> bool {
    use io::ErrorKind as K;
    let redb::Error::Io(e) = e else { return false };
    platform::is_disk_full(e) || matches!(e.kind(), K::ReadOnlyFilesystem | K::PermissionDenied)
}

/// Whether an error leaves the database unusable until it is opened anew.
fn is_lasting(e: &redb::Error) -> bool {
    matches!(e, redb::Error::Io(_) | redb::Error::PreviousIo)
}

impl State {
    fn usable(database: Database) -> Self {
        Self { database: Some(database), unusable: None }
    }

    /// What is cached can be read without writing the index, and what is pinned stays known.
    fn frozen(path: &Path, e: &redb::Error) -> Self {
        let is_full = matches!(e, redb::Error::Io(e) if platform::is_disk_full(e));
        let why = format!(
            "the index of the cache, {}, cannot be written ({e}); blocks are fetched each time",
            path.display()
        );
        let opened = Frozen::open(path).map_err(redb::Error::from).and_then(|frozen| {
            let mut builder = Database::builder();
            let database = builder.set_cache_size(DATABASE_MEMORY_BYTES).create_with_backend(frozen)?;
            prepare(&database)?;
            Ok(database)
        });
        let database = opened.or_else(|_| {
            let database = Database::builder().create_with_backend(InMemoryBackend::new())?;
            prepare(&database)?;
            Ok::<_, redb::Error>(database)
        });
        Self { database: database.ok(), unusable: Some(Unusable { why, is_full, tried: Instant::now() }) }
    }
}

/// Makes what is missing of the tables and notes that the index is in use; whether it was closed before.
fn prepare(database: &Database) -> Result<bool, redb::Error> {
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
    Ok(was_clean)
}

fn try_open(path: &Path) -> Result<(Database, bool), redb::Error> {
    let database = Database::builder().set_cache_size(DATABASE_MEMORY_BYTES).create(path)?;
    let was_clean = prepare(&database)?;
    Ok((database, was_clean))
}

impl Index {
    /// Opens the index at `path`. `has_blobs` tells whether there is anything that it should know.
    pub(super) fn open(path: &Path, has_blobs: bool) -> Result<Self> {
        let existed = path.exists();
        let mut opened = try_open(path);
        if let Err(e) = &opened
            && !is_of_the_disk(e)
            && !matches!(e, redb::Error::DatabaseAlreadyOpen)
        {
            tracing::warn!("the index of the cache is damaged ({e}); beginning a new one");
            let aside = path.with_extension("damaged");
            std::fs::rename(path, &aside).map_err(|e| Error::local("put aside", path, e))?;
            opened = try_open(path);
        }
        let (state, was_clean) = match opened {
            // A new index knows nothing of blobs that were there before it.
            Ok((database, was_clean)) => (State::usable(database), was_clean || (!existed && !has_blobs)),
            Err(redb::Error::DatabaseAlreadyOpen) => {
                return Err(Error::Busy {
                    what: format!("the cache {}", path.parent().unwrap_or(path).display()),
                    reason: "another agent has it open; use its mounts, or another cache directory".into(),
                });
            }
            Err(e) if is_of_the_disk(&e) => {
                let state = State::frozen(path, &e);
                tracing::warn!("the index of the cache, {}, cannot be written ({e})", path.display());
                (state, false)
            }
            Err(e) => return Err(Error::local("use", path, io::Error::other(e))),
        };
        Ok(Self {
            path: path.to_owned(),
            was_clean,
            state: RwLock::new(state),
            changes: AtomicU64::new(0),
            forgetful: AtomicBool::new(false),
        })
    }

    /// Why it cannot be written, if so.
    pub(super) fn why_unusable(&self) -> Option<String> {
        self.state.read().unusable.as_ref().map(|u| u.why.clone())
    }

    /// Whether it cannot be written.
    pub(super) fn is_unusable(&self) -> bool {
        self.state.read().unusable.is_some()
    }

    /// Whether it cannot be written, and more room on the disk would not help.
    pub(super) fn is_read_only(&self) -> bool {
        self.state.read().unusable.as_ref().is_some_and(|u| !u.is_full)
    }

    /// Whether it was opened anew since this was asked last, and so forgot changes.
    pub(super) fn take_forgetful(&self) -> bool {
        self.forgetful.swap(false, Ordering::Relaxed)
    }

    /// Opens the database on disk anew, because `why`; falls back to it as it stands.
    fn reopen(&self, why: &redb::Error) {
        let mut state = self.state.write();
        let was_usable = state.unusable.is_none();
        // Two cannot have it open at once.
        state.database = None;
        match try_open(&self.path) {
            Ok((database, _)) => {
                *state = State::usable(database);
                self.forgetful.store(true, Ordering::Relaxed);
                tracing::info!("the index of the cache is written again");
            }
            Err(e) => {
                let e = if is_of_the_disk(&e) { &e } else { why };
                *state = State::frozen(&self.path, e);
                if was_usable {
                    tracing::warn!("the index of the cache, {}, cannot be written ({e})", self.path.display());
                }
            }
        }
    }

    /// Tries to write the index on disk again, if it could not be written before. Whether it can be used now.
    pub(super) fn retry(&self, at_once: bool) -> bool {
        let unusable = self.state.read().unusable.clone();
        let Some(unusable) = unusable else { return true };
        if at_once || unusable.tried.elapsed() >= REOPEN_AFTER {
            self.reopen(&redb::Error::PreviousIo);
        }
        !self.is_unusable()
    }

    fn failed(&self, e: impl Into<redb::Error>) -> Error {
        let e = e.into();
        let source = match e {
            redb::Error::Io(e) if platform::is_disk_full(&e) => {
                io::Error::new(e.kind(), format!("{e}; make room on the disk of the cache"))
            }
            e => io::Error::other(e),
        };
        Error::local("use the index of the cache,", &self.path, source)
    }

    fn change<T>(
        &self,
        durability: Durability,
        work: impl Fn(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T> {
        if !self.retry(false) {
            let why = self.why_unusable().unwrap_or_default();
            return Err(Error::local("change", &self.path, io::Error::new(io::ErrorKind::StorageFull, why)));
        }
        match self.try_change(durability, &work) {
            Err(e) if is_lasting(&e) => {
                self.reopen(&e);
                if self.is_unusable() {
                    return Err(self.failed(e));
                }
                self.try_change(durability, &work).map_err(|e| {
                    if is_lasting(&e) {
                        self.reopen(&e);
                    }
                    self.failed(e)
                })
            }
            other => other.map_err(|e| self.failed(e)),
        }
    }

    fn try_change<T>(
        &self,
        durability: Durability,
        work: impl Fn(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        // Space that changes free is used again only after a durable one.
        let number = self.changes.fetch_add(1, Ordering::Relaxed);
        let durability = if number % DURABLE_EVERY == DURABLE_EVERY - 1 { Durability::Immediate } else { durability };
        let state = self.state.read();
        let Some(database) = &state.database else { return Err(redb::Error::PreviousIo) };
        let mut write = database.begin_write()?;
        write.set_durability(durability)?;
        let result = work(&write)?;
        write.commit()?;
        Ok(result)
    }

    /// Sum of all entries.
    pub(super) fn used_bytes(&self) -> Result<u64> {
        Ok(self.entries(None)?.iter().map(|e| e.bytes).sum())
    }

    /// Writes a batch.
    pub(super) fn apply(&self, batch: &Batch) -> Result<()> {
        self.change(Durability::None, |write| {
            let mut entries = write.open_table(ENTRIES)?;
            for (content, (added, last_use)) in &batch.entries {
                let (bytes, before) = entries.get(content.0)?.map_or((0, 0), |v| v.value());
                entries.insert(content.0, (bytes + added, before.max(*last_use)))?;
            }
            let mut blocks = write.open_table(BLOCKS)?;
            for (hash, content, offset) in &batch.blocks {
                blocks.insert(hash.0, (content.0, *offset))?;
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
        let state = self.state.read();
        let read = state.database.as_ref()?.begin_read().ok()?;
        let blocks = read.open_table(BLOCKS).ok()?;
        let (content, offset) = blocks.get(hash.0).ok()??.value();
        Some((Hash(content), offset))
    }

    /// All entries. Pins of `unpinning` do not count.
    pub(super) fn entries(&self, unpinning: Option<&str>) -> Result<Vec<Entry>> {
        let mut entries = self.read_entries(unpinning);
        if let Err(e) = &entries
            && is_lasting(e)
        {
            self.reopen(e);
            entries = self.read_entries(unpinning);
        }
        entries.map_err(|e| self.failed(e))
    }

    fn read_entries(&self, unpinning: Option<&str>) -> Result<Vec<Entry>, redb::Error> {
        let state = self.state.read();
        let Some(database) = &state.database else { return Err(redb::Error::PreviousIo) };
        let read = database.begin_read()?;
        let pins = read.open_table(PINS)?;
        let mut pinned = HashSet::new();
        for item in pins.iter()? {
            let key = item?.0;
            let (owner, content) = key.value();
            if unpinning != Some(owner) {
                pinned.insert(content);
            }
        }
        let entries = read.open_table(ENTRIES)?;
        let mut all = Vec::new();
        for item in entries.iter()? {
            let (content, value) = item?;
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

    pub(super) fn unpin(&self, owner: &str) -> Result<()> {
        self.change(Durability::Immediate, |write| {
            let mut pins = write.open_table(PINS)?;
            pins.retain_in((owner, [0; 32])..=(owner, [255; 32]), |_, ()| false)?;
            Ok(())
        })
    }

    pub(super) fn owners(&self) -> Result<Vec<String>> {
        self.read_owners().map_err(|e| self.failed(e))
    }

    fn read_owners(&self) -> Result<Vec<String>, redb::Error> {
        let state = self.state.read();
        let Some(database) = &state.database else { return Err(redb::Error::PreviousIo) };
        let pins = database.begin_read()?.open_table(PINS)?;
        let mut owners: Vec<String> = Vec::new();
        for item in pins.iter()? {
            let key = item?.0;
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
