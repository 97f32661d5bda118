//! Profiles: recordings of what starting an application asks of a mount.
//!
//! A profile is text: one JSON object a line, the first one the header, then what was asked, in order of first use.
//! It speaks of paths, not of nodes or blocks, so it fits every version of the package that has those paths.
//!
//! ```text
//! {"streamfs_profile":1,"package":"calc","version":"7.2","name":"calc"}
//! {"t":0,"lookup":"/bin"}
//! {"t":310,"lookup":"/bin/calc"}
//! {"t":702,"read":"/bin/calc","at":0,"bytes":4096}
//! {"t":911,"list":"/lib"}
//! {"t":1204,"lookup":"/lib/absent.so"}
//! ```
//!
//! `t` is in microseconds since the recording began. Paths begin with `/`, the root of the version; one that is not
//! UTF-8 is written `{"hex":"2f62..."}`. Readers ignore fields that they do not know.

use bytes::Bytes;

/// Newest profile format that this program writes and reads.
pub const PROFILE_FORMAT: u64 = 1;

/// What is known of a recording as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileHeader {
    /// The package that was mounted.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Which application this is the start of; names the launch set.
    pub name: String,
}

/// Something that was asked of the mount for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileEvent {
    /// Microseconds since the recording began.
    pub at_micros: u64,
    /// Path from the version's root, beginning with `/`; any bytes but NUL.
    pub path: Bytes,
    /// What was asked of it.
    pub use_: Use,
}

/// What was asked of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// It was looked up, found or not.
    Lookup,
    /// It was listed.
    List,
    /// Its link target was read.
    ReadLink,
    /// Its extended attributes were read.
    Xattrs,
    /// These bytes were read.
    Read {
        /// From where, bytes.
        offset: u64,
        /// How many.
        length: u64,
    },
}

/// A recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What it is a recording of.
    pub header: ProfileHeader,
    /// In order of first use.
    pub events: Vec<ProfileEvent>,
}
