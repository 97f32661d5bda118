//! Bringing a whole version onto this machine, for use without any network.
//!
//! Pages first, then what starting an application reads, then the files in stored order, which makes ranges long.
//! What is on disk already is verified there and not fetched, so a load that was broken off goes on where it was. All
//! of it is pinned before it comes.

use std::collections::HashSet;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::TryStreamExt;
use parking_lot::Mutex;
use serde::Serialize;

use super::pages::Held;
use super::{Mount, Need};
use crate::backend::{ReadOptions, collect};
use crate::cache::{Blob, Cache};
use crate::error::{Error, Result};
use crate::fetch::pace::Pace;
use crate::fetch::{Urgency, Wanted};
use crate::package::block::{self, Extent};
use crate::package::launch::{LAUNCH_INDEX_MAX_BYTES, LaunchEntry, parse_index};
use crate::package::tree::page::{NodeBody, XattrPlace};
use crate::package::tree::walk;
use crate::package::{Hash, NodeId};

/// Nodes that are looked at together.
const NODES_AT_ONCE: u64 = 256;
/// Pieces on their way at once.
const PIECES_AT_ONCE: usize = 4;
/// Most stored bytes of a piece: what a demand read may find itself behind on the line.
const PIECE_MAX_BYTES: u64 = 512 << 10;
/// A piece is no longer than this part of a second at the rate that was set, so that the rate is kept evenly.
const PIECES_PER_SECOND: u64 = 4;

/// What was loaded.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LoadSummary {
    /// Regular files.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Stored bytes that had to be fetched.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Name under which a version's pins are kept.
pub(super) fn owner(package_key: &str, version: &str) -> String {
    format!("{package_key}@{version}")
}

/// A load at work, as those who watch it see it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes of content that are here; equal files count each.
    pub(super) done_bytes: AtomicU64,
    /// Stored bytes that were fetched.
    pub(super) fetched_bytes: AtomicU64,
    /// When something was done last.
    pub(super) moved: Mutex<Option<Instant>>,
}

/// One thing to bring: a file's content or a node's long attributes.
struct Content {
    blob: Arc<Blob>,
    extents: Vec<Extent>,
    is_file: bool,
}

/// Blocks that are fetched together, and kept.
type Piece = Vec<Wanted>;

struct Loading {
    cache: Arc<Cache>,
    mount: Arc<Mount>,
    owner: String,
    pace: Arc<Pace>,
    counters: Arc<Counters>,
}

/// Brings all of `mount`'s version, no faster than `pace`. `first` is brought before the rest.
pub(super) async fn load(
    cache: &Arc<Cache>,
    mount: &Arc<Mount>,
    first: Vec<(NodeId, Range<u64>)>,
    pace: &Arc<Pace>,
    counters: &Arc<Counters>,
) -> Result<LoadSummary> {
    let started = Instant::now();
    let totals = mount.descriptor.totals;
    let identity = &mount.identity;
    let owner = owner(&identity.package_key(), &identity.version);
    let (pace, counters) = (pace.clone(), counters.clone());
    let loading = Arc::new(Loading { cache: cache.clone(), mount: mount.clone(), owner, pace, counters });
    let counters = &loading.counters;
    counters.done_bytes.store(0, Ordering::Relaxed);
    *counters.moved.lock() = Some(Instant::now());
    cache.pin(&loading.owner, &[mount.pages.blob().content()])?;
    loading.pages().await?;
    loading.ranges(first).await?;
    loading.everything().await?;
    let flush = cache.clone();
    tokio::task::spawn_blocking(move || flush.flush()).await.map_err(|_| Error::Cancelled)?;
    counters.done_bytes.store(totals.allocated_bytes, Ordering::Relaxed);
    Ok(LoadSummary {
        files: totals.files,
        bytes: totals.allocated_bytes,
        fetched_bytes: counters.fetched_bytes.load(Ordering::Relaxed),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Whether everything of a version that was loaded once is still there, as far as the file system tells: nothing but
/// the pages is read. Fetches nothing.
///
/// # Errors
/// If a page is missing.
pub(super) async fn is_all_here(mount: &Arc<Mount>) -> Result<bool> {
    for nodes in node_ranges(mount.descriptor.totals.nodes) {
        let mount = mount.clone();
        let here = tokio::task::spawn_blocking(move || {
            let contents = contents(&mount, &mut Held::default(), nodes).map_err(Need::into_error)?;
            let whole = |c: &Content| c.blob.present_bytes() >= c.extents.iter().map(|e| u64::from(e.length)).sum();
            Ok::<_, Error>(contents.iter().all(whole))
        });
        if !here.await.map_err(|_| Error::Cancelled)?? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn node_ranges(nodes: u64) -> impl Iterator<Item = RangeInclusive<u64>> {
    (1..=nodes).step_by(NODES_AT_ONCE as usize).map(move |first| first..=(first + NODES_AT_ONCE - 1).min(nodes))
}

impl Loading {
    /// Every page of the tree.
    async fn pages(self: &Arc<Self>) -> Result<()> {
        let pages = self.mount.answer_for(Urgency::Background, |this, held| this.all_pages(held)).await?;
        let missing = self.missing(pages).await?;
        self.bring(futures::stream::iter(self.pieces(missing).into_iter().map(Ok))).await
    }

    /// Parts of files that are wanted before others. What is wrong with them is told when their turn comes anyway.
    async fn ranges(self: &Arc<Self>, ranges: Vec<(NodeId, Range<u64>)>) -> Result<()> {
        for ranges in ranges.chunks(NODES_AT_ONCE as usize) {
            let mut wanted = Vec::new();
            let mut pins = Vec::new();
            for (node, range) in ranges {
                let (node, range) = (*node, range.clone());
                let question = move |this: &Mount, held: &mut Held| {
                    let file = this.file(held, node)?;
                    let extents = this.extents(held, file.id, &range)?;
                    let wanted = extents.iter().map(|e| this.file_block(&file, e).map_err(Need::Failed));
                    Ok((file.blob.content(), wanted.collect::<Result<Vec<_>, _>>()?))
                };
                if let Ok((content, blocks)) = self.mount.answer_for(Urgency::Background, question).await {
                    pins.push(content);
                    wanted.extend(blocks);
                }
            }
            self.cache.pin(&self.owner, &pins)?;
            let missing = self.missing(wanted).await?;
            self.bring(futures::stream::iter(self.pieces(missing).into_iter().map(Ok))).await?;
        }
        Ok(())
    }

    /// All contents, in stored order.
    async fn everything(self: &Arc<Self>) -> Result<()> {
        let seen = HashSet::new();
        let batches = futures::stream::try_unfold(
            (self.clone(), node_ranges(self.mount.descriptor.totals.nodes), seen),
            |(this, mut ranges, mut seen)| async move {
                let Some(nodes) = ranges.next() else { return Ok::<_, Error>(None) };
                let pieces = this.batch(nodes, &mut seen).await?;
                Ok(Some((futures::stream::iter(pieces.into_iter().map(Ok)), (this, ranges, seen))))
            },
        );
        self.bring(batches.try_flatten()).await
    }

    /// What is missing of the contents of `nodes`, which are pinned.
    async fn batch(&self, nodes: RangeInclusive<u64>, seen: &mut HashSet<Hash>) -> Result<Vec<Piece>> {
        let question = move |this: &Mount, held: &mut Held| contents(this, held, nodes.clone());
        let contents = self.mount.answer_for(Urgency::Background, question).await?;
        let mut wanted = Vec::new();
        let mut pins = Vec::new();
        for content in contents {
            let bytes: u64 = content.extents.iter().map(|e| u64::from(e.length)).sum();
            if !seen.insert(content.blob.content()) {
                self.count(if content.is_file { bytes } else { 0 });
                continue;
            }
            pins.push(content.blob.content());
            for extent in &content.extents {
                wanted.push(self.mount.wanted(extent, Some((content.blob.clone(), extent.file_offset)))?);
            }
        }
        self.cache.pin(&self.owner, &pins)?;
        let all: u64 = wanted.iter().map(|w| u64::from(w.length)).sum();
        let missing = self.missing(wanted).await?;
        self.count(all - missing.iter().map(|w| u64::from(w.length)).sum::<u64>());
        Ok(self.pieces(missing))
    }

    /// Those that are not on disk. What is there, in whatever file, is verified.
    async fn missing(&self, mut wanted: Vec<Wanted>) -> Result<Vec<Wanted>> {
        let cache = self.cache.clone();
        let looked = tokio::task::spawn_blocking(move || {
            wanted.retain(|w| match &w.home {
                Some((blob, at)) => {
                    !blob.is_verified(&(*at..at + u64::from(w.length)))
                        && cache.on_disk(blob, *at, w.length, &w.hash).is_none()
                }
                None => true,
            });
            wanted
        });
        looked.await.map_err(|_| Error::Cancelled)
    }

    /// Cut into pieces that are fetched together.
    fn pieces(&self, wanted: Vec<Wanted>) -> Vec<Piece> {
        let rate = self.pace.bytes_per_second().unwrap_or(u64::MAX);
        let most = PIECE_MAX_BYTES.min(rate / PIECES_PER_SECOND);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut bytes = 0;
        for wanted in wanted {
            let stored = u64::from(wanted.stored);
            match pieces.last_mut() {
                Some(piece) if bytes + stored <= most => {
                    bytes += stored;
                    piece.push(wanted);
                }
                _ => {
                    bytes = stored;
                    pieces.push(vec![wanted]);
                }
            }
        }
        pieces
    }

    async fn bring(self: &Arc<Self>, pieces: impl futures::Stream<Item = Result<Piece>>) -> Result<()> {
        let bring = |piece| {
            let this = self.clone();
            async move { this.bring_piece(piece).await }
        };
        pieces.try_for_each_concurrent(PIECES_AT_ONCE, bring).await
    }

    async fn bring_piece(&self, piece: Piece) -> Result<()> {
        let stored: u64 = piece.iter().map(|w| u64::from(w.stored)).sum();
        self.make_room(piece.iter().map(|w| u64::from(w.length)).sum()).await?;
        self.pace.take(stored).await;
        let blocks = self.mount.fetcher.get(piece.clone(), Urgency::Background).await?;
        self.counters.fetched_bytes.fetch_add(stored, Ordering::Relaxed);
        for (wanted, block) in piece.iter().zip(blocks) {
            if let Some((blob, at)) = &wanted.home {
                self.keep(blob, *at, &wanted.hash, block).await?;
                self.count(if wanted.remember { u64::from(wanted.length) } else { 0 });
            }
        }
        Ok(())
    }

    /// Makes sure that the cache can take `bytes` before they are fetched.
    async fn make_room(&self, bytes: u64) -> Result<()> {
        let cache = self.cache.clone();
        let made = tokio::task::spawn_blocking(move || cache.make_room(bytes)).await.map_err(|_| Error::Cancelled)?;
        made.map_err(|reason| self.no_room(reason))
    }

    /// A fetched block is on disk unless it came from memory, or storing failed: then it must not be called loaded.
    async fn keep(&self, blob: &Arc<Blob>, at: u64, hash: &Hash, block: Bytes) -> Result<()> {
        let length = block.len() as u64;
        if blob.is_verified(&(at..at + length)) {
            return Ok(());
        }
        let (cache, blob, hash) = (self.cache.clone(), blob.clone(), *hash);
        let keep = move || {
            if cache.store(&blob, at, &hash, &block) {
                return Ok(());
            }
            // Somebody else took the room that there was; the piece is here, so another try costs nothing.
            cache.make_room(length)?;
            if cache.store(&blob, at, &hash, &block) {
                Ok(())
            } else {
                Err(cache.status().degraded.unwrap_or_else(|| "it takes nothing".to_owned()))
            }
        };
        let kept = tokio::task::spawn_blocking(keep).await.map_err(|_| Error::Cancelled)?;
        kept.map_err(|reason| self.no_room(reason))
    }

    fn no_room(&self, reason: String) -> Error {
        Error::NoRoom { what: format!("version {}", self.mount.identity.version), reason }
    }

    fn count(&self, bytes: u64) {
        *self.counters.moved.lock() = Some(Instant::now());
        self.counters.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The contents of a range of nodes; all their pages are asked for on the way.
fn contents(mount: &Mount, held: &mut Held, nodes: RangeInclusive<u64>) -> Result<Vec<Content>, Need> {
    let mut found = Vec::new();
    for id in nodes.map(NodeId) {
        let (is_file, attributes) = mount.walk(held, |layout, pages| {
            let page = walk::node_leaf(layout, pages, id)?;
            let record = walk::record(&page, id)?;
            let attributes = match record.xattrs {
                XattrPlace::Block(extent) => Some(extent),
                _ => None,
            };
            Ok((matches!(record.body, NodeBody::File { .. }), attributes))
        })?;
        if is_file {
            let file = mount.file(held, id)?;
            let extents = mount.extents(held, id, &(0..file.size))?;
            found.push(Content { blob: file.blob.clone(), extents, is_file: true });
        }
        if let Some(mut extent) = attributes {
            extent.file_offset = 0;
            let length = u64::from(extent.length);
            let blob = mount.fetcher.cache().blob(extent.hash, length, length);
            found.push(Content { blob, extents: vec![extent], is_file: false });
        }
    }
    Ok(found)
}

/// What the publisher's launch sets hold, in their order.
///
/// # Errors
/// What the origin says, or `Damaged`.
pub(super) async fn launch_sets(mount: &Arc<Mount>) -> Result<Vec<(NodeId, Range<u64>)>> {
    let mut ranges = Vec::new();
    for launch in &mount.descriptor.launch {
        let (object, index) = (launch.path(), &launch.index);
        let backend = mount.fetcher.backend();
        let stored = backend.read_range(&object, 0..u64::from(index.stored), ReadOptions::default()).await?;
        let stored = collect(stored, index.stored as usize).await?;
        let whence = || format!("launch object {object}");
        let decoded = block::decode(&stored, index.length as usize, &index.hash, LAUNCH_INDEX_MAX_BYTES, &whence)?;
        ranges.extend(parse_index(&decoded, &whence())?.into_iter().filter_map(|entry| match entry {
            LaunchEntry::Block { node, offset, length, .. } => Some((node, offset..offset + u64::from(length))),
            LaunchEntry::Page { .. } => None,
        }));
    }
    Ok(ranges)
}
