//! What every connection needs to serve, and what is known of one, whatever it speaks.

use std::net::SocketAddr;
use std::time::Duration;

use fs_core::backend::LaunchReport;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::{Gate, Presented};
use crate::access_log::{AccessLog, Entry, Event};
use crate::clients::{Clients, Launch, Presence};
use crate::content::{Content, PackagePath};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::notices::Notices;
use crate::rtsp::Uses;

/// One connection.
pub(crate) struct Connection {
    /// Who is at the other end.
    pub(crate) peer: SocketAddr,
    /// Whether nobody between here and there can read along.
    pub(crate) encrypted: bool,
    /// The certificate that was shown, and found to be good.
    pub(crate) certificate: Option<Presented>,
    /// It, among all that are there.
    pub(crate) presence: Presence,
    /// Becomes true when the server is about to end: what runs may finish, nothing new shall begin.
    pub(crate) ending: watch::Receiver<bool>,
}

impl Connection {
    /// Waits until the server is about to end.
    pub(crate) async fn is_ending(&self) {
        // An error means that the server is gone altogether.
        let _ = self.ending.clone().wait_for(|ending| *ending).await;
    }
}

impl Shared {
    /// A client told how long a launch took.
    pub(crate) fn launched(
        &self,
        connection: &Connection,
        user: Option<&str>,
        package: &PackagePath,
        report: LaunchReport,
    ) {
        self.metrics.launched(Duration::from_millis(report.ms));
        let peer = connection.peer.ip();
        self.log.record(Entry {
            user,
            package: Some(package.as_str()),
            version: Some(report.version.as_str()),
            object: report.app.as_deref(),
            ms: Some(report.ms as f64),
            ..Entry::new(Event::Launch, peer, connection.encrypted)
        });
        let (package, user) = (package.clone(), user.map(str::to_owned));
        self.clients.launched(Launch { package, report, user, peer: peer.to_canonical(), when: Instant::now() });
    }
}

/// What all connections have in common.
pub(crate) struct Shared {
    pub(crate) content: Content,
    pub(crate) gate: Gate,
    pub(crate) notices: Notices,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    pub(crate) log: AccessLog,
    pub(crate) clients: Clients,
    /// Which versions sessions are of.
    pub(crate) uses: Uses,
    /// When the server began.
    pub(crate) since: Instant,
}
