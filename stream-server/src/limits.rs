//! How fast answers may be sent: stands in for the server's limits until they are there. There is none.

use std::net::IpAddr;

/// The limits of a server.
#[derive(Clone, Default)]
pub(crate) struct Limits;

/// What one client may send.
pub(crate) struct Bucket;

impl Limits {
    /// Of the client at `peer`.
    pub(crate) fn client(&self, _peer: IpAddr) -> Bucket {
        Bucket
    }
}

impl Bucket {
    /// Waits until so many bytes may be sent.
    pub(crate) async fn take(&self, _bytes: u64) {}
}
