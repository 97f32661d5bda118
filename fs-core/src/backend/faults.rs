//! Seeded faults, for testing what stands above a backend. The same seed and the same order of requests give the
//! same faults.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
};
use crate::error::{Error, Result};
use crate::location::PackageVersion;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection fails before any byte.
    Fail,
    /// The object is said not to exist.
    NotFound,
    /// The connection breaks after so many bytes (at the end of the answer at the latest).
    Truncate {
        /// Bytes that still arrive.
        after_bytes: u64,
    },
    /// One byte of the answer is changed (nothing happens if the answer is shorter).
    Corrupt {
        /// Which, counted from the answer's start.
        at_byte: u64,
    },
    /// The answer stops after so many bytes, and the connection stays open for ever.
    Stall {
        /// Bytes that still arrive.
        after_bytes: u64,
    },
}

/// A request for which a fault may be chosen.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Its number, from 0.
    pub number: u64,
    /// What is asked for.
    pub object: &'a ObjectPath,
    /// Which bytes; `None` for an object from its beginning.
    pub range: Option<Range<u64>>,
}

type Schedule = Box<dyn Fn(&Request<'_>) -> Option<Fault> + Send + Sync>;

/// A backend some of whose requests fail as planned.
pub struct Faults {
    inner: Arc<dyn Backend>,
    schedule: Schedule,
    requests: AtomicU64,
    injected: AtomicU64,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Faults {
    /// Asks `schedule` for each request.
    pub fn new(
        inner: Arc<dyn Backend>,
        schedule: impl Fn(&Request<'_>) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let (requests, injected) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { inner, schedule: Box::new(schedule), requests, injected }
    }

    /// Lets a request fail with `probability` (0.0 to 1.0), in a way that `seed` decides: everything but
    /// [`Fault::Corrupt`] with `corrupt` false, everything with it.
    pub fn seeded(inner: Arc<dyn Backend>, seed: u64, probability: f64, corrupt: bool) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self::new(inner, move |request| {
            let mut rng = rng.lock();
            let hit = rng.random_bool(probability);
            let which = rng.random_range(0..if corrupt { 5 } else { 4 });
            let longest = request.range.as_ref().map_or(4096, |r| r.end - r.start).max(1);
            let somewhere = rng.random_range(0..longest);
            hit.then_some(match which {
                0 => Fault::Fail,
                1 => Fault::NotFound,
                2 => Fault::Truncate { after_bytes: somewhere },
                3 => Fault::Stall { after_bytes: somewhere },
                _ => Fault::Corrupt { at_byte: somewhere },
            })
        })
    }

    /// How many faults were injected so far.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    fn choose(&self, object: &ObjectPath, range: Option<Range<u64>>) -> Option<Fault> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = (self.schedule)(&Request { number, object, range });
        if fault.is_some() {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        fault
    }

    fn broken(&self, object: &ObjectPath, why: &str) -> Error {
        Error::Unreachable { object: object.to_string(), origin: self.origin().to_owned(), reason: why.to_owned() }
    }

    /// Fails the request itself where the fault says so.
    fn before(&self, object: &ObjectPath, fault: Option<Fault>) -> Result<()> {
        match fault {
            Some(Fault::Fail) => Err(self.broken(object, "injected: the connection failed")),
            Some(Fault::NotFound) => {
                Err(Error::NotFound { what: object.to_string(), origin: self.origin().to_owned() })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Backend for Faults {
    fn origin(&self) -> &str {
        self.inner.origin()
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        // It has no bytes that could be damaged or fewer.
        match self.choose(object, None) {
            Some(Fault::Truncate { .. }) => Err(self.broken(object, "injected: the connection broke")),
            Some(Fault::Stall { .. }) => futures::future::pending().await,
            fault => {
                self.before(object, fault)?;
                self.inner.stat(object).await
            }
        }
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        let fault = self.choose(object, Some(range.clone()));
        self.before(object, fault)?;
        let length = range.end.saturating_sub(range.start);
        let whole = self.inner.read_range(object, range, options).await?;
        Ok(match fault {
            Some(Fault::Truncate { after_bytes }) => {
                let broken = self.broken(object, "injected: the connection broke");
                cut(whole, after_bytes.min(length.saturating_sub(1))).chain(stream::iter([Err(broken)])).boxed()
            }
            Some(Fault::Stall { after_bytes }) => {
                cut(whole, after_bytes.min(length.saturating_sub(1))).chain(stream::pending()).boxed()
            }
            Some(Fault::Corrupt { at_byte }) => corrupted(whole, at_byte),
            _ => whole,
        })
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let fault = self.choose(object, None);
        self.before(object, fault)?;
        let read = self.inner.read_beginning(object, limit_bytes, known, enough).await?;
        let Beginning::Object { mut front, rest, validator } = read else { return Ok(read) };
        let came = front.len() as u64;
        if let Some(Fault::Truncate { after_bytes } | Fault::Stall { after_bytes }) = fault {
            front.truncate(usize::try_from(after_bytes).unwrap_or(usize::MAX));
        }
        // What is read whole ends with its front.
        let too_early = !enough.is_in(&front);
        let (front, rest) = match fault {
            Some(Fault::Truncate { .. }) if too_early => {
                return Err(self.broken(object, "injected: the connection broke"));
            }
            Some(Fault::Stall { .. }) if too_early => return futures::future::pending().await,
            Some(Fault::Truncate { after_bytes }) => {
                let broken = self.broken(object, "injected: the connection broke");
                let rest = cut(rest, after_bytes.saturating_sub(came)).chain(stream::iter([Err(broken)]));
                (front, rest.boxed())
            }
            Some(Fault::Stall { after_bytes }) => {
                (front, cut(rest, after_bytes.saturating_sub(came)).chain(stream::pending()).boxed())
            }
            Some(Fault::Corrupt { at_byte }) => match at_byte.checked_sub(came) {
                Some(at_byte) => (front, corrupted(rest, at_byte)),
                None => (corrupt(front, Some(at_byte)), rest),
            },
            _ => (front, rest),
        };
        Ok(Beginning::Object { front, rest, validator })
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

/// `stream` with one byte changed.
fn corrupted(stream: ByteStream, at_byte: u64) -> ByteStream {
    stream
        .scan(0u64, move |at, piece| {
            let start = *at;
            let piece = piece.map(|p| {
                *at += p.len() as u64;
                corrupt(p, at_byte.checked_sub(start))
            });
            futures::future::ready(Some(piece))
        })
        .boxed()
}

/// The first `bytes` bytes of `stream`.
fn cut(stream: ByteStream, bytes: u64) -> ByteStream {
    stream
        .scan(bytes, |left, piece| {
            let piece = match piece {
                Ok(_) if *left == 0 => None,
                Ok(mut p) => {
                    p.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= p.len() as u64;
                    Some(Ok(p))
                }
                Err(e) => Some(Err(e)),
            };
            futures::future::ready(piece)
        })
        .boxed()
}

fn corrupt(piece: Bytes, at: Option<u64>) -> Bytes {
    match at.and_then(|at| usize::try_from(at).ok()) {
        Some(at) if at < piece.len() => {
            let mut changed = BytesMut::from(&piece[..]);
            changed[at] ^= 0x40;
            changed.freeze()
        }
        _ => piece,
    }
}
