//! Bytes of open files as streams: what is in the system's page cache is taken at once, what must come from a disk or a
//! share is read ahead by one piece in the blocking pool, while the piece before it is sent.
//!
//! How long a piece is depends on how many streams there are, so that all together hold a bounded amount of memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use rustix::io::ReadWriteFlags;
use tokio::task::JoinHandle;

use fs_core::backend::ByteStream;
use fs_core::{Error, Result};

/// Longest piece: long enough that what a piece costs beside its bytes does not count.
const PIECE_MAX_BYTES: usize = 512 << 10;
/// Shortest piece, however many streams there are.
const PIECE_MIN_BYTES: usize = 16 << 10;
/// What all streams together shall hold: each has a piece that is being sent, and one that is being read.
const HELD_BYTES: usize = 128 << 20;
const PIECES_HELD: usize = 2;
/// Memory of the longest pieces that is kept for the next ones, which spares the system from clearing it anew each time.
const SPARE_MAX: usize = 16;

/// Memory for pieces, and how many streams share it. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Pieces(Arc<Shelf>);

#[derive(Default)]
struct Shelf {
    streams: AtomicUsize,
    /// Of `PIECE_MAX_BYTES` each. The one used last goes first: it may still be in the processor's cache.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// The bytes of one piece, whose memory goes back to where it is from.
struct Piece {
    memory: Vec<u8>,
    length: usize,
    shelf: Arc<Shelf>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.memory.len() == PIECE_MAX_BYTES {
            let mut spare = self.shelf.spare.lock();
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

impl Piece {
    fn new(shelf: &Arc<Shelf>, length: usize) -> Self {
        let spare = (length == PIECE_MAX_BYTES).then(|| shelf.spare.lock().pop()).flatten();
        Self { memory: spare.unwrap_or_else(|| vec![0; length]), length, shelf: shelf.clone() }
    }

    fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// Counts as one of the streams until it is dropped.
struct Counted(Arc<Shelf>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pieces {
    /// The bytes at `range` of `file`, which is `name` in errors.
    pub(crate) fn stream(&self, file: Arc<File>, range: Range<u64>, name: String) -> ByteStream {
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.0.clone());
        let reading = Reading { file, left: range, name, ahead: None, tries_at_once: true, counted };
        stream::try_unfold(reading, |mut reading| async move {
            Ok(reading.next().await?.map(|piece| (piece, reading)))
        })
        .boxed()
    }
}

/// One file being read.
struct Reading {
    file: Arc<File>,
    /// What was not handed out yet.
    left: Range<u64>,
    name: String,
    /// The piece at the beginning of `left`, being read.
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
    /// Whether the file system can say that it would have to wait.
    tries_at_once: bool,
    counted: Counted,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let begun = match self.ahead.take() {
            Some(begun) => begun,
            None => match self.at_once() {
                Some(piece) => {
                    self.left.start += piece.len() as u64;
                    return Ok(Some(piece));
                }
                None => self.begin(self.left.start),
            },
        };
        let read = match begun.await {
            Ok(read) => read,
            // The runtime is shutting down; reading does not panic.
            Err(_) => return Err(Error::Cancelled),
        };
        let piece = read.map_err(|e| Error::local("read", &self.name, e))?;
        self.left.start += piece.len() as u64;
        if !self.left.is_empty() {
            self.ahead = Some(self.begin(self.left.start));
        }
        Ok(Some(piece))
    }

    fn piece_bytes(&self, at: u64) -> usize {
        let streams = self.counted.0.streams.load(Ordering::Relaxed).max(1);
        let longest = (HELD_BYTES / PIECES_HELD / streams).clamp(PIECE_MIN_BYTES, PIECE_MAX_BYTES);
        usize::try_from(self.left.end - at).map_or(longest, |left| left.min(longest))
    }

    /// What of the next piece is in memory, if its beginning is.
    fn at_once(&mut self) -> Option<Bytes> {
        if !self.tries_at_once {
            return None;
        }
        let mut piece = Piece::new(&self.counted.0, self.piece_bytes(self.left.start));
        let length = piece.length;
        let room = &mut [io::IoSliceMut::new(&mut piece.memory[..length])];
        match rustix::io::preadv2(&*self.file, room, self.left.start, ReadWriteFlags::NOWAIT) {
            // At the end of the file: reading it the other way says what is wrong with that.
            Ok(0) => None,
            Ok(read) => {
                piece.length = read;
                Some(piece.into_bytes())
            }
            Err(rustix::io::Errno::AGAIN) => None,
            // The file system does not know the question.
            Err(_) => {
                self.tries_at_once = false;
                None
            }
        }
    }

    /// Begins to read the piece at `at`.
    fn begin(&self, at: u64) -> JoinHandle<io::Result<Bytes>> {
        let (file, shelf, length) = (self.file.clone(), self.counted.0.clone(), self.piece_bytes(at));
        tokio::task::spawn_blocking(move || {
            let mut piece = Piece::new(&shelf, length);
            file.read_exact_at(&mut piece.memory[..length], at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::new(e.kind(), "it became shorter while it was being read")
                }
                _ => e,
            })?;
            Ok(piece.into_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::TryStreamExt;

    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn numbers(count: u32) -> Vec<u8> {
        (0..count).flat_map(u32::to_le_bytes).collect()
    }

    async fn read(pieces: &Pieces, file: &Arc<File>, range: Range<u64>) -> Vec<u8> {
        pieces.stream(file.clone(), range, "f".to_owned()).try_collect::<Vec<_>>().await.unwrap().concat()
    }

    #[tokio::test]
    async fn every_range_is_read_right() {
        let (all, pieces) = (numbers(500_000), Pieces::default());
        let file = file(&all);
        let end = all.len() as u64;
        for range in [0..end, 0..1, end - 1..end, 3..1_048_577, 524_288..524_289, 7..7, 1_000..525_288] {
            let expected = &all[range.start as usize..range.end as usize];
            assert!(read(&pieces, &file, range.clone()).await == expected, "{range:?}");
        }
        assert_eq!(pieces.0.streams.load(Ordering::Relaxed), 0, "streams that ended do not count");
    }

    #[tokio::test]
    async fn what_must_be_waited_for_is_read_ahead() {
        let (all, pieces) = (numbers(500_000), Pieces::default());
        let counted = Counted(pieces.0.clone());
        pieces.0.streams.fetch_add(1, Ordering::Relaxed);
        let left = 10..all.len() as u64;
        let mut reading =
            Reading { file: file(&all), left, name: "f".to_owned(), ahead: None, tries_at_once: false, counted };
        let first = reading.next().await.unwrap().unwrap();
        assert!(first == all[10..10 + PIECE_MAX_BYTES] && reading.ahead.is_some());
        let mut rest = Vec::new();
        while let Some(piece) = reading.next().await.unwrap() {
            rest.extend_from_slice(&piece);
        }
        assert!(rest == all[10 + PIECE_MAX_BYTES..]);
        assert!(reading.ahead.is_none(), "nothing is read behind the end");
    }

    #[tokio::test]
    async fn a_file_that_is_cut_is_an_error_and_no_end() {
        let pieces = Pieces::default();
        let cut = file(&[1; 1000]);
        let stream = pieces.stream(cut, 0..2000, "packs/x".to_owned());
        let error = stream.try_collect::<Vec<_>>().await.unwrap_err().to_string();
        assert!(error.contains("packs/x") && error.contains("shorter"), "{error}");
    }

    #[tokio::test]
    async fn many_streams_have_short_pieces() {
        let (pieces, file) = (Pieces::default(), file(&numbers(500_000)));
        let mut streams: Vec<_> =
            (0..2_000).map(|_| pieces.stream(file.clone(), 0..2_000_000, "f".to_owned())).collect();
        let mut held = 0;
        for stream in &mut streams {
            held += stream.try_next().await.unwrap().unwrap().len();
        }
        assert!(held <= HELD_BYTES / PIECES_HELD, "{held}");
        streams.truncate(1);
        assert_eq!(streams[0].try_next().await.unwrap().unwrap().len(), PIECE_MAX_BYTES);
    }

    #[tokio::test]
    async fn memory_is_used_again_and_not_hoarded() {
        let (pieces, file) = (Pieces::default(), file(&numbers(2_000_000)));
        let held: Vec<Bytes> =
            pieces.stream(file.clone(), 0..8_000_000, "f".to_owned()).try_collect().await.unwrap();
        drop(held);
        let kept = pieces.0.spare.lock().len();
        assert!((1..=SPARE_MAX).contains(&kept), "{kept}");
        // Old bytes in it do not shine through.
        assert!(read(&pieces, &file, 400_000..1_000_000).await == numbers(2_000_000)[400_000..1_000_000]);
    }
}
