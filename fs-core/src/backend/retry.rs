//! Tries again, with growing pauses, until a deadline. A range that breaks off midway goes on where it broke, and
//! the reader of the stream does not notice. What follows the beginning of an object that may change is handed on as it
//! comes: the rest of another state of it would not fit.
//!
//! | failure | tries |
//! |---|---|
//! | unreachable, timed out, overloaded (and answers that stall) | until the deadline |
//! | a range of an object that does not exist, a local failure | 3 (a store may be late to show what was just published) |
//! | access denied, an unusable answer | 2 |
//! | a small object that does not exist, anything else | 1 (asking for what may not exist is normal there) |
//! | anything, for a caller in a hurry | 3 at most |

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
};
use crate::config::RetryPolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::location::PackageVersion;

/// Ranges up to this long must be read within the deadline; see [`range_deadline`].
const DEADLINE_COVERS_BYTES: u64 = 4 * 1024 * 1024;
/// Tries for a caller that has something to fall back on: one lost packet shall not count, a refusal shall.
const HURRIED_TRIES: u32 = 3;
/// Slowest rate at which a longer range may come.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// A backend that tries again.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Backend>,
    policy: RetryPolicy,
}

impl Retry {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Backend>, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }

    fn small_deadline(&self) -> Duration {
        self.policy.read_deadline.min(self.policy.metadata_deadline)
    }

    async fn try_beginning(
        &self,
        mut attempts: Attempts,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        // What is waited for is small, so a try may take the connection's time and twice the stall's.
        let patience = self.policy.connect_timeout + self.policy.stall_timeout * 2;
        loop {
            let object = attempts.object.clone();
            let call = self.inner.read_beginning(&object, limit_bytes, known, enough);
            match attempts.within(patience, call).await.and_then(|r| r) {
                Ok(read) => return Ok(read),
                Err(error) => attempts.pause_or_give_up(error).await?,
            }
        }
    }
}

/// How long a read of `length` bytes may take. What a reader waits for is short and gets the plain deadline; a
/// launch object or a pack that streams in the background may be long, and is given time by its length, lest a slow
/// line never finish one.
fn range_deadline(policy: &RetryPolicy, length: u64) -> Duration {
    policy.read_deadline + Duration::from_secs(length.saturating_sub(DEADLINE_COVERS_BYTES) / SLOWEST_BYTES_PER_SECOND)
}

/// State of one read across its tries.
struct Attempts {
    inner: Arc<dyn Backend>,
    policy: RetryPolicy,
    object: ObjectPath,
    started: Instant,
    deadline: Instant,
    allowed: Duration,
    /// Tries that failed, since the last byte that arrived.
    failed: u32,
    /// Whether absence may be temporary.
    absence_may_pass: bool,
    /// Tries at most, whatever the failure.
    tries_max: u32,
}

impl Attempts {
    fn new(retry: &Retry, object: &ObjectPath, allowed: Duration, absence_may_pass: bool) -> Self {
        let started = Instant::now();
        Self {
            inner: retry.inner.clone(),
            policy: retry.policy.clone(),
            object: object.clone(),
            started,
            deadline: started + allowed,
            allowed,
            failed: 0,
            absence_may_pass,
            tries_max: u32::MAX,
        }
    }

    fn timed_out(&self, after: Duration) -> Error {
        Error::TimedOut { object: self.object.to_string(), origin: self.inner.origin().to_owned(), after }
    }

    /// Waits for `step`, at most for `patience` and not past the deadline.
    async fn within<T>(&self, patience: Duration, step: impl Future<Output = T>) -> Result<T> {
        let stall = Instant::now() + patience;
        tokio::time::timeout_at(stall.min(self.deadline), step)
            .await
            .map_err(|_| if stall < self.deadline { self.timed_out(patience) } else { self.timed_out(self.allowed) })
    }

    fn tries_for(&self, error: &Error) -> u32 {
        let tries = match error.kind() {
            ErrorKind::Unreachable | ErrorKind::TimedOut => u32::MAX,
            ErrorKind::NotFound if self.absence_may_pass => 3,
            ErrorKind::Local => 3,
            ErrorKind::Denied | ErrorKind::BadAnswer => 2,
            _ => 1,
        };
        tries.min(self.tries_max)
    }

    /// Pauses before the next try, or gives `error` back if there shall be none.
    async fn pause_or_give_up(&mut self, error: Error) -> Result<()> {
        self.failed += 1;
        if self.failed >= self.tries_for(&error) {
            return Err(error);
        }
        // Full jitter: many clients that lost a server at once do not come back at once.
        let doubled = self.policy.first_backoff.saturating_mul(1 << (self.failed - 1).min(20));
        let longest = doubled.min(self.policy.max_backoff);
        let mut pause = longest.mul_f64(rand::random::<f64>());
        if let Error::Overloaded { retry_after, .. } = &error {
            pause = pause.max(*retry_after);
        }
        let next = Instant::now() + pause;
        if next >= self.deadline {
            tracing::debug!(object = %self.object, waited = ?self.started.elapsed(), %error, "giving up");
            tokio::time::sleep_until(self.deadline).await;
            return Err(error);
        }
        tracing::debug!(object = %self.object, failed = self.failed, ?pause, %error, "trying again");
        tokio::time::sleep_until(next).await;
        Ok(())
    }
}

/// A range being read: what is still to come, and the stream it comes from, if one is open.
struct Resumable {
    attempts: Attempts,
    options: ReadOptions,
    left: Range<u64>,
    open: Option<ByteStream>,
}

impl Resumable {
    /// The next piece; `None` when all has arrived.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.left.is_empty() {
            match self.step().await {
                Ok(piece) => {
                    self.attempts.failed = 0;
                    self.left.start += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => {
                    self.open = None;
                    self.attempts.pause_or_give_up(error).await?;
                }
            }
        }
        Ok(None)
    }

    /// One try to get one piece.
    async fn step(&mut self) -> Result<Bytes> {
        let attempts = &self.attempts;
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => {
                let patience = attempts.policy.connect_timeout + attempts.policy.stall_timeout;
                let call = attempts.inner.read_range(&attempts.object, self.left.clone(), self.options);
                attempts.within(patience, call).await??
            }
        };
        let broken = |reason: &str| Error::Unreachable {
            object: attempts.object.to_string(),
            origin: attempts.inner.origin().to_owned(),
            reason: reason.to_owned(),
        };
        loop {
            match attempts.within(attempts.policy.stall_timeout, stream.next()).await? {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) if piece.len() as u64 > self.left.end - self.left.start => {
                    return Err(broken("more bytes came than were asked for"));
                }
                Some(Ok(piece)) => {
                    self.open = Some(stream);
                    return Ok(piece);
                }
                Some(Err(e)) => return Err(e),
                None => return Err(broken("the answer ended early")),
            }
        }
    }
}

#[async_trait]
impl Backend for Retry {
    fn origin(&self) -> &str {
        self.inner.origin()
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        let mut attempts = Attempts::new(self, object, self.small_deadline(), false);
        let patience = self.policy.connect_timeout + self.policy.stall_timeout;
        loop {
            let call = self.inner.stat(object);
            match attempts.within(patience, call).await.and_then(|state| state) {
                Ok(state) => return Ok(state),
                Err(error) => attempts.pause_or_give_up(error).await?,
            }
        }
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        if range.is_empty() {
            // The backend says what is wrong with that.
            return self.inner.read_range(object, range, options).await;
        }
        let allowed = range_deadline(&self.policy, range.end.saturating_sub(range.start));
        let attempts = Attempts::new(self, object, allowed, true);
        let mut read = Resumable { attempts, options, left: range, open: None };
        // The first piece is awaited here, so that what cannot be read at all fails in the call.
        let first = read.next().await?;
        let rest =
            stream::try_unfold(read, |mut read| async move { Ok(read.next().await?.map(|piece| (piece, read))) });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let attempts = Attempts::new(self, object, self.small_deadline(), false);
        self.try_beginning(attempts, limit_bytes, known, enough).await
    }

    async fn read_beginning_within(
        &self,
        patience: Duration,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let attempts = Attempts::new(self, object, self.small_deadline().min(patience), false);
        self.try_beginning(Attempts { tries_max: HURRIED_TRIES, ..attempts }, limit_bytes, known, enough).await
    }

    fn hold(&self, version: &PackageVersion) -> Hold {
        self.inner.hold(version)
    }

    async fn report_launch(&self, report: &LaunchReport) -> Result<()> {
        self.inner.report_launch(report).await
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.inner.changes()
    }
}
