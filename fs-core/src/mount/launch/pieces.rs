//! The bytes of a launch object in their order, by the shortest way: what comes behind `head` first, if that is its
//! beginning, while a request for the rest is under way.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::backend::{ByteStream, ObjectPath, ReadOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::Fetcher;
use crate::package::descriptor::LaunchRef;
use crate::trust::tail::Tail;

/// Whether `tail` claims to be the beginning of the launch object `of`.
pub(super) fn is_beginning(tail: &Tail, of: &LaunchRef) -> bool {
    let tail = tail.of();
    tail.object == of.object && tail.object_bytes == of.bytes && u64::from(tail.bytes) <= of.bytes
}

/// Whether asking again may help.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut)
}

/// A launch object that is being fetched.
pub(super) struct Pieces {
    fetcher: Arc<Fetcher>,
    object: ObjectPath,
    bytes: u64,
    /// How far it has come.
    at: u64,
    /// Whether nobody has said that what came behind `head` is of no use.
    with_tail: bool,
    /// Whether what came last came so.
    ahead: bool,
    /// When what comes behind `head` must have come.
    tail_until: Instant,
    /// Whether a range that was asked for ahead of its turn and then failed was asked for again.
    again: bool,
    current: Option<Current>,
    /// Where the last range begins, asked for while something before it comes.
    rest: Option<(u64, Rest)>,
}

/// What brings the next bytes.
struct Current {
    pieces: ByteStream,
    end: u64,
    is_tail: bool,
    /// Asked for ahead of its turn.
    early: bool,
}

/// A range that is not yet due.
enum Rest {
    UnderWay(BoxFuture<'static, Result<ByteStream>>),
    Coming(ByteStream),
    Failed(Error),
}

impl Pieces {
    /// Begins with `tail`, and asks for what follows it with the first call of [`Self::next`].
    pub(super) fn new(fetcher: &Arc<Fetcher>, of: &LaunchRef, tail: Option<Tail>) -> Self {
        let current = tail.map(|tail| {
            let end = tail.of().bytes.into();
            Current { pieces: tail.into_pieces(), end, is_tail: true, early: false }
        });
        let (fetcher, object, bytes, with_tail) = (fetcher.clone(), of.path(), of.bytes, current.is_some());
        let tail_until = Instant::now() + fetcher.deadline();
        let (ahead, again) = (with_tail, false);
        let mut this = Self { fetcher, object, bytes, at: 0, with_tail, ahead, tail_until, again, current, rest: None };
        if let Some(end) = this.current.as_ref().map(|tail| tail.end).filter(|end| *end < bytes) {
            this.rest = Some((end, Rest::UnderWay(this.ask(end..bytes))));
        }
        this
    }

    /// Begins anew, by a request for the object itself; `false` if that is how it came already.
    pub(super) fn begin_without_tail(&mut self) -> bool {
        (self.at, self.current, self.rest) = (0, None, None);
        std::mem::take(&mut self.with_tail)
    }

    /// Whether the piece that came last stood behind `head`.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// The next bytes; `None` after the last. No wait for them is longer than the deadline. Where the tail ends early,
    /// what it did not bring is asked for.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.at < self.bytes {
            let mut current = match self.current.take() {
                Some(current) => current,
                None => self.open().await?,
            };
            let end = current.end;
            match self.next_of(&mut current).await {
                Ok(Some(mut piece)) => {
                    piece.truncate(usize::try_from(end - self.at).unwrap_or(usize::MAX));
                    self.ahead = current.is_tail;
                    self.at += piece.len() as u64;
                    self.current = (self.at < end).then_some(current);
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Ok(None) if current.is_tail => {}
                Err(error) if current.is_tail => {
                    tracing::debug!(object = %self.object, at = self.at, %error, "what came behind head broke off");
                }
                Ok(None) => {
                    let (object, origin) = (self.object.to_string(), self.fetcher.backend().origin().to_owned());
                    return Err(Error::BadAnswer { object, origin, reason: "it ended too early".into() });
                }
                // It waited unread while what stands before it came, perhaps for too long.
                Err(error) if current.early && is_passing(&error) && !std::mem::replace(&mut self.again, true) => {
                    tracing::debug!(object = %self.object, at = self.at, %error, "what was asked for early broke off");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Waits for bytes of `current`; the request for the rest goes on meanwhile.
    async fn next_of(&mut self, current: &mut Current) -> Result<Option<Bytes>> {
        let tail_until = current.is_tail.then_some(self.tail_until);
        let wait = async {
            let step = self.fetcher.within(&self.object, current.pieces.try_next());
            match tail_until {
                None => step.await,
                Some(until) => tokio::time::timeout_at(until, step).await.unwrap_or(Ok(None)),
            }
        };
        tokio::pin!(wait);
        if let Some((_, rest)) = &mut self.rest
            && let Rest::UnderWay(asked) = rest
        {
            tokio::select! {
                biased;
                answer = asked => *rest = match answer {
                    Ok(pieces) => Rest::Coming(pieces),
                    Err(error) => Rest::Failed(error),
                },
                piece = &mut wait => return piece,
            }
        }
        wait.await
    }

    /// The range that begins where the object has come to.
    async fn open(&mut self) -> Result<Current> {
        let due = self.rest.take_if(|(from, _)| *from == self.at);
        let end = self.rest.as_ref().map_or(self.bytes, |(from, _)| *from);
        let asked = match due {
            Some((_, Rest::Coming(pieces))) => return Ok(Current { pieces, end, is_tail: false, early: true }),
            Some((_, Rest::UnderWay(asked))) => asked,
            // It may have had no turn while the tail filled the line.
            Some((_, Rest::Failed(e))) if !is_passing(&e) => return Err(e),
            Some((_, Rest::Failed(_))) | None => self.ask(self.at..end),
        };
        let pieces = self.fetcher.within(&self.object, asked).await?;
        Ok(Current { pieces, end, is_tail: false, early: false })
    }

    fn ask(&self, range: Range<u64>) -> BoxFuture<'static, Result<ByteStream>> {
        self.fetcher.count_request();
        let (backend, object) = (self.fetcher.backend().clone(), self.object.clone());
        Box::pin(async move { backend.read_range(&object, range, ReadOptions::default()).await })
    }
}
