//! Reading file content: one read from the mount down to blocks.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::observe::Operation;
use super::pages::Held;
use super::{Answer, Mount, Need};
use crate::cache::Blob;
use crate::error::{Error, Result};
use crate::fetch::{Urgency, Wanted};
use crate::package::block::{EXTENT_BYTES, Extent};
use crate::package::tree::build::content_hash;
use crate::package::tree::page::{ExtentsPlace, NodeBody};
use crate::package::tree::walk::{self, Miss};
use crate::package::{Hash, NodeId};

/// Files shorter than this are not worth a descriptor of their own: few requests bring them into the page cache, where
/// they stay.
const COMPLETE_FILE_MIN_BYTES: u64 = 512 << 10;
/// How far the system is asked to read ahead of a sequential reader on local disk.
const LOCAL_AHEAD_BYTES: u64 = 4 << 20;

/// Stretch in which data or a hole is looked for at first.
const SEEK_FIRST_BYTES: u64 = 16 << 20;

/// What reading a file needs to know of it.
#[derive(Debug)]
pub(super) struct FileFacts {
    /// The file itself, if a further name of it was asked for.
    pub(super) id: NodeId,
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) blob: Arc<Blob>,
}

impl FileFacts {
    fn has_holes(&self) -> bool {
        self.allocated < self.size
    }
}

impl Mount {
    /// Reads up to `length` bytes of the file `id` from `offset`: exactly as many as there are before its end.
    pub fn read(self: &Arc<Self>, id: NodeId, offset: u64, length: usize) -> Answer<Bytes> {
        self.metrics.read_asked();
        let question = move |this: &Mount, held: &mut Held| this.read_now(held, id, offset, length);
        let answer = self.answer_watched(question, move |bytes: Option<&Bytes>| Operation::Read {
            node: id,
            offset,
            length: bytes.map_or(length as u64, |bytes| bytes.len() as u64),
        });
        self.read_ahead(id, offset, length);
        match answer {
            Answer::Ready(result) => {
                self.count_read(id, offset, &result, true);
                Answer::Ready(result)
            }
            Answer::Later(fetching) => {
                let this = self.clone();
                Answer::Later(Box::pin(async move {
                    let result = fetching.await;
                    this.count_read(id, offset, &result, false);
                    result
                }))
            }
        }
    }

    fn count_read(&self, id: NodeId, offset: u64, result: &Result<Bytes>, at_once: bool) {
        self.metrics.read(result, at_once);
        if let Ok(bytes) = result {
            self.launch_used(id, &(offset..offset + bytes.len() as u64));
        }
    }

    /// The bytes of `range` of the file `id`, as far as the file goes, if all of them are on this machine. Never fetches
    /// anything, and tells no observer: whoever looks ahead of a program is not the program.
    pub fn peek(&self, id: NodeId, range: Range<u64>) -> Option<Bytes> {
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let bytes = self.read_now(&mut Held::default(), id, range.start, length).ok()?;
        self.launch_used(id, &(range.start..range.start + bytes.len() as u64));
        Some(bytes)
    }

    fn read_now(&self, held: &mut Held, id: NodeId, offset: u64, length: usize) -> Result<Bytes, Need> {
        let file = self.file(held, id)?;
        let range = offset.min(file.size)..offset.saturating_add(length as u64).min(file.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        // Wholly verified on disk: one call, whatever blocks it consists of.
        if !file.has_holes()
            && let Some(bytes) = file.blob.read(&range)
        {
            return Ok(bytes);
        }
        let extents = self.extents(held, file.id, &range)?;
        let mut missing = Vec::new();
        let mut pieces = Vec::with_capacity(extents.len());
        for extent in &extents {
            match self.local_piece(held, &file, extent, &range) {
                Some(piece) => pieces.push((extent.file_offset.max(range.start), piece)),
                None => missing.push(self.file_block(&file, extent).map_err(Need::Failed)?),
            }
        }
        if missing.is_empty() { Ok(assemble(&range, pieces)) } else { Err(Need::Blocks(missing)) }
    }

    /// The part of `range` that this extent covers, if it is on this machine.
    fn local_piece(&self, held: &Held, file: &FileFacts, extent: &Extent, range: &Range<u64>) -> Option<Bytes> {
        let covered = extent.file_offset.max(range.start)..extent.file_end().min(range.end);
        let cut = |block: Bytes| {
            let start = (covered.start - extent.file_offset) as usize;
            block.slice(start..start + (covered.end - covered.start) as usize)
        };
        let cache = self.fetcher.cache();
        let block = held.blocks.get(&extent.hash).cloned().or_else(|| cache.in_memory(&extent.hash));
        // A tree that tells another length than the block's is wrong: fetching says so.
        if let Some(block) = block.filter(|block| block.len() == extent.length as usize) {
            return Some(cut(block));
        }
        if let Some(piece) = file.blob.read(&covered) {
            return Some(piece);
        }
        cache.on_disk(&file.blob, extent.file_offset, extent.length, &extent.hash).map(cut)
    }

    pub(super) fn file_block(&self, file: &FileFacts, extent: &Extent) -> Result<Wanted> {
        self.wanted(extent, Some((file.blob.clone(), extent.file_offset)))
    }

    /// What is known of a file; needs its page the first time.
    pub(super) fn file(&self, held: &mut Held, id: NodeId) -> Result<Arc<FileFacts>, Need> {
        if let Some(file) = self.files.lock().get(&id) {
            return Ok(file.clone());
        }
        let cache = self.fetcher.cache();
        let facts = self.walk(held, |layout, pages| {
            let (id, page) = walk::resolved(layout, pages, id)?;
            match walk::record(&page, id)?.body {
                NodeBody::File { size, allocated, extents } => {
                    let content = match extents {
                        ExtentsPlace::Outside { content, .. } => self.blob_name(&content),
                        ExtentsPlace::Inline(raw) => {
                            let all = raw.chunks_exact(EXTENT_BYTES).filter_map(|e| Extent::decode(e, 0));
                            match &all.collect::<Vec<_>>()[..] {
                                // Named by its block, which proves itself: blocks are looked for under that name.
                                [only] if only.file_offset == 0 && u64::from(only.length) == size => only.hash,
                                other => self.blob_name(&content_hash(size, other)),
                            }
                        }
                    };
                    Ok(FileFacts { id, size, allocated, blob: cache.blob(content, size, allocated) })
                }
                NodeBody::Directory { .. } => Err(Miss::Failed(Error::IsADirectory(id.0))),
                _ => Err(Miss::Failed(Error::InvalidInput(format!("node {} is not a file", id.0)))),
            }
        })?;
        cache.touch(&facts.blob, &self.in_use);
        let facts = Arc::new(facts);
        self.files.lock().put(id, facts.clone());
        Ok(facts)
    }

    /// Name of the blob of a content of several blocks. The package is part of it: that a file has this content is only
    /// what the package's publisher says, and must not let it into the files of others. Equal files of other packages
    /// are still not fetched twice, but copied block by block.
    fn blob_name(&self, content: &Hash) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("streamfs 1 cached content");
        hasher.update(self.identity.package_key().as_bytes());
        hasher.update(&[0]);
        hasher.update(&content.0);
        Hash(*hasher.finalize().as_bytes())
    }

    pub(super) fn extents(&self, held: &mut Held, id: NodeId, range: &Range<u64>) -> Result<Vec<Extent>, Need> {
        self.walk(held, |layout, pages| walk::extents(layout, pages, id, range.start, range.end)).map(|(_, e)| e)
    }

    /// Blocks of `range` that are not known to be on this machine.
    pub(super) fn not_local(&self, held: &mut Held, id: NodeId, range: &Range<u64>) -> Result<Vec<Wanted>, Need> {
        let file = self.file(held, id)?;
        let extents = self.extents(held, file.id, range)?;
        let cache = self.fetcher.cache();
        let away = extents
            .iter()
            .filter(|e| !file.blob.is_verified(&(e.file_offset..e.file_end())) && cache.in_memory(&e.hash).is_none());
        away.map(|e| self.file_block(&file, e).map_err(Need::Failed)).collect()
    }

    /// Follows sequential readers of files that are not complete, and fetches ahead of them.
    fn read_ahead(self: &Arc<Self>, id: NodeId, offset: u64, length: usize) {
        let Some(file) = self.files.lock().peek(&id).cloned() else { return };
        let end = offset.saturating_add(length as u64).min(file.size);
        if file.size <= length as u64 || self.launch_reads(id, &(offset..end)) {
            return;
        }
        let mut sequences = self.sequences.lock();
        let stretch = sequences.get_or_insert_mut(id, Default::default).read(offset, end, file.size);
        drop(sequences);
        let Some(stretch) = stretch else { return };
        if file.blob.is_complete() {
            return file.blob.will_need(stretch.start..stretch.end.min(stretch.start + LOCAL_AHEAD_BYTES));
        }
        let this = self.clone();
        self.fetcher.runtime().spawn(async move {
            let wanted = this.answer(move |this, held| this.not_local(held, id, &stretch)).wait().await;
            if let Ok(wanted) = wanted
                && !wanted.is_empty()
            {
                // Whoever reads there will be told if it fails.
                let _ = this.fetcher.get(wanted, Urgency::Background).await;
            }
        });
    }

    /// First byte at or after `offset` that is data (`data`) or a hole (`!data`); `None` past the end.
    pub fn seek(self: &Arc<Self>, id: NodeId, offset: u64, data: bool) -> Answer<Option<u64>> {
        self.answer(move |this, held| {
            let file = this.file(held, id)?;
            if offset >= file.size {
                return Ok(None);
            }
            if !file.has_holes() {
                return Ok(Some(if data { offset } else { file.size }));
            }
            // In growing stretches: the answer is near most often, and a large file has many pages of extents.
            let (mut at, mut begin, mut stretch) = (offset, offset, SEEK_FIRST_BYTES);
            while begin < file.size {
                let end = begin.saturating_add(stretch).min(file.size);
                for extent in this.extents(held, file.id, &(begin..end))? {
                    if data {
                        return Ok(Some(extent.file_offset.max(offset)));
                    }
                    if extent.file_offset > at {
                        return Ok(Some(at));
                    }
                    at = extent.file_end();
                }
                if !data && at < end {
                    return Ok(Some(at));
                }
                (begin, stretch) = (end, stretch.saturating_mul(2));
            }
            Ok(if data { None } else { Some(file.size) })
        })
    }

    /// Bytes of the file's content on this machine.
    pub fn cached_bytes(self: &Arc<Self>, id: NodeId) -> Answer<u64> {
        self.answer(move |this, held| Ok(this.file(held, id)?.blob.present_bytes()))
    }

    /// The local file that holds the whole verified content of `id`, if there is one and it is large: an adapter may
    /// let the kernel read it directly. `None` if any byte is missing or was not verified since the agent started.
    pub fn complete_file(self: &Arc<Self>, id: NodeId) -> Option<std::fs::File> {
        let file = self.file(&mut Held::default(), id).ok()?;
        if file.size < COMPLETE_FILE_MIN_BYTES { None } else { file.blob.open_complete() }
    }
}

/// Puts pieces, by position, into one run; what no piece covers is a hole.
fn assemble(range: &Range<u64>, pieces: Vec<(u64, Bytes)>) -> Bytes {
    let length = (range.end - range.start) as usize;
    if let [(at, piece)] = &pieces[..]
        && *at == range.start
        && piece.len() == length
    {
        return piece.clone();
    }
    let mut whole = BytesMut::zeroed(length);
    for (at, piece) in pieces {
        let start = (at - range.start) as usize;
        whole[start..start + piece.len()].copy_from_slice(&piece);
    }
    whole.freeze()
}
