//! What is counted: stands in for the server's metrics until they are there.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "RTSP is not counted yet")]
pub(crate) enum Protocol {
    Http,
    Rtsp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Rtsp => "rtsp",
        }
    }
}

/// Why a connection was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    Full,
    Unknown,
    Handshake,
}

/// Something of which the number that there is now counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gauge {
    Watchers,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
}

/// Counters of a server. Clones count together.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<[Counters; 2]>);

/// A connection, or somebody who listens, until it is dropped.
pub(crate) struct Counted(Option<(Metrics, Protocol)>);

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some((metrics, protocol)) = &self.0 {
            metrics.of(*protocol).connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Metrics {
    fn of(&self, protocol: Protocol) -> &Counters {
        &self.0[protocol as usize]
    }

    /// Counts an answer.
    pub(crate) fn request(&self, protocol: Protocol, status: u16, bytes: u64) {
        let counters = self.of(protocol);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        if status >= 400 {
            counters.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection while it lasts.
    pub(crate) fn connection(&self, protocol: Protocol) -> Counted {
        self.of(protocol).connections.fetch_add(1, Ordering::Relaxed);
        Counted(Some((self.clone(), protocol)))
    }

    /// Counts a connection that was not served.
    pub(crate) fn turned_away(&self, _why: Turned) {}

    /// Counts one of these while it lasts.
    pub(crate) fn hold(&self, _gauge: Gauge) -> Counted {
        Counted(None)
    }

    /// Counts clients that were told of a change.
    pub(crate) fn notices(&self, _clients: u64) {}

    /// Counts how long an answer took to begin.
    pub(crate) fn answered_after(&self, _protocol: Protocol, _took: Duration) {}

    /// In Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let families: [(&str, &str, fn(&Counters) -> &AtomicU64); 4] = [
            ("streamfs_server_requests_total", "counter", |c| &c.requests),
            ("streamfs_server_failed_requests_total", "counter", |c| &c.failed),
            ("streamfs_server_sent_bytes_total", "counter", |c| &c.bytes),
            ("streamfs_server_connections", "gauge", |c| &c.connections),
        ];
        for (name, kind, value) in families {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
            for protocol in [Protocol::Http, Protocol::Rtsp] {
                let value = value(self.of(protocol)).load(Ordering::Relaxed);
                let _ = writeln!(text, "{name}{{protocol=\"{}\"}} {value}", protocol.name());
            }
        }
        text
    }
}
