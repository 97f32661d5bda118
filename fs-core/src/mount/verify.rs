//! Checking a version's stored objects where they are, before somebody needs them.

mod launch;

use std::sync::Arc;

use futures::TryStreamExt;
use serde::Serialize;

use super::Mount;
use crate::backend::{ObjectPath, ReadOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::package::Hash;
use crate::package::publish::Progress;
use crate::trust::client;

/// Bytes of one request: retried from where it broke, so its size matters little.
const RANGE_BYTES: u64 = 8 << 20;

/// What was checked.
#[derive(Debug, Clone, Serialize)]
pub struct VerifySummary {
    /// Stored objects: the descriptor (with the metadata that signs it), the tree, the packs, and launch sets with their
    /// profiles.
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
    let of_launch: u64 = descriptor.launch.iter().map(|set| set.bytes + set.profile.bytes).sum();
    let of_all = objects.iter().map(|o| o.2).sum::<u64>() + of_launch;
    progress.total(of_all, (objects.len() + 2 * descriptor.launch.len()) as u64);
    let mut summary = VerifySummary { objects: 1, bytes: 0, damaged: Vec::new() };
    // What pinned the version may have come from `head` or from this machine; others need the files themselves.
    match check_signed(mount).await {
        Ok(bytes) => summary.bytes += bytes,
        Err(e) if is_of_object(&e) || e.kind() == ErrorKind::Untrusted => summary.damaged.push(e.to_string()),
        Err(e) => return Err(e),
    }
    for (path, hash, bytes) in objects {
        progress.message(path.as_str());
        let checked = read_object(mount, &path, &hash, bytes, &*progress, &mut |_| ()).await;
        summary.add(&path, bytes, checked)?;
    }
    for set in &descriptor.launch {
        let path = set.path();
        progress.message(path.as_str());
        summary.add(&path, set.bytes, launch::check_object(mount, set, &*progress).await)?;
        let profile = set.profile.path();
        summary.add(&profile, set.profile.bytes, launch::check_profile(mount, set, &*progress).await)?;
    }
    Ok(summary)
}

impl VerifySummary {
    /// Notes what became of one object.
    fn add(&mut self, path: &ObjectPath, bytes: u64, checked: Result<()>) -> Result<()> {
        self.objects += 1;
        match checked {
            Ok(()) => self.bytes += bytes,
            Err(e) if is_of_object(&e) => self.damaged.push(format!("{path}: {e}")),
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// What cannot be said of one object ends the check: all others would fail the same way.
fn is_of_object(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::BadAnswer)
}

/// Checks the trust metadata and the version's descriptor where the origin keeps them; gives the descriptor's length.
async fn check_signed(mount: &Mount) -> Result<u64> {
    let (backend, identity) = (mount.fetcher.backend(), mount.identity());
    let key = format!("{}/{}", identity.origin.trim_end_matches('/'), identity.package);
    let catalog = client::check_files(backend, &key).await?;
    let record = catalog.versions.iter().find(|record| hex::encode(record.descriptor_sha256) == identity.descriptor);
    let Some(record) = record else {
        let reason = format!("its metadata files do not list version {} as it is mounted", identity.version);
        return Err(Error::Untrusted { package: key, reason, source: None });
    };
    Ok(client::stored_descriptor(backend, record).await?.len() as u64)
}

/// Reads a whole object and compares it with its hash; `each` gets its bytes as they come, before that is known.
async fn read_object(
    mount: &Mount,
    path: &ObjectPath,
    hash: &Hash,
    bytes: u64,
    progress: &dyn Progress,
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < bytes {
        let end = (at + RANGE_BYTES).min(bytes);
        let mut stream = mount
            .fetcher
            .backend()
            .read_range(path, at..end, ReadOptions { bypass_caches: true, ..ReadOptions::default() })
            .await?;
        while let Some(piece) = stream.try_next().await? {
            hasher.update(&piece);
            each(&piece);
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
