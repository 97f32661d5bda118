//! Checking a launch set: that its object holds what the tree says, and that its profile can be read.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Mount, read_object};
use crate::error::{Error, Result};
use crate::package::block::{decode, decompress};
use crate::package::descriptor::LaunchRef;
use crate::package::launch::{BodyDecoder, LAUNCH_INDEX_MAX_BYTES, LaunchEntry, hash_prefix, parse_index};
use crate::package::profile::{PROFILE_MAX_BYTES, Profile};
use crate::package::publish::Progress;
use crate::package::tree::{PageAddress, walk};
use crate::package::{Hash, NodeId};

/// Checks the launch object, whole and each entry of it.
pub(super) async fn check_object(mount: &Arc<Mount>, set: &LaunchRef, progress: &dyn Progress) -> Result<()> {
    let mut decoded = Decoded::new(set);
    let path = set.path();
    read_object(mount, &path, &set.object, set.bytes, progress, &mut |piece| decoded.feed(piece)).await?;
    // Only now: of an object that is not what was published, that is what there is to say.
    let (entries, hashes) = decoded.finish()?;
    let differs =
        |entry: &LaunchEntry| Error::damaged(path.as_str(), format!("{entry:?} is not what the tree has there"));
    let pages = mount.answer(|this, held| this.walk(held, walk::all_pages)).wait().await?;
    let pages: HashMap<u32, PageAddress> = pages.iter().map(|page| (page.number, *page)).collect();
    for (entry, found) in entries.iter().zip(hashes) {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let right = match *entry {
            LaunchEntry::Page(page) => page.sum.hash == found && pages.get(&page.number) == Some(&page),
            LaunchEntry::Block { node, offset, length, prefix } => {
                prefix == hash_prefix(&found) && block_hash(mount, node, offset, length).await? == Some(found)
            }
        };
        if !right {
            return Err(differs(entry));
        }
    }
    Ok(())
}

/// Hash of the block that the tree has at this very place.
async fn block_hash(mount: &Arc<Mount>, node: NodeId, offset: u64, length: u32) -> Result<Option<Hash>> {
    if node.0 > mount.descriptor.totals.nodes {
        return Ok(None);
    }
    let asked =
        mount.answer(move |this, held| this.extents(held, node, &(offset..offset.saturating_add(1)))).wait().await;
    match asked {
        Ok(extents) => {
            let there = extents.first().filter(|extent| extent.file_offset == offset && extent.length == length);
            Ok(there.map(|extent| extent.hash))
        }
        Err(Error::IsADirectory(_) | Error::InvalidInput(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Checks that a profile is one.
pub(super) async fn check_profile(mount: &Arc<Mount>, set: &LaunchRef, progress: &dyn Progress) -> Result<()> {
    let (path, reference) = (set.profile.path(), &set.profile);
    let mut stored = Vec::new();
    read_object(mount, &path, &reference.object, reference.bytes, progress, &mut |piece| {
        stored.extend_from_slice(piece)
    })
    .await?;
    let text = decompress(&stored, reference.length as usize, PROFILE_MAX_BYTES);
    let text = text.map_err(|reason| Error::damaged(path.as_str(), reason))?;
    Profile::parse(&text, path.as_str()).map(drop)
}

/// A launch object that is being read.
struct Decoded<'a> {
    set: &'a LaunchRef,
    /// The index until it is complete.
    index: Vec<u8>,
    entries: Vec<LaunchEntry>,
    body: Option<BodyDecoder>,
    /// Of the entries that were decoded.
    hashes: Vec<Hash>,
    failed: Option<Error>,
}

impl<'a> Decoded<'a> {
    fn new(set: &'a LaunchRef) -> Self {
        Self { set, index: Vec::new(), entries: Vec::new(), body: None, hashes: Vec::new(), failed: None }
    }

    fn feed(&mut self, piece: &[u8]) {
        if self.failed.is_none()
            && let Err(e) = self.try_feed(piece)
        {
            self.failed = Some(e);
        }
    }

    fn try_feed(&mut self, piece: &[u8]) -> Result<()> {
        let mut rest = piece;
        if self.body.is_none() {
            let missing = self.set.index.stored as usize - self.index.len();
            let (index, after) = rest.split_at(missing.min(rest.len()));
            self.index.extend_from_slice(index);
            rest = after;
            if self.index.len() < self.set.index.stored as usize {
                return Ok(());
            }
            self.open()?;
        }
        let body = self.body.as_mut().expect("it is opened as soon as the index is complete");
        body.feed(rest, &mut |_, bytes| self.hashes.push(Hash::of(&bytes)))
    }

    fn open(&mut self) -> Result<()> {
        let (whence, sum) = (self.set.path().as_str().to_owned(), &self.set.index);
        let stored = std::mem::take(&mut self.index).into();
        let index = decode(&stored, sum.length as usize, &sum.hash, LAUNCH_INDEX_MAX_BYTES, &|| whence.clone())?;
        self.entries = parse_index(&index, &whence)?;
        let length: u64 = self.entries.iter().map(|entry| u64::from(entry.length())).sum();
        if length != self.set.body {
            let reason = format!("its index names {length} bytes, the descriptor {}", self.set.body);
            return Err(Error::damaged(whence, reason));
        }
        self.body = Some(BodyDecoder::new(&self.entries, whence)?);
        Ok(())
    }

    /// The entries and the hashes of what they decoded to.
    fn finish(self) -> Result<(Vec<LaunchEntry>, Vec<Hash>)> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        match self.body {
            Some(mut body) => body.finish()?,
            None => return Err(Error::damaged(self.set.path().as_str(), "it ends within its index")),
        }
        Ok((self.entries, self.hashes))
    }
}
