//! Why mounting, remounting or unmounting failed.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Result of a mounting operation.
pub type Result<T, E = MountError> = std::result::Result<T, E>;

/// Why mounting, remounting or unmounting failed. It can be sent between supervisor and worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MountError {
    /// The helper for ordinary users is not installed.
    #[error("cannot mount as an ordinary user: fusermount3 is not installed (Debian and Ubuntu: package fuse3)")]
    FusermountMissing,
    /// The kernel has no FUSE, or the container hides it.
    #[error(
        "cannot mount: /dev/fuse is missing (load the module with `modprobe fuse`, or give the container the device)"
    )]
    DeviceMissing,
    /// The directory does not exist.
    #[error("cannot mount on {}: it does not exist; create it first", .dir.display())]
    NoDirectory {
        /// Where it was to be mounted.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
    },
    /// Something other than a directory is there.
    #[error("cannot mount on {}: it is not a directory", .dir.display())]
    NotADirectory {
        /// Where it was to be mounted.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
    },
    /// The directory has something in it, which the mount would hide.
    #[error("cannot mount on {}: it is not empty", .dir.display())]
    NotEmpty {
        /// Where it was to be mounted.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
    },
    /// Something is mounted there already.
    #[error("cannot mount on {}: {what} is mounted there already", .dir.display())]
    AlreadyMounted {
        /// Where it was to be mounted.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
        /// Source and type of what is there.
        what: String,
    },
    /// A mount of a process that died is there.
    #[error("cannot mount on {}: a mount of a streamfs that died is still there; remove it with `streamfs unmount`", .dir.display())]
    Stale {
        /// Where it was to be mounted.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
    },
    /// Our mount is not, or no longer, what is seen at the directory.
    #[error("{} does not show this mount (any longer)", .dir.display())]
    NotMounted {
        /// Where it was expected.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
    },
    /// The user may not do it.
    #[error("no permission to {action} {}: {reason}", .dir.display())]
    NotPermitted {
        /// A verb: "mount on", "unmount".
        action: String,
        /// The directory.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Somebody uses the mount.
    #[error("{} is in use{}; end them, or add --lazy", .dir.display(), by(.users))]
    Busy {
        /// The directory.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
        /// Up to five processes, as "name (pid)"; those of other users may be missing.
        users: Vec<String>,
    },
    /// The system cannot do it.
    #[error("{what}")]
    Unsupported {
        /// What, and what to do.
        what: String,
    },
    /// The supervisor, or the peer of its socket, gave a useless answer.
    #[error("the supervisor does not answer as expected: {reason}")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
    /// Anything else that the system refused.
    #[error("cannot {action} {}: {reason}", .dir.display())]
    System {
        /// A verb.
        action: String,
        /// The directory.
        #[serde(with = "crate::mounting::path_bytes")]
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
}

fn by(users: &[String]) -> String {
    if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) }
}

impl MountError {
    /// Sorts a system error of `action` on `dir`.
    pub(crate) fn system(action: &str, dir: &Path, error: impl Into<io::Error>) -> Self {
        let error: io::Error = error.into();
        let (action, dir, reason) = (action.to_owned(), dir.to_owned(), error.to_string());
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => MountError::NotPermitted { action, dir, reason },
            _ => MountError::System { action, dir, reason },
        }
    }
}
