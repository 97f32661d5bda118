//! Cutting files into blocks, and compressing the new ones on several threads.
//!
//! One thread reads, cuts, hashes and decides; workers only compress; results are written in the order of
//! reading. So what is stored depends on the input alone, not on which worker was faster.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use fastcdc::v2020::StreamCDC;

use super::Progress;
use super::pack_writer::PackStore;
use crate::error::{Error, Result};
use crate::package::Hash;
use crate::package::block::{BLOCK_AVERAGE_BYTES, BLOCK_MAX_BYTES, BLOCK_MIN_BYTES, Encoder};
use crate::platform::{self, Facts};

/// Uncompressed bytes that may wait between reading and writing: bounds memory, and keeps workers busy.
const IN_FLIGHT_MAX_BYTES: usize = 16 << 20;

/// One block of a file, before it is known where it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) file_offset: u64,
    pub(super) length: u32,
    pub(super) hash: Hash,
}

/// The blocks of one node.
#[derive(Debug, Default)]
pub(super) struct FileBlocks {
    pub(super) cuts: Vec<Cut>,
    /// The block that holds its extended attributes, if they are too long for its record.
    pub(super) xattrs: Option<Cut>,
}

struct Job {
    raw: Vec<u8>,
    done: Sender<Vec<u8>>,
}

struct Pending {
    hash: Hash,
    length: usize,
    stored: Receiver<Vec<u8>>,
}

/// Takes files and bytes, gives blocks.
pub(super) struct BlockSink<'a> {
    jobs: Sender<Job>,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    packs: &'a mut PackStore,
}

/// The error for a file that is not what it was a moment ago.
pub(super) fn changed(path: &Path) -> Error {
    let path = path.display();
    Error::InvalidInput(format!("{path} changed while it was being published; publish from a directory at rest"))
}

/// What two lists of ranges, each sorted and without overlaps, have in common.
fn intersections(left: &[Range<u64>], right: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut common = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        let range = a.start.max(b.start)..a.end.min(b.end);
        if !range.is_empty() {
            common.push(range);
        }
        if a.end <= b.end { i += 1 } else { j += 1 }
    }
    common
}

/// Runs `work` with `threads` compressing workers behind its sink.
pub(super) fn run<T>(
    level: i32,
    threads: usize,
    packs: &mut PackStore,
    work: impl FnOnce(&mut BlockSink<'_>) -> Result<T>,
) -> Result<T> {
    let (jobs, queue) = channel::<Job>();
    let queue = Arc::new(Mutex::new(queue));
    let encoders: Vec<Encoder> = (0..threads.max(1)).map(|_| Encoder::new(level)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        for mut encoder in encoders {
            let queue = queue.clone();
            scope.spawn(move || {
                loop {
                    let next = queue.lock().map(|q| q.recv());
                    let Ok(Ok(Job { raw, done })) = next else { return };
                    // The receiver is gone only when publishing failed elsewhere.
                    let _ = done.send(encoder.encode(raw));
                }
            });
        }
        let mut sink = BlockSink { jobs, pending: VecDeque::new(), pending_bytes: 0, packs };
        let result = work(&mut sink)?;
        sink.drain(0)?;
        Ok(result)
    })
}

impl BlockSink<'_> {
    /// Cuts these parts of a file, each on its own, without what is a hole in them; blocks by position. Its attributes must
    /// be the same afterwards as `facts` of the scan.
    pub(super) fn store_parts(
        &mut self,
        path: &Path,
        size: u64,
        facts: &Facts,
        parts: &[Range<u64>],
        progress: &dyn Progress,
    ) -> Result<Vec<Cut>> {
        let mut cuts = Vec::new();
        if parts.is_empty() {
            return Ok(cuts);
        }
        let broken = |e| Error::local("read", path, e);
        let changed = || changed(path);
        let mut file = platform::open_no_follow(path).map_err(broken)?;
        // Asking for holes costs two calls a file; only files with fewer bytes on disk than their size can have any.
        let segments = match facts.allocated < size {
            true => platform::data_segments(&file, size).map_err(broken)?,
            false => std::iter::once(0..size).collect(),
        };
        for segment in intersections(parts, &segments) {
            file.seek(SeekFrom::Start(segment.start)).map_err(broken)?;
            let length = segment.end - segment.start;
            let got = if length <= BLOCK_MIN_BYTES as u64 {
                self.store_small(&mut file, segment.start, length, &mut cuts).map_err(broken)?
            } else {
                self.store_cut(&file, segment.start, length, &mut cuts, progress, path)?
            };
            if got != length {
                return Err(changed());
            }
            progress.advance(length);
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            self.drain(IN_FLIGHT_MAX_BYTES)?;
        }
        let after = file.metadata().map_err(broken)?;
        let facts_after = platform::facts(&after);
        if after.len() != size || facts_after.mtime != facts.mtime || facts_after.identity != facts.identity {
            return Err(changed());
        }
        Ok(cuts)
    }

    fn store_small(&mut self, file: &mut File, at: u64, length: u64, cuts: &mut Vec<Cut>) -> std::io::Result<u64> {
        let mut raw = Vec::with_capacity(length as usize + 1);
        file.take(length).read_to_end(&mut raw)?;
        let got = raw.len() as u64;
        if got > 0 {
            cuts.push(self.block(raw, at));
        }
        Ok(got)
    }

    fn store_cut(
        &mut self,
        file: &File,
        start: u64,
        length: u64,
        cuts: &mut Vec<Cut>,
        progress: &dyn Progress,
        path: &Path,
    ) -> Result<u64> {
        let cutter = StreamCDC::new(file.take(length), BLOCK_MIN_BYTES, BLOCK_AVERAGE_BYTES, BLOCK_MAX_BYTES);
        let mut got = 0;
        for chunk in cutter {
            let chunk = chunk.map_err(|e| Error::local("read", path, std::io::Error::other(e)))?;
            got += chunk.length as u64;
            cuts.push(self.block(chunk.data, start + chunk.offset));
            self.drain(IN_FLIGHT_MAX_BYTES)?;
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
        }
        Ok(got)
    }

    /// Stores bytes that are not a file's as one block.
    pub(super) fn store_bytes(&mut self, raw: &[u8]) -> Result<Cut> {
        let cut = self.block(raw.to_vec(), 0);
        self.drain(IN_FLIGHT_MAX_BYTES)?;
        Ok(cut)
    }

    fn block(&mut self, raw: Vec<u8>, file_offset: u64) -> Cut {
        let cut = Cut { file_offset, length: raw.len() as u32, hash: Hash::of(&raw) };
        if self.packs.claim(&cut.hash, cut.length) {
            let (done, stored) = channel();
            self.pending_bytes += raw.len();
            self.pending.push_back(Pending { hash: cut.hash, length: raw.len(), stored });
            self.jobs.send(Job { raw, done }).expect("workers live as long as the sink");
        }
        cut
    }

    /// Writes compressed blocks, in order, until at most `leave_bytes` wait.
    fn drain(&mut self, leave_bytes: usize) -> Result<()> {
        while self.pending_bytes > leave_bytes || (leave_bytes == 0 && !self.pending.is_empty()) {
            let Some(Pending { hash, length, stored }) = self.pending.pop_front() else { break };
            let stored = stored.recv().expect("a worker answers every job");
            self.pending_bytes -= length;
            self.packs.append(hash, length as u32, &stored)?;
        }
        Ok(())
    }
}
