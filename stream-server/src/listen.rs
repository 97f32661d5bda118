//! Taking connections: how many at a time and from whom, what they speak, and how they end.
//!
//! One port is for everything. The first bytes of a connection tell TLS from clear text, and what is in it HTTP/1.1 from
//! HTTP/2 from RTSP. Each step has its time; a connection that says nothing, or dribbles, is closed.

mod activated;
mod connection;
mod peers;
mod rewound;
mod sniff;
mod unstuck;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::ServeError;
use crate::metrics::Turned;

pub use activated::activated;
pub(crate) use connection::Desk;

use peers::Peers;

/// Pause after the system had nothing left for another connection: descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `address`, a `HOST:PORT`.
pub(crate) async fn bind(address: &str) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen { address: address.to_owned(), source };
    TcpListener::bind(address).await.map_err(failed)
}

/// What limits connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// At a time, at least 1.
    pub(crate) connections: u32,
    /// At a time from one address, at least 1.
    pub(crate) per_address: u32,
}

/// Everything that listens, and what is connected.
pub(crate) struct Listening {
    listeners: Vec<TcpListener>,
    limits: ConnectionLimits,
}

impl Listening {
    pub(crate) fn new(listeners: Vec<TcpListener>, limits: ConnectionLimits) -> Self {
        Self { listeners, limits }
    }

    /// Takes connections until `end` completes; then no more, and lets those that there are finish for at most `drain`.
    pub(crate) async fn run(
        self,
        desk: Desk,
        ending: watch::Sender<bool>,
        end: impl Future<Output = ()>,
        drain: Duration,
    ) -> Result<(), ServeError> {
        let desk = Arc::new(desk);
        let peers = Peers::new(self.limits.per_address);
        let room = Arc::new(Semaphore::new(self.limits.connections as usize));
        // What is overdue at the end is dropped by it.
        let (cut, is_cut) = watch::channel(false);
        let mut accepting: JoinSet<io::Result<()>> = JoinSet::new();
        for listener in self.listeners {
            let (desk, peers, room, is_cut) = (desk.clone(), peers.clone(), room.clone(), is_cut.clone());
            accepting.spawn(async move {
                loop {
                    // Whoever comes when all places are taken waits with the system, which has room for some more.
                    let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
                    let (stream, peer) = accept(&listener).await?;
                    let Some(from) = peers.enter(peer.ip()) else {
                        tracing::debug!(%peer, "too many connections from there");
                        desk.shared.metrics.turned_away(Turned::Full);
                        continue;
                    };
                    tokio::spawn(attend(desk.clone(), stream, peer, (place, from), is_cut.clone()));
                }
            });
        }
        tokio::select! {
            () = end => {}
            Some(broken) = accepting.join_next() => {
                // Accepting does not panic, and nobody aborted it.
                return broken.unwrap_or(Ok(())).map_err(ServeError::Serve);
            }
        }
        // Closes the sockets: who connects from now on is refused, or taken by whoever has the address next.
        accepting.shutdown().await;
        ending.send_replace(true);
        // All places are free when the last connection has ended.
        let ended = room.acquire_many(self.limits.connections);
        if tokio::time::timeout(drain, ended).await.is_err() {
            let running = self.limits.connections as usize - room.available_permits();
            tracing::warn!(running, after = ?drain, "connections did not end in time and were cut off");
            cut.send_replace(true);
        }
        Ok(())
    }
}

/// The next connection. What only concerns one that failed, or passes, is passed over.
async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let error = match listener.accept().await {
            Ok(accepted) => return Ok(accepted),
            Err(error) => error,
        };
        match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::BADF | rustix::io::Errno::INVAL | rustix::io::Errno::NOTSOCK) => return Err(error),
            Some(
                rustix::io::Errno::MFILE
                | rustix::io::Errno::NFILE
                | rustix::io::Errno::NOBUFS
                | rustix::io::Errno::NOMEM,
            ) => {
                tracing::error!(%error, "cannot take a connection; raise the limit of open files, or lower that of connections");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            // The client has left already, or its network has.
            _ => tracing::debug!(%error, "a connection was lost before it was taken"),
        }
    }
}

/// One connection, until it ends or is cut off. `_places` are free again then.
async fn attend(
    desk: Arc<Desk>,
    stream: TcpStream,
    peer: SocketAddr,
    _places: (OwnedSemaphorePermit, peers::Entered),
    mut is_cut: watch::Receiver<bool>,
) {
    tokio::select! {
        () = connection::attend(&desk, stream, peer) => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}

#[cfg(test)]
mod tests;
