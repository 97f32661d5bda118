//! Answers on their way: how many a connection has, and what was sent of each.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use fs_core::backend::ObjectPath;

use super::Told;
use crate::access_log::{Entry, Event, millis};
use crate::metrics::Protocol;
use crate::{Connection, Shared};

/// How busy one connection is.
pub(super) struct Activity(Mutex<(usize, Instant)>);

/// An answer under way, until it is dropped.
pub(super) struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        *state = (state.0 - 1, Instant::now());
    }
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((0, Instant::now()))))
    }

    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.0.lock().0 += 1;
        Running(self.clone())
    }

    /// Waits until nothing has run for so long.
    pub(super) async fn idle(&self, longest: Duration) {
        loop {
            let (running, since) = *self.0.lock();
            let left = if running > 0 { longest } else { longest.saturating_sub(since.elapsed()) };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A body that counts what is taken from it, and tells the metrics at its end, whichever that is.
pub(super) struct Counted {
    pub(super) body: Body,
    pub(super) status: u16,
    pub(super) sent_bytes: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    pub(super) method: Method,
    pub(super) told: Option<Told>,
    pub(super) begun: Instant,
    pub(super) _running: Running,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.metrics.request(Protocol::Http, self.status, self.sent_bytes);
        let told = self.told.as_ref();
        self.shared.log.record(Entry {
            protocol: Some(Protocol::Http),
            user: told.and_then(|told| told.user.as_deref()),
            package: told.map(|told| told.package.as_str()),
            method: Some(self.method.as_str()),
            object: told.and_then(|told| told.object.as_ref()).map(ObjectPath::as_str),
            status: Some(self.status),
            bytes: Some(self.sent_bytes),
            ms: Some(millis(self.begun.elapsed())),
            ..Entry::new(Event::Request, self.connection.peer.ip(), self.connection.encrypted)
        });
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.sent_bytes += data.len() as u64;
            self.connection.presence.client().sent(data.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
