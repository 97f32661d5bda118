//! Checking a version's stored objects where they are, before somebody needs them.

use std::sync::Arc;

use futures::TryStreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Mount;
use crate::backend::{ObjectPath, ReadOptions, SmallRead};
use crate::error::{Error, ErrorKind, Result};
use crate::package::Hash;
use crate::package::descriptor::DESCRIPTOR_MAX_BYTES;
use crate::package::publish::Progress;
use crate::trust;

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
    let mut summary = VerifySummary { objects: 0, bytes: 0, damaged: Vec::new() };
    // Pinning took the descriptor from wherever it was; others will look for it here.
    let path = trust::descriptor_object(&mount.identity.descriptor, &mount.identity.version);
    let checked = check_descriptor(mount, &path).await;
    summary.note(&path, checked)?;
    for (path, hash, bytes) in objects {
        progress.message(path.as_str());
        let checked = check(mount, &path, &hash, bytes, &*progress).await.map(|()| bytes);
        summary.note(&path, checked)?;
    }
    Ok(summary)
}

impl VerifySummary {
    fn note(&mut self, path: &ObjectPath, checked: Result<u64>) -> Result<()> {
        self.objects += 1;
        match checked {
            Ok(bytes) => self.bytes += bytes,
            // What cannot be said of the object itself ends the check: all others would fail the same way.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::BadAnswer) => {
                self.damaged.push(format!("{path}: {e}"));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

async fn check_descriptor(mount: &Mount, path: &ObjectPath) -> Result<u64> {
    let read = mount.fetcher.backend().read_small(path, DESCRIPTOR_MAX_BYTES, None).await?;
    let SmallRead::Object { bytes, .. } = read else {
        return Err(Error::BadAnswer {
            object: path.to_string(),
            origin: mount.fetcher.backend().origin().to_owned(),
            reason: "it was called unchanged, but nothing was known of it".into(),
        });
    };
    match hex::encode(Sha256::digest(&bytes)) == mount.identity.descriptor {
        true => Ok(bytes.len() as u64),
        false => Err(Error::damaged(path.as_str(), "its bytes do not have the SHA-256 that was signed")),
    }
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
