//! Receiving a launch object: decoding it as it comes, handing out and keeping what is in it.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::error::SendError;

use super::index_blob;
use super::pieces::Pieces;
use crate::cache::Blob;
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::fetch::arriving::Arriving;
use crate::mount::Mount;
use crate::mount::pages::Held;
use crate::package::descriptor::LaunchRef;
use crate::package::launch::{BodyDecoder, LAUNCH_INDEX_MAX_BYTES, LaunchEntry};
use crate::package::{Hash, NodeId, block};
use crate::trust::tail::Tail;

/// Blocks that may wait for the disk: when it is slower than the line, the line waits.
const WAITING_FOR_DISK_MAX: usize = 256;
/// Pieces of the stream that may wait to be decoded, and how long one is at most.
const PIECES_WAITING_MAX: usize = 64;
const PIECE_BYTES_MAX: usize = 64 << 10;
/// After so much of a stream, what was here before is weighed against what was not.
const PROBE_BYTES: u64 = 2 << 20;

/// Why a stream ended before its end.
pub(super) enum Stop {
    Failed(Error),
    /// It is damaged, or nearly all of it was here already: from this entry on it is better fetched singly.
    Singly(usize),
    /// What is read is something else.
    Wrong,
    /// The mount is gone.
    Abandoned,
}

/// A block on its way to the disk.
struct ToKeep {
    node: NodeId,
    offset: u64,
    blob: Arc<Blob>,
    hash: Hash,
    block: Bytes,
}

/// Streams the launch object.
pub(super) async fn receive(
    mount: &Weak<Mount>,
    fetcher: &Arc<Fetcher>,
    of: &LaunchRef,
    stream: &Arc<Arriving>,
    tail: Option<Tail>,
) -> std::result::Result<(), Stop> {
    let whence = of.path().to_string();
    if tail.is_some() {
        stream.begins_ahead();
    }
    let mut pieces = Pieces::new(fetcher, of, tail);
    let mut head = BytesMut::new();
    let mut worker: Option<Worker> = None;
    loop {
        let asked = Instant::now();
        let Some(piece) = unless_gone(mount, pieces.next()).await? else { break };
        let waited = asked.elapsed();
        if !pieces.is_ahead() {
            stream.rest_comes();
        }
        fetcher.count_bytes(piece.len() as u64);
        let Some(alive) = mount.upgrade() else { return Err(Stop::Abandoned) };
        alive.launch.counters.bytes_received.fetch_add(piece.len() as u64, Ordering::Relaxed);
        let body = match &worker {
            Some(_) => piece,
            None => {
                head.extend_from_slice(&piece);
                if head.len() < of.index.stored as usize {
                    continue;
                }
                let index = head.split_to(of.index.stored as usize).freeze();
                let entries = match read_index(&alive, of, &index, &whence) {
                    Ok(entries) => entries,
                    Err(error) if pieces.begin_without_tail() => {
                        tracing::info!(%error, "what came behind head is not the launch object's beginning");
                        head.clear();
                        alive.launch.counters.bytes_received.store(0, Ordering::Relaxed);
                        continue;
                    }
                    Err(error) => return Err(Stop::Failed(error)),
                };
                fetcher.stream_ordered(stream, &entries);
                worker = Some(Worker::start(mount.clone(), fetcher.clone(), entries, stream.clone(), whence.clone()));
                std::mem::take(&mut head).freeze()
            }
        };
        let wrong = alive.launch.known_while_it_lasts().is_some_and(|set| set.is_wrong());
        drop(alive);
        if wrong {
            // What came is kept first.
            if let Some(worker) = worker {
                let _ = worker.finish().await;
            }
            return Err(Stop::Wrong);
        }
        if let Some(worker) = &worker
            && worker.take(body).await.is_err()
        {
            break;
        }
        fetcher.give_way(waited).await;
    }
    match worker {
        Some(worker) => worker.finish().await,
        None => Err(Stop::Failed(Error::damaged(whence, "it is shorter than its index"))),
    }
}

/// Waits for a step of a transfer, or for the end of the mount that it is for.
async fn unless_gone<T>(mount: &Weak<Mount>, step: impl Future<Output = Result<T>>) -> std::result::Result<T, Stop> {
    let mut phase = mount.upgrade().ok_or(Stop::Abandoned)?.launch_phase();
    let gone = async { while phase.changed().await.is_ok() {} };
    tokio::select! {
        step = step => step.map_err(Stop::Failed),
        () = gone => Err(Stop::Abandoned),
    }
}

fn read_index(mount: &Mount, of: &LaunchRef, stored: &Bytes, whence: &str) -> Result<Arc<Vec<LaunchEntry>>> {
    let bytes =
        block::decode(stored, of.index.length as usize, &of.index.hash, LAUNCH_INDEX_MAX_BYTES, &|| whence.to_owned())?;
    let entries = mount.entries_of(of, &bytes, whence)?;
    // Failing to keep it costs a request at the next launch.
    mount.fetcher.cache().store(&index_blob(mount, of), 0, &of.index.hash, &bytes);
    Ok(mount.launch.learn(of, entries))
}

/// The threads behind a stream: one decodes, verifies and hands out, the other writes to disk.
struct Worker {
    pieces: tokio::sync::mpsc::Sender<Bytes>,
    ended: tokio::task::JoinHandle<std::result::Result<(), Stop>>,
}

impl Worker {
    fn start(
        mount: Weak<Mount>,
        fetcher: Arc<Fetcher>,
        entries: Arc<Vec<LaunchEntry>>,
        stream: Arc<Arriving>,
        whence: String,
    ) -> Self {
        let (pieces, queue) = tokio::sync::mpsc::channel(PIECES_WAITING_MAX);
        let (keep, to_keep) = sync_channel(WAITING_FOR_DISK_MAX);
        let keeper = {
            let mount = mount.clone();
            tokio::task::spawn_blocking(move || keep_blocks(&mount, &to_keep))
        };
        let (next, missing, probing, fresh, repeated) = (0, None, true, 0, 0);
        let decode = Decode { mount, fetcher, entries, stream, keep, next, missing, probing, fresh, repeated };
        let decoder = tokio::task::spawn_blocking(move || decode.run(queue, &whence));
        let ended = tokio::spawn(async move {
            let outcome = decoder.await.unwrap_or(Err(Stop::Failed(Error::Cancelled)));
            // The decoder has closed its end.
            let _ = keeper.await;
            outcome
        });
        Self { pieces, ended }
    }

    /// Has `piece` decoded after those before it; waits while too much waits for that. Fails if the decoder has ended.
    async fn take(&self, mut piece: Bytes) -> std::result::Result<(), SendError<Bytes>> {
        while piece.len() > PIECE_BYTES_MAX {
            self.pieces.send(piece.split_to(PIECE_BYTES_MAX)).await?;
        }
        self.pieces.send(piece).await
    }

    async fn finish(self) -> std::result::Result<(), Stop> {
        drop(self.pieces);
        self.ended.await.unwrap_or(Err(Stop::Failed(Error::Cancelled)))
    }
}

struct Decode {
    mount: Weak<Mount>,
    fetcher: Arc<Fetcher>,
    entries: Arc<Vec<LaunchEntry>>,
    stream: Arc<Arriving>,
    keep: SyncSender<ToKeep>,
    next: usize,
    /// The first entry that did not come as it should be.
    missing: Option<usize>,
    /// Whether it is still to be found out if most of it is here.
    probing: bool,
    /// Bytes that were not here, and bytes that were.
    fresh: u64,
    repeated: u64,
}

impl Decode {
    fn run(mut self, mut queue: tokio::sync::mpsc::Receiver<Bytes>, whence: &str) -> std::result::Result<(), Stop> {
        let mut decoder = BodyDecoder::new(&self.entries, whence).map_err(Stop::Failed)?;
        let entries = self.entries.clone();
        while let Some(piece) = queue.blocking_recv() {
            let Some(mount) = self.mount.upgrade() else { return Err(Stop::Abandoned) };
            let fed = decoder.feed(&piece, &mut |index, bytes| self.entry(&mount, index, &entries[index], bytes));
            if let Err(error) = fed {
                tracing::warn!(%error, "a launch stream came damaged; its blocks are fetched singly");
                return Err(Stop::Singly(self.whole_until()));
            }
            if self.probing && self.fresh + self.repeated >= PROBE_BYTES {
                self.probing = false;
                if self.repeated * 10 > (self.fresh + self.repeated) * 7 {
                    return Err(Stop::Singly(self.whole_until()));
                }
            }
        }
        // What broke off is told by the stream; what is merely short or damaged here and there, here.
        if self.whole_until() < entries.len() { Err(Stop::Singly(self.whole_until())) } else { Ok(()) }
    }

    /// All entries before this one came as they should be.
    fn whole_until(&self) -> usize {
        self.missing.unwrap_or(self.next)
    }

    fn entry(&mut self, mount: &Arc<Mount>, index: usize, entry: &LaunchEntry, bytes: Bytes) {
        self.next = index + 1;
        let counters = &mount.launch.counters;
        let hash = Hash::of(&bytes);
        let waited = match entry {
            LaunchEntry::Page(address) => {
                let good = hash == address.sum.hash;
                let stored = good && self.fetcher.keep(&mount.pages.wanted(address), &bytes);
                if good {
                    counters.here.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.missing.get_or_insert(index);
                }
                self.fetcher.stream_brought(&self.stream, index, good.then_some((hash, &bytes)), !stored)
            }
            LaunchEntry::Block { node, offset, .. } => {
                let place = mount.place_of(&mut Held::default(), entry).ok().flatten();
                let Some(place) = place.filter(|place| place.hash == hash) else {
                    // Whoever waits knows the hash from the tree, and is served if it is that.
                    self.missing.get_or_insert(index);
                    self.fetcher.stream_brought(&self.stream, index, Some((hash, &bytes)), false);
                    return;
                };
                let waited = self.fetcher.stream_brought(&self.stream, index, Some((hash, &bytes)), true);
                if let Some((blob, offset_in_blob)) = place.home {
                    debug_assert_eq!(offset_in_blob, *offset);
                    let length = bytes.len() as u64;
                    // Looking for copies in other files costs as much as storing one.
                    let known = match self.probing {
                        true => self.fetcher.cache().on_disk(&blob, *offset, length as u32, &hash).is_some(),
                        false => blob.is_verified(&(*offset..*offset + length)),
                    };
                    *(if known { &mut self.repeated } else { &mut self.fresh }) += length;
                    if known {
                        counters.repeated.fetch_add(length, Ordering::Relaxed);
                    }
                    let to_keep = ToKeep { node: *node, offset: *offset, blob, hash, block: bytes };
                    // The keeper ends only with this thread.
                    let _ = self.keep.send(to_keep);
                }
                waited
            }
        };
        if waited {
            counters.waited_for.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn keep_blocks(mount: &Weak<Mount>, queue: &Receiver<ToKeep>) {
    while let Ok(ToKeep { node, offset, blob, hash, block }) = queue.recv() {
        let Some(mount) = mount.upgrade() else { return };
        mount.launch.tell_arrival(node, offset, &block);
        mount.fetcher.cache().store(&blob, offset, &hash, &block);
        mount.launch.counters.here.fetch_add(1, Ordering::Relaxed);
    }
}
