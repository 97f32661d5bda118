//! New blocks into packs, and where every known block is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::cut::Cut;
use crate::error::{Error, ErrorKind, Result};
use crate::package::block::Extent;
use crate::package::descriptor::{Descriptor, PackRef};
use crate::package::pack::{self, PACK_BLOCKS_MAX, PACK_FOOTER_BYTES, PACK_TARGET_BYTES, PackEntry, PackFooter};
use crate::package::{Hash, PACK_DIR};

/// Folder for what is not yet complete; objects' names never begin with a dot, so no reader sees it.
const SCRATCH_DIR: &str = ".publish";

#[derive(Debug, Clone, Copy)]
struct Place {
    /// Index into `PackStore::packs`; `u32::MAX` while it waits to be written.
    pack: u32,
    offset: u64,
    stored: u32,
    length: u32,
    used: bool,
}

#[derive(Debug)]
struct Pack {
    /// Unknown while it is being written.
    reference: Option<PackRef>,
    /// Position in the new descriptor, by first use.
    listed: Option<u32>,
}

struct OpenPack {
    index: u32,
    path: PathBuf,
    file: File,
    hash: blake3::Hasher,
    entries: Vec<PackEntry>,
    bytes: u64,
}

/// All packs of the package: earlier versions', and those now being written.
pub(super) struct PackStore {
    package_dir: PathBuf,
    scratch: PathBuf,
    places: HashMap<Hash, Place>,
    packs: Vec<Pack>,
    listed: Vec<u32>,
    open: Option<OpenPack>,
    /// Complete packs in the scratch folder, which nobody sees until [`PackStore::place_all`].
    waiting: Vec<(File, PathBuf, PackRef)>,
    new_bytes: u64,
    new_blocks: u64,
}

impl PackStore {
    /// Learns from `index_of` what the packs of earlier versions hold. The caller holds the package's lock.
    pub(super) fn open(
        package_dir: &Path,
        known: &[Descriptor],
        index_of: impl Fn(&PackRef) -> Result<Vec<PackEntry>>,
    ) -> Result<Self> {
        let scratch = package_dir.join(SCRATCH_DIR);
        // What an interrupted publish left there is of no use to anybody.
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch).map_err(|e| Error::local("clear", &scratch, e))?;
        }
        for dir in [scratch.clone(), package_dir.join(PACK_DIR), package_dir.join(crate::package::TREE_DIR)] {
            std::fs::create_dir_all(&dir).map_err(|e| Error::local("create", &dir, e))?;
        }
        let mut store = Self {
            package_dir: package_dir.to_owned(),
            scratch,
            places: HashMap::new(),
            packs: Vec::new(),
            listed: Vec::new(),
            open: None,
            waiting: Vec::new(),
            new_bytes: 0,
            new_blocks: 0,
        };
        let mut seen = std::collections::HashSet::new();
        for pack in known.iter().flat_map(|d| &d.packs).filter(|p| seen.insert(p.object)) {
            store.learn(pack, index_of(pack))?;
        }
        Ok(store)
    }

    /// Takes over the blocks of an earlier pack. On this machine it was read whole, because a new version must not be built upon a
    /// damaged one; that costs a fraction of compressing. The blocks of a pack that is missing or damaged are stored
    /// anew: where they come in the same order again, under the same name, which mends it.
    fn learn(&mut self, pack: &PackRef, entries: Result<Vec<PackEntry>>) -> Result<()> {
        let entries = match entries {
            Ok(entries) => entries,
            // A server that is away is no reason to send all again.
            Err(e) if matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Denied) => {
                return Err(e);
            }
            Err(e) => {
                tracing::warn!("not reusing blocks of an earlier version: {e}");
                return Ok(());
            }
        };
        let index = self.packs.len() as u32;
        self.packs.push(Pack { reference: Some(pack.clone()), listed: None });
        for e in entries {
            let place = Place { pack: index, offset: e.offset, stored: e.stored, length: e.length, used: false };
            self.places.entry(e.hash).or_insert(place);
        }
        Ok(())
    }

    /// Folder for scratch files.
    pub(super) fn scratch_dir(&self) -> &Path {
        &self.scratch
    }

    /// Notes that the version uses this block; `true` if its bytes must be appended.
    pub(super) fn claim(&mut self, hash: &Hash, length: u32) -> bool {
        let waiting = Place { pack: u32::MAX, offset: 0, stored: 0, length, used: true };
        match self.places.entry(*hash) {
            std::collections::hash_map::Entry::Occupied(mut known) => {
                known.get_mut().used = true;
                false
            }
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(waiting);
                true
            }
        }
    }

    fn listed_number(&mut self, pack: u32) -> u32 {
        let listed = &mut self.listed;
        *self.packs[pack as usize].listed.get_or_insert_with(|| {
            listed.push(pack);
            listed.len() as u32 - 1
        })
    }

    /// Appends a claimed block.
    pub(super) fn append(&mut self, hash: Hash, length: u32, stored: &[u8]) -> Result<()> {
        if self.open.is_none() {
            let index = self.packs.len() as u32;
            let path = self.scratch.join(format!("pack-{index}"));
            let file = File::create(&path).map_err(|e| Error::local("create", &path, e))?;
            self.packs.push(Pack { reference: None, listed: None });
            self.open =
                Some(OpenPack { index, path, file, hash: blake3::Hasher::new(), entries: Vec::new(), bytes: 0 });
        }
        let open = self.open.as_mut().expect("it was opened above");
        open.file.write_all(stored).map_err(|e| Error::local("write a pack in", &self.scratch, e))?;
        open.hash.update(stored);
        let entry = PackEntry { hash, offset: open.bytes, stored: stored.len() as u32, length };
        open.entries.push(entry);
        open.bytes += stored.len() as u64;
        let (index, full) =
            (open.index, open.bytes >= PACK_TARGET_BYTES || open.entries.len() as u32 >= PACK_BLOCKS_MAX);
        let place = Place { pack: index, offset: entry.offset, stored: entry.stored, length, used: true };
        self.places.insert(hash, place);
        self.new_blocks += 1;
        if full { self.finish() } else { Ok(()) }
    }

    /// Closes the pack that is being written.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let tail = pack::encode_tail(&open.entries);
        open.file.write_all(&tail).map_err(|e| Error::local("write", &open.path, e))?;
        open.hash.update(&tail);
        let object = Hash(*open.hash.finalize().as_bytes());
        let bytes = open.bytes + tail.len() as u64;
        // Written to disk while the next pack is being made, so that placing them all need not wait for it. It is
        // synced again there; this is only a head start.
        let _ = open.file.sync_data();
        let reference = PackRef { object, bytes };
        self.packs[open.index as usize].reference = Some(reference.clone());
        self.waiting.push((open.file, open.path, reference));
        Ok(())
    }

    /// Makes the new packs visible: when nothing but the signed metadata is left to be written, so that what is given
    /// up or refused before leaves nothing behind.
    pub(super) fn place_all(&mut self) -> Result<()> {
        for (file, path, PackRef { object, bytes }) in std::mem::take(&mut self.waiting) {
            if place(file, &path, &self.package_dir.join(PACK_DIR), &object)? {
                self.new_bytes += bytes;
            }
        }
        Ok(())
    }

    /// Where cuts are stored, as the new descriptor numbers packs: in the order in which extents refer to them, which
    /// does not depend on whether they are new.
    pub(super) fn extents(&mut self, cuts: &[Cut]) -> Result<Vec<Extent>> {
        cuts.iter()
            .map(|cut| {
                let place = self.places[&cut.hash];
                if place.length != cut.length {
                    // Equal hashes of unequal lengths: a damaged index, since BLAKE3 has no known collisions.
                    return Err(Error::damaged(
                        format!("block {}", cut.hash),
                        "an earlier pack tells a different length",
                    ));
                }
                let pack = self.listed_number(place.pack);
                let Cut { file_offset, length, hash } = *cut;
                Ok(Extent { file_offset, length, pack, pack_offset: place.offset, stored: place.stored, hash })
            })
            .collect()
    }

    /// Packs of the new descriptor.
    pub(super) fn pack_refs(&self) -> Vec<PackRef> {
        let reference = |i: &u32| self.packs[*i as usize].reference.clone().expect("all packs are closed");
        self.listed.iter().map(reference).collect()
    }

    pub(super) fn new_bytes(&self) -> u64 {
        self.new_bytes
    }

    pub(super) fn new_blocks(&self) -> u64 {
        self.new_blocks
    }

    pub(super) fn used_blocks(&self) -> u64 {
        self.places.values().filter(|p| p.used).count() as u64
    }

    /// Stored bytes of the blocks in use.
    pub(super) fn used_bytes(&self) -> u64 {
        self.places.values().filter(|p| p.used).map(|p| u64::from(p.stored)).sum()
    }
}

impl Drop for PackStore {
    fn drop(&mut self) {
        // Nothing in it is needed; a failure leaves rubbish that the next publish removes.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Reads a pack whole, and gives its index.
pub(super) fn read_index(package_dir: &Path, pack: &PackRef) -> Result<Vec<PackEntry>> {
    let path = &package_dir.join(pack.path().as_str());
    let whence = format!("pack {}", pack.object);
    let broken = |e| Error::local("read", path, e);
    let mut file = File::open(path).map_err(broken)?;
    if file.metadata().map_err(broken)?.len() != pack.bytes {
        return Err(Error::damaged(whence, format!("it is not {} bytes long", pack.bytes)));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file).map_err(broken)?;
    if Hash(*hasher.finalize().as_bytes()) != pack.object {
        return Err(Error::damaged(whence, "its bytes do not have the hash that is its name"));
    }
    let at =
        pack.bytes.checked_sub(PACK_FOOTER_BYTES as u64).ok_or_else(|| Error::damaged(&whence, "it is too short"))?;
    let mut footer = [0; PACK_FOOTER_BYTES];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut footer)).map_err(broken)?;
    let footer = PackFooter::parse(&footer, &whence)?;
    let start = at
        .checked_sub(footer.index_bytes() as u64)
        .ok_or_else(|| Error::damaged(&whence, "it is shorter than its index"))?;
    let mut index = vec![0; footer.index_bytes()];
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut index)).map_err(broken)?;
    pack::parse_index(&footer, &index, pack.bytes, &whence)
}

/// Makes a complete file visible in `dir` under its hash; `false` if it was there already.
pub(super) fn place(file: File, aside: &Path, dir: &Path, object: &Hash) -> Result<bool> {
    std::fs::create_dir_all(dir).map_err(|e| Error::local("create", dir, e))?;
    let target = dir.join(object.to_string());
    let length = file.metadata().map_err(|e| Error::local("read attributes of", aside, e))?.len();
    // Same name, same length: an earlier publish stored it, perhaps one that was interrupted later.
    let there = std::fs::metadata(&target).is_ok_and(|m| m.len() == length);
    file.sync_all().map_err(|e| Error::local("sync", aside, e))?;
    drop(file);
    std::fs::rename(aside, &target).map_err(|e| Error::local("create", &target, e))?;
    sync_dir(dir)?;
    Ok(!there)
}

fn sync_dir(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::local("sync", dir, e))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}
