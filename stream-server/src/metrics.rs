//! What is counted: stands in for the server's metrics until they are there.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// A connection, until it is dropped.
pub(crate) struct ConnectionCount(Metrics, Protocol);

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.0.of(self.1).connections.fetch_sub(1, Ordering::Relaxed);
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
    pub(crate) fn connection(&self, protocol: Protocol) -> ConnectionCount {
        self.of(protocol).connections.fetch_add(1, Ordering::Relaxed);
        ConnectionCount(self.clone(), protocol)
    }

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
