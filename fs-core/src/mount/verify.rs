//! Checking a version's stored objects where they are, before somebody needs them.

use std::sync::Arc;

use futures::TryStreamExt;
use serde::Serialize;

use super::Mount;
use crate::backend::{ObjectPath, ReadOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::package::Hash;
use crate::package::publish::Progress;

/// Bytes of one request: retried from where it broke, so its size matters little.
const RANGE_BYTES: u64 = 8 << 20;

/// What was checked.
#[derive(Debug, Clone, Serialize)]
pub struct VerifySummary {
    /// Stored objects: the descriptor, the tree and the packs.
    pub objects: u64,
    /// Stored bytes read.
    pub bytes: u64,
    /// Objects that are missing or not what was published, and why.
    pub damaged: Vec<String>,
}

pub(super) async fn verify(mount: &Arc<Mount>, progress: Arc<dyn Progress>) -> Result<VerifySummary> {
    let descriptor = &mount.descriptor;
    let mut objects = vec![(descriptor.tree.path(), descriptor.tree.object, descriptor.tree.bytes)];
    objects.extend(descriptor.packs.iter().map(|p| (p.path(), p.object, p.bytes)));
    progress.total(objects.iter().map(|o| o.2).sum(), objects.len() as u64);
    // The descriptor was verified when the version was pinned.
    let mut summary = VerifySummary { objects: 1, bytes: descriptor.to_bytes().len() as u64, damaged: Vec::new() };
    for (path, hash, bytes) in objects {
        progress.message(path.as_str());
        summary.objects += 1;
        match check(mount, &path, &hash, bytes, &*progress).await {
            Ok(()) => summary.bytes += bytes,
            // What cannot be said of the object itself ends the check: all others would fail the same way.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::BadAnswer) => {
                summary.damaged.push(format!("{path}: {e}"));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(summary)
}

async fn check(mount: &Mount, path: &ObjectPath, hash: &Hash, bytes: u64, progress: &dyn Progress) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < bytes {
        let end = (at + RANGE_BYTES).min(bytes);
        let mut stream = mount.fetcher.backend().read_range(path, at..end, ReadOptions { bypass_caches: true }).await?;
        while let Some(piece) = stream.try_next().await? {
            hasher.update(&piece);
            progress.advance(piece.len() as u64);
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
        }
        at = end;
    }
    match Hash(*hasher.finalize().as_bytes()) == *hash {
        true => Ok(()),
        false => Err(Error::damaged(path.as_str(), "its bytes do not have the BLAKE3 hash that is its name")),
    }
}
