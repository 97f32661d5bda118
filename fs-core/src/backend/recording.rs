//! Records every request, so that a test can say how many requests and bytes something caused.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
};
use crate::error::Result;
use crate::location::PackageVersion;

/// One recorded request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What was asked for.
    pub object: ObjectPath,
    /// Which bytes; `None` for an object from its beginning.
    pub range: Option<Range<u64>>,
    /// Bytes handed to the caller so far.
    pub delivered_bytes: u64,
    /// Whether it ended with an error (so far).
    pub failed: bool,
}

#[derive(Debug)]
struct Entry {
    object: ObjectPath,
    range: Option<Range<u64>>,
    delivered: AtomicU64,
    failed: AtomicU64,
}

/// The requests of one or more recording backends, in the order they were made.
#[derive(Debug, Default)]
pub struct Log {
    entries: Mutex<Vec<Arc<Entry>>>,
}

impl Log {
    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        let of = |e: &Arc<Entry>| Request {
            object: e.object.clone(),
            range: e.range.clone(),
            delivered_bytes: e.delivered.load(Ordering::Relaxed),
            failed: e.failed.load(Ordering::Relaxed) > 0,
        };
        self.entries.lock().iter().map(of).collect()
    }

    /// How many requests so far.
    pub fn count(&self) -> usize {
        self.entries.lock().len()
    }

    /// Sum of the bytes delivered so far.
    pub fn delivered_bytes(&self) -> u64 {
        self.entries.lock().iter().map(|e| e.delivered.load(Ordering::Relaxed)).sum()
    }

    /// Forgets all requests so far.
    pub fn clear(&self) {
        self.entries.lock().clear();
    }

    fn begin(&self, object: &ObjectPath, range: Option<Range<u64>>) -> Arc<Entry> {
        let entry =
            Arc::new(Entry { object: object.clone(), range, delivered: AtomicU64::new(0), failed: AtomicU64::new(0) });
        self.entries.lock().push(entry.clone());
        entry
    }
}

/// A backend that notes in a [`Log`] what passes through it.
#[derive(Debug)]
pub struct Recording {
    inner: Arc<dyn Backend>,
    log: Arc<Log>,
}

impl Recording {
    /// Wraps `inner`; the log starts empty.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, log: Arc::default() }
    }

    /// The log, which outlives the backend.
    pub fn log(&self) -> Arc<Log> {
        self.log.clone()
    }
}

#[async_trait]
impl Backend for Recording {
    fn origin(&self) -> &str {
        self.inner.origin()
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        let entry = self.log.begin(object, None);
        self.inner.stat(object).await.inspect_err(|_| note_failure(&entry))
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        let entry = self.log.begin(object, Some(range.clone()));
        let stream = self.inner.read_range(object, range, options).await.inspect_err(|_| note_failure(&entry))?;
        Ok(noted(stream, entry))
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let entry = self.log.begin(object, None);
        let read = self.inner.read_beginning(object, limit_bytes, known, enough).await;
        Ok(match read.inspect_err(|_| note_failure(&entry))? {
            Beginning::Object { front, rest, validator } => {
                entry.delivered.fetch_add(front.len() as u64, Ordering::Relaxed);
                Beginning::Object { front, rest: noted(rest, entry), validator }
            }
            Beginning::NotModified => Beginning::NotModified,
        })
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

fn noted(stream: ByteStream, entry: Arc<Entry>) -> ByteStream {
    let count = move |piece: &Result<bytes::Bytes>| match piece {
        Ok(piece) => drop(entry.delivered.fetch_add(piece.len() as u64, Ordering::Relaxed)),
        Err(_) => note_failure(&entry),
    };
    stream.inspect(count).boxed()
}

fn note_failure(entry: &Entry) {
    entry.failed.fetch_add(1, Ordering::Relaxed);
}
