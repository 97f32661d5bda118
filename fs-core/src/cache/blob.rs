//! One content on disk.
//!
//! Everything known of a file is told of one particular file: a blob whose file was removed, replaced or could not
//! be read begins anew (a new *generation*), and what was verified of the old one is forgotten with it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::open_files::OpenFiles;
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
    open_files: Arc<OpenFiles>,
    me: Weak<Blob>,
    state: Mutex<State>,
    /// Whether the file was used since it was last considered for closing.
    used: AtomicBool,
    written: AtomicBool,
}

/// Guarded by one lock, so that no range is ever called verified of another file than the one it was checked in.
#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    /// Which file `verified` tells of, while it is closed for want of descriptors.
    identity: Option<(u64, u64)>,
    generation: u64,
    verified: Ranges,
    /// The file was made since the agent started: what is not verified is not there.
    born_here: bool,
    /// Opening was tried and there is no file.
    absent: bool,
}

impl State {
    fn forget(&mut self) {
        *self = State { generation: self.generation + 1, ..State::default() };
    }
}

/// A file opened for writing, and which generation of the blob it belongs to.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) file: Arc<File>,
    pub(super) generation: u64,
}

impl Blob {
    pub(super) fn new(content: Hash, size: u64, stored: u64, path: PathBuf, open_files: Arc<OpenFiles>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            content,
            size,
            stored,
            path,
            open_files,
            me: me.clone(),
            state: Mutex::default(),
            used: AtomicBool::new(false),
            written: AtomicBool::new(false),
        })
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
        let file = self.with_file(|state| state.verified.contains(range))?;
        self.read_from(&file, range)
    }

    /// The complete file, opened for reading.
    pub fn open_complete(&self) -> Option<File> {
        // Under the lock: eviction forgets what is verified before anybody can make the file anew, empty.
        let mut state = self.state.lock();
        let complete = |state: &State| state.verified.total() >= self.stored;
        if !complete(&state) {
            return None;
        }
        let (_, opened) = self.open_locked(&mut state)?;
        let file = File::open(&self.path).ok();
        let same = |meta: &Metadata| meta.len() == self.size && platform::facts(meta).identity == state.identity;
        let file = file.filter(|f| complete(&state) && f.metadata().is_ok_and(|m| same(&m)));
        drop(state);
        self.admit(opened);
        file
    }

    /// Tells the system that `range` will be read soon.
    pub fn will_need(&self, range: Range<u64>) {
        if let Some(file) = self.with_file(|_| true) {
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

    /// Reads what was not verified yet, and tells of which generation it is.
    pub(super) fn read_unverified(&self, range: &Range<u64>) -> Option<(Bytes, u64)> {
        let mut generation = 0;
        let file = self.with_file(|state| {
            generation = state.generation;
            true
        })?;
        Some((self.read_from(&file, range)?, generation))
    }

    /// Whether this agent has stored anything in it.
    pub(super) fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    fn read_from(&self, file: &File, range: &Range<u64>) -> Option<Bytes> {
        match platform::read_exact_at(file, (range.end - range.start) as usize, range.start) {
            Ok(bytes) => Some(bytes.into()),
            Err(e) => {
                // Shorter than it should be, or the disk fails: forget what was verified, so that it is fetched.
                tracing::debug!("reading {} failed: {e}", self.path.display());
                self.forget();
                None
            }
        }
    }

    /// Notes that a range holds what it should, in that generation; `false` if that one is gone.
    pub(super) fn mark_verified(&self, range: Range<u64>, generation: u64) -> bool {
        let mut state = self.state.lock();
        if state.generation != generation {
            return false;
        }
        state.verified.insert(range);
        true
    }

    /// Forgets the file and what is known of it.
    pub(super) fn forget(&self) {
        self.state.lock().forget();
    }

    /// Removes the file and forgets it, in one step: nobody writes into a file that is going.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        std::fs::remove_file(&self.path)?;
        state.forget();
        Ok(())
    }

    /// Closes the file and keeps what is known of it. `false` if it was used lately and stays open for once.
    pub(super) fn close(&self, unless_used: bool) -> bool {
        if self.used.swap(false, Ordering::Relaxed) && unless_used {
            return false;
        }
        self.state.lock().file = None;
        true
    }

    /// The open file, if there is one and `wanted` still holds once it is open.
    fn with_file(&self, mut wanted: impl FnMut(&State) -> bool) -> Option<Arc<File>> {
        let mut state = self.state.lock();
        if !wanted(&state) {
            return None;
        }
        let (file, opened) = self.open_locked(&mut state)?;
        let still = !opened || wanted(&state);
        drop(state);
        self.admit(opened);
        self.used.store(true, Ordering::Relaxed);
        still.then_some(file)
    }

    /// The file, and whether it had to be opened: then `admit` must be called once the lock is released.
    fn open_locked(&self, state: &mut State) -> Option<(Arc<File>, bool)> {
        if let Some(file) = &state.file {
            return Some((file.clone(), false));
        }
        // Read and write, because one descriptor serves both; a cache that became read-only can still be read.
        let file = match File::options().read(true).write(true).open(&self.path) {
            Err(e) if matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => {
                File::open(&self.path)
            }
            other => other,
        };
        match file.and_then(|file| Ok((file.metadata()?, file))) {
            Ok((meta, file)) => Some((self.adopt(state, file, &meta), true)),
            Err(e) => {
                // Out of descriptors, say, tells nothing of the file.
                if e.kind() == ErrorKind::NotFound {
                    state.forget();
                    state.absent = true;
                }
                None
            }
        }
    }

    fn adopt(&self, state: &mut State, file: File, meta: &Metadata) -> Arc<File> {
        let identity = platform::facts(meta).identity;
        if state.identity.is_some() && state.identity != identity {
            // Somebody put another file there while it was closed.
            state.forget();
        }
        if meta.len() != self.size {
            // A crash between making it and giving it its length; reading past its end would fail for ever.
            let _ = file.set_len(self.size);
        }
        let file = Arc::new(file);
        state.identity = identity;
        state.absent = false;
        state.file = Some(file.clone());
        file
    }

    fn admit(&self, opened: bool) {
        if opened {
            self.open_files.admit(&self.me);
        }
    }

    /// The file for writing, made if needed.
    pub(super) fn opened_for_writing(&self) -> io::Result<Writing> {
        let mut state = self.state.lock();
        let (file, opened) = match self.open_locked(&mut state) {
            Some(open) => open,
            None => {
                if let Some(dir) = self.path.parent() {
                    platform::create_private_dir(dir)?;
                }
                let file = platform::open_private(&self.path)?;
                let meta = file.metadata()?;
                if meta.len() == 0 {
                    file.set_len(self.size)?;
                    state.forget();
                    state.born_here = true;
                }
                (self.adopt(&mut state, file, &meta), true)
            }
        };
        let writing = Writing { file, generation: state.generation };
        drop(state);
        self.admit(opened);
        self.used.store(true, Ordering::Relaxed);
        self.written.store(true, Ordering::Relaxed);
        Ok(writing)
    }
}
