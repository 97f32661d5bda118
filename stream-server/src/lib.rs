//! Serves a content root to streamfs clients over HTTP/1.1 and HTTP/2 (prior knowledge, in clear).
//!
//! Everything in a content root is plain files, so this is a static file server with what such a client needs and a
//! general one gets wrong: byte ranges and conditional requests, headers that let every cache on the way keep
//! immutable objects for ever and keep no signed pointer at all, no directory listings, no hidden files, and an end
//! that lets running transfers finish.
//!
//! It does not look into the objects and holds no state about clients. It offers neither TLS nor RTSP yet: put it
//! behind a web server where clients are not on the same machine or a trusted network.
//!
//! ```no_run
//! # async fn example() -> Result<(), stream_server::ServeError> {
//! let server = stream_server::Server::bind(stream_server::ServerSettings {
//!     content_dir: "/srv/content".into(),
//!     listen: "127.0.0.1:0".to_owned(),
//!     drain_deadline: std::time::Duration::from_secs(30),
//! })
//! .await?;
//! println!("{}", server.address());
//! server.run(async { /* until this ends */ }).await
//! # }
//! ```

// What the listening side does not use yet.
#[allow(dead_code, unused_imports)]
mod access;
#[allow(dead_code)]
mod access_log;
#[allow(dead_code)]
mod content;
mod files;
#[allow(dead_code)]
mod limits;
#[allow(dead_code)]
mod metrics;

#[doc(hidden)]
pub mod fuzzing;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;

pub use access::{AccessError, PasswordFile, PasswordFileError, Secret};
pub use access_log::LogTarget;
pub use limits::LimitSettings;

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The content root.
    pub content_dir: PathBuf,
    /// `HOST:PORT`; port 0 takes a free one.
    pub listen: String,
    /// How long running transfers may take to finish once the end was asked for.
    pub drain_deadline: Duration,
}

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The content root is not a readable folder.
    #[error("cannot serve {path}: {source}", path = path.display())]
    ContentDir {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as given.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Accepting failed for good.
    #[error("serving ended: {0}")]
    Serve(std::io::Error),
}

/// A server that holds its port, and serves once it is run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: ServerSettings,
}

impl Server {
    /// Checks the content root and takes the port.
    ///
    /// # Errors
    /// [`ServeError`], naming the folder or the address.
    pub async fn bind(mut settings: ServerSettings) -> Result<Self, ServeError> {
        let content_error = |source| ServeError::ContentDir { path: settings.content_dir.clone(), source };
        // Resolved once, so that a link exchanged later does not change what is served.
        let resolved = std::fs::canonicalize(&settings.content_dir).map_err(content_error)?;
        std::fs::read_dir(&resolved).map_err(content_error)?;
        let listen_error = |source| ServeError::Listen { address: settings.listen.clone(), source };
        let listener = TcpListener::bind(&settings.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        settings.content_dir = resolved;
        Ok(Self { listener, address, settings })
    }

    /// The address that is listened on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `end` completes, then lets running requests finish for at most the drain deadline.
    ///
    /// # Errors
    /// [`ServeError::Serve`] if the listener breaks.
    pub async fn run(self, end: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        // Answers are small pieces written one after the other; without NODELAY each may wait 40 ms for an
        // acknowledgement.
        let listener = self.listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot switch Nagle's algorithm off");
            }
        });
        let (ended, mut end_seen) = tokio::sync::watch::channel(false);
        let served =
            axum::serve(listener, files::router(&self.settings.content_dir)).with_graceful_shutdown(async move {
                end.await;
                ended.send_replace(true);
            });
        let drain_deadline = self.settings.drain_deadline;
        let overdue = async move {
            // An error means that the sender is gone, and with it the server: the other branch ends the wait.
            if end_seen.wait_for(|seen| *seen).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(drain_deadline).await;
        };
        tokio::select! {
            result = served => result.map_err(ServeError::Serve),
            () = overdue => {
                tracing::warn!(seconds = drain_deadline.as_secs(), "transfers did not finish in time and were cut off");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
