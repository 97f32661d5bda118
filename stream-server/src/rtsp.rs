//! RTSP 1.0 and 2.0 (docs/RTSP.md): the same objects as by HTTP, in frames on one connection, and what RTSP adds: sessions
//! of versions, and a server that speaks unasked.
//!
//! ```text
//! dialogue   requests to responses, one after the other; time limits; notices        one task a connection
//!   methods    what each method does
//!   visitor    who asks, and whether they may
//!   sessions   which version, on which channel
//!   describing SDP, validators, what PLAY streams
//! outbox     words and answers that wait, and whose turn it is
//! writing    batches into the socket, the next one read meanwhile
//!   sending    an object's bytes as frames
//! ```
//!
//! Memory of one connection: what arrived of one message ([`REQUEST_LIMITS`]), words that wait (outbox), two batches and the
//! pieces they are from.

mod describing;
mod dialogue;
mod methods;
mod outbox;
mod replies;
mod rtp;
mod sending;
mod sessions;
mod visitor;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use fs_core::backend::rtsp::wire::WireLimits;
use rtsp_types::Version;

use crate::metrics::Protocol;
use crate::{Connection, Shared};

use dialogue::Dialogue;
use outbox::Outbox;
use sending::{Sending, Source};

pub(crate) use sessions::{Use, Uses};

/// What a client may send: a head has room for the largest Kerberos ticket, a body for 256 lines of READ; frames from clients
/// are RTCP.
const REQUEST_LIMITS: WireLimits = WireLimits { head_bytes: 80 << 10, body_bytes: 64 << 10, frame_bytes: 4 << 10 };

/// What a client may still have sent when the server closes the connection, and how long that is waited for.
const UNREAD_MAX_BYTES: u64 = 1 << 20;
const UNREAD_WITHIN: Duration = Duration::from_secs(1);

/// Speaks RTSP on one connection until it ends. `stream` yields first what was read while sniffing.
pub(crate) async fn serve<S>(stream: S, connection: Connection, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = connection.peer;
    let _counted = shared.metrics.connection(protocol(Version::V2_0));
    let (mut read, write) = tokio::io::split(stream);
    let outbox: Arc<Outbox<Sending>> = Arc::default();
    let bucket = shared.limits.client(peer.ip());
    let source = Source::new(shared.clone(), bucket, connection.presence.client().clone());
    let writing = writing::write(write, &outbox, &source);
    tokio::pin!(writing);
    let mut dialogue = Dialogue::new(connection, shared, outbox.clone());
    let written = tokio::select! {
        written = &mut writing => written,
        () = dialogue.run(&mut read) => {
            // What was asked for before the end is sent, unless the client is gone.
            outbox.close();
            writing.await
        }
    };
    if let Err(error) = written {
        // Clients come and go; of interest when looking for something.
        tracing::debug!(%peer, %error, "an RTSP connection ended");
        return;
    }
    // A connection that is closed while something is unread is reset, and what was said last gets lost.
    let mut unread = read.take(UNREAD_MAX_BYTES);
    let _ = tokio::time::timeout(UNREAD_WITHIN, tokio::io::copy(&mut unread, &mut tokio::io::sink())).await;
}

/// For the metrics.
fn protocol(version: Version) -> Protocol {
    match version {
        Version::V1_0 | Version::V2_0 => Protocol::Rtsp,
    }
}

#[cfg(test)]
mod tests;
