//! One answer on its way: an object's bytes become frames, a batch at each turn.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use fs_core::backend::rtsp::asked::{Asked, Part};
use fs_core::backend::rtsp::record::{Kind, RECORD_DATA_MAX_BYTES, RecordHead, State, Tag, heads};
use fs_core::backend::rtsp::wire;
use fs_core::backend::{ByteStream, ObjectPath};
use fs_core::{Error, ErrorKind, Result};

use super::outbox::Flow;
use super::rtp::RtpStream;
use crate::Shared;
use crate::clients::Client;
use crate::content::{Object, PackagePath, is_named_by_hash};
use crate::limits::Bucket;
use crate::metrics::Protocol;

/// Objects that stay open between requests: the pack that is being read, and one beside it. Each is an open file.
const OPEN_MAX: usize = 2;

/// Longest time between two batches of what has a pace.
const PACE_MAX_SECONDS: f64 = 3600.0 * 24.0 * 365.0;

/// What has a pace goes in small batches, or it would come in bursts.
const PACE_BATCHES_A_SECOND: u64 = 20;
const PACE_BATCH_MIN_BYTES: u64 = 4 << 10;

/// What all answers of one connection have in common.
pub(super) struct Source {
    pub(super) shared: Arc<Shared>,
    pub(super) bucket: Bucket,
    client: Arc<Client>,
    open: Mutex<VecDeque<(PackagePath, ObjectPath, Arc<Object>)>>,
}

impl Source {
    pub(super) fn new(shared: Arc<Shared>, bucket: Bucket, client: Arc<Client>) -> Self {
        Self { shared, bucket, client, open: Mutex::default() }
    }

    /// Closes what stays open only because it may be asked for again.
    pub(super) fn rest(&self) {
        self.open.lock().clear();
    }

    async fn object(&self, package: &PackagePath, path: &ObjectPath) -> Result<Arc<Object>> {
        // What has another name for each state is what it was.
        if !is_named_by_hash(path) {
            return Ok(Arc::new(self.shared.content.object(package, path).await?));
        }
        let known = self.open.lock().iter().find(|(p, o, _)| p == package && o == path).map(|(_, _, it)| it.clone());
        if let Some(object) = known {
            return Ok(object);
        }
        let object = Arc::new(self.shared.content.object(package, path).await?);
        let mut open = self.open.lock();
        open.push_back((package.clone(), path.clone(), object.clone()));
        if open.len() > OPEN_MAX {
            open.pop_front();
        }
        Ok(object)
    }
}

/// Frames, ready to be written.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) chunks: Vec<Bytes>,
    pub(super) bytes: usize,
}

impl Batch {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push(chunk);
    }
}

/// What is sent after the last frame of what PLAY streams.
pub(super) struct Farewell(pub(super) Box<dyn FnOnce() -> Vec<Bytes> + Send>);

/// An answer on its way.
pub(super) struct Sending {
    asked: Asked,
    package: PackagePath,
    rtp: Arc<RtpStream>,
    protocol: Protocol,
    stage: Stage,
    farewell: Option<Farewell>,
    /// Bits a second that the client wants at most, and since when.
    pace: Option<(u64, Instant)>,
    sent_bytes: u64,
    status: u16,
}

enum Stage {
    New,
    Open(Opened),
    Done,
}

struct Opened {
    object: Arc<Object>,
    /// What was not sent yet.
    left: Range<u64>,
    /// Some of that as it comes, and what came of it and did not fit into the last batch.
    coming: Option<ByteStream>,
    pending: Bytes,
}

impl Sending {
    /// Answers a line of READ.
    pub(super) fn of_read(asked: Asked, package: PackagePath, rtp: Arc<RtpStream>, protocol: Protocol) -> Self {
        let (stage, farewell, pace) = (Stage::New, None, None);
        Self { asked, package, rtp, protocol, stage, farewell, pace, sent_bytes: 0, status: 200 }
    }

    /// Streams an object from its beginning, no faster than `bits_per_second`.
    pub(super) fn of_play(
        object: ObjectPath,
        package: PackagePath,
        rtp: Arc<RtpStream>,
        protocol: Protocol,
        bits_per_second: Option<u64>,
        farewell: Farewell,
    ) -> Self {
        let part = Part::From(0);
        let asked = Asked { id: 0, object, part, urgent: false, state: false, known: None, window: None };
        let pace = bits_per_second.map(|bits| (bits.max(1), Instant::now()));
        Self { farewell: Some(farewell), pace, ..Self::of_read(asked, package, rtp, protocol) }
    }

    /// Whether all was sent, or that it failed.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// When the next batch may go, for what has a pace.
    pub(super) fn due(&self) -> Option<Instant> {
        let (bits, since) = self.pace?;
        let seconds = self.sent_bytes as f64 * 8.0 / bits as f64;
        // No clock reaches as far as a client can ask for.
        Some(since + Duration::from_secs_f64(seconds.min(PACE_MAX_SECONDS)))
    }

    /// The next frames, with about so many bytes of the object. `alone` if no other answer waits for a turn: then more is
    /// asked of the content root at once.
    pub(super) async fn batch(&mut self, flow: &Flow, bytes: usize, alone: bool, source: &Source) -> Batch {
        let mut batch = Batch::default();
        if matches!(self.stage, Stage::New) {
            match source.object(&self.package, &self.asked.object).await {
                Ok(object) => self.begin(object, &mut batch),
                Err(error) => self.fail(&error, &mut batch),
            }
        }
        if let Stage::Open(opened) = &mut self.stage {
            let at_pace =
                self.pace.map_or(u64::MAX, |(bits, _)| (bits / 8 / PACE_BATCHES_A_SECOND).max(PACE_BATCH_MIN_BYTES));
            let room = flow.room().min(bytes as u64).min(at_pace);
            match opened.next(room, alone).await {
                Ok(piece) => {
                    source.bucket.take(piece.len() as u64).await;
                    flow.spend(piece.len() as u64);
                    source.client.sent(piece.len() as u64);
                    self.frame(piece, &mut batch);
                }
                Err(error) => self.fail(&error, &mut batch),
            }
        }
        if self.is_done() {
            if let Some(Farewell(words)) = self.farewell.take() {
                words().into_iter().for_each(|chunk| batch.push(chunk));
            }
            source.shared.metrics.request(self.protocol, self.status, self.sent_bytes);
        }
        batch
    }

    /// Tells the object's state, if that was asked for, and finds out what of it is to be sent.
    fn begin(&mut self, object: Arc<Object>, batch: &mut Batch) {
        let length = object.length;
        let left = match &self.asked.part {
            Part::Nothing => 0..0,
            Part::Exactly(range) if range.end > length => {
                self.refuse(457, length, batch);
                return;
            }
            Part::Exactly(range) => range.clone(),
            Part::Clipped(range) => range.start.min(length)..range.end.min(length),
            Part::From(first) if *first > length => {
                self.refuse(457, length, batch);
                return;
            }
            Part::From(first) => *first..length,
        };
        let tag = Tag::new(object.tag());
        let unchanged = self.asked.known.is_some() && self.asked.known == tag;
        let last = unchanged || left.is_empty();
        if self.asked.state {
            let state = State { length, modified: object.modified, tag }.encode();
            self.status = if unchanged { 304 } else { 200 };
            self.record(Kind::State, last, self.status, 0, state, batch);
        } else if last {
            self.record(Kind::Data, true, 200, left.start, Bytes::new(), batch);
        }
        self.stage = match last {
            true => Stage::Done,
            false => Stage::Open(Opened { object, left, coming: None, pending: Bytes::new() }),
        };
    }

    fn frame(&mut self, mut piece: Bytes, batch: &mut Batch) {
        let Stage::Open(Opened { left, .. }) = &self.stage else { return };
        let (mut position, all_sent) = (left.start - piece.len() as u64, left.is_empty());
        self.sent_bytes += piece.len() as u64;
        // Of about equal length: none so short that its heads count.
        let longest = piece.len().div_ceil(piece.len().div_ceil(RECORD_DATA_MAX_BYTES).max(1));
        while !piece.is_empty() {
            let data = piece.split_to(piece.len().min(longest));
            let length = data.len() as u64;
            self.record(Kind::Data, all_sent && piece.is_empty(), 200, position, data, batch);
            position += length;
        }
        if all_sent {
            self.stage = Stage::Done;
        }
    }

    fn record(&self, kind: Kind, last: bool, status: u16, position: u64, data: Bytes, batch: &mut Batch) {
        let head = RecordHead { id: self.asked.id, kind, last, status, position };
        batch.push(heads(self.rtp.channel, self.rtp.packet(data.len()), &head, data.len()));
        if !data.is_empty() {
            batch.push(data);
        }
    }

    fn refuse(&mut self, status: u16, position: u64, batch: &mut Batch) {
        let words = Bytes::from_static(wire::reason(status).as_bytes());
        self.record(Kind::Failure, true, status, position, words, batch);
        self.status = status;
        self.stage = Stage::Done;
    }

    /// Says that it failed; why is for the log alone.
    fn fail(&mut self, error: &Error, batch: &mut Batch) {
        let status = status_of(error);
        let (package, object) = (&self.package, &self.asked.object);
        if status == 404 {
            tracing::debug!(%package, %object, %error, "an object is not served");
        } else {
            tracing::warn!(%package, %object, %error, "an object cannot be read");
        }
        self.refuse(status, 0, batch);
    }
}

impl Opened {
    /// The next bytes: at least one, `room` at most.
    async fn next(&mut self, room: u64, alone: bool) -> Result<Bytes> {
        let mut anew = false;
        while self.pending.is_empty() {
            let coming = match &mut self.coming {
                Some(coming) => coming,
                None => {
                    // Who shares the line is not read far ahead for: that would hold memory, or a connection to elsewhere.
                    let length = self.left.end - self.left.start;
                    let end = self.left.start + if alone { length } else { length.min(room) };
                    anew = true;
                    self.coming.insert(self.object.read(self.left.start..end).await?)
                }
            };
            match coming.try_next().await? {
                Some(piece) => self.pending = piece,
                // A stream that ends before its range is a bug of a backend; it must not be asked for ever.
                None if anew => return Err(Error::Cancelled),
                None => self.coming = None,
            }
        }
        let length = usize::try_from(room).unwrap_or(usize::MAX).min(self.pending.len());
        let piece = self.pending.split_to(length);
        self.left.start += length as u64;
        Ok(piece)
    }
}

/// What is answered where the content root has said this.
pub(super) fn status_of(error: &Error) -> u16 {
    match error.kind() {
        // That something is there which this server may not read is nobody's concern either.
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::InvalidInput
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory => 404,
        ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Busy | ErrorKind::Cancelled => 503,
        ErrorKind::BadAnswer
        | ErrorKind::Damaged
        | ErrorKind::Local
        | ErrorKind::NoSuchAttribute
        | ErrorKind::Unsupported
        | ErrorKind::Untrusted => 500,
    }
}
