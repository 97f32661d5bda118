//! Serves a content root to streamfs clients: HTTP/1.1, HTTP/2 and RTSP on one port, in clear and by TLS.
//!
//! ```text
//! listen     connections: how many, what they speak, how they end          tls   certificates
//! http       requests to answers: objects, notices, a first launch         rtsp  the same in RTSP's words
//! content    what is served: packages and their objects, from a folder or from elsewhere
//! notices    what changed
//! access     who may                limits   how fast                      metrics  how much
//! ```
//!
//! A general file server gets some things wrong that this one is for: headers that let every cache on the way keep
//! immutable objects for ever and keep no signed pointer at all, notices of new versions, an end that lets running
//! transfers finish, limits that hold against clients who mean no good.
//!
//! It believes nothing of what it serves, and clients believe nothing for its serving it: packages are signed. It holds
//! no state that must survive it, so there can be any number of them for one content root.
//!
//! ```no_run
//! # async fn example() -> Result<(), stream_server::ServeError> {
//! let settings = stream_server::ServerSettings::new("/srv/content", "127.0.0.1:0");
//! let server = stream_server::Server::bind(settings).await?;
//! println!("{}", server.address());
//! server.run(async { /* until this ends */ }).await
//! # }
//! ```

mod content;
mod leases;
mod listen;
mod notices;
mod serving;
mod settings;
mod tls;

mod http;
mod rtsp;

mod access;
mod access_log;
mod clients;
mod limits;
mod metrics;

#[doc(hidden)]
pub mod fuzzing;

#[cfg(test)]
mod stage;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::watch;

pub use access::{AccessError, PasswordFile, PasswordFileError, Secret};
pub use access_log::LogTarget;
pub use content::ContentRoot;
pub use limits::LimitSettings;
pub use listen::activated;
pub use settings::ServerSettings;
pub use tls::{CertificateSource, TlsSettings};

pub(crate) use serving::{Connection, Shared};

use access::Gate;
use access_log::AccessLog;
use clients::Clients;
use content::Content;
use http::HttpTimes;
use limits::Limits;
use listen::{ConnectionLimits, Desk, Listening};
use metrics::Metrics;
use notices::Notices;
use tls::Tls;

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The content root cannot be served.
    #[error(transparent)]
    Content(#[from] fs_core::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as given.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Nothing says where to listen.
    #[error("there is nothing to listen on; name an address, for example --listen 0.0.0.0:8080")]
    NoAddress,
    /// What a service manager handed over is not a socket that listens.
    #[error("cannot use descriptor {descriptor}, which the service manager handed over: {reason}")]
    Activation {
        /// Its number.
        descriptor: i32,
        /// What it is instead, and what to do.
        reason: String,
    },
    /// The certificate or key cannot be used.
    #[error("cannot use {} for TLS: {reason}", path.as_deref().map_or("this machine's cryptography".into(), |path| path.display().to_string()))]
    Tls {
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// Why.
        reason: String,
    },
    /// The access file, or a file that it names, cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The access log cannot be written.
    #[error("cannot write the access log{}: {source}", path.as_deref().map_or(String::new(), |path| format!(" {}", path.display())))]
    AccessLog {
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// The system's error.
        source: std::io::Error,
    },
    /// Taking connections failed for good.
    #[error("serving ended: {0}")]
    Serve(std::io::Error),
}

/// A server that holds its addresses, and serves once it is run.
pub struct Server {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    settings: ServerSettings,
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
}

/// Lets a server that runs use changed settings. Clones are for the same server.
#[derive(Clone)]
pub struct Reloader {
    tls: Option<Arc<Tls>>,
    shared: Arc<Shared>,
    access: Option<PathBuf>,
}

impl Server {
    /// Checks the settings and takes the addresses.
    ///
    /// # Errors
    /// [`ServeError`], naming what cannot be used.
    pub async fn bind(settings: ServerSettings) -> Result<Self, ServeError> {
        let content = Content::new(settings.content.clone())?;
        let tls = settings.tls.as_ref().map(Tls::load).transpose()?.map(Arc::new);
        let mut listeners = Vec::new();
        for address in &settings.listen {
            listeners.push(listen::bind(address).await?);
        }
        for socket in &settings.sockets {
            listeners.push(taken(socket)?);
        }
        if listeners.is_empty() {
            return Err(ServeError::NoAddress);
        }
        let addresses = listeners
            .iter()
            .map(|listener| listener.local_addr())
            .collect::<Result<_, _>>()
            .map_err(|source| ServeError::Listen { address: "its socket".to_owned(), source })?;
        let metrics = Metrics::default();
        let log = AccessLog::open(settings.access_log.clone(), metrics.clone()).map_err(|source| {
            let path = match &settings.access_log {
                LogTarget::File(path) => Some(path.clone()),
                LogTarget::Off | LogTarget::StandardOutput => None,
            };
            ServeError::AccessLog { path, source }
        })?;
        let gate = match &settings.access {
            Some(path) => Gate::open(path, Some(content.clone()), metrics.clone(), log.clone())?,
            None => Gate::open_to_all(),
        };
        let shared = Arc::new(Shared {
            content,
            gate,
            notices: Notices::new(),
            limits: Limits::new(settings.limits, metrics.clone()),
            metrics,
            log,
            clients: Clients::default(),
            uses: rtsp::Uses::default(),
            since: Instant::now(),
        });
        Ok(Self { listeners, addresses, settings, shared, tls })
    }

    /// The first address that is listened on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        // There is at least one: `bind` saw to it.
        self.addresses[0]
    }

    /// All addresses that are listened on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// For changing settings while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader { tls: self.tls.clone(), shared: self.shared.clone(), access: self.settings.access.clone() }
    }

    /// Serves until `end` completes, then lets what runs finish for at most the drain deadline.
    ///
    /// # Errors
    /// [`ServeError::Serve`] if a listener breaks.
    pub async fn run(self, end: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let (ending, is_ending) = watch::channel(false);
        let ServerSettings { poll_interval, connections, connections_per_address, .. } = self.settings;
        let _leasing = leases::start(&self.shared);
        let _noticing = self.shared.notices.start(self.shared.content.clone(), poll_interval);
        let log = self.shared.log.clone();
        let desk = Desk {
            router: http::router(self.shared.clone()),
            shared: self.shared,
            tls: self.tls.clone(),
            times: HttpTimes { idle: self.settings.idle_timeout },
            ending: is_ending,
        };
        let limits = ConnectionLimits { connections, per_address: connections_per_address };
        let serving = Listening::new(self.listeners, limits).run(desk, ending, end, self.settings.drain_deadline);
        let following = async {
            match &self.tls {
                Some(tls) => tls.follow_files().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = serving => ended,
            () = following => Ok(()),
        };
        // An error would mean that it panicked, and said so.
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
        ended
    }
}

impl Reloader {
    /// Uses what of `settings` can change while the server runs: its certificate, authorities of clients, whether TLS is
    /// demanded, and what the access file says. The access log is opened anew. What cannot be used stays as it was.
    ///
    /// # Errors
    /// [`ServeError::Tls`], [`ServeError::Access`].
    pub fn reload(&self, settings: &ServerSettings) -> Result<(), ServeError> {
        self.shared.log.reopen();
        if settings.access != self.access {
            tracing::warn!("another access file needs a restart");
        }
        self.shared.gate.reload()?;
        match (&self.tls, &settings.tls) {
            (Some(tls), Some(settings)) => tls.reload(settings),
            (None, None) => Ok(()),
            (None, Some(_)) | (Some(_), None) => {
                tracing::warn!("switching TLS on or off needs a restart");
                Ok(())
            }
        }
    }
}

/// A socket that somebody else opened.
fn taken(socket: &Arc<StdListener>) -> Result<TcpListener, ServeError> {
    let listen = || {
        // The settings keep theirs: they can be cloned, and a socket cannot be moved out of them.
        let own = socket.try_clone()?;
        own.set_nonblocking(true)?;
        TcpListener::from_std(own)
    };
    listen().map_err(|source| ServeError::Listen { address: "a socket of the service manager".to_owned(), source })
}
