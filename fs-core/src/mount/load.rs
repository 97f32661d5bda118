//! Bringing a whole version onto this machine, for use without any network.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::pages::Held;
use super::{Mount, Need};
use crate::cache::{Blob, Cache};
use crate::error::{Error, Result};
use crate::fetch::{Urgency, Wanted};
use crate::package::block::Extent;
use crate::package::publish::Progress;
use crate::package::tree::page::{NodeBody, XattrPlace};
use crate::package::tree::walk;
use crate::package::{Hash, NodeId};

/// Files on their way at once.
const FILES_AT_ONCE: usize = 32;
/// Blocks of one file that are asked for together.
const BLOCKS_AT_ONCE: usize = 64;

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

/// One thing to bring: a file's content or a node's long attributes.
struct Content {
    blob: Arc<Blob>,
    extents: Vec<Extent>,
}

pub(super) async fn load(cache: &Arc<Cache>, mount: &Arc<Mount>, progress: Arc<dyn Progress>) -> Result<LoadSummary> {
    let started = Instant::now();
    let totals = mount.descriptor.totals;
    let before = mount.statistics().fetches.bytes_fetched;
    progress.total(totals.allocated_bytes, totals.files);
    progress.message("loading");
    let identity = &mount.identity;
    let owner = owner(&identity.package_key(), &identity.version);
    let mut pins = vec![mount.pages.blob().content()];
    let mut seen = HashSet::new();
    let mut files = 0;

    for first in (1..=totals.nodes).step_by(256) {
        let last = (first + 255).min(totals.nodes);
        let batch: Vec<(bool, Content)> =
            mount.answer(move |this, held| contents(this, held, first..=last)).wait().await?;
        files += batch.iter().filter(|(is_file, _)| *is_file).count() as u64;
        let todo: Vec<Content> = batch.into_iter().map(|(_, c)| c).filter(|c| seen.insert(c.blob.content())).collect();
        pins.extend(todo.iter().map(|c| c.blob.content()));
        // Pinned before they come, or they might go again while the rest is fetched.
        cache.pin(&owner, &pins)?;
        pins.clear();
        futures::stream::iter(todo.into_iter().map(|content| {
            let (mount, progress) = (mount.clone(), progress.clone());
            async move { bring(&mount, content, &*progress).await }
        }))
        .buffer_unordered(FILES_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    }
    keep_pages(cache, mount).await?;
    let flush = cache.clone();
    tokio::task::spawn_blocking(move || flush.flush()).await.map_err(|_| Error::Cancelled)?;
    let fetched_bytes = mount.statistics().fetches.bytes_fetched - before;
    Ok(LoadSummary { files, bytes: totals.allocated_bytes, fetched_bytes, seconds: started.elapsed().as_secs_f64() })
}

/// The contents of a range of nodes; all their pages are asked for on the way.
fn contents(
    mount: &Mount,
    held: &mut Held,
    nodes: std::ops::RangeInclusive<u64>,
) -> Result<Vec<(bool, Content)>, Need> {
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
            found.push((true, Content { blob: file.blob.clone(), extents }));
        }
        if let Some(mut extent) = attributes {
            extent.file_offset = 0;
            let length = u64::from(extent.length);
            let blob = mount.fetcher.cache().blob(extent.hash, length, length);
            found.push((false, Content { blob, extents: vec![extent] }));
        }
    }
    Ok(found)
}

async fn bring(mount: &Arc<Mount>, content: Content, progress: &dyn Progress) -> Result<()> {
    for extents in content.extents.chunks(BLOCKS_AT_ONCE) {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let missing: Vec<Extent> =
            extents.iter().filter(|e| !content.blob.is_verified(&(e.file_offset..e.file_end()))).copied().collect();
        let wanted: Result<Vec<Wanted>> =
            missing.iter().map(|e| mount.wanted(e, Some((content.blob.clone(), e.file_offset)))).collect();
        let blocks = mount.fetcher.get(wanted?, Urgency::Background).await?;
        for (extent, block) in missing.iter().zip(blocks) {
            keep(mount.fetcher.cache(), &content.blob, extent.file_offset, &extent.hash, &block)?;
        }
        progress.advance(extents.iter().map(|e| u64::from(e.length)).sum());
    }
    Ok(())
}

/// A fetched block is on disk unless it came from memory, or storing failed: then it must not be called loaded.
fn keep(cache: &Cache, blob: &Blob, at: u64, hash: &Hash, block: &[u8]) -> Result<()> {
    if blob.is_verified(&(at..at + block.len() as u64)) || cache.store(blob, at, hash, block) {
        return Ok(());
    }
    let status = cache.status();
    let reason = status.degraded.unwrap_or_else(|| {
        format!("the cache is full ({} of {} bytes used); raise --cache-size", status.used_bytes, status.quota_bytes)
    });
    Err(Error::Unsupported(format!("cannot keep the version on this machine: {reason}")))
}

/// Pages of extents were fetched by walking all files; this makes sure that every page is on disk, not in memory only.
async fn keep_pages(cache: &Arc<Cache>, mount: &Arc<Mount>) -> Result<()> {
    let pages = mount.answer(|this, held| this.all_pages(held)).wait().await?;
    for chunk in pages.chunks(BLOCKS_AT_ONCE) {
        let blocks = mount.fetcher.get(chunk.to_vec(), Urgency::Background).await?;
        for (page, block) in chunk.iter().zip(blocks) {
            if let Some((blob, at)) = &page.home {
                keep(cache, blob, *at, &page.hash, &block)?;
            }
        }
    }
    Ok(())
}
