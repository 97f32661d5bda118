//! A backend that can be exchanged while it is used: when credentials change, mounts that exist go on with the new
//! ones.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
};
use crate::error::Result;
use crate::location::PackageVersion;

/// Passes everything on to the backend that is set at present. Reads under way stay with the one they began with.
#[derive(Debug)]
pub struct Swappable {
    /// Of the first backend: all that follow read the same place, only with other credentials.
    origin: String,
    current: RwLock<Arc<dyn Backend>>,
    holds: Arc<Mutex<Holds>>,
}

/// Versions in use, and what says so to the backend that is set.
#[derive(Debug, Default)]
struct Holds {
    next: u64,
    by_number: HashMap<u64, (PackageVersion, Hold)>,
}

/// One of them.
struct Held {
    number: u64,
    holds: Arc<Mutex<Holds>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = self.holds.lock().by_number.remove(&self.number);
        // Not under the lock: it tells a backend.
        drop(held);
    }
}

impl Swappable {
    /// Begins with `first`.
    pub fn new(first: Arc<dyn Backend>) -> Self {
        Self { origin: first.origin().to_owned(), current: RwLock::new(first), holds: Arc::default() }
    }

    /// Uses `next` from now on. It must read the same origin.
    pub fn set(&self, next: Arc<dyn Backend>) {
        *self.current.write() = next.clone();
        for (version, hold) in self.holds.lock().by_number.values_mut() {
            *hold = next.hold(version);
        }
    }

    fn current(&self) -> Arc<dyn Backend> {
        self.current.read().clone()
    }
}

#[async_trait]
impl Backend for Swappable {
    fn origin(&self) -> &str {
        &self.origin
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        self.current().stat(object).await
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        self.current().read_range(object, range, options).await
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        self.current().read_beginning(object, limit_bytes, known, enough).await
    }

    async fn read_beginning_within(
        &self,
        patience: Duration,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        self.current().read_beginning_within(patience, object, limit_bytes, known, enough).await
    }

    fn hold(&self, version: &PackageVersion) -> Hold {
        let mut holds = self.holds.lock();
        let number = holds.next;
        holds.next += 1;
        let hold = self.current().hold(version);
        holds.by_number.insert(number, (version.clone(), hold));
        Hold::until_dropped(Held { number, holds: self.holds.clone() })
    }

    async fn report_launch(&self, report: &LaunchReport) -> Result<()> {
        self.current().report_launch(report).await
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.current().changes()
    }
}
