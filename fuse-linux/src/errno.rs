//! Which errno an application gets for each kind of failure.

use fs_core::ErrorKind;
use fuser::Errno;

/// The errno for a failure while answering the kernel.
///
/// Only what the caller itself did wrong has a speaking errno. Whatever the origin, the network or the cache did
/// wrong is `EIO`, also where a closer word exists:
///
/// - [`ErrorKind::NotFound`] says that a *stored object* is missing at the origin. A name that is not in the tree is
///   a successful look-up without a result, never this error. `ENOENT` for a lost pack would let a program that
///   searches several places quietly take a file from somewhere else.
/// - [`ErrorKind::Denied`] says that the origin no longer lets this machine in. `EACCES` would point the user at the
///   file's mode, and searches (`PATH`, module paths) pass over it as quietly.
///
/// The reason itself goes to the log.
pub fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::NotADirectory => Errno::ENOTDIR,
        ErrorKind::IsADirectory => Errno::EISDIR,
        ErrorKind::NoSuchAttribute => Errno::ENODATA,
        ErrorKind::InvalidInput => Errno::EINVAL,
        ErrorKind::Cancelled => Errno::EINTR,
        ErrorKind::NotFound
        | ErrorKind::Unreachable
        | ErrorKind::TimedOut
        | ErrorKind::Denied
        | ErrorKind::BadAnswer
        | ErrorKind::Damaged
        | ErrorKind::Untrusted
        | ErrorKind::Busy
        | ErrorKind::Unsupported
        | ErrorKind::Local => Errno::EIO,
    }
}

/// Whether a failure of this kind says something about the mount rather than about the caller's request, and so
/// belongs in the log.
pub(crate) fn is_worth_reporting(kind: ErrorKind) -> bool {
    errno(kind).code() == libc::EIO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_documented_errno() {
        let table = [
            (ErrorKind::NotFound, libc::EIO),
            (ErrorKind::NotADirectory, libc::ENOTDIR),
            (ErrorKind::IsADirectory, libc::EISDIR),
            (ErrorKind::NoSuchAttribute, libc::ENODATA),
            (ErrorKind::Unreachable, libc::EIO),
            (ErrorKind::TimedOut, libc::EIO),
            (ErrorKind::Denied, libc::EIO),
            (ErrorKind::BadAnswer, libc::EIO),
            (ErrorKind::Damaged, libc::EIO),
            (ErrorKind::Untrusted, libc::EIO),
            (ErrorKind::InvalidInput, libc::EINVAL),
            (ErrorKind::Busy, libc::EIO),
            (ErrorKind::Unsupported, libc::EIO),
            (ErrorKind::Local, libc::EIO),
            (ErrorKind::Cancelled, libc::EINTR),
        ];
        for (kind, code) in table {
            assert_eq!(errno(kind).code(), code, "{kind:?}");
        }
    }
}
