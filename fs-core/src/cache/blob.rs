//! One content on disk.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::ranges::Ranges;
use crate::package::Hash;
use crate::platform;

/// A content on disk, perhaps partly, perhaps not at all yet.
#[derive(Debug)]
pub struct Blob {
    content: Hash,
    size: u64,
    stored: u64,
    path: PathBuf,
    file: RwLock<Option<Arc<File>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    verified: Ranges,
    /// The file was made since the agent started: what is not verified is not there.
    born_here: bool,
    /// Opening was tried and there is no file.
    absent: bool,
}

impl Blob {
    pub(super) fn new(content: Hash, size: u64, stored: u64, path: PathBuf) -> Self {
        Self { content, size, stored, path, file: RwLock::new(None), state: Mutex::new(State::default()) }
    }

    /// Name of the content.
    pub fn content(&self) -> Hash {
        self.content
    }

    /// Length of the content with its holes.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Whether all of `range` was verified since the agent started.
    pub fn is_verified(&self, range: &Range<u64>) -> bool {
        self.state.lock().verified.contains(range)
    }

    /// Whether every byte that is not a hole was verified since the agent started.
    pub fn is_complete(&self) -> bool {
        self.state.lock().verified.total() >= self.stored
    }

    /// Bytes on disk, as far as can be told without reading them.
    pub fn present_bytes(&self) -> u64 {
        let verified = self.state.lock().verified.total();
        if verified >= self.stored {
            return self.stored;
        }
        let allocated = std::fs::metadata(&self.path).map_or(0, |m| platform::facts(&m).allocated);
        allocated.max(verified).min(self.stored)
    }

    /// Reads a verified range; `None` if it is not that or the disk fails.
    pub fn read(&self, range: &Range<u64>) -> Option<Bytes> {
        if !self.is_verified(range) {
            return None;
        }
        self.read_unverified(range)
    }

    /// The complete file, opened for reading.
    pub fn open_complete(&self) -> Option<File> {
        if !self.is_complete() {
            return None;
        }
        File::open(&self.path).ok().filter(|f| f.metadata().is_ok_and(|m| m.len() == self.size))
    }

    /// Tells the system that `range` will be read soon.
    pub fn will_need(&self, range: Range<u64>) {
        if let Some(file) = self.opened() {
            platform::will_need(&file, range.start, range.end - range.start);
        }
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Whether reading an unverified block from the file could bring anything.
    pub(super) fn may_hold_more(&self) -> bool {
        let state = self.state.lock();
        !state.born_here && !state.absent
    }

    pub(super) fn read_unverified(&self, range: &Range<u64>) -> Option<Bytes> {
        let file = self.opened()?;
        let mut buffer = vec![0; (range.end - range.start) as usize];
        match platform::read_exact_at(&file, &mut buffer, range.start) {
            Ok(()) => Some(buffer.into()),
            Err(e) => {
                // Shorter than it should be, or the disk fails: forget what was verified, so that it is fetched.
                tracing::debug!("reading {} failed: {e}", self.path.display());
                self.forget();
                None
            }
        }
    }

    pub(super) fn mark_verified(&self, range: Range<u64>) {
        self.state.lock().verified.insert(range);
    }

    /// Forgets the file and what is known of it.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.verified.clear();
        state.born_here = false;
        state.absent = false;
        *self.file.write() = None;
    }

    fn opened(&self) -> Option<Arc<File>> {
        if let Some(file) = &*self.file.read() {
            return Some(file.clone());
        }
        let mut slot = self.file.write();
        if slot.is_none() {
            // Read and write, because one descriptor serves both.
            match File::options().read(true).write(true).open(&self.path) {
                Ok(file) => *slot = Some(Arc::new(file)),
                Err(_) => self.state.lock().absent = true,
            }
        }
        slot.clone()
    }

    /// The file for writing, made if needed.
    pub(super) fn opened_for_writing(&self) -> std::io::Result<Arc<File>> {
        if let Some(file) = self.opened() {
            return Ok(file);
        }
        let mut slot = self.file.write();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        if let Some(dir) = self.path.parent() {
            platform::create_private_dir(dir)?;
        }
        let file = Arc::new(platform::open_private(&self.path)?);
        if file.metadata()?.len() == 0 {
            file.set_len(self.size)?;
            self.state.lock().born_here = true;
        }
        self.state.lock().absent = false;
        *slot = Some(file.clone());
        Ok(file)
    }
}
