//! One connection: TLS or not, then whatever is spoken.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::rewound::Rewound;
use super::sniff::{Speech, sniff};
use super::unstuck::Unstuck;
use crate::access::Presented;
use crate::http::{HttpTimes, Version};
use crate::metrics::{Protocol, Turned};
use crate::tls::Tls;
use crate::{Connection, Shared, http, rtsp};

/// From connecting to the first request's head, with all of TLS's handshake: no network is so slow.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// What has been connected, and says something only when the server is about to end, has so long for it.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is gone.
const STUCK: Duration = Duration::from_secs(60);
/// An idle connection is asked so often by the system whether the other end is there, and given up after some times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// To who speaks in clear where TLS is demanded.
const TLS_ONLY: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 36\r\nConnection: close\r\n\r\nonly TLS is spoken here: use https:\n";

/// What connections are served with.
pub(crate) struct Desk {
    pub(crate) shared: Arc<Shared>,
    pub(crate) router: Router,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) times: HttpTimes,
    pub(crate) ending: watch::Receiver<bool>,
}

pub(super) async fn attend(desk: &Desk, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = served(desk, stream, peer).await {
        // Port scanners, clients that leave or trust another authority: of interest when looking for something.
        tracing::debug!(%peer, %error, "a connection came to nothing");
    }
}

async fn served(desk: &Desk, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    set_options(&stream);
    let until = Instant::now() + FIRST_REQUEST;
    let mut stream = Unstuck::new(stream, STUCK);
    let metrics = &desk.shared.metrics;
    let sniffed = within(desk, until, sniff(&mut stream)).await.inspect_err(|_| metrics.turned_away(Turned::Unknown));
    let Some((first, speech)) = sniffed? else { return Ok(()) };
    let stream = Rewound::new(first, stream);
    match (&desk.tls, speech) {
        (None, Speech::Tls) => Err(io::Error::other("TLS was spoken, and this server has no certificate")),
        (Some(tls), Speech::Tls) => {
            let shaken = within(desk, until, tls.acceptor().accept(stream)).await;
            let mut stream = shaken.inspect_err(|_| metrics.turned_away(Turned::Handshake))?;
            let certificate = crate::tls::presented(stream.get_ref().1)?;
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice());
            if is_http2 {
                let stream = Rewound::new(bytes::Bytes::new(), stream);
                speak(desk, stream, Speech::Http2, peer, Some(certificate)).await;
                return Ok(());
            }
            let sniffed =
                within(desk, until, sniff(&mut stream)).await.inspect_err(|_| metrics.turned_away(Turned::Unknown));
            let Some((first, speech)) = sniffed? else { return Ok(()) };
            let stream = Rewound::new(first, stream);
            speak(desk, stream, speech, peer, Some(certificate)).await;
            Ok(())
        }
        (Some(tls), _) if tls.is_demanded() => refuse(stream, speech).await,
        (_, speech) => {
            speak(desk, stream, speech, peer, None).await;
            Ok(())
        }
    }
}

/// Serves what is spoken. `certificate` is there on encrypted connections: the client's, if it showed one.
async fn speak<S>(
    desk: &Desk,
    stream: Rewound<S>,
    speech: Speech,
    peer: SocketAddr,
    certificate: Option<Option<Presented>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let encrypted = certificate.is_some();
    let shared = desk.shared.clone();
    let protocol = if speech == Speech::Rtsp { Protocol::Rtsp } else { Protocol::Http };
    let presence = shared.clients.enter(peer.ip(), protocol);
    let (certificate, ending) = (certificate.flatten(), desk.ending.clone());
    let connection = Connection { peer, encrypted, certificate, presence, ending };
    let version = match speech {
        Speech::Rtsp => return rtsp::serve(stream, connection, shared).await,
        // TLS within TLS; HTTP/1.1 has words for nonsense.
        Speech::Tls | Speech::Http1 => Version::One,
        Speech::Http2 => Version::Two,
    };
    http::serve(stream, version, connection, shared, desk.router.clone(), desk.times).await;
}

/// Says to who speaks in clear that they must not.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, speech: Speech) -> io::Result<()> {
    match speech {
        Speech::Http1 => stream.write_all(TLS_ONLY).await?,
        Speech::Rtsp => stream.write_all(b"RTSP/1.0 403 Forbidden\r\nConnection: close\r\n\r\n").await?,
        Speech::Http2 | Speech::Tls => {}
    }
    stream.shutdown().await
}

/// Waits for what comes before the first request: until then, or not much longer than until the server is about to end.
async fn within<T>(desk: &Desk, until: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut ending = desk.ending.clone();
    let late = async {
        // An error means that the server is gone altogether.
        let _ = ending.wait_for(|ending| *ending).await;
        tokio::time::sleep(LAST_REQUEST).await;
    };
    tokio::select! {
        done = timeout_at(until, work) => done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        () = late => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Options of the socket. None of them is needed for correct answers, so one that the system refuses is passed over.
fn set_options(stream: &TcpStream) {
    use rustix::net::sockopt;
    // Answers are small pieces written one after the other; without NODELAY each may wait 40 ms for an acknowledgement.
    let set = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
        Ok(())
    });
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set an option of a socket");
    }
}
