//! What to serve, where, and within what limits.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::{ContentRoot, LimitSettings, LogTarget, TlsSettings};

/// A pack of some hundred MB on a slow line.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
/// Some thousand clients with two connections each.
const CONNECTIONS: u32 = 10_000;
/// An office behind one address, or a load balancer.
const CONNECTIONS_PER_ADDRESS: u32 = 5_000;
/// Longer than clients keep a connection for another request, most of them for a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// What to serve, where, and within what limits.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The content root.
    pub content: ContentRoot,
    /// Addresses to listen on, each `HOST:PORT`; port 0 takes a free one.
    pub listen: Vec<String>,
    /// Sockets that listen already, beside those.
    pub sockets: Vec<Arc<TcpListener>>,
    /// TLS, if it is spoken.
    pub tls: Option<TlsSettings>,
    /// File that says who may read and publish what; without one everybody may read everything, and nobody publish.
    pub access: Option<PathBuf>,
    /// Where it is written down who was sent what.
    pub access_log: LogTarget,
    /// How fast clients are served.
    pub limits: LimitSettings,
    /// How long running transfers may take to finish once the end was asked for.
    pub drain_deadline: Duration,
    /// Most connections at a time; at least 1.
    pub connections: u32,
    /// Most connections at a time from one address; at least 1.
    pub connections_per_address: u32,
    /// A connection without requests is closed after this long.
    pub idle_timeout: Duration,
    /// How often the content root is looked through where the system does not tell of changes; by default, often enough.
    pub poll_interval: Option<Duration>,
}

impl ServerSettings {
    /// The folder `content` on one address, everything else as usual.
    pub fn new(content: impl Into<PathBuf>, listen: impl Into<String>) -> Self {
        Self {
            content: ContentRoot::Folder(content.into()),
            listen: vec![listen.into()],
            sockets: Vec::new(),
            tls: None,
            access: None,
            access_log: LogTarget::Off,
            limits: LimitSettings::default(),
            drain_deadline: DRAIN_DEADLINE,
            connections: CONNECTIONS,
            connections_per_address: CONNECTIONS_PER_ADDRESS,
            idle_timeout: IDLE_TIMEOUT,
            poll_interval: None,
        }
    }
}
