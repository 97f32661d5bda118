//! Extended attributes: the published ones, and those with which a mount says what it is.
//!
//! The mount's own are answered when asked for by name and never listed, so that copies and comparisons of trees
//! see what was published.

use bytes::Bytes;
use fs_core::mount::Identity;
use fuser::{Errno, ReplyXattr};

/// An attribute that streamfs answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnAttribute {
    Package,
    Version,
    Descriptor,
    Origin,
    /// Bytes of a file's content that are on this machine, in decimal.
    Cached,
}

impl OwnAttribute {
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"user.streamfs.package" => OwnAttribute::Package,
            b"user.streamfs.version" => OwnAttribute::Version,
            b"user.streamfs.descriptor" => OwnAttribute::Descriptor,
            b"user.streamfs.origin" => OwnAttribute::Origin,
            b"user.streamfs.cached" => OwnAttribute::Cached,
            _ => return None,
        })
    }

    /// The value, if it is the same for the whole mount.
    pub(crate) fn value(self, identity: &Identity) -> Option<&str> {
        match self {
            OwnAttribute::Package => Some(&identity.package),
            OwnAttribute::Version => Some(&identity.version),
            OwnAttribute::Descriptor => Some(&identity.descriptor),
            OwnAttribute::Origin => Some(&identity.origin),
            OwnAttribute::Cached => None,
        }
    }
}

/// The list that `listxattr` returns: each name followed by a NUL.
pub(crate) fn name_list(attributes: &[(Bytes, Bytes)]) -> Vec<u8> {
    let mut list = Vec::with_capacity(attributes.iter().map(|(name, _)| name.len() + 1).sum());
    for (name, _) in attributes {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

/// Answers with `value` into a buffer of `room` bytes; 0 asks how many are needed.
pub(crate) fn reply_value(reply: ReplyXattr, value: &[u8], room: u32) {
    // The kernel allows 64 KiB at most (XATTR_SIZE_MAX), so a longer value fits no buffer anyway.
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if room == 0 {
        reply.size(length);
    } else if length > room {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
