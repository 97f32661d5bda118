//! How a FUSE connection comes to stand at a directory, and how it leaves.
//!
//! With CAP_SYS_ADMIN the kernel is asked directly (`kernel`); an ordinary user goes through `fusermount3`
//! (`fusermount`). Nothing here ever looks *into* a mount, only at the mount table and at path handles: a mount whose
//! process hangs must not hang the one that wants to remove it.

mod error;
mod fusermount;
mod kernel;
pub(crate) mod table;
mod users;

pub(crate) mod executor;

pub use error::{MountError, Result};
pub use table::{Liveness, MountEntry, clean, is_dead, liveness, streamfs_mounts};
pub use users::using_processes;

use serde::{Deserialize, Serialize};

/// Subtype of every mount of ours: `mount` shows `fuse.streamfs`.
pub const SUBTYPE: &str = "streamfs";

/// What the kernel is told about a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountSpec {
    /// What the mount table shows as source: `package@version`.
    pub(crate) source: String,
    /// Who may use the mount (and, with `allow_other`, whom its files belong to).
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) allow_other: bool,
    /// Whether a directory with something in it may be covered.
    pub(crate) nonempty: bool,
}

/// Paths between supervisor and worker: any bytes, which serde's own form of a path is not.
pub(crate) mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
    }
}
