//! Small reads and beginnings for somebody who has something to fall back on, and shall not wait long for it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
};
use crate::error::Result;
use crate::location::PackageVersion;

/// Gives up each of these reads after `patience`, and almost at once where the origin refuses to be reached at all.
#[derive(Debug)]
pub struct Hurried {
    inner: Arc<dyn Backend>,
    patience: Duration,
}

impl Hurried {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Backend>, patience: Duration) -> Self {
        Self { inner, patience }
    }
}

#[async_trait]
impl Backend for Hurried {
    fn origin(&self) -> &str {
        self.inner.origin()
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        self.inner.stat(object).await
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        self.inner.read_range(object, range, options).await
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        self.inner.read_beginning_within(self.patience, object, limit_bytes, known, enough).await
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
