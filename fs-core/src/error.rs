//! The one error type of the core.
//!
//! A message says what was tried, on what, why it failed and, where there is something to do, what to do. The
//! closed [`ErrorKind`] is what adapters and exit codes are chosen by.

use std::time::Duration;

/// Result of a core operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, in terms that a platform adapter can translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A name, package, version or stored object does not exist.
    NotFound,
    /// A directory was needed.
    NotADirectory,
    /// Something other than a directory was needed.
    IsADirectory,
    /// The attribute or link asked for does not exist on this node.
    NoSuchAttribute,
    /// The origin cannot be reached or broke off.
    Unreachable,
    /// A deadline passed.
    TimedOut,
    /// The origin refused access.
    Denied,
    /// The origin answered, but not as the protocol demands.
    BadAnswer,
    /// Stored or fetched bytes are not what was published.
    Damaged,
    /// Signed metadata was refused.
    Untrusted,
    /// The caller's input cannot be used.
    InvalidInput,
    /// Somebody else holds what is needed.
    Busy,
    /// This build, system or format version cannot do it.
    Unsupported,
    /// The local system failed (disk, memory, descriptors).
    Local,
    /// The work was interrupted on purpose.
    Cancelled,
}

/// An error of the core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An object, package or version is absent at the origin.
    #[error("{what} does not exist at {origin}")]
    NotFound {
        /// The object's path or the package's or version's name.
        what: String,
        /// The origin, without credentials.
        origin: String,
    },
    /// The origin cannot be reached or the transfer broke.
    #[error("cannot fetch {object} from {origin}: {reason}")]
    Unreachable {
        /// The object's path within the package.
        object: String,
        /// The origin, without credentials.
        origin: String,
        /// Why, in words.
        reason: String,
    },
    /// The origin is there but asks to come back later.
    #[error("cannot fetch {object} from {origin}: {reason}")]
    Overloaded {
        /// The object's path within the package.
        object: String,
        /// The origin, without credentials.
        origin: String,
        /// The status.
        reason: String,
        /// When to come back, as the origin said.
        retry_after: Duration,
    },
    /// A deadline passed while waiting for the origin.
    #[error("fetching {object} from {origin} did not finish within {}", human_duration(*.after))]
    TimedOut {
        /// The object's path within the package.
        object: String,
        /// The origin, without credentials.
        origin: String,
        /// How long was waited.
        after: Duration,
    },
    /// The origin refused access.
    #[error(
        "{origin} refuses access to {object} ({reason}); check the credentials (STREAMFS_TOKEN, or STREAMFS_HTTP_USER and STREAMFS_HTTP_PASSWORD, or the configuration file)"
    )]
    Denied {
        /// The object's path within the package.
        object: String,
        /// The origin, without credentials.
        origin: String,
        /// The status or message.
        reason: String,
    },
    /// The origin answered with something that cannot be the object's bytes.
    #[error("{origin} gave an unusable answer for {object}: {reason}")]
    BadAnswer {
        /// The object's path within the package.
        object: String,
        /// The origin, without credentials.
        origin: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A server does not store what was to be published.
    #[error("{origin} does not take {what}: {reason}")]
    NotTaken {
        /// The object's path within the package.
        what: String,
        /// The origin, without credentials.
        origin: String,
        /// The status, and the server's words.
        reason: String,
    },
    /// A server does not make metadata visible, because it does not fit what is there.
    #[error("{origin} does not take the new metadata, and nothing of this publication is visible: {reason}")]
    Incomplete {
        /// The origin, without credentials.
        origin: String,
        /// The status, and the server's words.
        reason: String,
    },
    /// Bytes differ from what was published.
    #[error("{object} is damaged: {reason}")]
    Damaged {
        /// The stored object, and where it stands in it.
        object: String,
        /// What does not fit.
        reason: String,
    },
    /// Signed metadata was refused.
    #[error("the signed metadata of {package} is not trusted: {reason}")]
    Untrusted {
        /// The package's location.
        package: String,
        /// Which file, and why.
        reason: String,
        /// What the verifier said.
        #[source]
        source: Option<Source>,
    },
    /// The stored format is newer than this program.
    #[error("{what} has format {found}, this program reads up to {supported}; install a newer streamfs")]
    UnsupportedFormat {
        /// Which object.
        what: String,
        /// Its version.
        found: u64,
        /// The newest version readable here.
        supported: u64,
    },
    /// The caller's input cannot be used.
    #[error("{0}")]
    InvalidInput(String),
    /// A node was used as a directory.
    #[error("node {0} is not a directory")]
    NotADirectory(u64),
    /// A directory was used as a file.
    #[error("node {0} is a directory")]
    IsADirectory(u64),
    /// The node has no such attribute or link.
    #[error("node {0} has no such attribute")]
    NoSuchAttribute(u64),
    /// Somebody else holds it.
    #[error("{what} is in use: {reason}")]
    Busy {
        /// What is held.
        what: String,
        /// By whom, and what to do.
        reason: String,
    },
    /// A local operation failed.
    #[error("cannot {action} {path}: {source}")]
    Local {
        /// A verb: "open", "write".
        action: &'static str,
        /// The local path.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// What must be kept has no room in the cache.
    #[error("cannot keep {what} on this machine: {reason}")]
    NoRoom {
        /// What was to be kept.
        what: String,
        /// How much room there is, and what to do.
        reason: String,
    },
    /// The system cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// Interrupted on purpose.
    #[error("interrupted")]
    Cancelled,
    /// An error that several waiters of one fetch share.
    #[error("{0}")]
    Shared(std::sync::Arc<Error>),
}

impl Error {
    /// A local failure of `action` on `path`.
    pub fn local(action: &'static str, path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Error::Local { action, path: path.as_ref().display().to_string(), source }
    }

    /// Damage found in `object`.
    pub fn damaged(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Damaged { object: object.into(), reason: reason.into() }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::Unreachable { .. } | Error::Overloaded { .. } => ErrorKind::Unreachable,
            Error::TimedOut { .. } => ErrorKind::TimedOut,
            Error::Denied { .. } | Error::NotTaken { .. } => ErrorKind::Denied,
            Error::BadAnswer { .. } => ErrorKind::BadAnswer,
            Error::Damaged { .. } => ErrorKind::Damaged,
            Error::Untrusted { .. } => ErrorKind::Untrusted,
            Error::UnsupportedFormat { .. } | Error::Unsupported(_) => ErrorKind::Unsupported,
            Error::InvalidInput(_) => ErrorKind::InvalidInput,
            Error::NotADirectory(_) => ErrorKind::NotADirectory,
            Error::IsADirectory(_) => ErrorKind::IsADirectory,
            Error::NoSuchAttribute(_) => ErrorKind::NoSuchAttribute,
            Error::Busy { .. } | Error::Incomplete { .. } => ErrorKind::Busy,
            Error::Local { .. } | Error::NoRoom { .. } => ErrorKind::Local,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Shared(inner) => inner.kind(),
        }
    }
}

fn human_duration(d: Duration) -> String {
    if d >= Duration::from_secs(1) { format!("{} s", d.as_secs()) } else { format!("{} ms", d.as_millis()) }
}
