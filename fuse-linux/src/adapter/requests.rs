//! How many requests of which kind the kernel sent: what a launch costs at the boundary.

use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of requests, as FUSE names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Lookup,
    Forget,
    Getattr,
    Readlink,
    Open,
    Read,
    /// Of those, refused read-ahead.
    DeclinedRead,
    Release,
    Flush,
    Opendir,
    Readdir,
    Readdirplus,
    Statfs,
    Getxattr,
    Listxattr,
    Access,
    Lseek,
}

/// In the order of [`RequestKind`].
const NAMES: [&str; 17] = [
    "lookup",
    "forget",
    "getattr",
    "readlink",
    "open",
    "read",
    "read_declined",
    "release",
    "flush",
    "opendir",
    "readdir",
    "readdirplus",
    "statfs",
    "getxattr",
    "listxattr",
    "access",
    "lseek",
];

/// Counters since the mount was made.
#[derive(Debug, Default)]
pub(crate) struct Requests([AtomicU64; NAMES.len()]);

impl Requests {
    pub(crate) fn count(&self, kind: RequestKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Name and number of every kind.
    pub(crate) fn totals(&self) -> Vec<(&'static str, u64)> {
        NAMES.iter().zip(&self.0).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let requests = Requests::default();
        requests.count(RequestKind::Lookup);
        requests.count(RequestKind::Lseek);
        requests.count(RequestKind::Lseek);
        let counted: Vec<_> = requests.totals().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("lookup", 1), ("lseek", 2)]);
    }
}
